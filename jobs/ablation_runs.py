"""The runs of `ablate_features`: score the test split without a group, by shuffling it or by training again."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import FeatureGroupValues, RankerPredictions, TrainingExamples
from jobs.lake import Lake
from jobs.progress import progress_bar
from jobs.ranker_runs import FINISHED, train_or_load
from jobs.ranker_settings import Plan, plans
from jobs.service_examples import ServiceExamples, encode_service
from jobs.train_ranker import Config, RankerConfig
from ranker.ablation import (
    EncodedColumns,
    Judging,
    encoder_without,
    group_values,
    permuted,
    shuffle_within_users,
    varies_within_users,
    without,
)
from ranker.batches import EncodedExamples
from ranker.feature_groups import FeatureGroup, choose_groups, feature_groups
from ranker.gbdt import GbdtRanker
from ranker.judged_runs import Run
from ranker.network_ranker import NetworkRanker
from ranker.ranker import Ranker

logger = logging.getLogger(__name__)

NUM_TIMINGS = 3
"""A test split is scored so often to be timed, and the fastest counts: other programs only ever slow it down. With and
without a group take turns, so that a busy minute slows both."""

SAME_SCORE = 1e-4
"""A saved ranker scores as it did when ranker_predictions was written, but for another machine's rounding."""

SEGMENT_KINDS = ("user_segment", "item_segment")


class AblatedGroup(NamedTuple):
    """One group of one ranker, by all methods asked for."""

    ranker: str
    group: FeatureGroup
    values: dy.DataFrame[FeatureGroupValues]
    rows_per_second_with: float
    rows_per_second_without: float | None
    """Of the ranker trained without it; None where none was."""


class TrainedRanker(NamedTuple):
    """A ranker of `train_ranker`, from each of the seeds asked for, on the test split."""

    name: str
    config: RankerConfig
    plan_number: int
    """Which of the settings tried it was trained with."""
    examples: ServiceExamples
    user_N: NDArray[np.int64]
    """Number of the user of each test row."""
    loaded: dict[int, Ranker]
    runs: list[Run]
    rows_per_second: float


def ablate_rankers(
    lake: Lake,
    train: Config,
    rankers: Sequence[str],
    *,
    methods: Sequence[str],
    groups: Sequence[str] | None,
    seeds: Sequence[int] | None,
    num_shuffles: int,
    seed: int,
    judging: Judging,
) -> Iterator[AblatedGroup]:
    """See `jobs.ablate_features.run`."""
    metadata = lake.manifest(TrainingExamples).metadata
    chosen = {
        name: choose_groups(
            feature_groups(metadata["services"][train.rankers[name].service], metadata.get("origins", {})), groups, name
        )
        for name in rankers
    }
    for service in dict.fromkeys(train.rankers[name].service for name in rankers):
        examples = encode_service(lake, service, metadata["services"][service], train)
        for name in rankers:
            if train.rankers[name].service != service:
                continue
            trained = _load(lake, name, train, examples, seeds)
            for number, group in enumerate(chosen[name]):
                logger.info("ablate: %s without %s (%d of %d)", name, group.name, number + 1, len(chosen[name]))
                values, speed, speed_without = [], trained.rows_per_second, None
                for method in methods:
                    if method == "permuted":
                        runs = _permuted_runs(trained, group, num_shuffles, seed)
                    else:
                        runs, speed, speed_without = _retrained_runs(lake, trained, group, train)
                    values.append(
                        group_values(
                            trained.runs,
                            runs,
                            ranker=name,
                            feature_group=group.name,
                            method=method,
                            segment_kinds=SEGMENT_KINDS,
                            judging=judging,
                        )
                    )
                together = FeatureGroupValues.validate(pl.concat(values))
                yield AblatedGroup(name, group, together, speed, speed_without)


def _load(
    lake: Lake, name: str, train: Config, examples: ServiceExamples, seeds: Sequence[int] | None
) -> TrainedRanker:
    """The ranker that `ranker_predictions` is of.

    Raises:
        ValueError: it was not trained from these seeds, or what is saved does not score as it did then.
    """
    described = lake.manifest(RankerPredictions).metadata["rankers"][name]
    there = [int(seed) for seed in described["runs"]]
    if unknown := [seed for seed in seeds or () if seed not in there]:
        raise ValueError(f"ablate: ranker {name} was trained from the seeds {there}, not from {unknown}")
    one = train.rankers[name]
    number = _plan_number(plans(name, one, train, has_conversions=examples.has_conversions), described["settings"])
    if number is None or one.service != described["service"]:
        raise ValueError(_stale(name, "it was trained with other settings than are asked for now"))
    ids = lake.scan(TrainingExamples).filter(pl.col("split") == "test").select("impression_id").collect()
    loaded: dict[int, Ranker] = {}
    runs: list[Run] = []
    for seed in seeds or there:
        frame = (
            lake.scan(RankerPredictions)
            .filter(ranker=name, seed=seed)
            .select("impression_id", "user_id", "clicked", "p_ctr", *SEGMENT_KINDS)
            .collect()
        )
        if frame.height != ids.height or not frame["impression_id"].is_in(ids["impression_id"].implode()).all():
            raise ValueError(_stale(name, "its predictions are of other impressions than training_examples has"))
        frame = ids.join(frame, on="impression_id", how="left", maintain_order="left")
        folder = lake.root / "models" / name / str(seed)
        if not (folder / FINISHED).exists():
            raise ValueError(_stale(name, f"{folder} holds no trained ranker"))
        loaded[seed] = (GbdtRanker if one.kind == "gbdt" else NetworkRanker).load(folder)
        p_ctr = loaded[seed].predict(examples.test).p_ctr
        if not np.allclose(p_ctr, frame["p_ctr"].to_numpy(), atol=SAME_SCORE):
            raise ValueError(_stale(name, f"{folder} does not score as ranker_predictions says"))
        runs.append(Run(name, seed, frame))
    user_N = runs[0].predictions["user_id"].rank("dense").cast(pl.Int64).to_numpy()
    (speed,) = _rows_per_second((loaded[runs[0].seed], examples.test))
    return TrainedRanker(name, one, number, examples, user_N, loaded, runs, speed)


def _stale(name: str, why: str) -> str:
    return (
        f"ablate: ranker {name}: {why}.\n  what to do: `tailrank run train_ranker` (with --force if it is called fresh)"
    )


def _plan_number(candidates: Sequence[Plan], settings: dict[str, Any]) -> int | None:
    """Which of the settings tried a ranker was trained with."""
    tried = [json.loads(json.dumps(plan.described())) for plan in candidates]
    return tried.index(settings) if settings in tried else None


def _rows_per_second(*scored: tuple[Ranker, EncodedExamples]) -> list[float]:
    """How fast each ranker scores its examples."""
    fastest = [np.inf] * len(scored)
    for _ in range(NUM_TIMINGS):
        for place, (ranker, examples) in enumerate(scored):
            started = time.perf_counter()
            ranker.predict(examples)
            fastest[place] = min(fastest[place], time.perf_counter() - started)
    return [len(examples) / seconds for (_, examples), seconds in zip(scored, fastest, strict=True)]


def _permuted_runs(trained: TrainedRanker, group: FeatureGroup, num_shuffles: int, seed: int) -> list[Run]:
    """Scores with the group shuffled within users: one run for each training seed and shuffle."""
    test = trained.examples.test
    columns = EncodedColumns.of(test.layout, group.features)
    if group.is_of_the_user or not varies_within_users(test, columns, trained.user_N):
        logger.info(
            "ablate: %s: %s says the same of all candidates of a user, so shuffling it within users cannot tell what "
            "it is worth; --method retrained can",
            trained.name,
            group.name,
        )
        return []
    runs: list[Run] = []
    what = f"score {trained.name}, {group.name} permuted"
    with progress_bar(what, total=num_shuffles * len(trained.loaded) * len(test)) as advance:
        for shuffle in range(num_shuffles):
            # the same order for every group and training seed
            order_N = shuffle_within_users(trained.user_N, np.random.default_rng((seed, shuffle)))
            shuffled = permuted(test, columns, order_N)
            for run in trained.runs:
                p_ctr = trained.loaded[run.seed].predict(shuffled).p_ctr
                runs.append(Run(trained.name, len(runs), run.predictions.with_columns(p_ctr=pl.Series(p_ctr))))
                advance(len(test))
    return runs


def _retrained_runs(
    lake: Lake, trained: TrainedRanker, group: FeatureGroup, train: Config
) -> tuple[list[Run], float, float]:
    """Scores of the same settings trained without the group, one run for each seed; rows scored in a second with
    the group, and without it."""
    whole = trained.examples
    encoder = encoder_without(whole.encoder, group.features)
    smaller = replace(
        whole,
        encoder=encoder,
        train=without(whole.train, encoder, group.features),
        validation=without(whole.validation, encoder, group.features),
        test=without(whole.test, encoder, group.features),
        inputs_digest=_digest(whole.inputs_digest, group.features),
    )
    name = f"{trained.name} without {group.name}"
    config = trained.config if encoder.columns.vectors else trained.config.model_copy(update={"auxiliary": "none"})
    plan = plans(name, config, train, has_conversions=whole.has_conversions)[trained.plan_number]
    folder = lake.folder("ablation") / trained.name / f"without_{group.name}"
    runs: list[Run] = []
    rankers = []
    for run in trained.runs:
        ranker = train_or_load(folder / str(run.seed), plan, run.seed, smaller, f"train {name}, seed {run.seed}").ranker
        p_ctr = ranker.predict(smaller.test).p_ctr
        runs.append(Run(trained.name, run.seed, run.predictions.with_columns(p_ctr=pl.Series(p_ctr))))
        rankers.append(ranker)
    speed, speed_without = _rows_per_second(
        (trained.loaded[trained.runs[0].seed], whole.test), (rankers[0], smaller.test)
    )
    return runs, speed, speed_without


def _digest(inputs_digest: str, features: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([inputs_digest, "without", *features]).encode()).hexdigest()
