"""The training run of the local relevance teacher: chains in, a model folder in `<lake>/teachers` out.

A teacher is a judge: every other teacher must be asked about all pairs anew, and costs hours. So it is kept while its
settings, the model it began with and most of its examples are the same (`refit_share`); a killed run goes on from its
last epoch.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from embedders.answer_loss import TeacherExample
from embedders.causal_lm import CausalLM, load_causal_lm
from embedders.counterfactuals import contrasts
from embedders.ellm_rele import RelevanceTeacher
from embedders.fingerprint import sha256_of_files
from embedders.fit_teacher import TeacherEpochRow, TeacherSettings, TeacherWatch, fit_teacher
from embedders.model_files import find_model_files
from embedders.ranking_metrics import roc_auc
from embedders.relevance_prompts import PROMPT_VERSION, STEPS, QueryItem, Reasoning
from embedders.title_facts import TitleReader
from jobs.checkpoint import UNFINISHED, Checkpoint
from jobs.lake import Lake
from jobs.model_folders import keep_only, write_model
from jobs.progress import progress_bar
from jobs.relevance.fine_tune_settings import FineTune

logger = logging.getLogger(__name__)

MODELS = "teachers"
"""Folder of the lake: one folder a model, and the checkpoint of one that is being trained."""

TRAINING = "training.json"

NOT_OF_THE_FIT = {"enabled", "contrast_share", "validate_by", "max_validation_pairs", "refit_share"}
"""Settings of ours; the others are those of `embedders.fit_teacher`, by the same names."""


class Examples(NamedTuple):
    """What a teacher is trained on.

    Attributes:
        train: pairs of training queries with their chains.
        validation: of validation queries; nobody learns from them.
        labels_through: pairs first shown before it; None: the lake has no impressions.
        contrasted: gives pairs of training queries that contrasts are made of; asked only where a teacher is trained on
            some.
    """

    train: Sequence[tuple[QueryItem, Reasoning]]
    validation: Sequence[tuple[QueryItem, Reasoning]]
    labels_through: datetime | None
    contrasted: Callable[[], Sequence[QueryItem]] = tuple


class Training(BaseModel, frozen=True):
    """How a model came about; written beside its weights.

    Attributes:
        made_from: settings, model it began with, version of the prompt: what makes another model of the same examples.
        examples: digest of each training example.
        labels_through: of the examples.
        files_sha256: of the model's other files.
        curve: one entry an epoch.
    """

    made_from: dict[str, Any]
    examples: list[str]
    labels_through: datetime | None
    files_sha256: str
    curve: list[dict[str, Any]]


def trained_teacher(lake: Lake, settings: FineTune, base: str, examples: Examples, reader: TitleReader) -> Path:
    """The folder of a teacher that is trained on these examples, or on nearly these before.

    Args:
        lake: the model is put there.
        settings: how to train.
        base: name or path of the model to begin with.
        examples: with chains.
        reader: the chains were built with it; it is saved beside the weights.

    Raises:
        ValueError: there are no examples, the model does not suit, or the loss is not finite.
    """
    files = find_model_files(base)
    made_from = {
        # without contrasts it is the teacher that it was before there were any
        "settings": settings.model_dump(
            mode="json", exclude={"enabled", "refit_share"} | (set() if settings.contrast_share else {"contrast_share"})
        ),
        "weights": sha256_of_files(files.weights),
        "tokenizer": sha256_of_files(files.tokenizer),
        "prompt": PROMPT_VERSION,
    }
    train = [TeacherExample(*one) for one in examples.train]
    digests = [_digest(one) for one in train]
    if (kept := _still_right(lake, settings, made_from, digests, examples.labels_through)) is not None:
        return kept
    if not train:
        raise ValueError(
            "label_relevance: no chain of a training query was kept, so there is nothing to fine-tune the teacher on.\n"
            "  what to do: see the line of the annotators above (unreadable: another model or decoding; against "
            "people: good_from, or better annotators), or [label_relevance.fine_tune] enabled = false"
        )
    held_out = [TeacherExample(*one) for one in examples.validation[: settings.max_validation_pairs]]
    shown = _contrasts(settings, len(train), examples.contrasted, reader)
    told = [made_from, digests, [_digest(one) for one in held_out], sorted(reader.brands)]
    told += [[_digest(one) for one in shown]] if shown else []
    identity = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    logger.info(
        "label_relevance: fine-tunes %s on %s chains, judged on %s", base, f"{len(digests):_}", f"{len(held_out):_}"
    )
    if not held_out:
        logger.warning("label_relevance: no chain of a validation query was kept: all epochs are trained")
    started = time.monotonic()
    lm, curve = _fit(lake, settings, base, [*train, *shown], held_out, reader, identity)
    folder = _put_in_place(lake, identity, RelevanceTeacher(lm, reader), made_from, digests, examples, curve)
    best = next(row for row in curve if row.is_best)
    score = "not judged" if best.validation_score is None else f"{settings.validate_by} {_shown(settings, best):.4f}"
    logger.info(
        "label_relevance: teacher %s: %s at epoch %d of %d, %.1f s",
        folder.name,
        score,
        best.epoch + 1,
        len(curve),
        time.monotonic() - started,
    )
    return folder


def _still_right(
    lake: Lake, settings: FineTune, made_from: Mapping[str, Any], digests: Sequence[str], through: datetime | None
) -> Path | None:
    """The folder of the model at hand, if it can stay; says why, or why not."""
    folder = next((path.parent for path in sorted(lake.folder(MODELS).glob(f"*/{TRAINING}"))), None)
    if folder is None:
        return None
    training = Training.model_validate_json((folder / TRAINING).read_text())
    shared = len(set(training.examples) & set(digests))
    most = max(len(set(training.examples)), len(set(digests)), 1)
    is_earlier = (
        training.labels_through is None
        if through is None
        else (training.labels_through is None or training.labels_through <= through)
    )
    if training.made_from != made_from:
        why = f"{', '.join(_changed(training.made_from, made_from))} changed"
    elif not is_earlier:
        why = f"it has seen labels up to {training.labels_through}, later than {through} now"
    elif 1 - shared / most > settings.refit_share:
        why = f"{most - shared:_} of {most:_} examples are others now, more than refit_share = {settings.refit_share}"
    elif _sha256_of_model(folder) != training.files_sha256:
        why = f"its files in {folder} are gone or changed"
    else:
        logger.info(
            "label_relevance: teacher %s is kept: %s of %s examples are the same",
            folder.name,
            f"{shared:_}",
            f"{most:_}",
        )
        return folder
    logger.info("label_relevance: teacher %s is trained anew: %s", folder.name, why)
    return None


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(
        name
        for name in {*then["settings"], *now["settings"]}
        if then["settings"].get(name) != now["settings"].get(name)
    )
    return names + [name for name in ("weights", "tokenizer", "prompt") if then.get(name) != now[name]]


def _contrasts(
    settings: FineTune, num_judged: int, pairs: Callable[[], Sequence[QueryItem]], reader: TitleReader
) -> list[TeacherExample]:
    """Chains that nobody judged, as many as asked for or as there are, and a word on what they show."""
    most = round(settings.contrast_share * num_judged / 2)
    if not most:
        return []
    made = contrasts(pairs(), most, reader=reader, seed=settings.seed)
    of_step = Counter(one.step for one in made)
    shown = ", ".join(f"{step} {of_step[step]:_}" for step in STEPS)
    logger.info("label_relevance: %s pairs beside the same with one value replaced: %s", f"{len(made):_}", shown)
    if unseen := [step for step in STEPS if not of_step[step]]:
        why = "raise contrast_share" if most < len(STEPS) else "too few queries name a value that their item states"
        logger.warning("label_relevance: no contrast shows a mismatch of %s: %s", " or ".join(unseen), why)
    return [TeacherExample(*part, is_judged=False) for one in made for part in (one.as_it_is, one.changed)]


def _fit(
    lake: Lake,
    settings: FineTune,
    base: str,
    train: Sequence[TeacherExample],
    held_out: Sequence[TeacherExample],
    reader: TitleReader,
    identity: str,
) -> tuple[CausalLM, tuple[TeacherEpochRow, ...]]:
    """Train the model, going on from a killed run's last epoch."""
    checkpoint = Checkpoint(lake.folder(MODELS) / UNFINISHED, identity)
    resume_from, epochs_done = checkpoint.read(), 0
    if resume_from is not None:
        epochs_done = len(resume_from["state"]["curve"])
        logger.info("label_relevance: fine-tuning goes on after epoch %d", epochs_done)

    def on_epoch(row: TeacherEpochRow) -> None:
        score = "" if row.validation_score is None else f", {settings.validate_by} {_shown(settings, row):.4f}"
        logger.info(
            "label_relevance: epoch %d of at most %d: loss %.4f%s, %.1f s",
            row.epoch + 1,
            settings.epochs,
            row.train_loss,
            score,
            row.seconds,
        )

    lm = load_causal_lm(base, dtype="float32")
    with progress_bar("label_relevance: fine-tune", total=settings.epochs * len(train), unit="pairs") as advance:
        advance(epochs_done * len(train))
        return fit_teacher(
            lm,
            train,
            TeacherSettings(**settings.model_dump(exclude=NOT_OF_THE_FIT)),
            validation=held_out,
            validate=_validation(settings, held_out, reader) if held_out else None,
            watch=TeacherWatch(
                on_pairs=advance, on_epoch=on_epoch, on_checkpoint=checkpoint.write, resume_from=resume_from
            ),
        )


def _validation(
    settings: FineTune, held_out: Sequence[TeacherExample], reader: TitleReader
) -> Callable[[CausalLM], float] | None:
    """The score that stops training early; None: the loss of held-out answers.

    Raises:
        ValueError: the held-out pairs cannot give one.
    """
    if settings.validate_by == "loss":
        return None
    good_N = np.array([one.reasoning.label == "good" for one in held_out])
    if good_N.all() or not good_N.any():
        raise ValueError(
            f"label_relevance: all {len(good_N)} chains of validation queries are {held_out[0].reasoning.label}, and a "
            'ROC-AUC needs both.\n  what to do: [label_relevance.fine_tune] validate_by = "loss"'
        )

    def validate(lm: CausalLM) -> float:
        decoding = "scored" if settings.answers == "chain" else "label_only"
        answers = RelevanceTeacher(lm, reader).score([one.pair for one in held_out], decoding=decoding)  # type: ignore[arg-type]
        return roc_auc(np.array([answer.score for answer in answers], np.float64), good_N)

    return validate


def _shown(settings: FineTune, row: TeacherEpochRow) -> float:
    """The validation score as people know it: a loss is positive."""
    assert row.validation_score is not None
    return -row.validation_score if settings.validate_by == "loss" else row.validation_score


def _put_in_place(
    lake: Lake,
    identity: str,
    teacher: RelevanceTeacher,
    made_from: dict[str, Any],
    digests: list[str],
    examples: Examples,
    curve: Sequence[TeacherEpochRow],
) -> Path:
    """Write the model into a folder of its own, then remove what was there before."""
    models = lake.folder(MODELS)
    name = identity[:16]
    named = RelevanceTeacher(replace(teacher.lm, model_id=name), teacher.reader)

    def save(made: Path) -> None:
        named.save(made)
        training = Training(
            made_from=made_from,
            examples=digests,
            labels_through=examples.labels_through,
            files_sha256=_sha256_of_model(made),
            curve=[row._asdict() for row in curve],
        )
        (made / TRAINING).write_text(training.model_dump_json(indent=1))

    folder = write_model(models, name, save)
    keep_only(models, name)
    return folder


def _sha256_of_model(folder: Path) -> str:
    return sha256_of_files({path.name: path for path in folder.iterdir() if path.name != TRAINING})


def _digest(example: TeacherExample) -> str:
    told = json.dumps([*example.pair, example.reasoning.line()])
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
