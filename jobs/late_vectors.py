"""Vectors joined late: rows carry the id of a vector, the vectors themselves lie in one memory-mapped matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.fingerprint import check_same
from jobs.lake import Lake, VectorMatrix
from jobs.service_plan import LateVector

ROWS_AT_ONCE = 50_000
"""Vectors copied at one time: 50 000 of 384 numbers are 77 MB."""


class VectorTable:
    """All vectors of a table in a scratch file, found by id, with a mark on those that were asked for."""

    def __init__(self, lake: Lake, of: LateVector, schema: Any, scratch: Path) -> None:
        """Copy the committed shards into a matrix, a batch at a time.

        Args:
            lake: where the table is.
            of: which vectors.
            schema: the table's declaration.
            scratch: folder for the matrix; it can go when this object goes.

        Raises:
            ValueError: the table holds vectors of another model than the feature is registered under, or of
                another width than its fingerprint says.
        """
        manifest = lake.manifest(schema)
        if manifest.rows:  # a table without vectors has none of another model
            where = f"build_training_set, {of.table} (run publish_features first)"
            check_same(of.fingerprint, manifest.fingerprint, where)
        self.name, self.fingerprint = of.matrix, of.fingerprint
        self._scratch, self._width = scratch, int(of.fingerprint["dimension"])
        ids = np.empty(manifest.rows, np.int64)
        vectors = self._open("all", manifest.rows)
        row = 0
        for batch in (
            lake.scan(schema).select(of.id_feature, of.vector_feature).collect_batches(chunk_size=ROWS_AT_ONCE)
        ):
            widths = batch.get_column(of.vector_feature).list.len().unique().to_list()
            if widths not in ([], [self._width]):
                raise ValueError(
                    f"{of.table}: {of.vector_feature} has vectors of width {sorted(widths)}, its fingerprint says "
                    f"{self._width}; run the step that writes the table again"
                )
            ids[row : row + len(batch)] = batch.get_column(of.id_feature).to_numpy()
            vectors[row : row + len(batch)] = batch.get_column(of.vector_feature).list.to_array(self._width).to_numpy()
            row += len(batch)
        order = np.argsort(ids, kind="stable")
        self._all = VectorMatrix(ids[order], vectors, self.fingerprint)
        self._order, self._used = order, np.zeros(manifest.rows, bool)

    def look_up(self, ids: pl.Series) -> list[NDArray[np.float32] | None]:
        """The vector of each id, null where the id is; marks them as used.

        Raises:
            ValueError: the table holds no vector of an id.
        """
        wanted = ids.fill_null(-1).to_numpy()
        rows = self._all.rows_of(wanted)
        lost = (rows < 0) & ids.is_not_null().to_numpy()
        if lost.any():
            raise ValueError(
                f"build_training_set: {lost.sum()} vector ids of {self.name} (such as {wanted[lost][0]}) are not in "
                "the table that the features were joined from; was it written meanwhile? run the step again"
            )
        self._used[rows[rows >= 0]] = True
        vectors = self._all.vectors
        return [None if row < 0 else vectors[self._order[row]] for row in rows]

    def write_used(self, lake: Lake) -> int:
        """Write the matrix of the vectors that were asked for; returns how many."""
        rows = np.flatnonzero(self._used)
        used = self._open("used", len(rows))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            batch = rows[start : start + ROWS_AT_ONCE]
            used[start : start + len(batch)] = self._all.vectors[self._order[batch]]
        lake.write_matrix(self.name, self._all.ids[rows], used, self.fingerprint)
        return len(rows)

    def _open(self, name: str, rows: int) -> NDArray[np.float32]:
        if rows == 0:
            return np.empty((0, self._width), np.float32)
        path = self._scratch / f"{self.name}-{name}.f32"
        return np.memmap(path, np.float32, mode="w+", shape=(rows, self._width))
