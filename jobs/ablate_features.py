"""Measure what each group of features is worth to a ranker, by segment, and what it costs.

reads   training_examples (and the vector matrices beside it), ranker_predictions, models/<ranker>/<seed>
        the ledger of the steps and the online store, for the costs
writes  feature_group_values     one row per (ranker, group, method, segment kind, segment, metric)
        feature_group_costs      one row per (ranker, group)
        ablation/<ranker>/without_<group>/<seed>     rankers trained without a group

No step of the flow: it is run when somebody asks (`tailrank ablate`), for it may train a ranker for every group.
`ranker.feature_groups` says what a group is, `ranker.ablation` what the two methods can tell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import dataframely as dy
import polars as pl
from rich.console import Console

from feature_repo.table_schemas import FeatureGroupCosts, FeatureGroupValues, RankerPredictions, TrainingExamples
from jobs.feature_group_costs import bytes_online, seconds_to_make
from jobs.feature_group_table import cost_table, print_order, value_table
from jobs.lake import Lake

if TYPE_CHECKING:
    from jobs import evaluate_ranker, train_ranker
    from jobs.ablation_runs import AblatedGroup

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (TrainingExamples, RankerPredictions)
WRITES: tuple[type[dy.Schema], ...] = (FeatureGroupValues, FeatureGroupCosts)

METHODS = ("permuted", "retrained")
"""`permuted` needs no training; `retrained` trains each ranker once for every group and seed."""


class FeatureGroupTables(NamedTuple):
    """What is known of the groups of the rankers as they are."""

    values: dy.DataFrame[FeatureGroupValues]
    costs: dy.DataFrame[FeatureGroupCosts]


def run(
    lake: Lake,
    train: train_ranker.Config,
    judge: evaluate_ranker.Config,
    *,
    rankers: Sequence[str] = (),
    methods: Sequence[str] = ("permuted",),
    groups: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    num_shuffles: int = 3,
    seed: int = 0,
) -> None:
    """Judge rankers with and without each group of their features, write both tables, print them.

    Results of other rankers, groups and methods that are in the tables stay, as long as they are of the rankers as they
    are now. What was trained without a group is not trained again, and a killed run goes on.

    Args:
        lake: where train_ranker has run.
        train: the settings that the rankers were trained with: Config of train_ranker.
        judge: bootstrap draws and smallest cells: Config of evaluate_ranker. Its baseline is not read.
        rankers: names; by default the one whose feature service has the most features, the first of several.
        methods: any of `METHODS`.
        groups: names (`ranker.feature_groups`); by default all groups of each ranker.
        seeds: training seeds, of those that train_ranker used; by default all of them.
        num_shuffles: shuffles averaged by `permuted`.
        seed: of the shuffles.

    Raises:
        TableError: train_ranker has not run.
        ValueError: an unknown ranker, method, group or seed; rankers that are not what ranker_predictions is of.
    """
    # torch takes seconds to import, and whoever lists the commands imports this file
    from jobs.ablation_runs import ablate_rankers
    from ranker.ablation import Judging

    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"ablate: there is no method {unknown[0]!r}; the methods are {', '.join(METHODS)}")
    if num_shuffles < 1:
        raise ValueError(f"ablate: num_shuffles is {num_shuffles}, expected at least 1")
    chosen = _choose_rankers(lake, train, rankers)
    values: list[pl.DataFrame] = []
    costs = []
    for one in ablate_rankers(
        lake,
        train,
        chosen,
        methods=methods,
        groups=groups or None,
        seeds=seeds or None,
        num_shuffles=num_shuffles,
        seed=seed,
        judging=Judging(judge.num_draws, judge.seed, judge.min_users, judge.min_positives),
    ):
        values.append(one.values)
        costs.append(_cost(lake, one))
        # what is done is kept, should a later group fail or be stopped
        tables = _write(lake, pl.concat(values), pl.DataFrame(costs, schema=FeatureGroupCosts.create_empty().schema))
    console = Console()
    for ranker, method in print_order(tables.values):
        if ranker in chosen:
            console.print(value_table(tables.values, ranker, method))
    for ranker in chosen:
        console.print(cost_table(tables.costs, ranker))


def feature_group_tables(lake: Lake) -> FeatureGroupTables | None:
    """Both tables, where they are of the predictions that the lake holds now; otherwise None."""
    there = [lake.manifest(schema) for schema in WRITES if lake.exists(schema)]
    if len(there) < len(WRITES) or not lake.exists(RankerPredictions):
        return None
    now = lake.manifest(RankerPredictions).digest
    if any(manifest.metadata.get("predictions") != now for manifest in there):
        return None
    return FeatureGroupTables(lake.read(FeatureGroupValues), lake.read(FeatureGroupCosts))


def _choose_rankers(lake: Lake, train: train_ranker.Config, names: Sequence[str]) -> list[str]:
    trained = lake.manifest(RankerPredictions).metadata["rankers"]
    if unknown := [name for name in names if name not in trained or name not in train.rankers]:
        raise ValueError(
            f"ablate: there is no trained ranker {unknown[0]!r}; trained are {', '.join(trained)}.\n"
            "  what to do: name one of them, or add it to `rankers` of [train_ranker] and `tailrank run train_ranker`"
        )
    if names:
        return list(dict.fromkeys(names))
    services = lake.manifest(TrainingExamples).metadata["services"]
    there = [name for name in train.rankers if name in trained]
    if not there:
        raise ValueError(f"ablate: of the rankers {list(train.rankers)} none is trained; trained are {list(trained)}")
    return [max(there, key=lambda name: len(services.get(train.rankers[name].service, ())))]


def _cost(lake: Lake, one: AblatedGroup) -> dict[str, object]:
    online = bytes_online(lake, one.group.views)
    return {
        "ranker": one.ranker,
        "feature_group": one.group.name,
        "num_features": len(one.group.features),
        "seconds_to_make": seconds_to_make(lake, one.group.tables),
        "num_bytes_online": sum(online.values()) if online and len(online) == len(one.group.views) else None,
        "rows_per_second_with": one.rows_per_second_with,
        "rows_per_second_without": one.rows_per_second_without,
    }


def _write(lake: Lake, values: pl.DataFrame, costs: pl.DataFrame) -> FeatureGroupTables:
    """Write the tables, with what they already said of other groups and methods of the same rankers."""
    before = feature_group_tables(lake)
    if before is not None:
        one_result = ["ranker", "feature_group", "method"]
        values = pl.concat([before.values.join(values, on=one_result, how="anti", maintain_order="left"), values])
        one_group = one_result[:2]
        # both speeds were measured together, so they stay together
        speeds = ["rows_per_second_with", "rows_per_second_without"]
        known = before.costs.filter(pl.col(speeds[1]).is_not_null()).select(
            *one_group, pl.col(speeds).name.prefix("old_")
        )
        costs = costs.join(known, on=one_group, how="left", maintain_order="left").with_columns(
            pl.when(pl.col(speeds[1]).is_null() & pl.col(f"old_{speeds[1]}").is_not_null())
            .then(pl.col(f"old_{name}"))
            .otherwise(pl.col(name))
            .alias(name)
            for name in speeds
        )
        others = before.costs.join(costs, on=one_group, how="anti", maintain_order="left")
        costs = pl.concat([others, costs.select(FeatureGroupCosts.column_names())])
    metadata = {"predictions": lake.manifest(RankerPredictions).digest}
    lake.write(FeatureGroupValues, values, metadata=metadata)
    lake.write(FeatureGroupCosts, costs, metadata=metadata)
    return FeatureGroupTables(FeatureGroupValues.validate(values), FeatureGroupCosts.validate(costs))
