"""The training run of `distill_relevance`: pairs in, a calibrated student in a folder of its own out."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from embedders.fit_mkd import EpochRow, Watch, fit_mkd
from embedders.mkd import InteractionStudent, RepresentationStudent, Student
from embedders.mkd_calibration import calibrate
from embedders.mkd_model import MkdModel
from embedders.ranking_metrics import roc_auc
from embedders.reasoning_targets import FactClasses, signal_of
from embedders.relevance_prompts import QueryItem, parse
from embedders.teacher_signal import TeacherSignal
from jobs.checkpoint import Checkpoint
from jobs.lake import Lake
from jobs.model_folders import write_model
from jobs.progress import progress_bar
from jobs.relevance.distilled_pairs import PROMPT, LearntPairs, described
from jobs.relevance.fitted_students import LEARNT_FROM_FILE, MODELS, Kind, sha256_of_student
from jobs.relevance.student_settings import InteractionSettings, RepresentationSettings
from ranker.recalibration import PlattMap, fit_recalibration

logger = logging.getLogger(__name__)

LEAST_OF_A_CLASS = 10
"""Held-out pairs of each label that a calibration needs to mean anything [NF->P]."""


class TrainingRun(NamedTuple):
    """One student to be trained.

    Attributes:
        kind: which.
        settings: how.
        backbone: what it begins as.
        max_tokens: read of a text, or of both texts of a pair.
        precision: of the encoder's passes.
        seed: of everything.
        made_of: all that makes another student of the same pairs.
        digest: of it and of the pairs; names the folder.
    """

    kind: Kind
    settings: RepresentationSettings
    backbone: str
    max_tokens: int
    precision: str
    seed: int
    made_of: dict[str, Any]
    digest: str


class TrainedStudent(NamedTuple):
    """What came of it: rows for `student_curves`, and what its manifest says of the student."""

    curve: tuple[EpochRow, ...]
    told: dict[str, Any]


def train_student(lake: Lake, run: TrainingRun, pairs: LearntPairs) -> TrainedStudent:
    """Train, calibrate and save one student; a killed run goes on from its last epoch. See `jobs.distill_relevance`.

    The checkpoint stays until the table names the student (`forget_checkpoints`): another one may be trained meanwhile.
    """
    started = time.monotonic()
    texts = pairs.train.select("query_text", "item_text").rows()
    signal, num_classes = _signal(pairs.train)
    student = _fresh(run, num_classes)
    is_scored = pairs.train.get_column("score").count() > 0
    held_out = pairs.validation.select("query_text", "item_text").rows()
    good_N = (pairs.validation.get_column("human_label") == "good").to_numpy()
    is_judged = 0 < good_N.sum() < len(good_N)
    if not is_judged:
        logger.warning(
            "distill_relevance: the held-out pairs are not of both labels (%s good of %s): all epochs are trained",
            f"{good_N.sum():_}",
            f"{len(good_N):_}",
        )

    def log_odds() -> NDArray[np.float64]:
        return MkdModel(student, precision=run.precision).log_odds(held_out).astype(np.float64)  # type: ignore[arg-type]

    def validate() -> float:
        return roc_auc(log_odds(), good_N)

    checkpoint = Checkpoint(_checkpoint_of(lake, run.kind), run.digest)
    resume_from, epochs_done = checkpoint.read(), 0
    if resume_from is not None:
        epochs_done = len(resume_from["state"]["curve"])
        logger.info("distill_relevance: %s goes on after epoch %d", run.kind, epochs_done)

    def on_epoch(row: EpochRow) -> None:
        logger.info(
            "distill_relevance: %s, epoch %d of at most %d: loss %.4f (%s)%s, %.1f s",
            run.kind,
            row.epoch + 1,
            run.settings.epochs,
            row.train_loss,
            ", ".join(f"{name} {part:.3f}" for name, part in row.parts.items()),
            "" if row.validation_metric is None else f", ROC-AUC {row.validation_metric:.4f}",
            row.seconds,
        )

    total = run.settings.epochs * len(texts)
    with progress_bar(f"distill_relevance: {run.kind}", total=total, unit="pairs") as advance:
        advance(epochs_done * len(texts))
        curve = fit_mkd(
            student,
            texts,
            signal,
            run.settings.of_fit(precision=run.precision, seed=run.seed, is_scored=is_scored),
            validate=validate if is_judged else None,
            watch=Watch(on_pairs=advance, on_epoch=on_epoch, on_checkpoint=checkpoint.write, resume_from=resume_from),
        )
    calibration = _calibrate(run.kind, student, log_odds(), good_N) if is_judged else None
    model = MkdModel(student, precision=run.precision)  # type: ignore[arg-type]
    told = _put_in_place(lake, run, model, pairs)
    best = next(row for row in curve if row.is_best)
    told |= {
        **described(pairs),
        "calibration": None
        if calibration is None
        else {"slope": calibration.slope, "intercept": calibration.intercept},
        "best_epoch": best.epoch,
        "validation_roc_auc": best.validation_metric,
        "seconds": round(time.monotonic() - started, 3),
    }
    return TrainedStudent(curve, told)


def forget_checkpoints(lake: Lake, kinds: Iterable[Kind]) -> None:
    """Remove what these students could have gone on from: they are in their folders, and the table names them."""
    for kind in kinds:
        _checkpoint_of(lake, kind).unlink(missing_ok=True)


def _checkpoint_of(lake: Lake, kind: Kind) -> Path:
    return lake.folder(MODELS) / f"unfinished-{kind}.pt"


def _signal(train: pl.DataFrame) -> tuple[TeacherSignal, tuple[int, ...]]:
    """What is known of the training pairs, and how many classes their facts have; none without chains."""
    texts = [QueryItem(query, item) for query, item in train.select("query_text", "item_text").iter_rows()]
    lines = train.get_column("chain").to_list()
    chains = None if all(line is None for line in lines) else [None if line is None else parse(line) for line in lines]
    classes = None if chains is None else FactClasses.of_chains(chains)
    label = pl.when(pl.col("human_label") == "good").then(1).when(pl.col("human_label") == "bad").then(0).otherwise(-1)
    score_N = train.get_column("score").cast(pl.Float64).fill_null(np.nan).to_numpy()
    signal = signal_of(
        texts,
        np.unique(train.get_column("query_id").to_numpy(), return_inverse=True)[1],
        label_N=train.select(label.cast(pl.Int8)).to_series().to_numpy(),
        probabilities_NK=np.stack([1 - score_N, score_N], axis=1).astype(np.float32),
        chains=chains,
        classes=classes,
    )
    return signal, () if classes is None else classes.num_classes


def _fresh(run: TrainingRun, num_classes: tuple[int, ...]) -> Student:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(run.settings, InteractionSettings):
        cross_encoder = InteractionStudent.pretrained(
            run.backbone, pooling=run.settings.pooling, max_tokens=run.max_tokens, seed=run.seed
        )
        return cross_encoder.to(device)
    heads = num_classes if run.settings.beta else ()
    bi_encoder = RepresentationStudent.pretrained(
        run.backbone, num_classes=heads, max_tokens=run.max_tokens, seed=run.seed
    )
    return bi_encoder.to(device)


def _calibrate(
    kind: Kind, student: Student, log_odds_N: NDArray[np.float64], good_N: NDArray[np.bool_]
) -> PlattMap | None:
    """Platt's map of the held-out pairs, written into the student; None where it cannot be had."""
    num_least = int(min(good_N.sum(), (~good_N).sum()))
    fitted = fit_recalibration("platt", 1 / (1 + np.exp(-log_odds_N)), good_N)
    assert isinstance(fitted, PlattMap)
    if num_least < LEAST_OF_A_CLASS or fitted.slope <= 0:
        why = f"{num_least} held-out pairs of one label" if fitted.slope > 0 else "it orders held-out pairs wrongly"
        logger.warning("distill_relevance: %s is left uncalibrated: %s", kind, why)
        return None
    calibrate(student, fitted.slope, fitted.intercept)
    logger.info("distill_relevance: %s calibrated, slope %.3f, intercept %.3f", kind, fitted.slope, fitted.intercept)
    return fitted


def _put_in_place(lake: Lake, run: TrainingRun, model: MkdModel, pairs: LearntPairs) -> dict[str, Any]:
    """Write the student into a folder of its own."""
    models = lake.folder(MODELS)

    def save(folder: Path) -> None:
        model.save(folder)
        pl.DataFrame({"pair": pairs.hashes()}).write_parquet(folder / LEARNT_FROM_FILE)

    folder = write_model(models, f"{run.digest[:16]}/{run.kind}", save)
    through = None if pairs.labels_through is None else pairs.labels_through.isoformat()
    is_bi_encoder = run.kind == "representation"
    return {
        "folder": str(folder.relative_to(lake.root)),
        "files_sha256": sha256_of_student(folder),
        "fingerprint": model.fingerprint(folder=folder, prompt=PROMPT.version, trained_through=through).as_tags(),
        "labels_through": through,
        "digest": run.digest,
        "made_of": run.made_of,
        "scale": model.kappa if is_bi_encoder else None,
        "bias": model.bias if is_bi_encoder else None,
    }
