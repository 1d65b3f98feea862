"""Join files of predictions impression by impression, with less than all rows in memory, into plain numbers by user."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.row_buckets import RecordBuckets
from jobs.staged_predictions import StagedPredictions, UserNumbers
from ranker.comparison import check_ranker_scores
from ranker.judged_runs import LABELS, JudgedLabel, JudgedRuns, Run, line_up
from ranker.segments import in_order

UNKNOWN = -1
"""How a record says that it is not known yet whether there was a conversion."""

Integers = NDArray[np.int64]
Records = NDArray[np.void]


class Kind(NamedTuple):
    """A kind of segment, and its column among the segment codes of a record; None for all rows."""

    name: str
    segments: tuple[str, ...]
    column: int | None

    def inside(self, records: Records) -> tuple[Integers, NDArray[np.bool_] | slice]:
        """The segment of each row that has one, and which rows those are."""
        if self.column is None:
            return np.zeros(len(records), np.int64), slice(None)
        codes = records["segments"][:, self.column]
        inside = codes < len(self.segments)
        return codes[inside].astype(np.int64), inside


class JoinedPredictions:
    """The rows of all files as records: user, clicked, converted, segments, and a score per file and label."""

    def __init__(
        self,
        files: Sequence[StagedPredictions],
        segment_kinds: Sequence[str],
        users: UserNumbers,
        folder: Path,
        rows_at_once: int,
    ) -> None:
        self._files = files
        self.kinds = [Kind("all", ("all",), None)]
        for column, kind in enumerate(kind for kind in segment_kinds if kind in files[0].columns):
            self.kinds.append(Kind(kind, tuple(in_order(files[0].whole.segments[kind])), column))
        self._number, num_rows = users.by_id()
        self.num_users = len(num_rows)
        self._bucket_of_user = (np.cumsum(num_rows) - num_rows) // rows_at_once
        fields: list[tuple[str, str, tuple[int, ...]]] = [
            ("user", "u4", ()),
            ("clicked", "?", ()),
            ("converted", "i1", ()),
        ]
        fields += [("segments", "u1", (len(self.kinds) - 1,))]
        fields += [(self.field(file.ranker, label), "f8", ()) for file in files for label in self._labels(file)]
        self._dtype = np.dtype(fields)
        self._by_user = RecordBuckets(folder, int(self._bucket_of_user.max(initial=0)) + 1, self._dtype)
        self.sample: JudgedRuns | None = None
        """The first bucket that has rows: impressions drawn by the hash of their id."""
        self.sampled_ids = pl.DataFrame(schema={"impression_id": pl.String})

    def field(self, ranker: str, label: JudgedLabel) -> str:
        """The field of a record that holds a ranker's score of a label."""
        place = [file.ranker for file in self._files].index(ranker)
        return f"{place} {label.score}"

    def rankers(self, label: JudgedLabel) -> list[str]:
        """Those that can be judged by a label, the baseline (the second file) first."""
        return [file.ranker for file in reversed(self._files) if label in self._labels(file)]

    def __iter__(self) -> Iterator[Records]:
        """Records, all of a user together, users in ascending order from one part to the next."""
        return iter(self._by_user)

    def join(self, bucket: int) -> int:
        """Line up the files on the impressions of a bucket.

        Returns:
            the rows of all files that were joined.

        Raises:
            ValueError: an impression is there twice, the files differ in impressions or labels, or a score is null.
        """
        frames = [file.rows.read(bucket) for file in self._files]
        first = frames[0]
        if not any(frame.height for frame in frames):
            return 0
        kinds = [kind.name for kind in self.kinds[1:]] if self.sample is None else []
        judged = line_up((Run(file.ranker, 0, frame) for file, frame in zip(self._files, frames, strict=True)), kinds)
        if self.sample is None:
            self.sample, self.sampled_ids = judged, first.select("impression_id")
        records = np.zeros(first.height, self._dtype)
        records["user"] = self._number[first["user_id"].to_numpy()]
        records["clicked"] = judged.impressions["clicked"].to_numpy()
        records["converted"] = judged.impressions["converted"].cast(pl.Int8).fill_null(UNKNOWN).to_numpy()
        for kind in self.kinds[1:]:
            codes = dict(zip(kind.segments, range(len(kind.segments)), strict=True))
            column = first[kind.name].replace_strict(codes, default=len(codes), return_dtype=pl.UInt8)
            records["segments"][:, kind.column] = column.fill_null(len(codes)).to_numpy()
        impressions = judged.impressions.with_columns(first["impression_id"])
        for file in self._files:
            scores = judged.scores[file.ranker, 0]
            for label in self._labels(file):
                score = pl.Series([None], dtype=pl.Float64).new_from_index(0, first.height)
                if label.score in scores.columns:  # it is not where it is null throughout the bucket
                    score = scores[label.score].cast(pl.Float64)
                mask = label.mask(impressions)
                check_ranker_scores(label, file.ranker, impressions.filter(mask), score.filter(mask))
                records[self.field(file.ranker, label)] = score.fill_null(np.nan).to_numpy()
        self._by_user.append(records, self._bucket_of_user[records["user"]])
        return sum(frame.height for frame in frames)

    @staticmethod
    def _labels(file: StagedPredictions) -> list[JudgedLabel]:
        return [label for label in LABELS if label.score in file.columns]


def outcome(label: JudgedLabel, records: Records) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N,) whether each record is judged by a label, and whether it is a positive."""
    converted = pl.Series(records["converted"])
    frame = pl.DataFrame({"clicked": records["clicked"], "converted": pl.Series(converted == 1)}).with_columns(
        converted=pl.when(converted != UNKNOWN).then("converted")
    )
    frame = frame.with_columns(clicked_and_converted=pl.col("clicked") & pl.col("converted"))
    return label.mask(frame).to_numpy(), frame[label.name].fill_null(False).to_numpy()
