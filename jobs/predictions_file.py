"""Read anyone's predictions, at once or in parts: harmless differences are put right and noted, the rest is refused."""

import difflib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from jobs.admission import TableError
from jobs.prediction_columns import LABEL_COLUMNS, OPTIONAL, REQUIRED, SCORES, WholeFile, read_rows

NO_SEGMENTS = (*REQUIRED, *LABEL_COLUMNS, *SCORES, "clicked_and_converted", "user", "all")
"""Columns that are read as something else, and names that the segment table uses itself."""

TEXT = (pl.String, pl.Categorical, pl.Enum)


class PredictionsFile(NamedTuple):
    """A file of predictions, ready to be judged."""

    frame: pl.DataFrame
    """impression_id, user_id, clicked, p_ctr, the optional columns that are there, and the segments asked for."""
    num_items: int
    start: datetime
    end: datetime
    """First and last event_timestamp."""
    notes: tuple[str, ...]
    """What was put right, in sentences."""


class Columns(NamedTuple):
    """The columns of a file that are judged, not read yet."""

    rows: pl.LazyFrame
    notes: list[str]
    """What is ignored or read as something else."""


def read_predictions(path: Path, segments: Sequence[str] = ()) -> PredictionsFile:
    """Read a parquet or CSV file (or a folder of parquet) of one row per impression.

    Required: impression_id, user_id, item_id, event_timestamp, clicked, p_ctr. Optional: converted, p_cvr, p_ctcvr,
    user_segment, item_segment. Further columns are ignored.

    Args:
        path: the file or folder.
        segments: further columns to judge by, of any type with few values; they come as text.

    Raises:
        TableError: the file cannot be read, a column is missing, or a value cannot be what the column says; the
            message names the column, the rule, how many rows, a few of them, and what to do.
    """
    columns = open_predictions(path, segments)
    try:
        frame = columns.rows.collect()
    except pl.exceptions.PolarsError as error:
        raise unreadable(path, error) from error
    notes = list(columns.notes)
    whole = WholeFile(path)
    if frame.height:
        frame = read_rows(path, frame, notes)
        whole.add(frame)
    empty = whole.check(segments, notes)
    return PredictionsFile(
        frame=frame.drop("item_id", "event_timestamp", *empty),
        num_items=whole.num_items,
        start=whole.start,
        end=whole.end,
        notes=tuple(notes),
    )


def open_predictions(path: Path, segments: Sequence[str] = ()) -> Columns:
    """Find the columns of a file that are judged; see `read_predictions`.

    Raises:
        TableError: there is no such file, it cannot be read, or a column is missing or of a type to no purpose.
    """
    scan = scan_file(path)
    schema = scan.collect_schema()
    columns = schema.names()
    _check_columns(path, columns)
    _check_segments(path, schema, segments)
    wanted = [column for column in dict.fromkeys((*REQUIRED, *OPTIONAL, *segments)) if column in columns]
    notes = []
    ignored = [column for column in columns if column not in wanted]
    if ignored:
        notes.append(f"{path.name}: ignored columns {', '.join(ignored)}.")
    _check_one_run(path, scan, columns)
    scan = scan.select(wanted)
    for column in (name for name in wanted if name in segments and schema[name] not in TEXT):
        notes.append(f"{path.name}: `{column}` was {schema[column]}, read as text.")
        if schema[column].is_float():
            values = pl.col(column).fill_nan(None)
            try:
                is_whole = scan.select((values == values.floor()).all() & values.is_finite().all()).collect().item()
            except pl.exceptions.PolarsError as error:
                raise unreadable(path, error) from error
            # 3 that was written as 3.0 because another row has none
            scan = scan.with_columns(values.cast(pl.Int64) if is_whole else values)
    return Columns(scan, notes)


def unreadable(path: Path, error: Exception) -> TableError:
    """The error to raise where polars cannot read a file."""
    return TableError(str(path), f"cannot be read: {error}", "write the file again, in UTF-8 if CSV")


def scan_file(path: Path) -> pl.LazyFrame:
    """The file as it is, lazily; columns of a CSV as text.

    Raises:
        TableError: there is no such file, or it cannot be read.
    """
    if not path.exists():
        raise TableError(str(path), "there is no such file", "check the path")
    kind = "parquet" if path.is_dir() else "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    try:
        if kind in ("parquet", ".parquet", ".pq"):
            scan = pl.scan_parquet(path)
        elif kind in (".csv", ".csv.gz", ".tsv", ".tsv.gz"):
            # ids like 007 stay as they are: every column is read as text
            scan = pl.scan_csv(path, infer_schema=False, separator="\t" if kind.startswith(".tsv") else ",")
        else:
            raise TableError(str(path), f"is of an unknown kind {path.suffix!r}", "give a .parquet, .csv or .tsv file")
        scan.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise TableError(
            str(path), f"cannot be read as {kind.strip('.')}: {error}", "write the file again, in UTF-8 if CSV"
        ) from error
    return scan


def _check_columns(path: Path, columns: list[str]) -> None:
    missing = [column for column in REQUIRED if column not in columns]
    if not missing:
        return
    said = []
    for column in missing:
        near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
        said.append(f"`{column}`" + (f" (is it `{near[0]}`?)" if near else ""))
    raise TableError(
        str(path),
        f"lacks {'columns' if len(missing) > 1 else 'column'} {', '.join(said)}; it has {', '.join(columns)}",
        f"rename or add them; required are {', '.join(REQUIRED)}",
    )


def _check_segments(path: Path, schema: pl.Schema, segments: Sequence[str]) -> None:
    columns = schema.names()
    for segment in segments:
        if segment in NO_SEGMENTS:
            raise TableError(
                str(path),
                f"`{segment}` cannot be judged by: it is read as something else",
                "name a column that says of which kind an impression is, such as a country",
            )
        if segment not in columns:
            near = difflib.get_close_matches(segment, columns, n=1, cutoff=0.5)
            raise TableError(
                str(path),
                f"has no column `{segment}` to judge by"
                + (f" (is it `{near[0]}`?)" if near else "")
                + f"; it has {', '.join(columns)}",
                "name one of them, or add the column",
            )
        dtype = schema[segment]
        if dtype.is_nested() or dtype in (pl.Binary, pl.Duration, pl.Object):
            raise TableError(
                str(path), f"`{segment}` is {dtype}", "judge by a column of text, numbers, true and false, or dates"
            )


def _check_one_run(path: Path, scan: pl.LazyFrame, columns: list[str]) -> None:
    keys = [column for column in ("ranker", "seed") if column in columns]
    if not keys:
        return
    runs = scan.select(keys).unique().sort(keys).collect()
    if runs.height > 1:
        raise TableError(
            str(path),
            f"holds the predictions of {runs.height} runs, told apart by {' and '.join(keys)}",
            "write one file per run, and compare two with --baseline",
            sample=runs,
        )
