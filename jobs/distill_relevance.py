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
`jobs.relevance.dated_rows`. What is trained, embedded or scored already is not again; a killed run goes on from its
last epoch or shard. When students are trained anew: `jobs.relevance.kept_students`.
"""

import logging
import shutil
from datetime import datetime
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
from jobs.lake import Lake
from jobs.relevance.distilled_pairs import PROMPT, LearntPairs, judged_test_pairs, learnt_pairs
from jobs.relevance.fitted_students import MODELS, Kind, fitted_students
from jobs.relevance.kept_students import digest_of, through_kept, told_of_students, why_trained_anew
from jobs.relevance.pair_scores import score_pairs
from jobs.relevance.quality import judge
from jobs.relevance.student_settings import InteractionSettings, RepresentationSettings
from jobs.relevance.vectors import embed_items, embed_queries

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
    refit_share: float = Field(0.1, ge=0.0, le=1.0)
    """Students are kept until more than this share of the pairs that they learnt from are others (new, gone, edited, or
    with another label or answer). 0: trained again whenever any is."""
    max_scored_pairs: NonNegativeInt = 500_000
    """Pairs that get a score: the most shown before `labels_through` first, then the later as they came, then those
    that were judged and never shown."""
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
    _train(lake, config, answers)
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
        students,
        backbone=config.backbone,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )
    requested = None if config.requested_pairs is None else Path(config.requested_pairs).expanduser()
    scorer = students.get("interaction") or students["representation"]
    score_pairs(lake, scorer, most=config.max_scored_pairs, requested=requested)


def _train(lake: Lake, config: Config, answers: dict[str, Any]) -> None:
    """Bring the students up to date, and `student_curves` with them."""
    before, now = told_of_students(lake), _time(answers["labels_through"])
    kinds: list[Kind] = list(dict.fromkeys(config.students))
    made_of = {kind: _made_of(config, kind) for kind in kinds}
    pairs = _pairs_through(lake, config, answers, through_kept(lake, now, refit_after_days=config.refit_after_days))
    why = {kind: why_trained_anew(lake, kind, made_of[kind], pairs, refit_share=config.refit_share) for kind in kinds}
    # answers of a teacher that was itself trained on labels through now would make a student of earlier labels see them
    is_teacher_taught = answers.get("folder") is not None
    if pairs.labels_through != now and any(why[kind] for kind in kinds if kind in before or is_teacher_taught):
        pairs = _pairs_through(lake, config, answers, now)
        why = {kind: why[kind] or "the other student is, from newer labels" for kind in kinds}
    kept = [kind for kind in kinds if why[kind] is None]
    if kept == kinds == list(before):
        return

    stored = lake.read(StudentCurves) if kept else StudentCurves.create_empty()
    curves, told = [stored.filter(pl.col("student").is_in(kept))], {kind: before[kind] for kind in kept}
    new = [kind for kind in kinds if kind not in kept]
    for kind in new:
        from jobs.relevance.student_training import TrainingRun, train_student  # here: torch takes seconds to import

        logger.info("distill_relevance: the %s student is trained: %s", kind, why[kind])
        run = TrainingRun(
            kind=kind,
            settings=config.interaction if kind == "interaction" else config.representation,
            backbone=config.backbone,
            max_tokens=config.max_tokens,
            precision=config.precision,
            seed=config.seed,
            made_of=made_of[kind],
            digest=digest_of(made_of[kind], pairs),
        )
        trained = train_student(lake, run, pairs)
        told[kind] = trained.told
        rows = [
            (kind, row.epoch, row.train_loss, row.validation_metric, row.seconds, row.is_best) for row in trained.curve
        ]
        curves.append(pl.DataFrame(rows, schema=dict(stored.schema), orient="row"))
    ordered = {kind: told[kind] for kind in kinds}
    lake.write(StudentCurves, pl.concat(curves), metadata={"students": ordered})
    if new:
        from jobs.relevance.student_training import forget_checkpoints

        forget_checkpoints(lake, new)
    _compare(ordered)
    _remove_others(lake, {one["folder"] for one in ordered.values()})


def _compare(told: dict[Kind, dict[str, Any]]) -> None:
    """Warn where the student that scores pairs is the worse one: a cross-encoder wants many more pairs."""
    held_out = [told.get(kind, {}).get("validation_roc_auc") for kind in ("interaction", "representation")]
    interaction, representation = held_out
    if interaction is not None and representation is not None and interaction < representation:
        logger.warning(
            "distill_relevance: the interaction student, which scores pairs, orders held-out pairs worse than the "
            "representation student (ROC-AUC %.4f, %.4f).\n  what to do: train it on more pairs (max_train_pairs) or "
            'longer (interaction.epochs), or leave it out: students = ["representation"]',
            interaction,
            representation,
        )


def _made_of(config: Config, kind: Kind) -> dict[str, Any]:
    """All that makes another student of the same pairs."""
    files = find_model_files(config.backbone)
    settings = config.interaction if kind == "interaction" else config.representation
    return {
        **settings.model_dump(mode="json"),
        "backbone": sha256_of_files(files.weights | files.tokenizer),
        "prompt": PROMPT.version,
        "max_tokens": config.max_tokens,
        "precision": config.precision,
        "seed": config.seed,
    }


def _pairs_through(lake: Lake, config: Config, answers: dict[str, Any], through: datetime | None) -> LearntPairs:
    return learnt_pairs(
        lake,
        good_from=answers["good_from"],
        labels_through=through,
        max_train_pairs=config.max_train_pairs,
        max_validation_pairs=config.max_validation_pairs,
        seed=config.seed,
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
