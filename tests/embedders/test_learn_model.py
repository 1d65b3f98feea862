from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedders import learn_model
from embedders.learn import SHAPES, FrozenContent, LearnNetwork, LearnShape
from embedders.learn_model import LearnModel

CONTENT = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)


def model(shape: LearnShape = SHAPES["tiny"]) -> LearnModel:
    torch.manual_seed(0)
    return LearnModel(LearnNetwork(FrozenContent(CONTENT[:5]), shape))


def histories(*lists: list[int]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    return np.array([row for one in lists for row in one], np.int64), np.array([len(one) for one in lists], np.int64)


def test_item_vectors_are_each_item_alone_through_the_tower() -> None:
    one = model()
    vectors = one.item_vectors(CONTENT)
    assert vectors.shape == (40, 16)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert np.allclose(vectors[7:8], one.item_vectors(CONTENT[7:8]), atol=1e-6), "whatever else is in the batch"
    assert one.item_vectors(CONTENT[:0]).shape == (0, 16)


def test_a_user_vector_is_the_last_position_of_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model()
    found = one.user_vectors(CONTENT, *histories([1, 2, 3], [], [4], [9, -1, 8], [-1, -1]))
    assert found.histories.tolist() == [0, 2, 3]
    assert found.num_items.tolist() == [3, 1, 2]
    one.network.inputs = FrozenContent(CONTENT)
    with torch.inference_mode():
        alone = [one.network.last_users(torch.tensor([rows]))[0].numpy() for rows in ([1, 2, 3], [4], [9, 8])]
    assert np.allclose(found.vectors, alone, atol=1e-6)
    monkeypatch.setattr(learn_model, "POSITIONS_AT_ONCE", 1)  # one history a forward pass
    assert np.allclose(one.user_vectors(CONTENT, *histories([1, 2, 3], [4], [9, 8])).vectors, alone, atol=1e-6)


def test_of_a_long_history_the_newest_items_are_read() -> None:
    one = model(LearnShape(1, 2, 32, 64, 16, max_history=4))
    long = one.user_vectors(CONTENT, *histories([20, 21, 22, 1, 2, 3, 4]))
    assert np.allclose(long.vectors, one.user_vectors(CONTENT, *histories([1, 2, 3, 4])).vectors, atol=1e-6)
    assert long.num_items.tolist() == [7]


def test_no_history_with_a_vector_gives_no_vector() -> None:
    assert model().user_vectors(CONTENT, *histories([-1], [])).vectors.shape == (0, 16)


def test_saved_and_loaded_it_is_the_same_model(tmp_path: Path) -> None:
    one = model()
    one.save(tmp_path / "learn")
    loaded = LearnModel.load(tmp_path / "learn")
    assert np.array_equal(loaded.item_vectors(CONTENT), one.item_vectors(CONTENT))
    assert loaded.weights_sha256() == one.weights_sha256()
    with torch.no_grad():
        loaded.network.projection.bias[0] += 1e-3
    assert loaded.weights_sha256() != one.weights_sha256()


def test_content_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="trained on content vectors 12 wide, got 5"):
        model().item_vectors(CONTENT[:, :5])


def test_lengths_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="history lengths add up to 3, but there are 2 entries"):
        model().user_vectors(CONTENT, np.array([1, 2]), np.array([3]))


def test_a_memory_mapped_catalogue_is_read_where_it_lies(tmp_path: Path) -> None:
    np.save(tmp_path / "content.npy", CONTENT)
    mapped = np.load(tmp_path / "content.npy", mmap_mode="r")
    assert np.array_equal(model().item_vectors(mapped), model().item_vectors(CONTENT))
