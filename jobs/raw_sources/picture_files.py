"""Pictures of a raw log: bytes in a column, or paths of files. A bad one costs its item the picture and no more."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from feature_repo.table_schemas import ItemImages
from jobs.admission import BROKEN_RULES
from jobs.raw_sources import PICTURES_PER_SHARD, LeftOut, Refused, Shard

FOLDER = "__folder"
"""Column: the folder of the file in which a row stands."""


def existing_files(rows: pl.LazyFrame) -> list[Path]:
    """The picture files that the rows name; none where the column holds bytes."""
    if not isinstance(rows.collect_schema()["image"], pl.String):
        return []
    named = rows.filter(pl.col("image").is_not_null()).select(FOLDER, "image").unique().collect()
    return [file for folder, name in named.iter_rows() if (file := Path(folder, name.strip())).is_file()]


def pictures_of(rows: pl.LazyFrame, setting: str) -> Iterator[Shard | Refused | LeftOut]:
    """Pictures, some at a time: only those are in memory.

    Args:
        rows: `item_id`, `image` (bytes, or text: a path, absolute or relative to the row's folder), `FOLDER`, and
            `event_timestamp` where it is known since when a picture can be shown.
        setting: which setting asked for them, for the report of rows without a picture.

    Yields:
        The pictures; rows whose file is missing or cannot be read, refused by reason; how many rows name no picture.
    """
    num_without = 0
    for batch in rows.collect_batches(chunk_size=PICTURES_PER_SHARD):
        given = pl.col("image").is_not_null()
        if isinstance(batch.schema["image"], pl.String):
            given &= pl.col("image").str.strip_chars() != ""
        named = batch.filter(given)
        num_without += len(batch) - len(named)
        if not isinstance(named.schema["image"], pl.String):
            yield Shard(ItemImages, named.drop(FOLDER))
            continue
        files = [Path(folder, name.strip()) for folder, name in named.select(FOLDER, "image").iter_rows()]
        contents, reasons = zip(*map(_read, files), strict=True) if files else ((), ())
        read = named.with_columns(
            image=pl.Series(contents, dtype=pl.Binary),
            image_file=pl.Series([str(file) for file in files], dtype=pl.String),
            **{BROKEN_RULES: pl.Series(reasons, dtype=pl.List(pl.String))},
        ).drop(FOLDER)
        is_bad = pl.col("image").is_null()
        yield Shard(ItemImages, read.filter(~is_bad).drop("image_file", BROKEN_RULES))
        yield Refused(ItemImages, read.filter(is_bad).drop("image"))
    if num_without:
        yield LeftOut(f"{setting}: no picture named", num_without)


def _read(file: Path) -> tuple[bytes | None, list[str]]:
    """What is in a file, or why it cannot be said."""
    try:
        return file.read_bytes(), []
    except FileNotFoundError:
        return None, ["image_file_is_missing"]
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte in it
        return None, [f"image_file_cannot_be_read ({type(error).__name__})"]
