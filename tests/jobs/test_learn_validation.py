"""Held-out users under a network as it is: against vectors and maps computed one user at a time."""

import numpy as np
import pytest
import torch

from embedders.attention_maps import attention_of_learn
from embedders.health import VectorHealth, vector_health
from embedders.histories import Sequences
from embedders.learn import FrozenContent, LearnNetwork, LearnShape
from feature_repo.table_schemas import LearnAttention
from jobs import learn_validation
from jobs.interaction_sequences import HeldOut
from jobs.learn_validation import HeldOutUsers

HISTORIES = [[3, 4], [5, 1, 2, 9, 7, 6], [8], [0, 2, 4, 6]]
TARGETS = [[1, 2], [3], [7, 7], [9, 0]]


@pytest.fixture
def network() -> LearnNetwork:
    torch.manual_seed(0)
    content = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    shape = LearnShape(num_layers=2, num_heads=2, hidden=16, feedforward=16, output_dim=8, max_history=6)
    return LearnNetwork(FrozenContent(content), shape).eval()


def held_out(network: LearnNetwork, histories: list[list[int]], targets: list[list[int]]) -> HeldOutUsers:
    users = HeldOut(
        history_rows_T=np.array([row for one in histories for row in one], np.int64),
        history_lengths_U=np.array([len(one) for one in histories], np.int64),
        targets=Sequences.of_lists(targets),
    )
    return HeldOutUsers(network, network.inputs.content_NC, users, recall_at=3, seed=0)  # type: ignore[arg-type]


@torch.no_grad()
def test_health_is_that_of_the_vectors_of_users_and_of_their_first_targets(network: LearnNetwork):
    users = np.concatenate([network.last_users(torch.tensor([one])).numpy() for one in HISTORIES])
    wanted = network.items(torch.tensor([one[0] for one in TARGETS])).numpy()
    assert held_out(network, HISTORIES, TARGETS).health() == pytest.approx(vector_health(users, wanted), rel=1e-4)


@torch.no_grad()
def test_recall_is_the_share_of_targets_among_the_nearest(network: LearnNetwork):
    items = network.items(torch.arange(10))
    shares = []
    for history, targets in zip(HISTORIES, TARGETS, strict=True):
        nearest = (items @ network.last_users(torch.tensor([history]))[0]).topk(3).indices.tolist()
        shares.append(np.mean([target in nearest for target in set(targets)]))
    assert held_out(network, HISTORIES, TARGETS).recall() == pytest.approx(np.mean(shares))


def test_a_sample_of_many_users_is_fixed_by_the_seed(network: LearnNetwork, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learn_validation, "MOST_USERS_MEASURED", 2)
    users = held_out(network, HISTORIES, TARGETS)
    assert users.health() == users.health()
    assert users.health().participation_ratio == pytest.approx(1.0)  # two vectors lie on one line


def test_attention_is_averaged_over_the_longest_histories(network: LearnNetwork, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learn_validation, "MOST_HISTORIES_MAPPED", 2)
    monkeypatch.setattr(learn_validation, "MAPPED_AT_ONCE", 1)
    rows = LearnAttention.validate(held_out(network, HISTORIES, TARGETS).attention("fitted"))
    assert rows.select("moment", "layer", "head").rows() == [("fitted", y, h) for y in (1, 2) for h in (1, 2)]
    for row in rows.iter_rows(named=True):
        heaviest = []
        for history in (HISTORIES[1], HISTORIES[3]):
            map_LL = attention_of_learn(network, torch.tensor([history]))[row["layer"] - 1][0, row["head"] - 1]
            heaviest.append(float(map_LL[len(history) // 2 :].mean(dim=0).max()))
        assert row["top1_mass"] == pytest.approx(np.mean(heaviest), rel=1e-5)
        assert len(row["column_means"]) == 6


def test_where_nobody_is_held_out_nothing_is_measured(network: LearnNetwork):
    nobody = held_out(network, [], [])
    assert not nobody
    assert nobody.health() == VectorHealth(None, None, None, None)
    assert LearnAttention.validate(nobody.attention("untouched")).height == 0
