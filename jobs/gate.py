"""The promotion gate: may this ranker replace that one? The function behind `tailrank gate`.

reads   two files of predictions, or the ranker_predictions of a lake (every seed of each, averaged)
writes  a JSON file for machines, where one is asked for

The rule is `ranker.promotion.decide`; what is judged, and how, is as in `tailrank evaluate`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feature_repo.table_schemas import ImpressionSegments, RankerPredictions
from jobs.lake import Lake, TableError, utc_now
from jobs.predictions_file import read_predictions
from jobs.provenance import command, commit, sha256, versions
from jobs.report_files import write_json
from jobs.segment_table import terminal_table
from ranker.comparison import compare
from ranker.judged_runs import LABELS, JudgedRuns, Run, line_up
from ranker.promotion import EPSILON, Check, Decision, decide
from ranker.wording import DEFINITIONS, signed

PROMOTED, REFUSED = 0, 1
"""Exit codes of a decision; any other says that none was made."""

KINDS = {"user": "user_segment", "item": "item_segment"}
"""What the kinds of LEARN's tiers are called on the command line; any other kind goes by its column's name."""

logger = logging.getLogger(__name__)

Segment = tuple[str, str]


class _Sides(NamedTuple):
    """The two rankers lined up, and what they were read from."""

    new: str
    old: str
    judged: JudgedRuns
    inputs: dict[str, dict[str, Any]]
    notes: list[str]


def protected_segment(text: str) -> Segment:
    """(kind, segment) of `item:cold_start`, `user:long_tail` or `column:value`.

    Raises:
        ValueError: there is no colon, or nothing on one side of it.
    """
    kind, colon, segment = text.partition(":")
    if not (kind and colon and segment):
        raise ValueError(f"`{text}` names no segment; write item:cold_start, user:long_tail or column:value.")
    return KINDS.get(kind, kind), segment


def run(
    new: str,
    against: str,
    *,
    lake: Lake | None = None,
    protect: Sequence[Segment] = (),
    segment_kinds: Sequence[str] = (),
    epsilon: float = EPSILON,
    metric: str = "uauc",
    label: str = "clicked",
    allow_unknown: bool = False,
    json: Path | None = None,
    num_draws: int = 1000,
    seed: int = 0,
    min_users: int = 30,
    min_positives: int = 30,
    console: Console | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Decision:
    """Decide whether a ranker may replace another; print the table, the checks and the reason.

    Args:
        new: path of the new ranker's predictions; with a lake, the ranker's name.
        against: the same of the ranker in use.
        lake: take both from its ranker_predictions.
        protect: (kind, segment) in which a loss is not allowed; see `protected_segment`.
        segment_kinds: further columns to show in the table.
        epsilon: the loss that goes unpunished in a protected segment, on the metric's scale.
        metric: auc | uauc | wuauc.
        label: clicked | converted | clicked_and_converted.
        allow_unknown: let a protected segment pass that has too few users or positives to tell.
        json: write the decision here; a file left by an earlier run is removed first, lest it be taken for this one's.
        num_draws: bootstrap draws of users.
        seed: of the bootstrap.
        min_users: with fewer users counted, a segment says "cannot tell".
        min_positives: the same for positives, and for negatives.
        console: where the table is printed.
        now: the clock that stamps the JSON.

    Raises:
        TableError: a file or table cannot be judged; the message names the column, the rule and a few rows.
        ValueError: the two are not of the same impressions, disagree on a segment, or lack what was asked for.
    """
    if json is not None:
        json.unlink(missing_ok=True)
    kinds = list(dict.fromkeys([*(kind for kind, _ in protect), *segment_kinds]))
    sides = _from_files(Path(new), Path(against), kinds) if lake is None else _from_lake(lake, new, against, kinds)
    for note in sides.notes:
        logger.warning("%s", note)
    metrics = compare(
        sides.judged,
        baseline=sides.old,
        num_draws=num_draws,
        seed=seed,
        min_users=min_users,
        min_positives=min_positives,
    )
    decision = decide(
        metrics, protected=protect, epsilon=epsilon, metric=metric, label=label, allow_unknown=allow_unknown
    )
    console = console or Console()
    console.print(terminal_table(metrics, label, segment_kinds=None))
    console.print(checks_table(decision))
    console.print(decision.reason, style="bold", highlight=False)
    if json is not None:
        write_json(
            json,
            {
                **decision.as_json(),
                "exit_code": PROMOTED if decision.promote else REFUSED,
                "inputs": sides.inputs,
                "rule": "promote if the 95% interval of the overall gain lies above zero (its own, not adjusted: one "
                "comparison, named before) and that of every protected segment ends no lower than -epsilon",
                "definitions": {name: DEFINITIONS[name] for name in ("AUC", "UAUC", "WUAUC", "Interval", "Gain")},
                "judged_on": next(one.judged_on for one in LABELS if one.name == label),
                "bootstrap": {"num_draws": num_draws, "seed": seed},
                "too_few_to_tell": {"below_users": min_users, "below_positives_or_negatives": min_positives},
                "notes": sides.notes,
                "created": now().isoformat(),
                "commit": commit(),
                "versions": versions(),
                "command": command(),
            },
        )
        console.print(f"decision: {json}", soft_wrap=True)
    return decision


def checks_table(decision: Decision) -> Table:
    """Every condition with its figures. Fits 80 columns."""
    table = Table(
        title=f"{decision.ranker} against {decision.baseline}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("must hold for", overflow="fold")
    table.add_column("gain [95% interval]", justify="right", no_wrap=True)
    table.add_column("at least", justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for place, check in enumerate(decision.checks):
        table.add_row(
            check.name,
            _figures(check),
            "above 0" if place == 0 else signed(-decision.epsilon),
            Text(f"{'✓' if check.passed else '✗'} {check.outcome}", "green" if check.passed else "red"),
        )
    return table


def _figures(check: Check) -> str:
    if check.gain is None:
        return "–"
    if check.gain_low is None or check.gain_high is None:
        return signed(check.gain)
    return f"{signed(check.gain)} [{signed(check.gain_low)}, {signed(check.gain_high)}]"


def _from_files(new: Path, old: Path, kinds: Sequence[str]) -> _Sides:
    read = {"new": read_predictions(new, kinds), "against": read_predictions(old)}
    names = (new.stem, old.stem) if new.stem != old.stem else ("new", "old")
    runs = [Run(name, 0, one.frame) for name, one in zip(names, read.values(), strict=True)]
    judged = line_up(runs, segment_kinds=list(dict.fromkeys(["user_segment", "item_segment", *kinds])))
    _check_same_segments(runs, judged.segment_kinds)
    inputs = {
        side: {"ranker": name, "path": str(path), "sha256": sha256(path), "num_impressions": one.frame.height}
        for (side, one), name, path in zip(read.items(), names, (new, old), strict=True)
    }
    return _Sides(*names, judged, inputs, [note for one in read.values() for note in one.notes])


def _check_same_segments(runs: Sequence[Run], kinds: Sequence[str]) -> None:
    """Refuse two files that put an impression into different segments: a protection would depend on the new one's."""
    new, old = (run.predictions for run in runs)
    both = [kind for kind in kinds if kind in old.columns]
    if not both:
        return
    pairs = new.select("impression_id", *both).join(old.select("impression_id", *both), on="impression_id")
    for kind in both:
        differs = pairs.filter(pl.col(kind).ne_missing(pl.col(f"{kind}_right")))
        if differs.height:
            sample = ", ".join(map(str, differs["impression_id"].sort().head(3)))
            raise ValueError(
                f"`{kind}` of {runs[0].ranker} differs from that of {runs[1].ranker} on {differs.height} of "
                f"{new.height} impressions (such as {sample}). Segments must be those of before the test, the same "
                "for both: assign them once and write them into both files, or into the new one only."
            )


def _from_lake(lake: Lake, new: str, old: str, kinds: Sequence[str]) -> _Sides:
    scan = lake.scan(RankerPredictions)
    there = scan.select("ranker", "seed").unique(maintain_order=True).collect()
    unknown = [name for name in (new, old) if name not in there["ranker"]]
    if unknown:
        names = ", ".join(there["ranker"].unique(maintain_order=True))
        raise ValueError(f"there is no ranker `{unknown[0]}` in {lake.root}; it has predictions of {names}.")
    if new == old:
        raise ValueError(f"`{new}` cannot be judged against itself: name the ranker in use with --against.")
    written = list(lake.manifest(ImpressionSegments).metadata["kinds"])
    missing = [kind for kind in kinds if kind not in written]
    if missing:
        raise TableError(
            "impression_segments",
            f"has no segments by `{missing[0]}`; it has {', '.join(written)}",
            "name one of them, or add it to [assign_segments] and run that step again",
        )
    shown = [kind for kind in dict.fromkeys(("user_segment", "item_segment", *kinds)) if kind in written]

    def runs() -> Iterator[Run]:
        segments = lake.scan(ImpressionSegments).select("impression_id", *shown).collect()
        for ranker, seed in there.filter(pl.col("ranker").is_in([new, old])).iter_rows():
            predictions = scan.filter(ranker=ranker, seed=seed).drop("ranker", "seed", *KINDS.values()).collect()
            yield Run(ranker, seed, predictions.join(segments, on="impression_id", how="left", maintain_order="left"))

    judged = line_up(runs(), segment_kinds=shown)
    digest = sha256(*lake.parquet_files(RankerPredictions))
    inputs = {
        side: {
            "ranker": name,
            "path": str(lake.table_path(RankerPredictions)),
            "sha256": digest,
            "num_impressions": judged.impressions.height,
            "seeds": there.filter(ranker=name)["seed"].sort().to_list(),
        }
        for side, name in (("new", new), ("against", old))
    }
    return _Sides(new, old, judged, inputs, [])
