"""Even users like even items; the content says which is which, so does the title, and new items can be told by both."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.causal_lm import CausalLM
from embedders.fit_karma import (
    KarmaEpochRow,
    KarmaLog,
    KarmaSettings,
    KarmaValidation,
    KarmaWatch,
    fit_karma,
)
from embedders.histories import PADDING, Sequences
from embedders.karma import KarmaNetwork
from embedders.karma_features import FrozenFeatures
from embedders.karma_packing import KarmaBatch
from embedders.karma_towers import KarmaShape
from feature_repo.table_schemas import KarmaCurves

NUM_ITEMS, NUM_NEW, WIDTH, IMAGE = 40, 16, 8, 4
EVEN, ODD = 100, 101

MakeNetwork = Callable[..., KarmaNetwork]


def vectors(width: int, seed: int) -> NDArray[np.float32]:
    """The parity is in the sign of the first coordinate, under noise."""
    drawn = np.random.default_rng(seed).standard_normal((NUM_ITEMS + NUM_NEW, width)).astype(np.float32)
    drawn[:, 0] += np.where(np.arange(len(drawn)) % 2 == 0, 3.0, -3.0)
    return drawn


def world(num_users: int = 48, seed: int = 0) -> KarmaLog:
    """A title is the word of its parity and a word of its own."""
    rng = np.random.default_rng(seed)
    sequences = Sequences.of_lists(
        [(2 * rng.integers(0, NUM_ITEMS // 2, rng.integers(4, 8)) + user % 2).tolist() for user in range(num_users)]
    )
    return KarmaLog(sequences, [[(EVEN, ODD)[item % 2], 110 + item] for item in range(NUM_ITEMS + NUM_NEW)])


@pytest.fixture
def make_network(make_lm: Callable[..., CausalLM]) -> MakeNetwork:
    def make(*, images: bool = False, **shape: Any) -> KarmaNetwork:
        lm = make_lm()
        torch.manual_seed(1)
        image_NV = vectors(IMAGE, seed=2) if images else None
        if image_NV is not None:
            image_NV[::5] = 0.0  # no picture
        features = FrozenFeatures(vectors(WIDTH, seed=1), image_NV)
        sizes = {"output_dim": 8, "item_hidden": 16, "max_history": 6, **shape}
        network = KarmaNetwork(lm, features, KarmaShape(**sizes))
        network.towers.instruction = network.towers.instruction[:2]  # it takes most of the time, and says nothing here
        return network

    return make


QUICK = KarmaSettings(
    head_epochs=0,
    epochs=2,
    patience=9,
    batch_size=12,
    read_outs=2,
    learning_rate=3e-3,
    language_model_rate=1e-3,
)


@torch.inference_mode()
def users_of(network: KarmaNetwork, histories: list[list[int]]) -> Tensor:
    ones, nobody = torch.ones(len(histories), 1, dtype=torch.int64), torch.full((len(histories), 1), PADDING)
    batch = KarmaBatch(
        torch.tensor(histories),
        len(histories[0]) * ones,
        0 * ones,
        nobody,
        nobody.unsqueeze(2)[:, :, :0],
        ones < 0,
        0 * ones,
        ones[0, :0],
    )
    found: Tensor = network(batch, [[]] * (NUM_ITEMS + NUM_NEW), [], generation=False, reconstruction=False).users_Kd
    return found


@torch.inference_mode()
def share_of_new_items_with_the_right_parity(network: KarmaNetwork) -> float:
    """Of the 8 new items closest to each user, how many have the user's parity; 0.5 by chance."""
    users = users_of(network, [[0, 4, 8], [1, 5, 9], [12, 2, 30], [13, 3, 31]])
    items = network.items(torch.arange(NUM_ITEMS, NUM_ITEMS + NUM_NEW))
    closest = (users @ items.T).topk(8, dim=1).indices
    return float(((closest % 2) == torch.tensor([[0], [1], [0], [1]])).float().mean())


def weights_of(network: KarmaNetwork, names: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters() if names(name)}


def changed(before: Mapping[str, Tensor], network: KarmaNetwork) -> set[str]:
    return {name for name, weight in network.named_parameters() if name in before and not weight.equal(before[name])}


def is_new(network: KarmaNetwork) -> set[str]:
    return {name for name, _ in network.new_parameters()}


def test_what_an_epoch_is_told_in_is_the_table_of_curves() -> None:
    assert list(KarmaEpochRow._fields) == KarmaCurves.column_names()
    table = KarmaEpochRow._fields
    of_validation = ["validation_recall", *KarmaValidation._fields[1:]]
    assert list(table[table.index("validation_recall") : table.index("seconds")]) == of_validation


@pytest.mark.parametrize("action", ["pairwise", "infonce"])
def test_losses_fall_and_unseen_items_are_told_by_their_content(make_network: MakeNetwork, action: Any) -> None:
    network = make_network()
    curve = fit_karma(
        network,
        world(),
        replace(QUICK, action=action, epochs=10, read_outs=4),
        validate=lambda: KarmaValidation(recall=share_of_new_items_with_the_right_parity(network)),
    )
    untouched, first, last = curve[0], curve[1], curve[-1]
    for name in ("train_loss", "action_loss", "generation_loss", "reconstruction_loss"):
        assert getattr(last, name) < getattr(first, name)
    assert untouched.validation_recall is not None
    assert untouched.validation_recall < 0.8
    assert share_of_new_items_with_the_right_parity(network) >= 0.95


def fitted(
    network: KarmaNetwork, log: KarmaLog | None = None, watch: KarmaWatch | None = None, **changes: Any
) -> tuple[KarmaEpochRow, ...]:
    return fit_karma(network, log or world(24), replace(QUICK, **changes), watch=watch, stopwatch=lambda: 0.0)


def same(one: KarmaNetwork, other: KarmaNetwork) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_network: MakeNetwork) -> None:
    first, second, third = make_network(), make_network(), make_network()
    curve = fitted(first)
    torch.rand(5)
    assert fitted(second) == curve
    assert same(first, second)
    fitted(third, seed=1)
    assert not same(first, third)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(
    make_network: MakeNetwork, stopped_after: int
) -> None:
    """With a warm-up first and a flow, so that stages, noise and weights that come and go are in it."""
    changes: dict[str, Any] = {"epochs": 2, "warm_up_epochs": 1, "image": "vector"}
    whole, stopped, resumed = (make_network(images=True) for _ in range(3))
    curve = fitted(whole, **changes)
    kept: list[dict[str, Any]] = []

    class KilledError(Exception):
        pass

    def keep(checkpoint: dict[str, Any]) -> None:
        kept.append(checkpoint)
        if len(kept) == stopped_after:
            raise KilledError

    with pytest.raises(KilledError):
        fitted(stopped, None, KarmaWatch(on_checkpoint=keep), **changes)
    torch.rand(7)  # whatever happened to the generator in between
    assert fitted(resumed, None, KarmaWatch(resume_from=kept[-1]), **changes) == curve
    assert same(whole, resumed)


def test_a_checkpoint_goes_through_a_file_that_may_hold_nothing_but_tensors_and_plain_values(
    make_network: MakeNetwork, tmp_path: Any
) -> None:
    kept: list[dict[str, Any]] = []
    whole, resumed = make_network(), make_network()
    curve = fitted(whole, None, KarmaWatch(on_checkpoint=kept.append))
    torch.save(kept[0], tmp_path / "checkpoint.pt")
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert fitted(resumed, None, KarmaWatch(resume_from=checkpoint)) == curve
    assert same(whole, resumed)


def test_a_frozen_language_model_stays_what_it_was_and_all_else_learns(make_network: MakeNetwork) -> None:
    network = make_network()
    before, new = weights_of(network), is_new(network)
    wanted_before = {name for name, _ in network.language_model_parameters()}
    fitted(network, frozen_language_model=True)
    assert changed(before, network) == {name for name in new if before[name].numel()}
    assert {name for name, _ in network.language_model_parameters()} == wanted_before


def test_the_warm_up_trains_what_is_new_by_generation_alone_and_the_joint_stage_everything(
    make_network: MakeNetwork,
) -> None:
    network = make_network()
    start, new = weights_of(network), is_new(network)
    seen: list[dict[str, Tensor]] = []
    watch = KarmaWatch(on_checkpoint=lambda checkpoint: seen.append(weights_of(network)))
    curve = fitted(network, None, watch, epochs=1, warm_up_epochs=1, generation=False)
    moved = {name for name in start if not seen[0][name].equal(start[name])}
    assert moved <= new
    assert {"towers.read_out_D"} | {name for name in new if "adapter" in name} <= moved
    # the heads' last layers have been spread out, which is not training
    assert not {name for name in moved if "head" in name or "prefix" in name} - {
        "towers.user_head.bias",
        "towers.user_head.weight",
        "towers.item_head.2.bias",
        "towers.item_head.2.weight",
    }
    assert [(row.epoch, row.stage) for row in curve] == [(0, "warm_up"), (1, "joint")]
    assert curve[0].generation_loss == curve[0].train_loss
    assert (curve[0].action_loss, curve[0].reconstruction_loss) == (None, None)
    assert curve[1].generation_loss is None  # switched off in the joint stage
    assert {name for name in start if start[name].numel()} == changed(seen[0], network)


@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({}, {"action", "generation", "reconstruction"}),
        ({"generation": False}, {"action", "reconstruction"}),
        ({"reconstruction": False}, {"action", "generation"}),
        ({"generation": False, "reconstruction": False}, {"action"}),
        ({"decodability": 0.0, "image": "vector"}, {"action"}),
        ({"decoded": 0}, {"action"}),
        ({"generation": False, "reconstruction": False, "image": "vector"}, {"action", "image"}),
        ({"image": "history"}, {"action", "generation", "reconstruction", "image"}),
    ],
)
def test_a_term_that_is_off_has_no_loss_and_the_others_add_up(
    make_network: MakeNetwork, changes: dict[str, Any], there: set[str]
) -> None:
    network = make_network(images=True)
    (row,) = fitted(network, world(num_users=12), epochs=1, **changes)
    losses = {name: getattr(row, f"{name}_loss") for name in ("action", "generation", "reconstruction", "image")}
    assert {name for name, loss in losses.items() if loss is not None} == there
    weight = replace(QUICK, **changes).decodability
    decoded = sum(loss for name, loss in losses.items() if loss is not None and name != "action")
    assert row.train_loss == pytest.approx(losses["action"] + weight * decoded, rel=1e-6)
    assert network.image_flow is None  # in training only


def test_a_catalogue_without_a_single_title_is_learnt_from_actions_alone(make_network: MakeNetwork) -> None:
    curve = fitted(make_network(), KarmaLog(world(12).sequences, [[]] * (NUM_ITEMS + NUM_NEW)), warm_up_epochs=1)
    assert curve[0].train_loss == 0.0
    assert {(row.generation_loss, row.reconstruction_loss) for row in curve} == {(None, None)}
    assert curve[1].action_loss == curve[1].train_loss


def test_titles_are_learnt_from_the_vector_as_far_as_it_tells_them(make_network: MakeNetwork) -> None:
    """Half of a title is its parity, which the vector knows; the other half is anybody's guess."""
    curve = fitted(make_network(), world(), epochs=12, decoded=2, read_outs=2, decodability=1.0)
    words = len(world().titles[0]) + 1  # and the end
    assert curve[0].reconstruction_loss is not None
    assert curve[-1].reconstruction_loss is not None
    assert curve[-1].reconstruction_loss < 0.6 * curve[0].reconstruction_loss
    assert curve[-1].reconstruction_loss > np.log(NUM_ITEMS / 2) / words * 0.5


def test_pictures_are_learnt_from_the_vector(make_network: MakeNetwork) -> None:
    curve = fitted(make_network(images=True), epochs=8, image="vector", generation=False, reconstruction=False)
    assert curve[0].image_loss is not None
    assert curve[-1].image_loss is not None
    assert curve[-1].image_loss < curve[0].image_loss


def validations(recalls: list[float | None]) -> Callable[[], KarmaValidation]:
    each = iter(recalls)
    return lambda: KarmaValidation(recall=next(each), uniformity=-1.0)


def test_it_stops_when_recall_no_longer_gains_and_keeps_the_best_weights_of_the_joint_stage(
    make_network: MakeNetwork,
) -> None:
    """Untouched and after the warm-up the recall is higher, which is no reason to go back there."""
    network = make_network()
    states: list[dict[str, Tensor]] = []
    told: list[KarmaEpochRow] = []
    watch = KarmaWatch(on_epoch=lambda row: (told.append(row), states.append(weights_of(network)))[0])
    settings = replace(QUICK, epochs=9, patience=2, warm_up_epochs=1)
    curve = fit_karma(
        network, world(12), settings, validate=validations([0.8, 0.9, 0.1, 0.3, 0.2, 0.25, 0.9]), watch=watch
    )
    assert [row.stage for row in curve] == ["untouched", "warm_up", *["joint"] * 4]
    assert [row.epoch for row in curve] == [-1, 0, 1, 2, 3, 4] == [row.epoch for row in told]
    assert [row.validation_recall for row in curve] == [0.8, 0.9, 0.1, 0.3, 0.2, 0.25]
    assert [row.is_best for row in curve] == [False, False, False, True, False, False]
    assert {row.uniformity for row in curve} == {-1.0}
    assert (curve[0].train_loss, curve[0].action_loss) == (None, None)
    assert not changed(states[3], network)
    assert not network.training


def test_without_a_validation_the_last_epoch_is_the_best_and_nobody_is_untouched(make_network: MakeNetwork) -> None:
    network = make_network()
    last: list[dict[str, Tensor]] = []
    curve = fitted(network, world(12), KarmaWatch(on_epoch=lambda row: last.append(weights_of(network))))
    assert [(row.epoch, row.is_best, row.validation_recall) for row in curve] == [(0, False, None), (1, True, None)]
    assert not changed(last[-1], network)


def test_progress_is_told_and_counts_every_user(make_network: MakeNetwork) -> None:
    users: list[int] = []
    fitted(make_network(), world(num_users=25), KarmaWatch(on_users=users.append))
    assert sum(users) == 2 * 25


def test_queries_and_what_was_shown_and_passed_over_are_learnt_from(make_network: MakeNetwork) -> None:
    """History says nothing here: the query names the parity, and the other parity was shown beside every target."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, NUM_ITEMS, 6).tolist() for _ in range(48)]
    sequences, titles = Sequences.of_lists(lists), world().titles
    asked = (sequences.items_E % 2).astype(np.int32)
    shown = np.stack([(sequences.items_E + 1) % NUM_ITEMS, np.full(len(asked), PADDING)], axis=1).astype(np.int32)
    log = KarmaLog(sequences, titles, [[EVEN], [ODD]], asked, shown)
    plain, told = (
        fitted(make_network(), given, epochs=8, generation=False, reconstruction=False, query_share=1.0)
        for given in (KarmaLog(sequences, titles), log)
    )
    assert told[-1].action_loss is not None
    assert plain[-1].action_loss is not None
    assert told[0].action_loss > plain[0].action_loss  # type: ignore[operator]  # what was shown is in it
    assert told[-1].action_loss < plain[-1].action_loss


def test_a_bfloat16_pass_learns_the_same(make_network: MakeNetwork) -> None:
    network = make_network()
    fitted(network, world(), epochs=8, read_outs=4, precision="bfloat16")
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert share_of_new_items_with_the_right_parity(network) >= 0.9


def test_low_rank_adapters_learn_and_the_weights_beside_them_do_not(make_network: MakeNetwork) -> None:
    pytest.importorskip("peft")
    network = make_network(low_rank=2)
    beside = weights_of(
        network, lambda name: name.startswith(("towers.language_model", "output")) and "lora" not in name
    )
    adapters = weights_of(network, lambda name: "lora" in name)
    fitted(network, world(12))
    assert adapters
    assert changed(adapters, network)
    assert not changed(beside, network)


def test_a_loss_that_is_not_finite_stops_the_run_at_once(make_network: MakeNetwork) -> None:
    network = make_network()
    network.towers.features.frozen = FrozenFeatures(np.full((NUM_ITEMS + NUM_NEW, WIDTH), np.nan, np.float32))
    users: list[int] = []
    with pytest.raises(ValueError, match=r"loss became nan in epoch 0 \(seed 0; action nan.*lower the rate of that"):
        fitted(network, world(), KarmaWatch(on_users=users.append))
    assert not users


def test_what_cannot_be_trained_is_said_before_the_first_step(make_network: MakeNetwork) -> None:
    with pytest.raises(ValueError, match="image = 'vector' tells pictures, but no item has one"):
        fitted(make_network(), image="vector")
    log = world()
    with pytest.raises(ValueError, match="56 items with features and 55 titles"):
        fitted(make_network(), KarmaLog(log.sequences, log.titles[:-1]))
    coarse = make_network()
    coarse.towers.language_model.bfloat16()
    with pytest.raises(ValueError, match=r"language_model.* is torch.bfloat16.*expected float32"):
        fitted(coarse)
    with pytest.raises(ValueError, match="1 of 2 users have two interactions"):
        fitted(make_network(), KarmaLog(Sequences.of_lists([[1, 2], [3]]), log.titles))
