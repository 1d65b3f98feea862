from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from embedders import vector_index
from embedders.histories import Sequences
from embedders.retrieval import retrieval_metrics, retrieval_metrics_of_lists
from embedders.vector_index import VectorIndex

KINDS = ["flat", "ivf", "hnsw"]


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(num: int, seed: int = 0, num_clusters: int = 40, width: int = 32) -> NDArray[np.float32]:
    """Unit vectors around so many centres, as trained embeddings lie around topics."""
    centres = unit(np.random.default_rng(99).normal(size=(num_clusters, width)))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(0, num_clusters, num)] + rng.normal(size=(num, width)) * 0.7 / width**0.5)


ITEMS, QUERIES = clustered(4000), clustered(50, seed=1)


def sorted_ids(items: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries.astype(np.float64) @ items.T.astype(np.float64)), axis=1)[:, :k]


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return VectorIndex.build(ITEMS, request.param)


def test_flat_finds_what_a_sort_finds():
    found = VectorIndex.build(ITEMS, "flat").search(QUERIES, 20)
    expected = sorted_ids(ITEMS, QUERIES, 20)
    np.testing.assert_array_equal(found.ids_QK, expected)
    np.testing.assert_allclose(found.scores_QK, np.take_along_axis(QUERIES @ ITEMS.T, expected, axis=1), atol=1e-6)


def test_on_clustered_vectors_every_kind_finds_nearly_all_of_the_exact_top(index: VectorIndex):
    found = index.search(QUERIES, 50).ids_QK
    expected = sorted_ids(ITEMS, QUERIES, 50)
    overlap = np.mean([len(set(one) & set(other)) / 50 for one, other in zip(found, expected, strict=True)])
    assert overlap > 0.98
    assert index.recall_against_exact(QUERIES, 50) == pytest.approx(overlap, abs=1e-9)


def test_scores_are_cosines_in_descending_order(index: VectorIndex):
    found = index.search(QUERIES, 30)
    np.testing.assert_allclose(found.scores_QK, np.einsum("qd,qkd->qk", QUERIES, ITEMS[found.ids_QK]), atol=1e-6)
    assert (np.diff(found.scores_QK, axis=1) <= 0).all()
    assert found.ids_QK.dtype == np.int64
    assert found.scores_QK.dtype == np.float32


def test_recall_falls_where_an_index_misses_and_says_by_how_much():
    """Vectors without clusters, and one cell of many looked into: the planted loss must show."""
    rng = np.random.default_rng(0)
    items, queries = unit(rng.normal(size=(4000, 32))), unit(rng.normal(size=(40, 32)))
    index = VectorIndex.build(items, "ivf")
    index._cells.nprobe = 1
    found = index.search(queries, 20).ids_QK
    expected = sorted_ids(items, queries, 20)
    overlap = np.mean([len(set(one) & set(other)) / 20 for one, other in zip(found, expected, strict=True)])
    assert overlap < 0.3
    assert index.recall_against_exact(queries, 20) == pytest.approx(overlap, abs=1e-9)


def test_items_that_tie_with_the_last_of_the_exact_top_count_as_found():
    items = np.repeat(unit(np.eye(4, 8)), 50, axis=0)
    assert VectorIndex.build(items, "hnsw").recall_against_exact(items[:3], 10) == 1.0


def test_auto_is_exact_up_to_a_size_and_ivf_beyond(monkeypatch: pytest.MonkeyPatch):
    assert VectorIndex.build(ITEMS).kind == "flat"
    monkeypatch.setattr(vector_index, "EXACT_UP_TO", ITEMS.size - 1)
    assert VectorIndex.build(ITEMS).kind == "ivf"


def test_ids_that_are_given_come_back_instead_of_rows(index: VectorIndex):
    ids = np.random.default_rng(0).permutation(len(ITEMS)).astype(np.int64) * 7 + 2**40
    named = VectorIndex.build(ITEMS, index.kind, ids_N=ids)
    np.testing.assert_array_equal(named.search(QUERIES, 10).ids_QK, ids[index.search(QUERIES, 10).ids_QK])
    assert named.recall_against_exact(QUERIES, 10) == index.recall_against_exact(QUERIES, 10)


def test_excluded_ids_do_not_come_back_and_others_take_their_place(index: VectorIndex):
    first = index.search(QUERIES, 60).ids_QK
    exclude = [first[query, : query % 7 * 5] for query in range(len(QUERIES))]
    found = index.search(QUERIES, 20, exclude=exclude)
    assert (found.ids_QK >= 0).all()
    for query, left_out in enumerate(exclude):
        assert not set(found.ids_QK[query]) & set(left_out)
        if index.kind != "hnsw":  # whose walk depends on how many it looks for
            start = query % 7 * 5
            np.testing.assert_array_equal(found.ids_QK[query], first[query, start : start + 20])


def test_one_long_exclusion_is_not_paid_by_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vector_index, "QUERIES_AT_ONCE", 7)
    index = VectorIndex.build(ITEMS, "flat")
    exclude = [np.arange(len(ITEMS) - 5) if query == 3 else np.arange(query) for query in range(len(QUERIES))]
    found = index.search(QUERIES, 10, exclude=exclude)
    scores = QUERIES @ ITEMS.T
    for query, left_out in enumerate(exclude):
        scores[query, left_out] = -np.inf
    np.testing.assert_array_equal(found.ids_QK[3, :5], np.argsort(-scores[3])[:5])
    assert found.ids_QK[3, 5:].tolist() == [-1] * 5
    assert (found.scores_QK[3, 5:] == -np.inf).all()
    others = np.arange(len(QUERIES)) != 3
    np.testing.assert_array_equal(found.ids_QK[others], np.argsort(-scores, axis=1)[others, :10])


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_for_more_items_than_there_are_ends_with_none(kind):
    found = VectorIndex.build(ITEMS[:6], kind).search(QUERIES[:2], 9)
    assert (found.ids_QK[:, :6] >= 0).all()
    assert (found.ids_QK[:, 6:] == -1).all()
    assert (found.scores_QK[:, 6:] == -np.inf).all()
    assert VectorIndex.build(ITEMS[:6], kind).recall_against_exact(QUERIES[:2], 9) == 1.0


def test_no_queries_find_nothing(index: VectorIndex):
    found = index.search(QUERIES[:0], 5)
    assert found.ids_QK.shape == found.scores_QK.shape == (0, 5)
    with pytest.raises(ValueError, match="no queries"):
        index.recall_against_exact(QUERIES[:0], 5)


def test_the_same_vectors_give_the_same_index_and_a_saved_one_answers_alike(index: VectorIndex, tmp_path: Path):
    again = VectorIndex.build(ITEMS, index.kind)
    index.save(tmp_path / "one.faiss")
    again.save(tmp_path / "two.faiss")
    assert (tmp_path / "one.faiss").read_bytes() == (tmp_path / "two.faiss").read_bytes()
    loaded = VectorIndex.load(tmp_path / "one.faiss")
    assert (loaded.kind, len(loaded), loaded.width) == (index.kind, 4000, 32)
    exclude = [np.arange(100)] * len(QUERIES)
    for one, other in zip(
        index.search(QUERIES, 15, exclude=exclude), loaded.search(QUERIES, 15, exclude=exclude), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert loaded.recall_against_exact(QUERIES, 15) == index.recall_against_exact(QUERIES, 15)


def test_building_leaves_the_number_of_threads_as_it_was():
    before = faiss.omp_get_max_threads()
    for kind in KINDS:
        VectorIndex.build(ITEMS[:100], kind)
        assert faiss.omp_get_max_threads() == before


def test_training_warns_of_nothing_on_few_items(capfd: pytest.CaptureFixture[str]):
    for num_items in (1, 38, 39, 100, 1000):
        assert len(VectorIndex.build(ITEMS[:num_items], "ivf")) == num_items
    assert capfd.readouterr() == ("", "")


def test_vectors_may_be_memory_mapped_read_only(tmp_path: Path, index: VectorIndex):
    np.save(tmp_path / "items.npy", ITEMS)
    mapped = VectorIndex.build(np.load(tmp_path / "items.npy", mmap_mode="r"), index.kind)
    np.testing.assert_array_equal(mapped.search(QUERIES, 10).ids_QK, index.search(QUERIES, 10).ids_QK)


def test_an_exact_index_gives_the_metrics_of_the_full_ranking_filtered_and_not():
    rng = np.random.default_rng(3)
    targets = [rng.choice(len(ITEMS), 3, replace=False) for _ in QUERIES]
    targets = [np.append(wanted, near[0]) for wanted, near in zip(targets, sorted_ids(ITEMS, QUERIES, 1), strict=True)]
    history = [rng.choice(len(ITEMS), 200, replace=False) for _ in QUERIES]
    wanted, seen = (
        Sequences(np.concatenate(lists).astype(np.int32), None, np.cumsum([0] + [len(one) for one in lists]))
        for lists in (targets, history)
    )
    index = VectorIndex.build(ITEMS)
    exclude = [np.setdiff1d(one, other) for one, other in zip(history, targets, strict=True)]
    for full, lists in (
        (retrieval_metrics(QUERIES, ITEMS, wanted), index.search(QUERIES, 200)),
        (retrieval_metrics(QUERIES, ITEMS, wanted, seen), index.search(QUERIES, 200, exclude=exclude)),
    ):
        from_lists = retrieval_metrics_of_lists(lists.ids_QK, wanted)
        for one, other in zip(full.cutoffs, from_lists.cutoffs, strict=True):
            assert one.recall is not None
            assert one.recall >= 0.25
            np.testing.assert_array_equal(one.hits_V, other.hits_V)
            np.testing.assert_array_equal(one.ndcg_V, other.ndcg_V)


def broken(value: float) -> NDArray[np.float32]:
    vectors = ITEMS[:5].copy()
    vectors[2] *= value
    return vectors


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (ITEMS[:0], None, "no item vectors: an index needs one at least"),
        (broken(np.nan), None, "1 of 5 item vectors are not of unit norm, such as rows \\[2\\] of norms \\[nan\\]"),
        (broken(0), None, "1 of 5 item vectors are not of unit norm"),
        (broken(1.01), None, "1 of 5 item vectors are not of unit norm"),
        (ITEMS[:5].astype(np.float64), None, "float32 matrix, got float64"),
        (ITEMS[0], None, "float32 matrix, got float32 of shape \\(32,\\)"),
        (ITEMS[:3], np.array([1, 2]), "ids must be 3 int64, one for each vector; got int64 of shape \\(2,\\)"),
        (ITEMS[:3], np.array([1, 2, 3], np.int32), "ids must be 3 int64, one for each vector; got int32"),
        (ITEMS[:3], np.array([1, 2, 1]), "distinct and not negative"),
        (ITEMS[:3], np.array([1, 2, -1]), "distinct and not negative"),
    ],
)
def test_what_cannot_be_indexed_is_refused(vectors, ids, message: str):
    with pytest.raises(ValueError, match=message):
        VectorIndex.build(vectors, ids_N=ids)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of auto, flat, ivf, hnsw, got 'pq'"):
        VectorIndex.build(ITEMS[:3], "pq")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queries", "k", "exclude", "message"),
    [
        (clustered(2, width=16), 5, None, "queries are 16 wide, the index 32: two models?"),
        (broken(2), 5, None, "1 of 5 queries are not of unit norm"),
        (broken(np.inf), 5, None, "1 of 5 queries are not of unit norm"),
        (QUERIES, 0, None, "k must be 1 or more, got 0"),
        (QUERIES[:3], 5, [np.array([1])], "1 arrays of ids to exclude for 3 queries"),
    ],
)
def test_queries_that_cannot_be_searched_are_refused(index: VectorIndex, queries, k, exclude, message: str):
    with pytest.raises(ValueError, match=message):
        index.search(queries, k, exclude=exclude)


def test_a_file_that_is_no_index_of_ours_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no vector index at"):
        VectorIndex.load(tmp_path / "none.faiss")
    (tmp_path / "text.faiss").write_text("not an index")
    with pytest.raises(ValueError, match="is not a FAISS index"):
        VectorIndex.load(tmp_path / "text.faiss")
    VectorIndex.build(ITEMS[:100], "flat").save(tmp_path / "cut.faiss")
    (tmp_path / "cut.faiss").write_bytes((tmp_path / "cut.faiss").read_bytes()[:-500])
    with pytest.raises(ValueError, match="cut short"):
        VectorIndex.load(tmp_path / "cut.faiss")
    faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / "foreign.faiss"))
    with pytest.raises(ValueError, match="another kind \\(IndexFlatL2\\)"):
        VectorIndex.load(tmp_path / "foreign.faiss")
