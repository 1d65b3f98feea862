"""What held-out users say of KARMA: recall by a ranking by hand, perplexity and attention by one pass each."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from embedders.histories import Sequences
from embedders.karma import KarmaNetwork
from embedders.karma_features import FrozenFeatures
from embedders.karma_model import KarmaModel
from embedders.karma_towers import KarmaShape
from feature_repo.table_schemas import KarmaAttention
from jobs.interaction_sequences import HeldOut
from jobs.karma_texts import TITLE_TOKENS, tokenised
from jobs.karma_validation import HeldOutKarma

if TYPE_CHECKING:
    from embedders.causal_lm import CausalLM

HISTORIES = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5, 8], [9]]
TARGETS = [[7], [9, 3], [2], [3, 8, 4]]
TITLES = [f"{'red' if row % 2 else 'blue'} chair {row}" for row in range(9)] + [""]


@pytest.fixture(scope="module")
def held_out(make_lm: "Callable[..., CausalLM]") -> HeldOutKarma:
    rng = np.random.default_rng(0)
    content_NC = rng.normal(size=(10, 6)).astype(np.float32)
    image_NV = rng.normal(size=(10, 4)).astype(np.float32)
    image_NV[::3] = 0.0
    shape = KarmaShape(output_dim=8, item_hidden=16, max_history=5)
    network = KarmaNetwork(make_lm(), FrozenFeatures(content_NC, image_NV), shape).eval()
    return HeldOutKarma(
        network=network,
        content_NC=content_NC,
        image_NV=image_NV,
        titles=TITLES,
        title_tokens=tokenised(TITLES, network.lm.tokenizer, TITLE_TOKENS),
        users=HeldOut(
            np.array([row for one in HISTORIES for row in one]),
            np.array([len(one) for one in HISTORIES]),
            Sequences.of_lists(TARGETS),
        ),
        recall_at=3,
        precision="float32",
        seed=0,
    )


def test_recall_is_of_the_ranking_of_the_whole_catalogue(held_out: HeldOutKarma):
    model = KarmaModel.of_network(held_out.network)
    items_Nd = model.item_vectors(held_out.content_NC, held_out.image_NV)
    found = []
    for history, targets in zip(HISTORIES, TARGETS, strict=True):
        user = model.user_vectors(
            held_out.content_NC, np.array(history), np.array([len(history)]), image_NV=held_out.image_NV
        ).vectors[0]
        best = np.argsort(-(items_Nd @ user))[:3]
        found.append(len(set(targets) & set(best.tolist())) / len(targets))
    assert held_out().recall == pytest.approx(np.mean(found))


def test_every_measure_is_there_and_the_same_twice(held_out: HeldOutKarma):
    assert None not in held_out()
    assert held_out() == held_out()


def test_perplexity_is_of_the_titles_that_were_wanted(held_out: HeldOutKarma):
    lm, losses = held_out.network.lm, []
    opening = lm.opening_tokens("")
    for row in sorted({row for one in TARGETS for row in one}):
        ids = torch.tensor([[*opening, *held_out.title_tokens[row]]])
        if ids.shape[1] < 2:
            continue
        with torch.no_grad():
            log_probability_LV = lm.model(input_ids=ids).logits[0].log_softmax(dim=-1)
        start = max(1, len(opening))
        losses += [-float(log_probability_LV[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])]
    assert held_out().title_perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)


def test_attention_is_of_the_longest_histories_alone_in_a_pass(held_out: HeldOutKarma, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.karma_validation.MOST_HISTORIES_MAPPED", 2)
    table = KarmaAttention.validate(held_out.attention("fitted"))
    assert table.select("layer", "head").rows() == [(layer, head) for layer in (1, 2) for head in (1, 2, 3, 4)]
    opening = len(held_out.network.towers.instruction)
    assert table.get_column("column_means").list.len().to_list() == [min(48, opening + 5)] * 8, (
        "of 7 items the newest 5"
    )
    both = np.array(table.get_column("top1_mass").to_list())
    alone = []
    for history in (HISTORIES[2], HISTORIES[0]):
        users = HeldOut(np.array(history), np.array([len(history)]), Sequences.of_lists([[0]]))
        alone.append(replace(held_out, users=users).attention("fitted").get_column("top1_mass").to_list())
    np.testing.assert_allclose(both, np.mean(alone, axis=0), atol=1e-5)
