"""A mean of what was seen so far, in which the newest weighs most."""

import numpy as np
import pytest
import torch

from embedders.running_mean import running_mean

VALUES = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32) + 5


@pytest.mark.parametrize("decay", [1.0, 0.8, 0.1])
def test_every_item_weighs_the_decay_times_what_the_next_one_does(decay: float) -> None:
    found = running_mean(torch.from_numpy(VALUES), decay).numpy()
    for last in range(6):
        weights = [decay ** (last - place) for place in range(last + 1)]
        expected = np.average(VALUES[:, : last + 1].astype(np.float64), axis=1, weights=weights)
        np.testing.assert_allclose(found[:, last], expected, rtol=1e-6)


def test_by_hand() -> None:
    values = torch.tensor([[[4.0], [1.0], [7.0]]])
    assert running_mean(values, 0.5).ravel().tolist() == pytest.approx([4, (0.5 * 4 + 1) / 1.5, (1 + 0.5 + 7) / 1.75])


def test_a_history_longer_than_float32_can_count_back_in_powers() -> None:
    values = torch.cat([torch.full((1, 300, 1), 1e3), torch.ones(1, 100, 1)], dim=1)
    found = running_mean(values, 0.5)
    assert found.isfinite().all()
    assert found[0, -1].item() == pytest.approx(1.0)


def test_is_not_rounded_to_what_a_step_in_bfloat16_multiplies() -> None:
    exactly = running_mean(torch.from_numpy(VALUES), 0.8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(running_mean(torch.from_numpy(VALUES), 0.8), exactly)
