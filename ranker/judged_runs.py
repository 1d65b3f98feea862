"""Line up the predictions of several rankers and seeds on the same impressions, or say why they do not match."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

MAX_SEGMENTS = 200
"""More values than this in a segment column and it is an id or a free text, not a segment."""

SAMPLE_SIZE = 3


class JudgedLabel(NamedTuple):
    """An outcome, the score that predicts it, and the impressions on which it is judged."""

    name: str
    score: str
    rows: pl.Expr
    """True for the impressions judged."""
    judged_on: str
    """The same in words."""

    def mask(self, impressions: pl.DataFrame) -> pl.Series:
        """(N,) whether each impression is judged; needs clicked and converted."""
        return impressions.with_columns(self.rows.alias("judged"))["judged"]


LABELS = (
    JudgedLabel("clicked", "p_ctr", pl.lit(True), "all impressions"),
    JudgedLabel(
        "converted",
        "p_cvr",
        pl.col("clicked") & pl.col("converted").is_not_null(),
        "clicked impressions whose conversion window has passed",
    ),
    JudgedLabel(
        "clicked_and_converted",
        "p_ctcvr",
        pl.col("converted").is_not_null(),
        "all impressions whose conversion window has passed",
    ),
)


class Run(NamedTuple):
    """The predictions of one ranker, trained from one seed."""

    ranker: str
    seed: int
    predictions: pl.DataFrame
    """Columns of `Predictions`; converted, p_cvr, p_ctcvr and the segment columns may be missing."""


@dataclass(frozen=True)
class JudgedRuns:
    """Several runs, row by row on the same impressions."""

    impressions: pl.DataFrame
    """user (Int64, 0.. in the order of user ids), clicked, converted, clicked_and_converted, and the segment kinds."""
    num_users: int
    segment_kinds: tuple[str, ...]
    scores: dict[tuple[str, int], pl.DataFrame]
    """By (ranker, seed): the score columns it has, in the row order of `impressions`."""

    def rankers(self, baseline: str | None) -> list[str]:
        """Names of the rankers: the baseline first, the others in the order they came."""
        names = list(dict.fromkeys(ranker for ranker, _ in self.scores))
        return sorted(names, key=lambda name: name != baseline)

    def runs_with(self, score: str, ranker: str) -> list[pl.DataFrame]:
        """Scores of each seed of a ranker; none unless every seed has this score."""
        runs = [frame for (name, _), frame in self.scores.items() if name == ranker]
        return runs if all(score in frame.columns for frame in runs) else []


def line_up(runs: Iterable[Run], segment_kinds: Sequence[str] = ("user_segment", "item_segment")) -> JudgedRuns:
    """Put every run on the impressions of the first, whose labels and segments count.

    Args:
        runs: at least one; each must have the same impressions, in any order, with the same labels.
        segment_kinds: columns to judge by; those that the first run does not have, or has as null only, are left out.

    Raises:
        ValueError: no runs, an impression twice in a run, two runs with different impressions or different labels,
            the same (ranker, seed) twice, or too many segments.
    """
    first: Run | None = None
    ids = pl.DataFrame()
    scores: dict[tuple[str, int], pl.DataFrame] = {}
    for run in runs:
        name = f"`{run.ranker}`, seed {run.seed}"
        if (run.ranker, run.seed) in scores:
            raise ValueError(f"two runs are called {name}. Give each (ranker, seed) its predictions once.")
        if _any_twice(run.predictions["impression_id"]):
            num_duplicates = run.predictions.height - run.predictions["impression_id"].n_unique()
            counts = run.predictions.group_by("impression_id").len().filter(pl.col("len") > 1)
            raise ValueError(
                f"predictions of {name}: {num_duplicates} of {run.predictions.height} rows repeat an impression_id"
                f"{_sample(counts['impression_id'])}. One impression needs one row: look for a join that multiplies."
            )
        predictions = run.predictions
        if first is None:
            first, ids = run, predictions.select("impression_id", "clicked", *_present(predictions, ["converted"]))
        elif not predictions["impression_id"].equals(ids["impression_id"]):
            _check_same_impressions(ids, predictions, first.ranker, name)
            predictions = ids.select("impression_id").join(
                predictions, on="impression_id", how="left", maintain_order="left"
            )
        assert first is not None
        _check_same_labels(ids, predictions, first.ranker, name)
        scores[run.ranker, run.seed] = predictions.select(
            pl.col(score) for score in _present(predictions, [label.score for label in LABELS])
        )
    if first is None:
        raise ValueError("there are no predictions to judge: expected at least one run, got none.")
    kinds = _present(first.predictions, segment_kinds)
    _check_segments(first.predictions, kinds)
    impressions = first.predictions.select(
        number_users(first.predictions["user_id"]).alias("user"),
        "clicked",
        *(["converted"] if "converted" in ids.columns else [pl.lit(None, pl.Boolean).alias("converted")]),
        *(pl.col(kind).cast(pl.String).cast(pl.Categorical) for kind in kinds),
    ).with_columns(clicked_and_converted=pl.col("clicked") & pl.col("converted"))
    num_users = int(impressions["user"].max() or 0) + 1 if impressions.height else 0  # type: ignore[arg-type]
    return JudgedRuns(impressions, num_users, tuple(kinds), scores)


def number_users(ids: pl.Series) -> pl.Series:
    """(N,) Int64: the place of each id among the distinct ids in ascending order, from 0."""
    if ids.dtype != pl.String:
        return ids.rank("dense").cast(pl.Int64) - 1
    categories = pl.Categories.random()
    first_seen = ids.cast(pl.Categorical(categories))  # sorting the distinct ids is quicker than sorting all
    places = categories.to_series().rank("dense").cast(pl.Int64) - 1
    return places.gather(first_seen.to_physical())


def _any_twice(ids: pl.Series) -> bool:
    """Whether an id may be there twice: certainly not where all hashes differ."""
    hashes = np.sort(ids.hash().to_numpy())
    return bool((hashes[1:] == hashes[:-1]).any()) and ids.n_unique() < len(ids)


def _present(frame: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """The columns that are there and not null throughout."""
    return [c for c in columns if c in frame.columns and frame[c].null_count() < max(frame.height, 1)]


def _sample(ids: pl.Series) -> str:
    return f" (such as {', '.join(map(str, ids.sort().head(SAMPLE_SIZE)))})" if len(ids) else ""


def _check_same_impressions(ids: pl.DataFrame, predictions: pl.DataFrame, reference: str, name: str) -> None:
    missing = ids.join(predictions, on="impression_id", how="anti")["impression_id"]
    extra = predictions.join(ids, on="impression_id", how="anti")["impression_id"]
    if len(missing) or len(extra):
        raise ValueError(
            f"rankers must be judged on the same impressions: of {ids.height} that `{reference}` scored, {name} lacks "
            f"{len(missing)}{_sample(missing)} and has {len(extra)} others{_sample(extra)}. "
            "Score the same test set with both, or keep the impressions they share."
        )


def _check_same_labels(ids: pl.DataFrame, predictions: pl.DataFrame, reference: str, name: str) -> None:
    for label in ids.columns[1:]:
        if label not in predictions.columns:
            continue
        differs = predictions[label].ne_missing(ids[label])
        if differs.any():
            sample = _sample(ids["impression_id"].filter(differs))
            raise ValueError(
                f"label `{label}` of {name} differs from that of `{reference}` on {differs.sum()} of {ids.height} "
                f"impressions{sample}. Both must come from the same log, read at the same time."
            )


def _check_segments(predictions: pl.DataFrame, kinds: Sequence[str]) -> None:
    for kind in kinds:
        num_segments = predictions[kind].n_unique()
        if num_segments > MAX_SEGMENTS:
            raise ValueError(
                f"segment column `{kind}` has {num_segments} values; expected at most {MAX_SEGMENTS}. "
                "Group them first: a segment of a handful of users can tell nothing."
            )
