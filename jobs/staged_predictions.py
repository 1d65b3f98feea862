"""Read a file of predictions part by part, check it as strictly as at once, and lay its rows out by impression."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.admission import TableError
from jobs.prediction_columns import LABEL_COLUMNS, SCORES, WholeFile, read_rows
from jobs.predictions_file import open_predictions, scan_file, unreadable
from jobs.row_buckets import FrameBuckets
from ranker.judged_runs import LABELS

SCORES_SAMPLED = 4096
"""Scores of each part of a file that are kept, to say where the range of scores is cut."""


class StagedPredictions(NamedTuple):
    """A file that is read and checked."""

    ranker: str
    rows: FrameBuckets
    """impression_id, user_id (a UserNumbers code, in the first file), labels, scores, segments; by impression_id."""
    columns: tuple[str, ...]
    """Those that are not empty throughout."""
    score_samples: dict[str, NDArray[np.float64]]
    """By label: some of the scores that it is judged by."""
    whole: WholeFile
    notes: tuple[str, ...]


class UserNumbers:
    """Numbers users as they come, and in the end by the order of their ids, as `judged_runs.number_users` does."""

    def __init__(self) -> None:
        self._categories = pl.Categories.random()
        self._alive = pl.Series(dtype=pl.Categorical(self._categories))  # the categories last as long as a series
        self._num_rows = np.zeros(0, np.int64)

    def code(self, user_ids: pl.Series) -> pl.Series:
        """(N,) UInt32: a number for each user, the same in every part."""
        codes = user_ids.cast(self._alive.dtype).to_physical()
        counts = np.bincount(codes.to_numpy(), minlength=len(self._num_rows))
        counts[: len(self._num_rows)] += self._num_rows
        self._num_rows = counts
        return codes

    def by_id(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(U,) the final number of each code; (U,) the rows of each user, by final number."""
        number = self._categories.to_series().rank("dense").to_numpy().astype(np.int64) - 1
        num_rows = np.empty_like(self._num_rows)
        num_rows[number] = self._num_rows
        return number, num_rows


def count_rows(path: Path) -> int:
    """Rows of a file, without reading more than that takes.

    Raises:
        TableError: there is no such file, or it cannot be read.
    """
    scan = scan_file(path)
    try:
        return int(scan.select(pl.len()).collect().item())
    except pl.exceptions.PolarsError as error:
        raise unreadable(path, error) from error


def stage(
    path: Path,
    ranker: str,
    segments: Sequence[str],
    rows: FrameBuckets,
    users: UserNumbers | None,
    rows_a_part: int,
    advance: Callable[[int], None],
) -> StagedPredictions:
    """Read a file part by part.

    Args:
        path: parquet or CSV; see `jobs.predictions_file`.
        ranker: its name.
        segments: further columns to judge by.
        rows: where its rows go.
        users: numbers the users; None for a file whose users do not count, as a baseline's.
        rows_a_part: how many are in memory at a time.
        advance: is told the rows read.

    Raises:
        TableError: as `read_predictions`; a bad row is counted among those of its part.
    """
    opened = open_predictions(path, segments)
    notes, whole = list(opened.notes), WholeFile(path)
    samples: dict[str, list[NDArray[np.float64]]] = {}
    columns: tuple[str, ...] = ()
    for raw in _parts(path, opened.rows, rows_a_part):
        first = whole.num_rows + 1
        try:
            part = read_rows(path, raw, notes)
        except TableError as error:
            where = f"{error.rule}, in rows {first:_} to {first - 1 + raw.height:_}"
            raise TableError(
                error.table, where, error.remedy, count=error.count, total=error.total, sample=error.sample
            ) from error
        whole.add(part)
        columns = tuple(part.columns)
        for label in LABELS:
            if label.score in columns and ("converted" in columns or label.name == "clicked"):
                scores = part.filter(label.rows)[label.score].drop_nulls().cast(pl.Float64)
                few = scores.gather_every(max(len(scores) // SCORES_SAMPLED, 1))
                samples.setdefault(label.name, []).append(few.to_numpy())
        if users is not None:
            kept = part.drop("item_id", "event_timestamp").with_columns(user_id=users.code(part["user_id"]))
        else:
            kept = part.select("impression_id", *(name for name in (*LABEL_COLUMNS, *SCORES) if name in columns))
        rows.append(kept, "impression_id")
        advance(part.height)
    empty = whole.check(segments, notes)
    return StagedPredictions(
        ranker,
        rows,
        tuple(name for name in columns if name not in empty),
        {label: np.concatenate(parts) for label, parts in samples.items()},
        whole,
        tuple(notes),
    )


def _parts(path: Path, rows: pl.LazyFrame, rows_a_part: int) -> Iterator[pl.DataFrame]:
    parts = iter(rows.collect_batches(chunk_size=rows_a_part))
    while True:
        try:
            part = next(parts, None)
        except pl.exceptions.PolarsError as error:
            raise unreadable(path, error) from error
        if part is None:
            return
        if part.height:
            yield part
