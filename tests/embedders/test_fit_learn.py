"""Even users like even items; the content says which is which, and new items can be told by it alone."""

from typing import Any

import numpy as np
import pytest
import torch

from embedders.fit_learn import EpochRow, LearnSettings, Objective, Watch, fit_learn
from embedders.health import UNMEASURED, VectorHealth
from embedders.histories import Cut, Sequences
from embedders.learn import SHAPES, FrozenContent, IdTable, LearnNetwork, LearnShape

NUM_ITEMS, NUM_NEW, WIDTH = 60, 20, 12


def content(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The parity is in the sign of two of twelve coordinates, under noise."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((NUM_ITEMS + NUM_NEW, WIDTH)).astype(np.float32)
    vectors[:, :2] += np.where(np.arange(len(vectors)) % 2 == 0, 2.0, -2.0)[:, None]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def world(num_users: int = 120, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    return Sequences.of_lists(
        [(2 * rng.integers(0, NUM_ITEMS // 2, rng.integers(4, 9)) + user % 2).tolist() for user in range(num_users)]
    )


def make(shape: LearnShape = SHAPES["tiny"], seed: int = 0) -> LearnNetwork:
    torch.manual_seed(seed)
    return LearnNetwork(FrozenContent(content()), shape)


def share_of_new_items_with_the_right_parity(network: LearnNetwork) -> float:
    """Of the 10 new items closest to each user, how many have the user's parity; 0.5 by chance."""
    with torch.inference_mode():
        users = network.last_users(torch.tensor([[0, 4, 8], [1, 5, 9]]))
        items = network.items(torch.arange(NUM_ITEMS, NUM_ITEMS + NUM_NEW))
    closest = (users @ items.T).topk(10, dim=1).indices
    return float(((closest % 2) == torch.tensor([[0], [1]])).float().mean())


@pytest.mark.parametrize("objective", ["dense", "single", "full_softmax", "next_item"])
def test_every_objective_learns_what_users_have_in_common_and_tells_new_items_by_their_content(
    objective: Objective,
) -> None:
    network = make()
    curve = fit_learn(
        network, world(), LearnSettings(objective=objective, epochs=12, batch_size=32), num_items=NUM_ITEMS
    )
    assert curve[-1].train_loss < curve[0].train_loss
    assert share_of_new_items_with_the_right_parity(network) >= 0.9


def test_a_sample_of_the_catalogue_teaches_next_item_as_well() -> None:
    network = make()
    settings = LearnSettings(objective="next_item", num_negatives=8, epochs=12, batch_size=32)
    fit_learn(network, world(), settings, num_items=NUM_ITEMS)
    assert share_of_new_items_with_the_right_parity(network) >= 0.9


@pytest.mark.parametrize("tower", ["single", "content"])
def test_the_other_item_towers_learn_too(tower: str) -> None:
    shape = LearnShape(1, 2, 32, 64, WIDTH, item_tower=tower)  # type: ignore[arg-type]
    network = make(shape)
    fit_learn(network, world(), LearnSettings(epochs=12, batch_size=32), num_items=NUM_ITEMS)
    assert share_of_new_items_with_the_right_parity(network) >= 0.9


def test_an_id_table_learns_seen_items_and_knows_nothing_of_new_ones() -> None:
    torch.manual_seed(0)
    network = LearnNetwork(IdTable(NUM_ITEMS + NUM_NEW, WIDTH), SHAPES["tiny"])
    fit_learn(network, world(), LearnSettings(epochs=30, batch_size=32), num_items=NUM_ITEMS)
    with torch.inference_mode():
        users = network.last_users(torch.tensor([[0, 4, 8], [1, 5, 9]]))
        closest = (users @ network.items(torch.arange(NUM_ITEMS)).T).topk(10, dim=1).indices
    assert float(((closest % 2) == torch.tensor([[0], [1]])).float().mean()) >= 0.9
    assert share_of_new_items_with_the_right_parity(network) <= 0.75


def fitted(watch: Watch | None = None, *, seed: int = 0, **changes: Any) -> tuple[LearnNetwork, tuple[EpochRow, ...]]:
    network = make()
    settings = LearnSettings(**{"epochs": 4, "batch_size": 32, "seed": seed, **changes})
    curve = fit_learn(network, world(), settings, num_items=NUM_ITEMS, watch=watch, stopwatch=lambda: 0.0)
    return network, curve


def same(one: LearnNetwork, other: LearnNetwork) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    (first, curve), (second, again), (third, _) = fitted(), fitted(), fitted(seed=1)
    assert same(first, second)
    assert curve == again
    assert not same(first, third)


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(stopped_after: int) -> None:
    whole, curve = fitted()
    kept: list[dict[str, Any]] = []

    class KilledError(Exception):
        pass

    def keep(checkpoint: dict[str, Any]) -> None:
        kept.append(checkpoint)
        if len(kept) == stopped_after:
            raise KilledError

    with pytest.raises(KilledError):
        fitted(Watch(on_checkpoint=keep))
    torch.rand(7)  # whatever happened to the generator in between
    resumed, resumed_curve = fitted(Watch(resume_from=kept[-1]))
    assert same(whole, resumed)
    assert resumed_curve == curve


def test_it_stops_when_validation_no_longer_gains_and_keeps_the_best_weights() -> None:
    recalls, seen = iter([0.1, 0.3, 0.2, 0.25, 0.9]), []
    network = make()

    def validate() -> float:
        seen.append({name: weight.clone() for name, weight in network.state_dict().items()})
        return next(recalls)

    settings = LearnSettings(epochs=20, patience=2, batch_size=32)
    curve = fit_learn(network, world(), settings, num_items=NUM_ITEMS, validate=validate)
    assert [row.validation_recall for row in curve] == [0.1, 0.3, 0.2, 0.25]
    assert [row.is_best for row in curve] == [False, True, False, False]
    assert all(torch.equal(weight, seen[1][name]) for name, weight in network.state_dict().items())


def test_what_is_measured_is_told_and_changes_nothing() -> None:
    plain, curve = fitted()
    healths = [VectorHealth(1.0, 2.0, -0.5, 0.25 * epoch) for epoch in range(4)]
    remaining = iter(healths)
    network = make()
    measured = fit_learn(
        network,
        world(),
        LearnSettings(epochs=4, batch_size=32),
        num_items=NUM_ITEMS,
        measure=lambda: next(remaining),
        stopwatch=lambda: 0.0,
    )
    assert same(plain, network)
    assert [VectorHealth(*row[3:7]) for row in measured] == healths
    assert [row._replace(**UNMEASURED._asdict()) for row in measured] == list(curve)


def test_progress_is_told_and_counts_every_user() -> None:
    users, epochs = [], []
    fitted(Watch(on_users=users.append, on_epoch=epochs.append))
    assert sum(users) == 4 * 120
    assert [row.epoch for row in epochs] == [0, 1, 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    network = make()
    network.inputs = FrozenContent(np.full_like(content(), np.nan))
    with pytest.raises(ValueError, match=r"the training loss became nan in epoch 0 \(seed 0\)"):
        fit_learn(network, world(), LearnSettings(epochs=1), num_items=NUM_ITEMS)


def test_bfloat16_towers_learn_the_same() -> None:
    network = make()
    settings = LearnSettings(epochs=12, batch_size=32, precision="bfloat16")
    fit_learn(network, world(), settings, num_items=NUM_ITEMS)
    assert share_of_new_items_with_the_right_parity(network) >= 0.9


def test_what_the_cut_leaves_to_one_side_is_not_learnt_from() -> None:
    """Targets decide the loss: a user whose targets are all cut away is not read at all."""
    plain = world()
    times = np.arange(len(plain.items_E), dtype=np.int64)
    half = int(plain.offsets_U[60])
    timed = Sequences(plain.items_E, times, plain.offsets_U)
    with pytest.raises(ValueError, match="0 of 120 users have an interaction on both sides"):
        fit_learn(make(), timed, LearnSettings(cut=Cut(time=half)), num_items=NUM_ITEMS)
