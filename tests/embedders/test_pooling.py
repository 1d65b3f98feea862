import numpy as np
import pytest
import torch

from embedders.pooling import batches_by_length, masked_mean, padded, unit_norm, without_first


def test_the_mean_of_two_tokens_of_three():
    hidden_NLD = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [100.0, 100.0]]])
    mask_NL = torch.tensor([[True, True, False]])
    assert masked_mean(hidden_NLD, mask_NL).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
def test_what_is_masked_has_no_influence_at_all(garbage: float):
    hidden_NLD = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    mask_NL = torch.tensor([[True, True, False, False], [True, True, True, True]])
    before = masked_mean(hidden_NLD, mask_NL)
    hidden_NLD[0, 2:] = garbage
    assert torch.equal(masked_mean(hidden_NLD, mask_NL), before)


def test_half_precision_states_are_averaged_in_float32():
    hidden_NLD = torch.full((1, 4096, 1), 1.001, dtype=torch.bfloat16)
    mean = masked_mean(hidden_NLD, torch.ones(1, 4096, dtype=torch.bool))
    assert mean.dtype == torch.float32
    assert mean.item() == hidden_NLD[0, 0, 0].item()


def test_the_first_token_is_left_out_but_not_the_only_one():
    mask_NL = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    kept = [[False, True, True], [False, True, False], [True, False, False]]
    assert without_first(mask_NL).tolist() == kept


def test_unit_norm_keeps_direction_and_leaves_zero_alone():
    assert unit_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
    ]


def test_batches_hold_every_text_once_longest_first():
    lengths_N = np.array([3, 9, 1, 9, 4])
    batches = [batch.tolist() for batch in batches_by_length(lengths_N, 2)]
    assert batches == [[1, 3], [4, 0], [2]]


def test_batches_of_long_texts_are_smaller_and_one_too_long_is_alone():
    lengths_N = np.array([3, 9, 1, 30, 4, 4, 1, 1])
    batches = [batch.tolist() for batch in batches_by_length(lengths_N, 3, most_tokens=12)]
    assert batches == [[3], [1], [4, 5, 0], [2, 6, 7]]
    padded_sizes = [len(batch) * lengths_N[batch].max() for batch in map(np.array, batches)]
    assert max(padded_sizes[1:]) <= 12
    assert sorted(text for batch in batches for text in batch) == list(range(8))


def test_padding_is_on_the_right_and_masked():
    ids_NL, mask_NL = padded([np.array([5, 6, 7]), np.array([8])], padding_id=2)
    assert ids_NL.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert mask_NL.tolist() == [[True, True, True], [True, False, False]]
