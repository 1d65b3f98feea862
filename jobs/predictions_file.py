"""Read anyone's predictions: harmless differences are put right and noted, anything else is refused with its reason."""

import difflib
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import polars as pl

from feature_repo.table_schemas import EARLIEST
from jobs.admission import TableError
from ranker.judged_runs import MAX_SEGMENTS

IDS = ("impression_id", "user_id", "item_id")
REQUIRED = (*IDS, "event_timestamp", "clicked", "p_ctr")
LABEL_COLUMNS = ("clicked", "converted")
SCORES = ("p_ctr", "p_cvr", "p_ctcvr")
SEGMENTS = ("user_segment", "item_segment")
OPTIONAL = ("converted", "p_cvr", "p_ctcvr", *SEGMENTS)
NO_SEGMENTS = (*REQUIRED, *LABEL_COLUMNS, *SCORES, "clicked_and_converted", "user", "all")
"""Columns that are read as something else, and names that the segment table uses itself."""

TRUTH = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}
LATEST = datetime(2100, 1, 1, tzinfo=timezone.utc)
EPOCH_UNITS = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
"""Unit of a whole number since 1970 -> microseconds; nanoseconds are tried last, by division."""


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
    scan = scan_file(path)
    columns = scan.collect_schema().names()
    _check_columns(path, columns)
    _check_segment_names(path, columns, segments)
    wanted = [column for column in dict.fromkeys((*REQUIRED, *OPTIONAL, *segments)) if column in columns]
    notes: list[str] = []
    ignored = [column for column in columns if column not in wanted]
    if ignored:
        notes.append(f"{path.name}: ignored columns {', '.join(ignored)}.")
    _check_one_run(path, scan, columns)
    try:
        frame = scan.select(wanted).collect()
    except pl.exceptions.PolarsError as error:
        raise TableError(str(path), f"cannot be read: {error}", "write the file again, in UTF-8 if CSV") from error
    if frame.is_empty():
        raise TableError(str(path), "has no rows; at least one impression is needed", "check the query behind it")
    for column in wanted:
        if column in OPTIONAL and column not in segments and frame[column].null_count() == frame.height:
            frame = frame.drop(column)
            notes.append(f"{path.name}: `{column}` is empty, so it counts as absent.")
            continue
        read = _READERS.get(column, _read_segment)
        frame = frame.with_columns(read(path, frame, column, notes).alias(column))
    _check_classes(path, frame)
    times = frame["event_timestamp"]
    return PredictionsFile(
        frame=frame.drop("item_id", "event_timestamp"),
        num_items=frame["item_id"].n_unique(),
        start=times.min(),  # type: ignore[arg-type]
        end=times.max(),  # type: ignore[arg-type]
        notes=tuple(notes),
    )


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


def _check_segment_names(path: Path, columns: list[str], segments: Sequence[str]) -> None:
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


def _refuse(path: Path, frame: pl.DataFrame, column: str, bad: pl.Series, rule: str, remedy: str) -> None:
    """Refuse the file where any row is bad, showing a few."""
    bad = bad.fill_null(False)
    if bad.any():
        shown = [c for c in dict.fromkeys(("impression_id", column)) if c in frame.columns]
        sample = frame.filter(bad).select(shown).head(3)
        raise TableError(
            str(path), f"`{column}` {rule}", remedy, count=int(bad.sum()), total=frame.height, sample=sample
        )


def _read_id(path: Path, frame: pl.DataFrame, column: str, notes: list[str]) -> pl.Series:
    ids = frame[column]
    _refuse(path, frame, column, ids.is_null(), "is null", "give every row its id")
    if ids.dtype.is_float():
        _refuse(path, frame, column, ids != ids.floor(), "is a fraction", "write ids as text or whole numbers")
        ids = ids.cast(pl.Int64)
    if ids.dtype != pl.String:
        notes.append(f"{path.name}: `{column}` was {frame[column].dtype}, read as text.")
        ids = ids.cast(pl.String)
    _refuse(path, frame, column, ids == "", "is empty", "give every row its id")
    return ids


def _read_label(path: Path, frame: pl.DataFrame, column: str, notes: list[str]) -> pl.Series:
    labels = frame[column]
    if column == "clicked":
        _refuse(path, frame, column, labels.is_null(), "is null", "leave out impressions whose outcome is unknown")
    if labels.dtype == pl.Boolean:
        return labels
    notes.append(f"{path.name}: `{column}` was {labels.dtype}, read as true or false.")
    read = labels.cast(pl.String).str.to_lowercase().replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    _refuse(path, frame, column, read.is_null() & labels.is_not_null(), "is neither 0 nor 1", "write 0/1 or true/false")
    return read


def _read_score(path: Path, frame: pl.DataFrame, column: str, notes: list[str]) -> pl.Series:
    scores = frame[column]
    if not scores.dtype.is_float():
        read = scores.cast(pl.Float64, strict=False)
        _refuse(path, frame, column, read.is_null() & scores.is_not_null(), "is not a number", "write plain decimals")
        if scores.dtype != pl.String:
            notes.append(f"{path.name}: `{column}` was {scores.dtype}, read as a decimal number.")
        scores = read
    if column == "p_ctr":
        _refuse(path, frame, column, scores.is_null(), "is null", "score every impression")
    _refuse(path, frame, column, ~scores.is_finite(), "is NaN or infinite", "look for a diverged model or a 0/0")
    low, high = float(scores.min() or 0.0), float(scores.max() or 0.0)  # type: ignore[arg-type]
    if low < 0.0 or high > 1.0:
        notes.append(
            f"{path.name}: `{column}` runs from {low:.4g} to {high:.4g}, so it is no probability: "
            "its order is judged, its calibration is not."
        )
    return scores


def _read_time(path: Path, frame: pl.DataFrame, column: str, notes: list[str]) -> pl.Series:
    times = frame[column]
    _refuse(path, frame, column, times.is_null(), "is null", "give every row its time")
    if times.dtype.is_integer():
        times = _from_epoch(path, times, notes)
    elif times.dtype == pl.String:
        times = times.str.to_datetime(time_unit="us", time_zone="UTC", strict=False, ambiguous="null")
        _refuse(
            path,
            frame,
            column,
            times.is_null(),
            "is not a time",
            "write ISO 8601, such as 2024-03-01T12:30:00Z; a time without zone is read as UTC",
        )
        notes.append(f"{path.name}: `{column}` was text, read as UTC where it names no zone.")
    elif times.dtype != pl.Date and not isinstance(times.dtype, pl.Datetime):
        raise TableError(str(path), f"`{column}` is {times.dtype}, not a time", "write a timestamp, or ISO 8601 text")
    elif getattr(times.dtype, "time_zone", None) is None:
        notes.append(f"{path.name}: `{column}` names no time zone, read as UTC.")
    times = times.cast(pl.Datetime("us")) if times.dtype == pl.Date else times
    if times.dtype.time_zone is None:  # type: ignore[attr-defined]
        times = times.dt.replace_time_zone("UTC")
    times = times.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    outside = (times < EARLIEST) | (times > LATEST)
    _refuse(path, frame, column, outside, "is before 1990 or after 2100", "check the unit and the format of the time")
    return times


def _from_epoch(path: Path, numbers: pl.Series, notes: list[str]) -> pl.Series:
    """Whole numbers since 1970, in the one unit that puts them all between 1990 and 2100."""
    low, high = int(numbers.min()), int(numbers.max())  # type: ignore[arg-type]
    earliest, latest = (int(time.timestamp()) * 1_000_000 for time in (EARLIEST, LATEST))
    for unit, microseconds in EPOCH_UNITS.items():
        if earliest <= low * microseconds and high * microseconds <= latest:
            notes.append(f"{path.name}: `event_timestamp` is a whole number, read as {unit} since 1970.")
            return (numbers.cast(pl.Int64) * microseconds).cast(pl.Datetime("us"))
    if earliest <= low // 1000 and high // 1000 <= latest:
        notes.append(f"{path.name}: `event_timestamp` is a whole number, read as nanoseconds since 1970.")
        return (numbers.cast(pl.Int64) // 1000).cast(pl.Datetime("us"))
    raise TableError(
        str(path),
        f"`event_timestamp` runs from {low} to {high}, which is no time between 1990 and 2100 in any unit",
        "write a timestamp, or ISO 8601 text",
    )


def _read_segment(path: Path, frame: pl.DataFrame, column: str, notes: list[str]) -> pl.Series:
    values = frame[column]
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Duration, pl.Object):
        raise TableError(
            str(path), f"`{column}` is {values.dtype}", "judge by a column of text, numbers, true and false, or dates"
        )
    if values.dtype.is_float():
        values = values.fill_nan(None)
        if (values == values.floor()).all() and values.is_finite().all():
            values = values.cast(pl.Int64)  # 3 that was written as 3.0 because another row has none
    num_values = values.drop_nulls().n_unique()
    if num_values > MAX_SEGMENTS:
        raise TableError(
            str(path),
            f"`{column}` has {num_values:,} values; expected at most {MAX_SEGMENTS}, as a segment of a handful of "
            "users can tell nothing",
            "group them first: ranges of a number, weeks of a date, the biggest of many words and the rest as `other`",
        )
    segments = values.cast(pl.String).str.strip_chars().replace("", None)
    num_null = segments.null_count()
    if num_null == len(segments):
        raise TableError(str(path), f"`{column}` has no value in any row", "fill it, or judge without it")
    if num_null:
        notes.append(f"{path.name}: {num_null:,} rows have no `{column}`; they count overall only.")
    if not isinstance(frame[column].dtype, (pl.String, pl.Categorical, pl.Enum)):
        notes.append(f"{path.name}: `{column}` was {frame[column].dtype}, read as text.")
    return segments


def _check_classes(path: Path, frame: pl.DataFrame) -> None:
    num_clicks = int(frame["clicked"].sum())
    if num_clicks in (0, frame.height):
        which = "no positives" if num_clicks == 0 else "no negatives"
        raise TableError(
            str(path),
            f"`clicked` is {'false' if num_clicks == 0 else 'true'} on all {frame.height:_} rows: there are {which}, "
            "and AUC needs both",
            "check how the label is made, and that the time window is not empty of it",
        )


_READERS = (
    dict.fromkeys(IDS, _read_id)
    | dict.fromkeys(LABEL_COLUMNS, _read_label)
    | dict.fromkeys(SCORES, _read_score)
    | dict.fromkeys(SEGMENTS, _read_segment)
    | {"event_timestamp": _read_time}
)
