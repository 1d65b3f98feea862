"""The items nearest to a user: a FAISS index of unit vectors by inner product, which is then their cosine.

An exact index reads every vector for every query. The approximate ones read fewer and may miss some:
    flat   exact, no training, one pass over memory a query
    ivf    k-means cells; a query looks into the 64 nearest of about 4 sqrt(N)
    hnsw   a graph of neighbours, walked from the top; needs 270 bytes an item beside the vector
Measured at 100,000 x 64-d, top 100 (`tests/benches/bench_retrieval.py`), recall against exact search:
                     clustered vectors                   structureless vectors
             build s    ms a query    recall      build s    ms a query    recall
    flat           0           1.2     1                0           1.1     1
    ivf            6          0.14     0.999            7          0.18     0.41
    hnsw          14          0.42     0.997           22          0.86     0.90
in seconds of one core (AVX-512, shared machine). What is missed depends on the vectors: `recall_against_exact` says how
much of yours.

Feast has a vector search too: version 0.67 glues rows to the wrong ids
(`tests/feature_repo/test_feast_vector_search.py`).

FAISS uses as many threads as OpenMP allows: `OMP_NUM_THREADS`. Only an hnsw graph is built by one, since it depends on
the order of insertion: the same vectors always give the same index.

Letters: N items, D their width, Q queries, K items found for each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO = 2**24
"""Numbers in the item vectors (64 MB: 262,144 items 64 wide) up to which "auto" searches exactly: 3 ms a query on one
core, nothing missed, nothing to train. Beyond it ivf: where both find nearly all, hnsw was slower in every way."""

CELLS_PER_ROOT = 4
"""Cells of ivf over sqrt(N): comparing a query with the cells then costs less than looking into 64 of them."""

POINTS_PER_CELL = (39, 64)
"""Fewest (FAISS warns below) and most vectors a cell to train k-means on: 256 took up to twice as long for little."""

CELLS_SEARCHED = 64
HNSW_LINKS, HNSW_BUILD_BREADTH, HNSW_SEARCH_BREADTH = 32, 80, 256
SEED = 0
UNIT_NORM_TOLERANCE = 1e-3
QUERIES_AT_ONCE = 1024

Kind = Literal["flat", "ivf", "hnsw"]


class Neighbours(NamedTuple):
    """What was found, best first.

    Attributes:
        ids_QK: [Q, K] int64; -1 where fewer than K were found.
        scores_QK: [Q, K] float32 cosine; -inf where fewer than K were found.
    """

    ids_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]


class VectorIndex:
    """Items searched by cosine. Made by `build` or `load`; does not change afterwards."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._cells: Any = faiss.downcast_index(index.index)

    @classmethod
    def build(
        cls,
        vectors_ND: NDArray[np.float32],
        kind: Literal["auto"] | Kind = "auto",
        *,
        ids_N: NDArray[np.int64] | None = None,
    ) -> Self:
        """Index item vectors.

        Args:
            vectors_ND: unit norm, float32; may be memory-mapped.
            kind: "auto" is flat up to `EXACT_UP_TO` numbers, ivf beyond.
            ids_N: what a search gives back: distinct, not negative. None: rows of `vectors_ND`.

        Raises:
            ValueError: no vectors, not float32, not of unit norm or not finite; ids repeated, negative or of another
                number; unknown kind.
        """
        _check_unit_norm(vectors_ND, "item vectors")
        num_items, width = vectors_ND.shape
        if num_items == 0:
            raise ValueError("no item vectors: an index needs one at least. Has the embedding step run?")
        ids_N = np.arange(num_items) if ids_N is None else _checked_ids(ids_N, num_items)
        if kind == "auto":
            kind = "flat" if vectors_ND.size <= EXACT_UP_TO else "ivf"
        if kind == "flat":
            cells: Any = faiss.IndexFlatIP(width)
        elif kind == "ivf":
            cells = _trained_cells(vectors_ND)
        elif kind == "hnsw":
            cells = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            cells.hnsw.efConstruction, cells.hnsw.efSearch = HNSW_BUILD_BREADTH, HNSW_SEARCH_BREADTH
        else:
            raise ValueError(f"kind must be one of auto, {', '.join(get_args(Kind))}, got {kind!r}")
        index = faiss.IndexIDMap(cells)
        num_threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1 if kind == "hnsw" else num_threads)
        index.add_with_ids(vectors_ND, ids_N)
        faiss.omp_set_num_threads(num_threads)
        return cls(index)

    def __len__(self) -> int:
        """Items in the index."""
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """Numbers a vector."""
        return int(self._index.d)

    @property
    def kind(self) -> Kind:
        """How it is searched."""
        kinds: dict[type, Kind] = {faiss.IndexIVFFlat: "ivf", faiss.IndexHNSWFlat: "hnsw"}
        return kinds.get(type(self._cells), "flat")

    def search(
        self, queries_QD: NDArray[np.float32], k: int, *, exclude: Sequence[NDArray[np.integer]] | None = None
    ) -> Neighbours:
        """The `k` items of highest cosine for each query.

        Args:
            queries_QD: unit norm, float32, as wide as the items.
            k: items to find for each query.
            exclude: ids not to give back, one array a query (a user's history, say). As many more are searched for, so
                an exact index still finds k.

        Raises:
            ValueError: k below 1, queries of another width, not float32, not of unit norm or not finite; another number
                of exclusions than queries.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        self._check_queries(queries_QD)
        if exclude is not None and len(exclude) != len(queries_QD):
            raise ValueError(f"{len(exclude)} arrays of ids to exclude for {len(queries_QD)} queries: one each")
        num_excluded_Q = np.array([len(ids) for ids in exclude] if exclude else [0] * len(queries_QD), np.int64)
        ids_QK = np.full((len(queries_QD), k), -1, np.int64)
        scores_QK = np.full((len(queries_QD), k), -np.inf, np.float32)
        by_exclusions = np.argsort(num_excluded_Q, kind="stable")  # so one long history is not searched for by all
        for start in range(0, len(queries_QD), QUERIES_AT_ONCE):
            chosen = by_exclusions[start : start + QUERIES_AT_ONCE]
            depth = min(k + int(num_excluded_Q[chosen[-1]]), max(k, len(self)))
            scores_CF, ids_CF = self._index.search(np.ascontiguousarray(queries_QD[chosen]), depth)
            for query, scores_F, ids_F in zip(chosen, scores_CF, ids_CF, strict=True):
                is_kept_F = ids_F >= 0
                if num_excluded_Q[query] and exclude is not None:
                    is_kept_F &= ~np.isin(ids_F, exclude[query])
                kept = np.flatnonzero(is_kept_F)[:k]
                ids_QK[query, : len(kept)] = ids_F[kept]
                scores_QK[query, : len(kept)] = scores_F[kept]
        return Neighbours(ids_QK, scores_QK)

    def recall_against_exact(self, queries_QD: NDArray[np.float32], k: int) -> float:
        """Share of the exact top `k` that the index finds, over all queries. Use queries of the kind to be served.

        An item that ties with the k-th of the exact search counts as found in its place.

        Raises:
            ValueError: no queries, or as for `search`.
        """
        self._check_queries(queries_QD)
        if len(queries_QD) == 0:
            raise ValueError("no queries: recall needs one at least")
        found = self.search(queries_QD, k).scores_QK
        depth = min(k, len(self))
        exact, _ = self._search_exactly(queries_QD, depth)
        rounding = 1e-6  # of a cosine in float32, added up in another order
        return float((found[:, :depth] >= exact[:, -1:] - rounding).mean())

    def save(self, path: Path) -> None:
        """Write the whole index, vectors and ids included, to one file."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not such an index.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no vector index at {path}: build one and save it there")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is not a FAISS index, or is cut short: build and save it again") from error
        if not isinstance(index, faiss.IndexIDMap) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{path} is a FAISS index of another kind ({type(index).__name__}), not one saved here")
        return cls(index)

    def _search_exactly(self, queries_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], Any]:
        queries_QD = np.ascontiguousarray(queries_QD)
        if self.kind == "ivf":
            every_cell = faiss.SearchParametersIVF()
            every_cell.nprobe = self._cells.nlist
            return self._cells.search(queries_QD, k, params=every_cell)
        exact = faiss.downcast_index(self._cells.storage) if self.kind == "hnsw" else self._cells
        return exact.search(queries_QD, k)

    def _check_queries(self, queries_QD: NDArray[np.float32]) -> None:
        _check_unit_norm(queries_QD, "queries")
        if queries_QD.shape[1] != self.width:
            raise ValueError(f"queries are {queries_QD.shape[1]} wide, the index {self.width}: two models?")


def _trained_cells(vectors_ND: NDArray[np.float32]) -> Any:
    num_items, width = vectors_ND.shape
    fewest, most = POINTS_PER_CELL
    num_cells = max(1, min(int(CELLS_PER_ROOT * num_items**0.5), num_items // fewest))
    cells: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_cells, faiss.METRIC_INNER_PRODUCT)
    cells.cp.seed, cells.cp.max_points_per_centroid = SEED, most
    cells.cp.min_points_per_centroid = min(fewest, num_items)  # one cell of few items is no reason to warn
    cells.nprobe = min(CELLS_SEARCHED, num_cells)
    cells.train(np.ascontiguousarray(vectors_ND))
    return cells


def _check_unit_norm(vectors: NDArray[np.float32], name: str) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ValueError(f"{name} must be a float32 matrix, got {vectors.dtype} of shape {vectors.shape}")
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    broken = np.flatnonzero(~(np.abs(norms - 1) <= UNIT_NORM_TOLERANCE))  # NaN is not within it either
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(vectors)} {name} are not of unit norm, such as rows {broken[:3].tolist()} of norms "
            f"{norms[broken[:3]].tolist()}: scale them to length 1, and leave out what is zero or not a number"
        )


def _checked_ids(ids_N: NDArray[np.int64], num_items: int) -> NDArray[np.int64]:
    if ids_N.shape != (num_items,) or ids_N.dtype != np.int64:
        raise ValueError(
            f"ids must be {num_items} int64, one for each vector; got {ids_N.dtype} of shape {ids_N.shape}"
        )
    if ids_N.min() < 0 or len(np.unique(ids_N)) != num_items:
        raise ValueError("ids must be distinct and not negative: -1 stands for an item that was not found")
    return ids_N
