"""The settings that `train_ranker` tries: for every kind of ranker as many, the default first."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from jobs.train_ranker import Config, RankerConfig
from ranker.fit import FitSettings
from ranker.gbdt import GbdtRanker, GbdtSettings
from ranker.network_ranker import NetworkRanker, NetworkSettings
from ranker.ranker import Ranker

logger = logging.getLogger(__name__)

NETWORK_GRID: Mapping[str, Sequence[float]] = {
    "learning_rate": (1e-3, 3e-4, 3e-3),
    "weight_decay": (1e-5, 1e-3),
    "dropout": (0.1, 0.3),
}
GBDT_GRID: Mapping[str, Sequence[float]] = {
    "learning_rate": (0.05, 0.02, 0.1),
    "num_leaves": (31, 15, 63),
    "min_rows_in_leaf": (50, 200),
}
GRID_SEED = 0
"""The order in which a grid is tried is always the same, and not the grid's own: its corners come early."""


@dataclass(frozen=True)
class NetworkPlan:
    """A network to train, whatever the seed."""

    network: NetworkSettings
    fit: FitSettings

    def make(self, seed: int) -> Ranker:
        """An unfitted ranker."""
        return NetworkRanker(self.network, replace(self.fit, seed=seed))

    def described(self) -> dict[str, Any]:
        """Plain values, without the seed."""
        return {**asdict(self.network), **asdict(replace(self.fit, seed=0))}

    def most_rows(self, num_examples: int) -> int:
        """Training rows read, if nothing stops early."""
        return self.fit.passes * num_examples


@dataclass(frozen=True)
class GbdtPlan:
    """Trees to grow, whatever the seed."""

    gbdt: GbdtSettings

    def make(self, seed: int) -> Ranker:
        """An unfitted ranker."""
        return GbdtRanker(replace(self.gbdt, seed=seed))

    def described(self) -> dict[str, Any]:
        """Plain values, without the seed."""
        return asdict(replace(self.gbdt, seed=0))

    def most_rows(self, num_examples: int) -> int:
        """Training rows read, if nothing stops early: each tree reads them all."""
        return self.gbdt.num_rounds * num_examples


Plan = NetworkPlan | GbdtPlan


def plans(name: str, one: RankerConfig, config: Config, *, has_conversions: bool) -> list[Plan]:
    """The plans to try for one ranker: `config.trials` of them, or the whole grid if it is smaller.

    Args:
        name: of the ranker, for the log.
        one: what kind of ranker.
        config: what all rankers share.
        has_conversions: whether a training row is converted.
    """
    if one.kind == "gbdt":
        trees = GbdtSettings(num_rounds=config.num_rounds)
        return [GbdtPlan(replace(trees, **changed)) for changed in _tried(GBDT_GRID, config.trials)]
    label = config.auxiliary_label
    if one.auxiliary != "none" and label == "converted" and not has_conversions:
        logger.warning("train_ranker: no training row is converted, the auxiliary loss of %s is about clicks", name)
        label = "clicked"
    network = NetworkSettings(
        auxiliary=one.auxiliary, auxiliary_label=label, embedding_dim=config.embedding_dim, dropout=config.dropout
    )
    fit = FitSettings(
        passes=config.passes,
        evaluations_per_pass=config.evaluations_per_pass,
        patience=config.patience,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    found: list[Plan] = []
    for changed in _tried(NETWORK_GRID, config.trials):
        dropout = changed.pop("dropout", network.dropout)
        found.append(NetworkPlan(replace(network, dropout=dropout), replace(fit, **changed)))
    return found


def _tried(grid: Mapping[str, Sequence[float]], trials: int) -> Iterator[dict[str, Any]]:
    """Changes to the configured setting: none at first, then points of the grid."""
    yield {}
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())][1:]
    order = np.random.default_rng(GRID_SEED).permutation(len(points))
    for number in order[: trials - 1]:
        yield points[number]
