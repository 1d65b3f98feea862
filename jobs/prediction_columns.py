"""What each column of a file of predictions may be: harmless differences are put right, anything else is refused.

Rows come all at once or in parts. What is known after the last one only (a column that is empty throughout, one class)
is gathered in `WholeFile`, so that a file read in parts is checked as one read at once.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import EARLIEST
from jobs.admission import TableError
from ranker.judged_runs import MAX_SEGMENTS

IDS = ("impression_id", "user_id", "item_id")
REQUIRED = (*IDS, "event_timestamp", "clicked", "p_ctr")
LABEL_COLUMNS = ("clicked", "converted")
SCORES = ("p_ctr", "p_cvr", "p_ctcvr")
SEGMENTS = ("user_segment", "item_segment")
OPTIONAL = ("converted", "p_cvr", "p_ctcvr", *SEGMENTS)
TRUTH = {"1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}
LATEST = datetime(2100, 1, 1, tzinfo=timezone.utc)
EPOCH_UNITS = {"seconds": 1_000_000, "milliseconds": 1_000, "microseconds": 1}
"""Unit of a whole number since 1970 -> microseconds; nanoseconds are tried last, by division."""

SINCE_EPOCH = "since 1970"


def read_rows(path: Path, rows: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """Rows with every column as it should be: ids and segments text, labels Boolean, scores floats, times UTC.

    Args:
        path: of the file, for messages.
        rows: all of the file, or a part.
        notes: what was put right is added, each note once.

    Raises:
        TableError: a value cannot be what its column says; counted within these rows.
    """
    found: list[str] = []
    read = [_READERS.get(name, _read_segment)(path, rows, name, found).alias(name) for name in rows.columns]
    notes += [note for note in dict.fromkeys(found) if note not in notes]
    return pl.DataFrame(read)


class WholeFile:
    """What is known of a file once its last row is read."""

    def __init__(self, path: Path) -> None:
        self.num_rows = 0
        self.start, self.end = LATEST, EARLIEST
        """First and last event_timestamp."""
        self.segments: dict[str, set[str]] = {}
        """Distinct values of each segment column."""
        self._path = path
        self._num_clicks = 0
        self._num_null: dict[str, int] = {}
        self._ranges: dict[str, tuple[float, float]] = {}
        self._items: list[NDArray[np.uint64]] = []

    @property
    def num_items(self) -> int:
        """Distinct item_id, told apart by a 64-bit hash."""
        return len(np.unique(np.concatenate(self._items))) if self._items else 0

    def add(self, rows: pl.DataFrame) -> None:
        """Take note of rows as `read_rows` gives them.

        Raises:
            TableError: a segment column has too many values.
        """
        self.num_rows += rows.height
        self._num_clicks += int(rows["clicked"].sum())
        hashes = np.sort(rows["item_id"].hash().to_numpy())  # several times as fast as np.unique
        self._items.append(hashes[np.append(True, hashes[1:] != hashes[:-1])])
        self.start = min(self.start, rows["event_timestamp"].min())  # type: ignore[type-var, assignment]
        self.end = max(self.end, rows["event_timestamp"].max())  # type: ignore[type-var, assignment]
        for name in rows.columns:
            self._num_null[name] = self._num_null.get(name, 0) + rows[name].null_count()
            if name in SCORES and rows[name].count():
                low, high = self._ranges.get(name, (np.inf, -np.inf))
                lowest, highest = rows.select(pl.col(name).min().alias("low"), pl.col(name).max().alias("high")).row(0)
                self._ranges[name] = (min(low, lowest), max(high, highest))
            elif name not in _READERS or name in SEGMENTS:
                values = self.segments.setdefault(name, set())
                values |= set(rows[name].drop_nulls().unique())
                if len(values) > MAX_SEGMENTS:
                    raise TableError(
                        str(self._path),
                        f"`{name}` has {len(values):,} values; expected at most {MAX_SEGMENTS}, as a segment of a "
                        "handful of users can tell nothing",
                        "group them first: ranges of a number, weeks of a date, the biggest of many words and the rest "
                        "as `other`",
                    )

    def check(self, named: Sequence[str], notes: list[str]) -> list[str]:
        """Refuse what cannot be judged as a whole.

        Args:
            named: segment columns that were asked for by name.
            notes: what was found is added.

        Returns:
            columns that are empty, so count as absent.

        Raises:
            TableError: there are no rows or only one class, or a segment column asked for is empty.
        """
        path = self._path
        if self.num_rows == 0:
            raise TableError(str(path), "has no rows; at least one impression is needed", "check the query behind it")
        if sum(SINCE_EPOCH in note for note in notes) > 1:
            raise TableError(
                str(path),
                "`event_timestamp` is in one unit here and in another there",
                "write a timestamp, or ISO 8601",
            )
        empty = []
        for name, num_null in self._num_null.items():
            if num_null == self.num_rows and name in named:
                raise TableError(str(path), f"`{name}` has no value in any row", "fill it, or judge without it")
            if num_null == self.num_rows:
                empty.append(name)
                notes.append(f"{path.name}: `{name}` is empty, so it counts as absent.")
            elif num_null and name in self.segments:
                notes.append(f"{path.name}: {num_null:,} rows have no `{name}`; they count overall only.")
        for name, (low, high) in self._ranges.items():
            if low < 0.0 or high > 1.0:
                notes.append(
                    f"{path.name}: `{name}` runs from {low:.4g} to {high:.4g}, so it is no probability: "
                    "its order is judged, its calibration is not."
                )
        if self._num_clicks in (0, self.num_rows):
            which = "no positives" if self._num_clicks == 0 else "no negatives"
            raise TableError(
                str(path),
                f"`clicked` is {'false' if self._num_clicks == 0 else 'true'} on all {self.num_rows:_} rows: there are "
                f"{which}, and AUC needs both",
                "check how the label is made, and that the time window is not empty of it",
            )
        return empty


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
            notes.append(f"{path.name}: `event_timestamp` is a whole number, read as {unit} {SINCE_EPOCH}.")
            return (numbers.cast(pl.Int64) * microseconds).cast(pl.Datetime("us"))
    if earliest <= low // 1000 and high // 1000 <= latest:
        notes.append(f"{path.name}: `event_timestamp` is a whole number, read as nanoseconds {SINCE_EPOCH}.")
        return (numbers.cast(pl.Int64) // 1000).cast(pl.Datetime("us"))
    raise TableError(
        str(path),
        f"`event_timestamp` runs from {low} to {high}, which is no time between 1990 and 2100 in any unit",
        "write a timestamp, or ISO 8601 text",
    )


def _read_segment(path: Path, frame: pl.DataFrame, column: str, notes: list[str]) -> pl.Series:
    return frame[column].cast(pl.String).str.strip_chars().replace("", None)


_READERS = (
    dict.fromkeys(IDS, _read_id)
    | dict.fromkeys(LABEL_COLUMNS, _read_label)
    | dict.fromkeys(SCORES, _read_score)
    | dict.fromkeys(SEGMENTS, _read_segment)
    | {"event_timestamp": _read_time}
)
