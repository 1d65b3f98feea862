"""The runs of `train_ranker`: train or load each (ranker, setting, seed) on its feature service, then score with it."""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from feature_repo.table_schemas import (
    ItemSegments,
    RankerPredictions,
    TrainingCurves,
    TrainingExamples,
    UserSegments,
    ValidationPredictions,
)
from jobs.lake import Lake
from jobs.progress import progress_bar
from jobs.ranker_settings import GbdtPlan, Plan, plans
from jobs.service_examples import ServiceExamples, encode_service
from jobs.train_ranker import Config, RankerConfig
from ranker.gbdt import GbdtRanker
from ranker.network_ranker import NetworkRanker
from ranker.ranker import CurveRow, Ranker, Scores, TrainingCurve, Validation, Watch

logger = logging.getLogger(__name__)

FINISHED, UNFINISHED = "run.json", "unfinished.pt"


class Run(NamedTuple):
    """One trained ranker."""

    ranker: Ranker
    curve: TrainingCurve
    description: dict[str, Any]

    @property
    def merit(self) -> float:
        """What trials are chosen by."""
        best = next(row for row in self.curve if row.is_best)
        return Validation(best.validation_loss, best.validation_uauc).merit


def train_all(lake: Lake, config: Config) -> None:
    """See `jobs.train_ranker`."""
    services = lake.manifest(TrainingExamples).metadata["services"]
    if unknown := {name: one.service for name, one in config.rankers.items() if one.service not in services}:
        raise ValueError(
            f"train_ranker: the training set has no features of {unknown}; it was built for {sorted(services)}. "
            "Add them to `services` of [build_training_set] (publish_features must know them) and run "
            f"build_training_set again, or leave {list(unknown)} out of `rankers` of [train_ranker]."
        )
    test, validation = _test_impressions(lake), _validation_impressions(lake)
    curves: list[dict[str, Any]] = []
    described: dict[str, Any] = {}
    with lake.writer(RankerPredictions) as writer, lake.writer(ValidationPredictions) as validation_writer:
        for service in dict.fromkeys(one.service for one in config.rankers.values()):
            # one service in memory at a time
            examples = encode_service(lake, service, services[service], config)
            for name, one in config.rankers.items():
                if one.service == service:
                    described[name] = {"service": service, **one.model_dump(), "runs": {}}
                    for seed, run in _runs(lake, name, one, examples, config, described[name]):
                        scores = run.ranker.predict(examples.test), run.ranker.predict(examples.validation)
                        writer.write_shard(_predictions(test, scores[0], examples, name, seed))
                        validation_writer.write_shard(_predictions(validation, scores[1], examples, name, seed))
                        curves += [{"ranker": name, "seed": seed, **row._asdict()} for row in run.curve]
                        described[name]["runs"][str(seed)] = run.description
        writer.metadata["rankers"] = validation_writer.metadata["rankers"] = described
    frame = pl.DataFrame(curves, schema=TrainingCurves.create_empty().schema)
    lake.write(TrainingCurves, frame, metadata={"rankers": described})


def _runs(
    lake: Lake, name: str, one: RankerConfig, examples: ServiceExamples, config: Config, described: dict[str, Any]
) -> Iterator[tuple[int, Run]]:
    """Search for a plan if asked to, then one run per seed. Notes trials and settings in `described`."""
    folder = lake.folder("models") / name
    candidates = plans(name, one, config, has_conversions=examples.has_conversions)
    chosen = 0
    if len(candidates) > 1:
        trials = [
            train_or_load(folder / f"trial_{number}", plan, config.seeds[0], examples, f"train {name}, trial {number}")
            for number, plan in enumerate(candidates)
        ]
        chosen = int(np.argmax([run.merit for run in trials]))
        described["trials"] = [
            {**run.description, "settings": plan.described()} for plan, run in zip(candidates, trials, strict=True)
        ]
        logger.info("train_ranker: %s: trial %d of %d is best on validation", name, chosen, len(candidates))
        # the chosen trial is the run of the first seed
        shutil.copytree(folder / f"trial_{chosen}", folder / str(config.seeds[0]), dirs_exist_ok=True)
    described["settings"] = candidates[chosen].described()
    for seed in config.seeds:
        yield seed, train_or_load(folder / str(seed), candidates[chosen], seed, examples, f"train {name}, seed {seed}")


def train_or_load(folder: Path, plan: Plan, seed: int, examples: ServiceExamples, what: str) -> Run:
    """Train, going on from a killed run's last validation; or load what was trained on the same inputs."""
    identity = {"inputs": examples.inputs_digest, "settings": plan.described(), "seed": seed}
    identity = json.loads(json.dumps(identity))
    finished, unfinished = folder / FINISHED, folder / UNFINISHED
    if finished.exists():
        entry = json.loads(finished.read_text())
        if entry["identity"] == identity:
            kind = GbdtRanker if isinstance(plan, GbdtPlan) else NetworkRanker
            logger.info("train_ranker: %s: already trained on the same inputs", what)
            return Run(kind.load(folder), tuple(CurveRow(*row) for row in entry["curve"]), entry["description"])
        finished.unlink()  # from here on the folder holds no finished ranker
    folder.mkdir(parents=True, exist_ok=True)

    resume_from = None
    if unfinished.exists():
        checkpoint = torch.load(unfinished, weights_only=True)
        if checkpoint["identity"] == identity:
            resume_from = checkpoint["state"]
            logger.info("train_ranker: %s: goes on from its last validation", what)

    def keep(state: Mapping[str, Any]) -> None:
        aside = unfinished.with_suffix(".tmp")
        torch.save({"identity": identity, "state": state}, aside)
        aside.replace(unfinished)

    ranker = plan.make(seed)
    num_rows = 0
    started = time.monotonic()
    with progress_bar(what, total=plan.most_rows(len(examples.train))) as advance:

        def on_rows(rows: int) -> None:
            nonlocal num_rows
            num_rows += rows
            advance(rows)

        watch = Watch(on_rows=on_rows, on_checkpoint=keep, resume_from=resume_from)
        curve = ranker.fit(examples.train, examples.validation, examples.validate, watch)
    seconds = time.monotonic() - started
    ranker.save(folder)
    examples.encoder.save(folder)
    best = next(row for row in curve if row.is_best)
    description = {
        "seconds": round(seconds, 3),
        "rows_per_second": round(num_rows / max(seconds, 1e-9)),
        "num_epochs": len(curve),
        "best_epoch": best.epoch,
        "validation_loss": best.validation_loss,
        "validation_uauc": best.validation_uauc,
    }
    aside = finished.with_suffix(".tmp")
    aside.write_text(json.dumps({"identity": identity, "curve": curve, "description": description}, indent=2))
    aside.replace(finished)
    unfinished.unlink(missing_ok=True)
    uauc_text = "none" if best.validation_uauc is None else f"{best.validation_uauc:.4f}"
    logger.info(
        "train_ranker: %s: validation UAUC %s at epoch %d of %d, %.1f s, %s rows/s",
        what,
        uauc_text,
        best.epoch,
        len(curve),
        seconds,
        f"{description['rows_per_second']:_}",
    )
    return Run(ranker, curve, description)


def _impressions(lake: Lake, split: str) -> pl.LazyFrame:
    """Keys and labels of a split, in the order in which its examples are encoded."""
    columns = ("impression_id", "user_id", "item_id", "event_timestamp", "clicked", "converted")
    return lake.scan(TrainingExamples).filter(pl.col("split") == split).select(columns)


def _test_impressions(lake: Lake) -> pl.DataFrame:
    """The test split as predictions need it: keys, labels, segments."""
    return (
        _impressions(lake, "test")
        .join(
            lake.scan(UserSegments).select("user_id", pl.col("user_segment").cast(pl.String)),
            on="user_id",
            how="left",
            maintain_order="left",
        )
        .join(
            lake.scan(ItemSegments).select("item_id", pl.col("item_segment").cast(pl.String)),
            on="item_id",
            how="left",
            maintain_order="left",
        )
        .collect()
    )


def _validation_impressions(lake: Lake) -> pl.DataFrame:
    """The same of the validation split. Segments are as of the start of the test window, so it has none."""
    nothing = pl.lit(None, dtype=pl.String)
    return _impressions(lake, "validation").with_columns(user_segment=nothing, item_segment=nothing).collect()


def _predictions(
    impressions: pl.DataFrame, scores: Scores, examples: ServiceExamples, name: str, seed: int
) -> pl.DataFrame:
    """One shard of predictions. A log without conversions gives no p_cvr, rather than a made-up one."""
    has_conversions = examples.has_conversions
    nothing = pl.lit(None, dtype=pl.Float64)
    return impressions.with_columns(
        p_ctr=pl.Series(scores.p_ctr),
        p_cvr=pl.Series(scores.p_cvr) if has_conversions else nothing,
        p_ctcvr=pl.Series(scores.p_ctcvr) if has_conversions else nothing,
        ranker=pl.lit(name),
        seed=pl.lit(seed, dtype=pl.Int64),
    ).select(RankerPredictions.column_names())
