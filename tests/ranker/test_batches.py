import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ranker.batches import (
    EncodedExamples,
    ExampleLayout,
    ShuffledPasses,
    VectorColumn,
    VectorPair,
    batch_of,
    slices,
)

CPU = torch.device("cpu")
USER_ROWS = VectorColumn(np.array([-1, 1, -1, 0], dtype=np.int32), np.eye(2, dtype=np.float32), {"model_id": "users"})


def make_examples(vectors: VectorColumn | None = None) -> EncodedExamples:
    layout = ExampleLayout(
        ids=("user_id", "item_id"),
        num_rows=(9, 9),
        scalars=("s",),
        scalar_roles=("count",),
        history="history",
        history_length=4,
        item_attributes=(),
        vectors=(VectorPair("learn", "user_learn_vector_id", "item_learn_vector_id"),) if vectors else (),
        vocabulary_digest="d",
    )
    return EncodedExamples(
        layout=layout,
        ids_NF=np.array([[2, 3], [4, 5], [6, 7], [8, 1]], dtype=np.int32),
        scalars_NS=np.array([[1.0], [np.nan], [3.0], [4.0]], dtype=np.float32),
        history_NL=np.array([[2, 0, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [5, 6, 7, 8]], dtype=np.int32),
        clicked_N=np.array([True, False, True, True]),
        converted_N=np.array([1, 0, -1, 0], dtype=np.int8),
        item_attributes_IK=np.zeros((9, 0), dtype=np.int32),
        vectors={"user_learn_vector_id": USER_ROWS, "item_learn_vector_id": vectors} if vectors else {},
    )


def test_a_pass_reads_every_example_once() -> None:
    passes = ShuffledPasses(103, 10, seed=1)
    assert passes.steps_per_pass == 11
    read = np.concatenate(list(passes.batches(0, 0, 11)))
    assert sorted(read) == list(range(103))


def test_the_order_follows_from_seed_and_pass_alone() -> None:
    first, second = ShuffledPasses(50, 8, seed=3), ShuffledPasses(50, 8, seed=3)
    list(first.batches(0, 0, 7))
    np.testing.assert_array_equal(list(first.batches(2, 3, 4)), list(second.batches(2, 3, 4)))
    assert not np.array_equal(next(first.batches(0, 0, 1)), next(first.batches(1, 0, 1)))
    assert not np.array_equal(next(first.batches(0, 0, 1)), next(ShuffledPasses(50, 8, seed=4).batches(0, 0, 1)))


def test_histories_are_cut_to_the_longest_of_the_batch() -> None:
    examples = make_examples()
    assert batch_of(examples, np.array([0, 1]), CPU).history_BL.tolist() == [[2, 0], [3, 4]]
    assert batch_of(examples, np.array([2]), CPU).history_BL.shape == (1, 0)
    assert batch_of(examples, slice(0, 4), CPU).history_BL.shape == (4, 4)


def test_unknown_conversions_are_masked() -> None:
    batch = batch_of(make_examples(), slice(0, 4), CPU)
    assert batch.converted_B.tolist() == [1, 0, 0, 0]
    assert batch.converted_known_B.tolist() == [True, True, False, True]
    assert batch.clicked_B.tolist() == [1, 0, 1, 1]


def test_vectors_are_gathered_by_row_from_a_memory_mapped_matrix(tmp_path: Path) -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "vectors.npy", table)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    column = VectorColumn(np.array([3, -1, 0, 3], dtype=np.int32), mapped, {})
    batch = batch_of(make_examples(column), np.array([3, 1, 0]), CPU)
    (pair,) = batch.vectors
    assert pair.item_BV.tolist() == [[9, 10, 11], [0, 0, 0], [9, 10, 11]]
    assert pair.item_known_B.tolist() == [True, False, True]
    assert pair.context_BV.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert pair.context_known_B.tolist() == [True, True, False]
    assert batch_of(make_examples(), slice(0, 4), CPU).vectors == ()


def test_a_batch_without_any_vector_is_all_missing() -> None:
    column = VectorColumn(np.full(4, -1, dtype=np.int32), np.empty((0, 3), dtype=np.float32), {})
    vectors, known = column.gather(slice(0, 4))
    assert vectors.shape == (4, 3)
    assert not known.any()


def test_taken_examples_keep_their_tables() -> None:
    column = VectorColumn(np.array([0, 1, 2, 3], dtype=np.int32), np.eye(4, dtype=np.float32), {"model_id": "m"})
    taken = make_examples(column).take(np.array([2, 0]))
    assert taken.ids_NF.tolist() == [[6, 7], [2, 3]]
    item = taken.vectors["item_learn_vector_id"]
    assert item.rows_N.tolist() == [2, 0]
    assert item.table_MV is column.table_MV
    assert taken.vectors["user_learn_vector_id"].rows_N.tolist() == [-1, -1]
    assert len(taken.item_attributes_IK) == 9


@pytest.mark.parametrize("column", [None, USER_ROWS])
def test_a_layout_survives_json(column: VectorColumn | None) -> None:
    layout = make_examples(column).layout
    assert ExampleLayout.from_dict(json.loads(json.dumps(layout.as_dict()))) == layout


def test_a_layout_of_another_version_is_refused_by_name() -> None:
    old = {**make_examples().layout.as_dict(), "user_vector": None}
    del old["vectors"]
    with pytest.raises(ValueError, match=r"differing: \['user_vector', 'vectors'\].*train the ranker again"):
        ExampleLayout.from_dict(old)


@pytest.mark.parametrize(("count", "expected"), [(0, []), (3, [3]), (5, [3, 2])])
def test_slices_cover_everything_in_order(count: int, expected: list[int]) -> None:
    assert [part.stop - part.start for part in slices(count, 3)] == expected
