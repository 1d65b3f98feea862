"""Matrices of vectors that training gathers from: memory-mapped, so that only the rows of a batch are ever read."""

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.admission import TableError
from jobs.table_writer import point_current_at


@dataclass(frozen=True)
class VectorMatrix:
    """Vectors by id.

    Attributes:
        ids: [n] sorted, distinct.
        vectors: [n, width] float32, memory-mapped.
        fingerprint: the model that made them.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    fingerprint: dict[str, str]

    def rows_of(self, vector_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each id, -1 where there is none (a missing vector has the id -1, too). Same shape as the input."""
        if len(self.ids) == 0:
            return np.full(vector_ids.shape, -1, np.int64)
        rows = np.minimum(np.searchsorted(self.ids, vector_ids), len(self.ids) - 1)
        return np.where(self.ids[rows] == vector_ids, rows, -1)


def write_vector_matrix(
    folder: Path, ids: NDArray[np.int64], vectors: NDArray[np.float32], fingerprint: Mapping[str, str]
) -> None:
    """Write a matrix aside and put it in place by a rename; the version before it is removed."""
    if len(ids) != len(vectors):
        raise ValueError(f"matrix {folder.name}: {len(ids)} ids but {len(vectors)} vectors")
    order = np.argsort(ids, kind="stable")
    if np.any(np.diff(ids[order]) == 0):
        raise ValueError(f"matrix {folder.name}: an id occurs twice; vector ids must be distinct")
    version = folder / uuid.uuid4().hex
    version.mkdir(parents=True)
    np.save(version / "ids.npy", ids[order].astype(np.int64))
    out = np.lib.format.open_memmap(
        version / "vectors.npy", mode="w+", dtype=np.float32, shape=(len(ids), vectors.shape[1])
    )
    rows_at_once = 65_536
    for start in range(0, len(ids), rows_at_once):
        out[start : start + rows_at_once] = vectors[order[start : start + rows_at_once]]
    out.flush()
    (version / "fingerprint.json").write_text(json.dumps(dict(fingerprint), indent=2))
    point_current_at(folder, version.name)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink() and old != version:
            shutil.rmtree(old)


def open_vector_matrix(folder: Path) -> VectorMatrix:
    """Open a matrix.

    Raises:
        TableError: it has not been written.
    """
    version = folder / "current"
    if not version.exists():
        raise TableError(
            f"matrix {folder.name}", f"there is no such matrix in {folder.parent}", "run `build_training_set` first"
        )
    version = version.resolve()
    return VectorMatrix(
        ids=np.load(version / "ids.npy"),
        vectors=np.load(version / "vectors.npy", mmap_mode="r"),
        fingerprint=json.loads((version / "fingerprint.json").read_text()),
    )
