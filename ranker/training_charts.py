"""Training curves of rankers and of the students of the relevance teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import dataframely as dy
import matplotlib
import polars as pl
from matplotlib.ticker import MaxNLocator

from feature_repo.table_schemas import StudentCurves, TrainingCurves
from ranker.charts import INK, STYLE, canvas, series_colour, series_marker, svg


@dataclass(frozen=True)
class TrainingCurve:
    """One training run: a value an epoch, and the epoch that was kept."""

    ranker: str
    seed: int
    epochs: Sequence[int]
    train_loss: Sequence[float]
    validation_loss: Sequence[float]
    best_epoch: int | None


def curves_by_ranker(curves: dy.DataFrame[TrainingCurves] | None) -> dict[str, list[TrainingCurve]]:
    """Training runs of each ranker, by seed."""
    drawn: dict[str, list[TrainingCurve]] = {}
    if curves is None:
        return drawn
    for (ranker, seed), run in curves.sort("epoch").group_by("ranker", "seed", maintain_order=True):
        best = run.filter(pl.col("is_best"))["epoch"]
        drawn.setdefault(str(ranker), []).append(
            TrainingCurve(
                ranker=str(ranker),
                seed=int(str(seed)),
                epochs=run["epoch"].to_list(),
                train_loss=run["train_loss"].to_list(),
                validation_loss=run["validation_loss"].to_list(),
                best_epoch=best[-1] if len(best) else None,
            )
        )
    return {ranker: sorted(runs, key=lambda run: run.seed) for ranker, runs in sorted(drawn.items())}


def training(name: str, title: str, curves: Sequence[TrainingCurve], series: int) -> str:
    """Training loss (pale) and validation loss (full) by epoch, a pair of lines per seed; the kept epoch is marked."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(title, height=230, left=62, right=12, bottom=44)
        for curve in curves:
            colour = series_colour(series)
            axes.plot(curve.epochs, curve.train_loss, color=colour, alpha=0.45, dashes=(3, 2))
            axes.plot(curve.epochs, curve.validation_loss, color=colour)
            if curve.best_epoch is not None:
                kept = list(curve.epochs).index(curve.best_epoch)
                axes.plot(
                    [curve.best_epoch],
                    [curve.validation_loss[kept]],
                    color=colour,
                    marker=series_marker(series),
                    markersize=5,
                    linestyle="none",
                )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        ends = [f"seed {c.seed}: {c.validation_loss[0]:.4g} to {min(c.validation_loss):.4g}" for c in curves]
        return svg(figure, name, f"{title}. Validation loss from first to best epoch, {'; '.join(ends)}.")


def students(curves: dy.DataFrame[StudentCurves]) -> list[str]:
    """Training loss of each student of more than one epoch, then ROC-AUC of held-out pairs where it was measured."""
    metric = "validation_roc_auc"
    drawn: list[str] = []
    several = curves.filter(pl.len().over("student") > 1)
    for (student,), run in several.sort("student", "epoch").group_by("student", maintain_order=True):
        drawn.append(_by_epoch(f"student-{len(drawn)}", f"{student}: training loss", run, "train_loss", "loss"))
        measured = run.filter(pl.col(metric).is_not_null())
        if measured.height:
            title = f"{student}: validation ROC-AUC"
            drawn.append(_by_epoch(f"student-{len(drawn)}", title, measured, metric, "ROC-AUC"))
    return drawn


def _by_epoch(name: str, title: str, run: pl.DataFrame, column: str, unit: str) -> str:
    epochs, values = run["epoch"].to_list(), run[column].to_list()
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(title, height=230, left=62, right=12, bottom=44)
        axes.plot(epochs, values, color=INK, marker="o", markersize=2.5)
        best = run.filter(pl.col("is_best"))
        if best.height:
            axes.plot([best["epoch"][-1]], [best[column][-1]], color=INK, marker="o", markersize=6, linestyle="none")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        said = f"{title} by epoch: from {values[0]:.4g} in epoch {epochs[0]} to {values[-1]:.4g} in epoch {epochs[-1]}."
        return svg(figure, name, said)
