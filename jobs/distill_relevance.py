"""Distil people's labels and a teacher's answers into students that are cheap enough to be features (MKD).

reads   relevance_answers, queries, items, relevance_grades, impressions
writes  student_curves               one row per (student, epoch); its manifest names the students and their folders
        relevance_metrics            words, untrained encoder, teacher and students on judged pairs of test queries
        query_embeddings             one row per (query_id, event_timestamp), by the representation student
        item_relevance_embeddings    one row per (item_id, event_timestamp), by the same
        query_item_relevance         one row per (query_id, item_id, event_timestamp): pairs shown or asked for
        embedders/mkd                the students, and the checkpoints of those that are being trained

Students learn from pairs of training queries, stop early and are calibrated (Platt) on those of validation queries, and
are judged on those of test queries. So a score is a probability, and that of any pair is

    sigmoid(query_relevance_scale * cosine(query_relevance_embedding, item_relevance_embedding) + query_relevance_bias)

Point in time: only pairs first shown before `labels_through` (or never) teach, and no row is dated earlier; see
`jobs.relevance_rows`. What is trained, embedded or scored already is not again; a killed run goes on from its last
epoch or shard. As the log grows, `labels_through` moves; students are kept until it has moved by `refit_after_days`, as
long as all that they learnt from is still the same.
"""

import hashlib
import json
import logging
import shutil
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import dataframely as dy
import polars as pl
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from embedders.fingerprint import sha256_of_files
from embedders.model_files import find_model_files
from feature_repo.table_schemas import (
    Impressions,
    ItemRelevanceEmbeddings,
    Items,
    Queries,
    QueryEmbeddings,
    QueryItemRelevance,
    RelevanceAnswers,
    RelevanceGrades,
    RelevanceMetrics,
    StudentCurves,
)
from jobs.distilled_pairs import LearntPairs, judged_test_pairs, learnt_pairs
from jobs.fitted_students import MODELS, Kind, fitted_students
from jobs.lake import Lake
from jobs.pair_scores import score_pairs
from jobs.relevance_quality import judge
from jobs.relevance_vectors import embed_items, embed_queries
from jobs.student_settings import InteractionSettings, RepresentationSettings

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (RelevanceAnswers, Queries, Items, RelevanceGrades, Impressions)
WRITES: tuple[type[dy.Schema], ...] = (
    StudentCurves,
    RelevanceMetrics,
    QueryEmbeddings,
    ItemRelevanceEmbeddings,
    QueryItemRelevance,
)


class Config(BaseModel, extra="forbid", frozen=True):
    """Which students, what they learn from, what they score."""

    students: tuple[Kind, ...] = Field(("representation",), min_length=1)
    """representation: one vector a text, any pair by a dot product. interaction: reads query and item together, tells
    more, and costs a pass for every pair; where it is trained it is the one that scores pairs."""
    backbone: str = "minilm"
    """What students begin as: a packaged encoder (minilm, mpnet) or the path of a Hugging Face folder."""
    max_tokens: PositiveInt = 128
    """Tokens read of a text, or of the two texts of a pair."""
    max_train_pairs: PositiveInt = 1_000
    """Pairs of training queries that are learnt from, a few of each query first. The default is for two CPU cores and a
    minute; a student gains from every pair that you have."""
    max_validation_pairs: NonNegativeInt = 500
    """Judged pairs of validation queries: when to stop, and what calibration is fitted on."""
    max_test_pairs: PositiveInt = 2_000
    """Judged pairs of test queries that scorers are judged on."""
    interaction: InteractionSettings = InteractionSettings()
    """Training of the interaction student."""
    representation: RepresentationSettings = RepresentationSettings()
    """Training of the representation student."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder's passes. Auto is bfloat16 on a GPU; it is worth naming on a CPU with AMX (Intel servers from 2023
    on), where it is two to three times as fast. Part of what a student is: another one trains it anew."""
    refit_after_days: NonNegativeInt = 30
    """Students are kept until `labels_through` has moved so many days; a refit writes all vectors and scores anew."""
    max_scored_pairs: NonNegativeInt = 500_000
    """Pairs of the log that get a score, the most shown first."""
    requested_pairs: str | None = None
    """A parquet file with query_id and item_id of further pairs that get a score."""
    shard_size: PositiveInt = 2_048
    """Distinct texts per commit: what a killed job loses at most."""
    seed: NonNegativeInt = 0
    """Of new weights, of the order of the pairs, of every draw."""


def outside_inputs(config: Config) -> str:
    """Hash of the backbone's files and of the requested pairs: others under the same name make the step stale."""
    files = find_model_files(config.backbone)
    found = files.weights | files.tokenizer
    if config.requested_pairs is not None and (path := Path(config.requested_pairs).expanduser()).is_file():
        found = {**found, "requested_pairs": path}
    return sha256_of_files(found)


def run(lake: Lake, config: Config) -> None:
    """Train what has to be trained, then bring every table up to date.

    Raises:
        ValueError: people have judged no pairs; there is nothing to learn from; a file is missing.
    """
    answers = lake.manifest(RelevanceAnswers).metadata
    if not answers.get("enabled", True):
        for schema in WRITES:
            lake.write(schema, schema.create_empty())
        logger.info("distill_relevance: not enabled ([label_relevance] enabled), this lake does without relevance")
        return
    pairs = _train(lake, config, answers)
    students = fitted_students(lake)
    representation = students.get("representation")
    if representation is None:
        for schema in (QueryEmbeddings, ItemRelevanceEmbeddings):
            lake.write(schema, schema.create_empty())
    else:
        embed_queries(lake, representation, shard_size=config.shard_size)
        embed_items(lake, representation, shard_size=config.shard_size)
    judge(
        lake,
        judged_test_pairs(lake, good_from=answers["good_from"], most=config.max_test_pairs, seed=config.seed),
        pairs.train.get_column("query_text").unique().to_list(),
        students,
        backbone=config.backbone,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )
    requested = None if config.requested_pairs is None else Path(config.requested_pairs).expanduser()
    scorer = students.get("interaction") or students["representation"]
    score_pairs(lake, scorer, most=config.max_scored_pairs, requested=requested)


def _train(lake: Lake, config: Config, answers: dict[str, Any]) -> LearntPairs:
    """Bring the students up to date, and `student_curves` with them; what they learnt from."""
    told_before: dict[str, Any] = {}
    if lake.exists(StudentCurves):
        told_before = lake.manifest(StudentCurves).metadata.get("students", {})
    pairs = _pairs_through(lake, config, answers, _through_kept(lake, config, answers))
    digests = {kind: _digest(config, kind, pairs) for kind in dict.fromkeys(config.students)}
    if not _are_right(lake, digests) and pairs.labels_through != _time(answers["labels_through"]):
        logger.info("distill_relevance: what was learnt from has changed, students are trained anew")
        pairs = _pairs_through(lake, config, answers, _time(answers["labels_through"]))
        digests = {kind: _digest(config, kind, pairs) for kind in digests}
    kept = [kind for kind in digests if _are_right(lake, {kind: digests[kind]})]
    if kept == list(told_before) == list(digests):
        logger.info("distill_relevance: kept: the %s student has learnt from the same", " and the ".join(kept))
        return pairs

    before = lake.read(StudentCurves) if kept else StudentCurves.create_empty()
    curves, told = [before.filter(pl.col("student").is_in(kept))], {kind: told_before[kind] for kind in kept}
    for kind in (kind for kind in digests if kind not in kept):
        from jobs.student_training import TrainingRun, train_student  # here: torch takes seconds to import

        settings = config.interaction if kind == "interaction" else config.representation
        started = time.monotonic()
        trained = train_student(
            lake,
            TrainingRun(
                kind, settings, config.backbone, config.max_tokens, config.precision, config.seed, digests[kind]
            ),
            pairs,
        )
        told[kind] = trained.told
        rows = [
            (kind, row.epoch, row.train_loss, row.validation_metric, row.seconds, row.is_best) for row in trained.curve
        ]
        curves.append(pl.DataFrame(rows, schema=dict(before.schema), orient="row"))
        auc = trained.told["validation_roc_auc"]
        logger.info(
            "distill_relevance: %s student trained on %s pairs, ROC-AUC of held-out pairs %s, %.1f s",
            kind,
            f"{len(pairs.train):_}",
            "not judged" if auc is None else f"{auc:.4f}",
            time.monotonic() - started,
        )
    ordered = {kind: told[kind] for kind in digests}
    lake.write(StudentCurves, pl.concat(curves), metadata={"students": ordered})
    _remove_others(lake, {told["folder"] for told in ordered.values()})
    return pairs


def _pairs_through(lake: Lake, config: Config, answers: dict[str, Any], through: datetime | None) -> LearntPairs:
    return learnt_pairs(
        lake,
        good_from=answers["good_from"],
        labels_through=through,
        max_train_pairs=config.max_train_pairs,
        max_validation_pairs=config.max_validation_pairs,
        seed=config.seed,
    )


def _through_kept(lake: Lake, config: Config, answers: dict[str, Any]) -> datetime | None:
    """Through when students should have learnt: as long as they did, while that is not too long ago."""
    now = _time(answers["labels_through"])
    students = list(fitted_students(lake).values()) if lake.exists(StudentCurves) else []
    if now is None or not students:
        return now
    then = students[0].labels_through
    is_old = then is None or abs(now - then) >= timedelta(days=config.refit_after_days)
    return now if is_old or any(student.labels_through != then for student in students) else then


def _digest(config: Config, kind: Kind, pairs: LearntPairs) -> str:
    """Of all that makes a student what it is."""
    files = find_model_files(config.backbone)
    settings = config.interaction if kind == "interaction" else config.representation
    parts = {
        "kind": kind,
        "settings": settings.model_dump(mode="json"),
        "backbone": sha256_of_files(files.weights | files.tokenizer),
        "max_tokens": config.max_tokens,
        "precision": config.precision,
        "seed": config.seed,
        "pairs": pairs.digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _are_right(lake: Lake, digests: dict[Kind, str]) -> bool:
    """Whether there are such students, with their files as they were."""
    if not lake.exists(StudentCurves):
        return False
    told, students = lake.manifest(StudentCurves).metadata.get("students", {}), fitted_students(lake)
    return all(
        kind in told and told[kind]["digest"] == of and students[kind].is_whole() for kind, of in digests.items()
    )


def _remove_others(lake: Lake, folders: set[str]) -> None:
    """Remove students that no table names any more."""
    for folder in lake.folder(MODELS).glob("*/*"):
        if str(folder.relative_to(lake.root)) not in folders:
            shutil.rmtree(folder)
    for folder in lake.folder(MODELS).iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _time(at: str | None) -> datetime | None:
    return None if at is None else datetime.fromisoformat(at)
