"""Rows on disk in many small files, told apart by a number: what does not fit into memory is worked on file by file."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray


class FrameBuckets:
    """Frames of one schema: a folder of parquet files a bucket, read in the order in which they were written."""

    def __init__(self, folder: Path, num_buckets: int) -> None:
        self._folder = folder
        self._num_buckets = num_buckets
        self._num_parts = 0
        self._schema = pl.Schema()

    def append(self, rows: pl.DataFrame, column: str) -> None:
        """Add rows, each to the bucket that the hash of its value in `column` says."""
        self._schema = rows.schema
        numbered = rows.with_columns(bucket=pl.col(column).hash() % self._num_buckets)
        for (bucket,), part in numbered.partition_by("bucket", as_dict=True, include_key=False).items():
            path = self._folder / str(bucket) / f"{self._num_parts:06}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_parquet(path, compression="lz4", statistics=False)
        self._num_parts += 1

    def read(self, bucket: int) -> pl.DataFrame:
        """All rows of a bucket."""
        files = sorted((self._folder / str(bucket)).glob("*.parquet"))
        return pl.concat(map(pl.read_parquet, files)) if files else pl.DataFrame(schema=self._schema)

    def drop(self, bucket: int) -> None:
        """Remove a bucket from disk."""
        shutil.rmtree(self._folder / str(bucket), ignore_errors=True)


class RecordBuckets:
    """Records of one numpy dtype: a plain file a bucket."""

    def __init__(self, folder: Path, num_buckets: int, dtype: np.dtype[np.void]) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._num_buckets = num_buckets
        self._dtype = dtype

    def append(self, records: NDArray[np.void], bucket: NDArray[np.integer]) -> None:
        """Add records, each to its bucket.

        Args:
            records: (N,)
            bucket: (N,) in [0, num_buckets).
        """
        order = np.argsort(bucket.astype(np.uint16), kind="stable")  # by radix: 16 bits
        bounds = np.searchsorted(bucket[order], np.arange(self._num_buckets + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            with (self._folder / str(number)).open("ab") as file:
                records[order[bounds[number] : bounds[number + 1]]].tofile(file)

    def __iter__(self) -> Iterator[NDArray[np.void]]:
        """The records of each bucket that has any, mapped from disk."""
        for number in range(self._num_buckets):
            path = self._folder / str(number)
            if path.exists():
                yield np.memmap(path, self._dtype, mode="r")
