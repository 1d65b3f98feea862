"""Heads that learn from states at rest: what they learn from is what the network says, and nothing else moves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embedders import karma_start
from embedders.causal_lm import CausalLM
from embedders.fit_karma import KarmaSettings, KarmaWatch, fit_karma
from embedders.histories import PADDING, Sequences
from embedders.karma import Choices, KarmaNetwork
from embedders.karma_draws import KarmaDraw, KarmaLog, KarmaPasses
from embedders.karma_features import FrozenFeatures
from embedders.karma_objective import KarmaObjective
from embedders.karma_packing import KarmaBatch, pack
from embedders.karma_start import HEADS, HeldOutReadOuts, ReadOuts, fit_heads, read_outs, spread, together
from embedders.karma_towers import KarmaShape

NUM_ITEMS, NUM_NEW, WIDTH = 40, 16, 8
SETTINGS = KarmaSettings(head_epochs=40, epochs=1, batch_size=12, read_outs=3, catalogue_negatives=16)


def vectors() -> NDArray[np.float32]:
    """The parity is in the sign of the first coordinate, under noise."""
    drawn = np.random.default_rng(1).standard_normal((NUM_ITEMS + NUM_NEW, WIDTH)).astype(np.float32)
    drawn[:, 0] += np.where(np.arange(len(drawn)) % 2 == 0, 3.0, -3.0)
    return drawn


def world(num_users: int) -> KarmaLog:
    """Even users choose even items."""
    rng = np.random.default_rng(0)
    histories = [
        (2 * rng.integers(0, NUM_ITEMS // 2, rng.integers(4, 8)) + user % 2).tolist() for user in range(num_users)
    ]
    return KarmaLog(Sequences.of_lists(histories), [[100 + item % 2] for item in range(NUM_ITEMS + NUM_NEW)])


@torch.inference_mode()
def share_of_new_items_with_the_right_parity(network: KarmaNetwork) -> float:
    """Of the 8 new items closest to each user, how many have the user's parity; 0.5 by chance."""
    histories_BL = np.array([[0, 4, 8], [1, 5, 9], [12, 2, 30], [13, 3, 31]])
    packed = pack(histories_BL, np.full((4, 1), 3), instruction=network.towers.instruction)
    items = network.items(torch.arange(NUM_ITEMS, NUM_ITEMS + NUM_NEW))
    closest = (network.towers.users(packed) @ items.T).topk(8, dim=1).indices
    return float(((closest % 2) == torch.tensor([[0], [1], [0], [1]])).float().mean())


@pytest.fixture
def make_network(make_lm: Callable[..., CausalLM]) -> Callable[..., KarmaNetwork]:
    def make(**shape: Any) -> KarmaNetwork:
        lm = make_lm()
        torch.manual_seed(1)
        sizes = {"output_dim": 8, "item_hidden": 16, "max_history": 6, **shape}
        network = KarmaNetwork(lm, FrozenFeatures(vectors()), KarmaShape(**sizes))
        network.towers.instruction = network.towers.instruction[:2]
        return network

    return make


def passes_of(log: KarmaLog, exposed: int = 0) -> KarmaPasses:
    draw = KarmaDraw(max_history=6, read_outs=3, decoded=0, exposed=exposed, query_share=1.0, sampled=16)
    return KarmaPasses(log, draw, batch_size=12, seed=0)


def objective_of(network: KarmaNetwork, log: KarmaLog) -> KarmaObjective:
    return KarmaObjective(network, log, replace(SETTINGS, in_batch_weight=1.0, decodability=0.0), torch.device("cpu"))


@pytest.mark.parametrize("residual", [False, True])
def test_states_at_rest_are_what_a_pass_says_and_every_read_out_has_its_own_choice(
    make_network: Callable[..., KarmaNetwork], residual: bool
) -> None:
    log, network = world(30), make_network(residual=residual)
    spread(network, log, seed=0)
    found = read_outs(objective_of(network, log), passes_of(log).batches(0))
    owners = 0
    at = 0
    network.eval()
    for batch in passes_of(log).batches(0):
        tensors = KarmaBatch(*map(torch.from_numpy, batch))
        with torch.inference_mode():
            said = network(tensors, log.titles, [], generation=False, reconstruction=False)
        some = found.at(torch.arange(at, at + len(said.users_Kd)), torch.device("cpu"))
        torch.testing.assert_close(
            network.towers.users_of(some.state_KD, some.mean_KF), said.users_Kd, atol=5e-3, rtol=0
        )
        assert some.choices.target_K.equal(said.choices.target_K)
        assert (found.choices.owner_K[at : at + len(said.users_Kd)] - owners).equal(said.choices.owner_K)
        owners += len(batch.history_BL)
        at += len(said.users_Kd)
    assert at == len(found.state_KD)


def test_no_more_is_read_than_can_be_kept(make_network: Callable[..., KarmaNetwork]) -> None:
    log = world(48)
    few = read_outs(objective_of(make_network(), log), passes_of(log).batches(0), most=40)
    every = read_outs(objective_of(make_network(), log), passes_of(log).batches(0))
    assert 40 <= len(few.state_KD) < 40 + 36 < len(every.state_KD)


def test_a_step_of_the_heads_has_the_gradient_of_a_step_of_the_whole(make_network: Callable[..., KarmaNetwork]) -> None:
    log, network = world(12), make_network(residual=True)
    spread(network, log, seed=0)
    objective = objective_of(network, log)
    (batch,) = passes_of(log).batches(0)
    heads = [weight for name, weight in network.named_parameters() if name.startswith(HEADS)]
    tensors = KarmaBatch(*map(torch.from_numpy, batch))
    whole, _ = objective.eval()(tensors, True)
    expected = torch.autograd.grad(whole, heads)
    some = read_outs(objective, [batch]).at(torch.arange(int((batch.cut_BK > 0).sum())), torch.device("cpu"))
    loss = objective.action(network.towers.users_of(some.state_KD, some.mean_KF), some.choices, tensors.sampled_S)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-3)
    for one, other in zip(torch.autograd.grad(loss, heads), expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3 * float(other.abs().max()) + 1e-6, rtol=2e-2)


def test_heads_learn_what_users_want_and_nothing_else_moves(make_network: Callable[..., KarmaNetwork]) -> None:
    log, network = world(48), make_network()
    spread(network, log, seed=0)
    assert share_of_new_items_with_the_right_parity(network) < 0.7
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    objective, passes = objective_of(network, log), passes_of(log)
    found = read_outs(objective, passes.batches(0))
    heard: list[int] = []
    one_epoch = replace(SETTINGS, head_epochs=1)
    first = fit_heads(objective, found, passes.sample, one_epoch, epoch=0, seed=0)
    last = fit_heads(objective, found, passes.sample, SETTINGS, epoch=0, seed=1, on_epoch=heard.append)
    assert heard == list(range(40))
    assert last < first
    moved = {name for name, weight in network.named_parameters() if not weight.equal(before[name])}
    assert moved == {name for name in before if name.startswith(HEADS)}
    assert share_of_new_items_with_the_right_parity(network) >= 0.85


def test_an_item_that_was_not_yet_there_teaches_nobody(make_network: Callable[..., KarmaNetwork]) -> None:
    """Two users choose among the first 40 items before the others are listed: where these lie must not matter."""
    known = world(24)
    times_E = np.arange(len(known.sequences.items_E), dtype=np.int64)
    listed_N = np.where(np.arange(NUM_ITEMS + NUM_NEW) < NUM_ITEMS, 0, 10_000)
    sequences = Sequences(known.sequences.items_E, times_E, known.sequences.offsets_U)
    log = replace(known, sequences=sequences, listed_N=listed_N)
    network = make_network()
    objective = objective_of(network, log)
    batch = next(iter(passes_of(log).batches(0)))
    found = read_outs(objective, [batch]).at(torch.arange(4), torch.device("cpu"))
    users_Kd = network.towers.users_of(found.state_KD, found.mean_KF)
    early = torch.arange(8)
    with_later = torch.arange(NUM_ITEMS, NUM_ITEMS + NUM_NEW)
    alone = objective.action(users_Kd, found.choices, early)
    together = objective.action(users_Kd, found.choices, torch.cat([early, with_later]))
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)
    by_then = found.choices._replace(time_K=torch.full((4,), 10_000))
    assert objective.action(users_Kd, by_then, torch.cat([early, with_later])).item() != pytest.approx(alone.item())


def test_each_of_the_first_stages_is_one_epoch_of_the_curve_and_a_killed_run_goes_on_after_it(
    make_network: Callable[..., KarmaNetwork],
) -> None:
    settings = replace(SETTINGS, head_epochs=3, title_epochs=2, warm_up_epochs=1, read_outs=2)
    kept: list[dict[str, Any]] = []
    users: list[int] = []
    whole = make_network()
    watch = KarmaWatch(on_checkpoint=kept.append, on_users=users.append)
    curve = fit_karma(whole, world(24), settings, watch=watch, stopwatch=lambda: 0.0)
    assert [row.stage for row in curve] == ["titles", "warm_up", "heads", "joint"]
    assert sum(users) == 4 * 24
    heads = curve[2]
    assert heads.action_loss == heads.train_loss is not None
    assert heads.generation_loss is None
    assert [row.is_best for row in curve] == [False, False, False, True]
    for checkpoint in kept[:3]:
        resumed = make_network()
        watch = KarmaWatch(resume_from=checkpoint)
        assert fit_karma(resumed, world(24), settings, watch=watch, stopwatch=lambda: 0.0) == curve
        for one, other in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
            assert one.equal(other)


def test_all_read_outs_of_a_user_are_in_one_step(
    make_network: Callable[..., KarmaNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the loss sees which targets are a user's own."""
    monkeypatch.setattr(karma_start, "READ_OUTS_AT_ONCE", 12)
    log, network = world(48), make_network()
    objective, passes = objective_of(network, log), passes_of(log)
    found = read_outs(objective, passes.batches(0))
    steps: list[int] = []
    seen: list[set[tuple[int, ...]]] = []
    action = objective.action

    def heard(users_Kd: torch.Tensor, choices: Choices, sampled_S: torch.Tensor) -> torch.Tensor:
        steps.append(len(users_Kd))
        of_owner: dict[int, list[int]] = {}
        for owner, target in zip(choices.owner_K.tolist(), choices.target_K.tolist(), strict=True):
            of_owner.setdefault(owner, []).append(target)
        seen.append({tuple(sorted(targets)) for targets in of_owner.values()})
        return action(users_Kd, choices, sampled_S)

    monkeypatch.setattr(objective, "action", heard)
    fit_heads(objective, found, passes.sample, replace(SETTINGS, head_epochs=1), epoch=0, seed=0)
    assert sum(steps) == len(found.state_KD)
    assert len(steps) == round(len(found.state_KD) / 12) > 3
    whole = {
        tuple(sorted(found.choices.target_K[found.choices.owner_K == owner].tolist()))
        for owner in range(int(found.choices.owner_K.max()) + 1)
    }
    parted = sum(len(of_step - whole) for of_step in seen)
    assert parted <= 2 * len(steps), "only at the two ends of a step may a user be parted"


def test_states_of_several_processes_are_put_together_with_what_was_shown(
    make_network: Callable[..., KarmaNetwork],
) -> None:
    known = world(30)
    shown_EM = np.random.default_rng(3).integers(-1, NUM_ITEMS, (len(known.sequences.items_E), 3)).astype(np.int32)
    log = replace(known, exposed_EM=shown_EM)
    objective = objective_of(make_network(residual=True), log)
    batches = list(passes_of(log, exposed=3).batches(0))
    alone = [read_outs(objective, [batch]) for batch in batches]
    narrow = alone[0]._replace(choices=alone[0].choices._replace(exposed_KM=alone[0].choices.exposed_KM[:, :1]))
    whole = together([narrow, *alone[1:]])
    assert whole.choices.owner_K.unique().tolist() == list(range(30))
    assert len(whole.state_KD) == sum(len(one.state_KD) for one in alone) == len(whole.mean_KF)
    first = len(narrow.state_KD)
    assert whole.choices.exposed_KM[:first, 0].equal(narrow.choices.exposed_KM[:, 0])
    assert (whole.choices.exposed_KM[:first, 1:] == PADDING).all()
    assert whole.choices.exposed_KM[first:].equal(torch.cat([one.choices.exposed_KM for one in alone[1:]]))


def test_states_are_left_out_in_part_while_heads_learn(make_network: Callable[..., KarmaNetwork]) -> None:
    log, losses = world(24), []
    for dropout in (0.0, 0.9):
        network = make_network()
        spread(network, log, seed=0)
        objective, passes = objective_of(network, log), passes_of(log)
        found = read_outs(objective, passes.batches(0))
        torch.manual_seed(0)
        settings = replace(SETTINGS, head_dropout=dropout)
        losses.append(fit_heads(objective, found, passes.sample, settings, epoch=0, seed=0))
    assert losses[1] > 1.2 * losses[0]


def read_with_heads_at_rest(network: KarmaNetwork, num_users: int) -> tuple[KarmaObjective, KarmaPasses, ReadOuts]:
    log = world(num_users)
    spread(network, log, seed=0)
    objective, passes = objective_of(network, log), passes_of(log)
    return objective, passes, read_outs(objective, passes.batches(0))


def heads_of(network: KarmaNetwork) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in network.named_parameters() if name.startswith(HEADS)}


def test_the_heads_of_the_best_epoch_for_users_held_out_are_kept_and_training_stops_soon_after(
    make_network: Callable[..., KarmaNetwork], caplog: pytest.LogCaptureFixture
) -> None:
    """Targets mean nothing here, so the heads can only learn the users by heart."""
    network = make_network(residual=True)
    objective, passes, found = read_with_heads_at_rest(network, 240)
    random_K = torch.from_numpy(np.random.default_rng(5).integers(0, NUM_ITEMS, len(found.state_KD)))
    found = found._replace(choices=found.choices._replace(target_K=random_K))
    settings = replace(SETTINGS, head_epochs=60, head_rate=1e-2, head_dropout=0.0, head_held_out=0.1)
    rng = np.random.default_rng(3)
    held_out = HeldOutReadOuts.of(found, passes.sample, 0.1, rng)
    assert held_out.num_users == 24
    told: list[tuple[float, dict[str, torch.Tensor]]] = []

    def keep(number: int) -> None:
        told.append((held_out.loss(objective), heads_of(network)))

    with caplog.at_level("INFO"):
        fit_heads(objective, found, passes.sample, settings, epoch=0, seed=3, on_epoch=keep)
    losses = [loss for loss, _ in told]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1 == best + karma_start.HEAD_PATIENCE < 59
    for name, weight in heads_of(network).items():
        assert weight.equal(told[best][1][name])
        if name.endswith("weight"):
            assert not weight.equal(told[-1][1][name])
    assert f"heads: epoch {best + 1} of 60 is kept, L_act of 24 users held out {losses[best]:.4f}" in caplog.text


def test_a_stage_of_heads_that_stops_early_is_told_as_a_whole_pass(
    make_network: Callable[..., KarmaNetwork], caplog: pytest.LogCaptureFixture
) -> None:
    """So that a progress bar over all stages ends full."""
    log, users = world(240), list[int]()
    items_E = np.random.default_rng(5).integers(0, NUM_ITEMS, len(log.sequences.items_E)).astype(np.int32)
    log = replace(log, sequences=Sequences(items_E, log.sequences.times_E, log.sequences.offsets_U))
    settings = replace(SETTINGS, head_epochs=60, head_rate=1e-2, head_dropout=0.0, decodability=0.0, batch_size=120)
    with caplog.at_level("INFO"):
        fit_karma(make_network(), log, settings, watch=KarmaWatch(on_users=users.append))
    assert "of 60 is kept" in caplog.text
    assert "after epoch 60" not in caplog.text
    assert sum(users) == 2 * 240


def test_what_users_held_out_chose_trains_no_head(make_network: Callable[..., KarmaNetwork]) -> None:
    """They are all given another target: the heads after one epoch are the same to the bit; not so for the others."""
    after = []
    for whose in ("nobody's", "held out", "training"):
        network = make_network()
        objective, passes, found = read_with_heads_at_rest(network, 240)
        settings = replace(SETTINGS, head_epochs=1, head_dropout=0.0, head_held_out=0.25)
        held_out = HeldOutReadOuts.of(found, passes.sample, 0.25, np.random.default_rng(0))
        is_training = torch.zeros(len(found.state_KD), dtype=torch.bool)
        is_training[torch.from_numpy(held_out.training_J)] = True
        owners = found.choices.owner_K
        assert not set(owners[is_training].tolist()) & set(owners[~is_training].tolist())
        assert len(owners[~is_training].unique()) == held_out.num_users == 60
        changed = {"nobody's": torch.zeros_like(is_training), "held out": ~is_training, "training": is_training}[whose]
        target_K = torch.where(changed, (found.choices.target_K + 1) % NUM_ITEMS, found.choices.target_K)
        found = found._replace(choices=found.choices._replace(target_K=target_K))
        fit_heads(objective, found, passes.sample, settings, epoch=0, seed=0)
        after.append(heads_of(network))
    as_they_are, others_changed, training_changed = after
    assert all(weight.equal(others_changed[name]) for name, weight in as_they_are.items())
    assert not all(weight.equal(training_changed[name]) for name, weight in as_they_are.items())


def test_where_too_few_could_be_held_out_everyone_trains_and_the_last_epoch_is_kept(
    make_network: Callable[..., KarmaNetwork], caplog: pytest.LogCaptureFixture
) -> None:
    after = []
    for share in (0.0, 0.4):
        network = make_network()
        objective, passes, found = read_with_heads_at_rest(network, 48)
        torch.manual_seed(0)
        heard: list[int] = []
        settings = replace(SETTINGS, head_epochs=9, head_held_out=share)
        with caplog.at_level("INFO"):
            fit_heads(objective, found, passes.sample, settings, epoch=0, seed=0, on_epoch=heard.append)
        assert heard == list(range(9))
        after.append(heads_of(network))
    assert all(weight.equal(after[1][name]) for name, weight in after[0].items())
    assert "is kept" not in caplog.text


def test_no_more_users_are_held_out_than_say_something_new(
    make_network: Callable[..., KarmaNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, passes, found = read_with_heads_at_rest(make_network(), 240)
    monkeypatch.setattr(karma_start, "MOST_HELD_OUT", 30)
    held_out = HeldOutReadOuts.of(found, passes.sample, 0.5, np.random.default_rng(0))
    assert held_out.num_users == 30
    assert held_out.read_outs is not None
    assert len(held_out.training_J) + len(held_out.read_outs.state_KD) == len(found.state_KD)


def test_heads_that_go_astray_stop_the_run_and_the_message_names_their_rate(
    make_network: Callable[..., KarmaNetwork],
) -> None:
    kept: list[dict[str, Any]] = []
    with pytest.raises(ValueError, match=r"in epoch 0 .* lower the rate of that stage .*head_rate 1e\+30"):
        fit_karma(
            make_network(), world(24), replace(SETTINGS, head_rate=1e30), watch=KarmaWatch(on_checkpoint=kept.append)
        )
    assert not kept


def test_targets_compared_with_nothing_are_refused(make_network: Callable[..., KarmaNetwork]) -> None:
    alone = replace(SETTINGS, catalogue_negatives=0, in_batch_weight=0.0)
    with pytest.raises(ValueError, match="compared with nothing: catalogue_negatives = 0, in_batch_weight = 0"):
        fit_karma(make_network(), world(24), alone)
    fit_karma(make_network(), world(24), replace(alone, in_batch_weight=1.0, head_epochs=1))
