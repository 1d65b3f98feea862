"""Judge files of predictions that do not fit into memory: the very numbers of those that do.

Rows go from one set of small files to the next, and each of those is worked on in memory:

    by impression   each file is read and checked part by part; a row goes where the hash of its impression_id says.
                    Bucket by bucket, an impression that is there twice is refused and the two files are joined
    by user         what is left are numbers. A user's rows are in one bucket: UAUC and WUAUC
    by score        of one ranker, from the lowest scores to the highest: AUC

Counts of pairs are integers, so their sums are the same bits as those of all rows at once. Memory holds one bucket,
and 8 bytes and 24 a ranker for each user of each segment: it grows with users and segments, not with rows.

What does not add up (calibration, by bins of equal size) is found from a bucket by impression, a random sample.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import SegmentMetrics
from jobs.joined_predictions import JoinedPredictions, Kind, Records, outcome
from jobs.prediction_columns import WholeFile
from jobs.progress import progress_bar
from jobs.row_buckets import FrameBuckets, RecordBuckets
from jobs.staged_predictions import StagedPredictions, UserNumbers, count_rows, stage
from ranker.comparison import judge_cells
from ranker.judged_runs import LABELS, JudgedLabel, JudgedRuns
from ranker.ranked_rows import GroupSums, PooledSums, dense_ranks, merged, pooled_sums, score_bits, sums_by_rank
from ranker.user_sums import Cell, cells_from_counts

ROWS_AT_ONCE = 4_000_000
"""Rows of a bucket, of both files together."""

Integers = NDArray[np.int64]


class LargeComparison(NamedTuple):
    """What is found of files that do not fit into memory."""

    metrics: dy.DataFrame[SegmentMetrics]
    """Of all rows."""
    sample: JudgedRuns
    """Impressions drawn by the hash of their id, lined up."""
    sampled_ids: pl.DataFrame
    """impression_id of those."""
    whole: WholeFile
    """Of the predictions, not the baseline's."""
    notes: tuple[str, ...]
    """What was put right in either file."""


def compare_large(
    predictions: Mapping[str, Path],
    *,
    segment_kinds: Sequence[str],
    named_segments: Sequence[str],
    num_draws: int,
    seed: int,
    min_users: int,
    min_positives: int,
    rows_at_once: int = ROWS_AT_ONCE,
) -> LargeComparison:
    """Compare as `ranker.comparison.compare` does, with about `rows_at_once` rows in memory.

    Files are written to the system's folder for temporary ones (TMPDIR): about as much as both files take.

    Args:
        predictions: by ranker, parquet or CSV (see `jobs.predictions_file`): those to judge, then a baseline's or none.
        segment_kinds: columns of the first file to judge by, where it has them.
        named_segments: those of them that it must have.
        num_draws: bootstrap draws of users.
        seed: of the bootstrap.
        min_users: with fewer users counted, a segment says "cannot tell".
        min_positives: the same for positives, and for negatives.
        rows_at_once: of both files together.

    Raises:
        TableError: a file cannot be judged.
        ValueError: an impression is there twice, or the two files are not of the same impressions.
    """
    num_rows = [count_rows(path) for path in predictions.values()]
    num_buckets = max(-(-sum(num_rows) // rows_at_once), 1)
    with tempfile.TemporaryDirectory(prefix="tailrank-") as scratch:
        folder = Path(scratch)
        users = UserNumbers()
        files: list[StagedPredictions] = []
        with progress_bar("read and check", sum(num_rows)) as advance:
            for ranker, path in predictions.items():
                buckets = FrameBuckets(folder / f"impressions_{len(files)}", num_buckets)
                named, numbering = ((), None) if files else (named_segments, users)
                part = max(rows_at_once // 4, 1)
                files.append(stage(path, ranker, named, buckets, numbering, part, advance))
        joined = JoinedPredictions(files, segment_kinds, users, folder / "users", rows_at_once)
        with progress_bar("join by impression", sum(num_rows)) as advance:
            for bucket in range(num_buckets):
                advance(joined.join(bucket))
                for file in files:
                    file.rows.drop(bucket)
        metrics = judge_cells(
            (_cells(joined, label, files, folder / label.name, rows_at_once) for label in LABELS),
            joined.num_users,
            baseline=files[1].ranker if len(files) > 1 else None,
            num_draws=num_draws,
            seed=seed,
            min_users=min_users,
            min_positives=min_positives,
        )
    assert joined.sample is not None, "a file without rows is refused"
    notes = tuple(note for file in files for note in file.notes)
    return LargeComparison(metrics, joined.sample, joined.sampled_ids, files[0].whole, notes)


def _cells(
    joined: JoinedPredictions, label: JudgedLabel, files: Sequence[StagedPredictions], folder: Path, rows_at_once: int
) -> list[Cell]:
    """What every user adds to the metrics of one label, in each segment that has any."""
    rankers = joined.rankers(label)
    within: dict[str, list[list[GroupSums]]] = {ranker: [[] for _ in joined.kinds] for ranker in rankers}
    samples = {file.ranker: file.score_samples.get(label.name) for file in files}
    across = {
        ranker: _ByScore(folder / str(place), sample, files[0].whole.num_rows, len(joined.kinds) - 1, rows_at_once)
        for place, ranker in enumerate(rankers)
        if (sample := samples[ranker]) is not None
    }
    with progress_bar(f"rank by {label.score} within users", files[0].whole.num_rows) as advance:
        for part in joined:
            judged, positive = outcome(label, part)
            records, positive = part[judged], positive[judged]
            for ranker in across:
                score = records[joined.field(ranker, label)]
                rank = dense_ranks(score_bits(score))
                for kind, parts in zip(joined.kinds, within[ranker], strict=True):
                    segment, inside = kind.inside(records)
                    group = segment * joined.num_users + records["user"][inside]
                    parts.append(sums_by_rank(group, positive[inside], rank[inside]))
                across[ranker].append(records, positive, score)
            advance(len(part))
    groups = {ranker: [merged(parts) for parts in within[ranker]] for ranker in across}
    if not any(len(sums[0].groups) for sums in groups.values()):
        return []
    pooled = {}
    for ranker, by_score in across.items():
        with progress_bar(f"rank {label.score} of {ranker} across users", by_score.num_rows) as advance:
            pooled[ranker] = by_score.pooled(joined.kinds, joined.num_users, groups[ranker], advance)
    return [
        cell
        for place, kind in enumerate(joined.kinds)
        for cell in cells_from_counts(
            label.name,
            kind.name,
            kind.segments,
            joined.num_users,
            {ranker: [(groups[ranker][place], pooled[ranker][place])] for ranker in across},
        )
        if len(cell.users)
    ]


class _ByScore:
    """The rows judged by one score of one ranker, in ranges of it."""

    def __init__(
        self, folder: Path, sample: NDArray[np.float64], most_rows: int, num_kinds: int, rows_at_once: int
    ) -> None:
        """Cut the range of scores where the sample says; a score that many rows share gets a range of its own."""
        num_cuts = -(-most_rows // rows_at_once) - 1 if len(sample) else 0
        cuts = np.sort(sample)[np.arange(1, num_cuts + 1) * len(sample) // (num_cuts + 1)]
        self._cuts = np.unique(np.concatenate((cuts, np.nextafter(cuts, np.inf))))
        dtype = np.dtype([("user", "u4"), ("positive", "?"), ("segments", "u1", (num_kinds,)), ("score", "f8")])
        self._dtype = dtype
        self._buckets = RecordBuckets(folder, len(self._cuts) + 1, dtype)
        self._rows_at_once = rows_at_once
        self.num_rows = 0

    def append(self, records: Records, positive: NDArray[np.bool_], score: NDArray[np.float64]) -> None:
        """Add rows."""
        rows = np.empty(len(records), self._dtype)
        rows["user"], rows["positive"], rows["score"] = records["user"], positive, score
        rows["segments"] = records["segments"]
        self._buckets.append(rows, np.searchsorted(self._cuts, score, side="right"))
        self.num_rows += len(rows)

    def pooled(
        self, kinds: Sequence[Kind], num_users: int, groups: Sequence[GroupSums], advance: Callable[[int], None]
    ) -> list[PooledSums]:
        """By kind of segment, what users add to the pooled AUC; from the lowest range of scores to the highest."""
        sums = [PooledSums(*np.zeros((2, len(kind.segments) * num_users), np.int64)) for kind in kinds]
        # of each segment: twice the negatives below the range of scores, and twice the positives above its start
        won = [np.zeros(len(kind.segments), np.int64) for kind in kinds]
        lost = [
            2 * np.bincount(one.groups // num_users, one.num_positives, len(kind.segments)).astype(np.int64)
            for kind, one in zip(kinds, groups, strict=True)
        ]
        for bucket in self._buckets:
            here = [_by_class(kind, bucket) for kind in kinds]
            for rows in self._chunks(bucket):
                rank = dense_ranks(score_bits(rows["score"]))
                for place, kind in enumerate(kinds):
                    negatives, positives = here[place] - _by_class(kind, rows)
                    segment, inside = kind.inside(rows)
                    pooled_sums(
                        segment,
                        len(kind.segments),
                        rows["user"][inside].astype(np.int64),
                        num_users,
                        rows["positive"][inside],
                        rank[inside],
                        twice_won=won[place] + negatives,
                        twice_lost=lost[place] - 2 * here[place][1] + positives,
                        into=sums[place],
                    )
                advance(len(rows))
            for place, (negatives, positives) in enumerate(here):
                won[place] += 2 * negatives
                lost[place] -= 2 * positives
        return sums

    def _chunks(self, bucket: Records) -> Iterator[Records]:
        """The bucket; where all its rows have one score and are too many, parts of it, which then tie."""
        if len(bucket) <= self._rows_at_once or bucket["score"].min() < bucket["score"].max():
            yield bucket
            return
        for start in range(0, len(bucket), self._rows_at_once):
            yield bucket[start : start + self._rows_at_once]


def _by_class(kind: Kind, rows: Records) -> Integers:
    """(2, C) negatives and positives of each segment."""
    segment, inside = kind.inside(rows)
    counts = np.bincount(2 * segment + rows["positive"][inside], minlength=2 * len(kind.segments))
    return counts.reshape(-1, 2).T
