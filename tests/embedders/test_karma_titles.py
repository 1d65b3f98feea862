"""A language model learns to read items: it says titles of items that it was never told of, and nothing else moves."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedders.causal_lm import CausalLM
from embedders.fit_karma import KarmaSettings, fit_karma
from embedders.histories import Sequences
from embedders.karma import KarmaNetwork
from embedders.karma_draws import KarmaLog
from embedders.karma_features import FrozenFeatures
from embedders.karma_objective import KarmaObjective
from embedders.karma_packing import pack
from embedders.karma_titles import READERS, TITLES_AT_ONCE, fit_titles, title_step
from embedders.karma_towers import KarmaShape

NUM_ITEMS, NUM_UNTITLED, WIDTH = 150, 20, 8
EVEN, ODD, TOGETHER = 100, 101, 102
SETTINGS = KarmaSettings(title_epochs=20, title_rate=5e-3)

MakeNetwork = Callable[..., KarmaNetwork]


def vectors() -> NDArray[np.float32]:
    """The parity is in the sign of the first coordinate, under noise."""
    drawn = np.random.default_rng(1).standard_normal((NUM_ITEMS + NUM_UNTITLED, WIDTH)).astype(np.float32)
    drawn[:, 0] += np.where(np.arange(len(drawn)) % 2 == 0, 3.0, -3.0)
    return drawn


def titles() -> list[list[int]]:
    """The word of the parity and one that all have; the last items have no title."""
    return [[(EVEN, ODD)[item % 2], TOGETHER] for item in range(NUM_ITEMS)] + [[]] * NUM_UNTITLED


@pytest.fixture
def make_network(make_lm: Callable[..., CausalLM]) -> MakeNetwork:
    def make(**shape: Any) -> KarmaNetwork:
        lm = make_lm()
        torch.manual_seed(1)
        sizes = {"output_dim": 8, "item_hidden": 16, "max_history": 6, **shape}
        return KarmaNetwork(lm, FrozenFeatures(vectors()), KarmaShape(**sizes))

    return make


def objective_of(network: KarmaNetwork) -> KarmaObjective:
    log = KarmaLog(Sequences.of_lists([[0, 2, 4], [1, 3, 5]]), titles())
    return KarmaObjective(network, log, replace(SETTINGS, decodability=0.0), torch.device("cpu"))


def trained_of(network: KarmaNetwork, frozen: bool = False) -> dict[str, Tensor]:
    return dict(network.new_parameters()) | ({} if frozen else dict(network.language_model_parameters()))


@torch.inference_mode()
def log_probabilities(network: KarmaNetwork, item: int, words: list[int]) -> Tensor:
    """Of the next word after an item's token and these words, over the vocabulary: one item by itself, all logits."""
    language_model = network.towers.language_model
    token_11D = network.towers.item_tokens(torch.tensor([[item]]))
    said_1LD = language_model.get_input_embeddings()(torch.tensor([words], dtype=torch.int64))
    states = language_model(inputs_embeds=torch.cat([token_11D, said_1LD], dim=1), use_cache=False).last_hidden_state
    return functional.log_softmax(network.output(states[0, -1]), dim=-1)


def test_the_loss_is_the_mean_over_all_words_of_titles_said_one_by_one(make_network: MakeNetwork) -> None:
    network = make_network().eval()
    said = [[7], [3, 9, 4], [5, 6]]
    found = title_step(objective_of(network), np.array([4, 0, 11]), said)
    of_words = [
        -log_probabilities(network, item, title[:place])[word].item()
        for item, title in zip([4, 0, 11], said, strict=True)
        for place, word in enumerate([*title, *network.end])
    ]
    assert found.item() == pytest.approx(np.mean(of_words), rel=1e-5)


def test_items_that_had_no_title_are_told_by_their_content(make_network: MakeNetwork) -> None:
    network = make_network()
    steps: list[tuple[int, int]] = []

    def right() -> list[bool]:
        found = []
        for item in range(NUM_ITEMS, NUM_ITEMS + NUM_UNTITLED):
            said_D = log_probabilities(network, item, [])
            found.append(bool(said_D[(EVEN, ODD)[item % 2]] > said_D[(ODD, EVEN)[item % 2]]))
        return found

    assert sum(right()) < NUM_UNTITLED
    before = title_step(objective_of(network), np.arange(NUM_ITEMS), titles()[:NUM_ITEMS]).item()
    loss = fit_titles(
        objective_of(network),
        trained_of(network),
        titles(),
        SETTINGS,
        epoch=0,
        seed=0,
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert loss is not None
    assert loss < 0.5 < 2.0 < before
    assert all(right())
    assert log_probabilities(network, NUM_ITEMS, [EVEN]).argmax() == TOGETHER
    total = SETTINGS.title_epochs * -(-NUM_ITEMS // TITLES_AT_ONCE)
    assert steps == [(done + 1, total) for done in range(total)]


@pytest.mark.parametrize("frozen", [False, True])
def test_what_reads_items_learns_and_of_the_rest_the_language_model_unless_it_is_frozen(
    make_network: MakeNetwork, frozen: bool
) -> None:
    network = make_network()
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    of_language_model = {name for name, _ in network.language_model_parameters()}
    fit_titles(objective_of(network), trained_of(network, frozen), titles(), SETTINGS, epoch=0, seed=0)
    moved = {name for name, weight in network.named_parameters() if not weight.equal(before[name])}
    readers = {name for name in before if name.startswith(READERS) and before[name].numel()}
    assert moved == readers | (set() if frozen else of_language_model)


def test_without_any_title_nothing_is_learnt(make_network: MakeNetwork) -> None:
    network = make_network()
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    nothing = [[] for _ in titles()]
    assert fit_titles(objective_of(network), trained_of(network), nothing, SETTINGS, epoch=0, seed=0) is None
    assert all(weight.equal(before[name]) for name, weight in network.named_parameters())


def test_users_lie_around_the_origin_again_once_items_are_read(make_network: MakeNetwork) -> None:
    """Heads learn from there: what was spread before the stage was read by another language model."""
    histories = [list(range(first, first + 5)) for first in range(40)]  # no more than the sample that is spread
    network = make_network()
    settings = replace(SETTINGS, head_epochs=0, epochs=1, learning_rate=1e-9, language_model_rate=1e-9)
    curve = fit_karma(network, KarmaLog(Sequences.of_lists(histories), titles()), settings)
    assert [row.stage for row in curve] == ["titles", "joint"]
    assert curve[0].train_loss is not None
    assert curve[0].generation_loss is None
    packed = pack(np.array(histories)[:, :4], np.full((40, 1), 4), instruction=network.towers.instruction)
    with torch.inference_mode():
        state_KD, _ = network.towers.read_out(packed, network.towers.states(packed))
        made_Kd = network.towers.user_head(network.towers.user_norm(state_KD))
    assert made_Kd.mean(dim=0).abs().max().item() < 1e-3
    assert made_Kd.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-3)


def test_a_loss_that_is_no_number_stops_the_stage(make_network: MakeNetwork) -> None:
    network = make_network()
    network.towers.features.frozen = FrozenFeatures(np.full((NUM_ITEMS + NUM_UNTITLED, WIDTH), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"loss became nan in epoch 3 \(seed 0; titles nan\).*title_rate 0.005"):
        fit_titles(objective_of(network), trained_of(network), titles(), SETTINGS, epoch=3, seed=0)
