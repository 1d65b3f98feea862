"""Opens the CSV and parquet files of a raw log, lazily, and says plainly what is wrong with one that cannot be read."""

import codecs
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

PARQUET_SUFFIXES = (".parquet", ".pq")
BLOCK_BYTES = 16 * 2**20
ROWS_FOR_TYPES = 10_000
"""Rows of a CSV that are read to tell numbers from text."""


def folder_of(source: str, path: Path | None) -> Path:
    """The folder of a raw log.

    Raises:
        ValueError: no path was set, or there is no such folder.
    """
    if path is None:
        raise ValueError(f"{source}: ingest.path is not set; set it to the folder that holds the files")
    if not path.is_dir():
        raise ValueError(f"{source}: ingest.path is {path}, which is not a folder; set it to the folder of the files")
    return path


def find_files(folder: Path, patterns: str | Sequence[str], setting: str) -> list[Path]:
    """Files of a folder by name or glob, each pattern's matches in alphabetical order.

    Args:
        folder: where to look.
        patterns: e.g. `"items.csv"` or `["log/2024-*.parquet", "log/2025-*.parquet"]`.
        setting: which setting named them, for the message.

    Raises:
        ValueError: a pattern matches no file.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        absolute = Path(pattern).is_absolute()
        top, rest = (Path("/"), pattern.lstrip("/")) if absolute else (folder, pattern)
        matches = sorted(file for file in top.glob(rest) if file.is_file())
        if not matches:
            raise ValueError(f"{setting}: no file matches {pattern!r} in {folder}, which holds {listing(folder)}")
        found += matches
    return found


def listing(folder: Path, most: int = 12) -> str:
    """The names in a folder, for a message."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def scan_file(
    file: Path,
    *,
    workspace: Path,
    encoding: str = "utf-8",
    separator: str = ",",
    text_columns: Sequence[str] = (),
) -> pl.LazyFrame:
    """A CSV (any suffix but parquet's) or parquet file, lazily.

    Args:
        file: the file.
        workspace: a folder where a CSV in another encoding is copied as UTF-8, block by block.
        encoding: of a CSV, as Python names it.
        separator: of a CSV, one character.
        text_columns: columns of a CSV that are text though their first rows look like numbers: ids and codes. Where
            all of them end in ".0" they are numbers all the same, for `id_text` to make whole.

    Raises:
        ValueError: the file is missing, empty, cut off, or not in the encoding.
    """
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; {file.parent} holds {_listing_or_nothing(file.parent)}")
    if file.stat().st_size == 0:
        raise ValueError(f"{file}: the file is empty (0 bytes), expected at least a header; export it again")
    if file.suffix.lower() in PARQUET_SUFFIXES:
        try:
            frame = pl.scan_parquet(file)
            frame.collect_schema()
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{file}: not a readable parquet file ({error}); export it again") from error
        return frame
    readable = _as_utf8(file, encoding, workspace)
    texts = pl.scan_csv(readable, separator=separator, infer_schema=False, glob=False)
    wanted = [name for name in dict.fromkeys(text_columns) if name in texts.collect_schema()]
    head = texts.select(wanted).head(ROWS_FOR_TYPES).collect()
    overrides = {name: pl.Float64 if _pandas_made_floats(head[name]) else pl.String for name in wanted}
    return pl.scan_csv(
        readable, separator=separator, schema_overrides=overrides, infer_schema_length=ROWS_FOR_TYPES, glob=False
    )


def id_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """An id column as text: 12346 -> "12346", and 12346.0 too (what pandas makes of a whole number beside nulls)."""
    if dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        return pl.when(column == whole).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
    if isinstance(dtype, pl.String):
        return column.str.strip_chars()
    return column.cast(pl.String) if dtype.is_integer() else column


def named_columns(text: str) -> list[str]:
    """The columns that a setting may mean: its text as it is, and those that it names as a SQL expression."""
    try:
        return [text, *pl.sql_expr(text).meta.root_names()]
    except pl.exceptions.PolarsError:
        return [text]  # a bare name that is no SQL; where it is not even that, `sql_expression` says so


def sql_expression(text: str, available: pl.Schema, setting: str) -> pl.Expr:
    """A column, or an expression over columns in polars' dialect of SQL.

    Args:
        text: a column's name as it is, quoted or not, or an expression.
        available: the columns that there are.
        setting: where the text was written, for the message.

    Raises:
        ValueError: it is neither, or names a column that there is not.
    """
    if text in available:
        return pl.col(text)  # a bare name need not be quoted, whatever is in it
    try:
        expression = pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{setting} = {text!r} is neither a column nor a SQL expression: {error}") from error
    for name in expression.meta.root_names():
        if name not in available:
            near = difflib.get_close_matches(name, available.names(), n=1)
            raise ValueError(
                f"{setting} = {text!r}: there is no column {name!r}{f'; is {near[0]!r} meant?' if near else ''} "
                f"Found: {', '.join(available.names())}"
            )
    return expression


def _pandas_made_floats(ids: pl.Series) -> bool:
    """Whether all ids look like 12346.0: whole numbers that pandas kept beside nulls; `id_text` undoes it."""
    given = ids.drop_nulls()
    return not given.is_empty() and bool(given.str.contains(r"^\d+\.0$").all())


def read_text(file: Path, encodings: Sequence[str] = ("utf-8", "latin-1")) -> str:
    """A small text file, in the first of the encodings that reads it."""
    content = file.read_bytes()
    for encoding in encodings[:-1]:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode(encodings[-1])


def _as_utf8(file: Path, encoding: str, workspace: Path) -> Path:
    """The file itself where it is UTF-8 (read through once, to be sure), else a copy that is."""
    try:
        is_utf8 = codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        raise ValueError(f'{file}: {encoding!r} is not an encoding; set encoding = "utf-8" or "latin-1"') from None
    blocks = _decoded_blocks(file, encoding)
    if is_utf8:
        for _ in blocks:
            pass
        return file
    copy = workspace / f"{len(list(workspace.iterdir()))}-{file.name}"
    with copy.open("w", encoding="utf-8", newline="") as target:
        target.writelines(blocks)
    return copy


def _decoded_blocks(file: Path, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="strict")
    offset = 0
    with file.open("rb") as source:
        while block := source.read(BLOCK_BYTES):
            pending = len(decoder.getstate()[0])  # the start of a character whose end is in this block
            try:
                yield decoder.decode(block, final=source.tell() == file.stat().st_size)
            except UnicodeDecodeError as error:
                at = offset - pending + error.start
                raise ValueError(
                    f"{file}: not {encoding}: byte 0x{error.object[error.start]:02x} at offset {at} ({error.reason}); "
                    'set encoding = "latin-1" (or what it was written in), or export the file as UTF-8'
                ) from None
            offset += len(block)


def _listing_or_nothing(folder: Path) -> str:
    return listing(folder) if folder.is_dir() else "nothing (no such folder)"
