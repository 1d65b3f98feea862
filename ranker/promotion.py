"""The promotion rule: a new ranker goes ahead only if it is better overall and does not hurt where it must not.

    overall     the 95% interval of the paired gain lies above zero. It is one comparison, named before the data were
                seen, so its own interval is asked, not the Holm-adjusted p-value of the segment table.
    protected   the 95% interval of the gain in each protected segment ends no lower than -epsilon: that the loss is
                below epsilon has been shown (non-inferiority). The other reading, which asks only that a loss has not
                been shown, lets the more pass the fewer data there are.

Both intervals are two-sided, so a ranker that is no better passes the first with a chance of 2.5%, and one that loses
epsilon in a protected segment passes that check with a chance of 2.5%, however many segments are protected: every
check must pass, so there is nothing to adjust for.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import SegmentMetrics
from ranker.wording import LABEL_NAMES, METRIC_NAMES, segment_name, signed

EPSILON = 0.002
"""The loss that goes unpunished in a protected segment, on the metric's own scale of 0 to 1."""

Outcome = Literal["better", "no better", "no loss", "worse", "loss not ruled out", "cannot tell"]

PASSED: tuple[Outcome, ...] = ("better", "no loss")


@dataclass(frozen=True)
class Check:
    """One condition of the promotion: overall, or in one protected segment."""

    segment_kind: str
    segment: str
    name: str
    """What a reader calls it: "cold-start items"."""
    asked: str
    """The condition in words."""
    outcome: Outcome
    passed: bool
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    minimum_detectable: float | None
    num_users: int
    num_impressions: int
    num_positives: int


@dataclass(frozen=True)
class Decision:
    """Whether to promote, why in one paragraph, and every condition with its figures."""

    promote: bool
    reason: str
    ranker: str
    baseline: str
    label: str
    metric: str
    epsilon: float
    allow_unknown: bool
    checks: tuple[Check, ...]
    """Overall first, then the protected segments in the order they were named."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"decision": "promote" if self.promote else "refuse", **asdict(self)}


def decide(
    metrics: dy.DataFrame[SegmentMetrics],
    *,
    protected: Sequence[tuple[str, str]],
    epsilon: float = EPSILON,
    metric: str = "uauc",
    label: str = "clicked",
    allow_unknown: bool = False,
) -> Decision:
    """Promote only if the ranker is better overall and no protected segment can have lost more than epsilon.

    Args:
        metrics: one ranker against one baseline, from `ranker.comparison.compare`.
        protected: (segment kind, segment), such as ("item_segment", "cold_start").
        epsilon: the loss that goes unpunished, on the metric's scale; 0 asks for a gain in every protected segment.
        metric: auc | uauc | wuauc.
        label: clicked | converted | clicked_and_converted.
        allow_unknown: let a protected segment pass that has too few users or positives to tell.

    Raises:
        ValueError: epsilon is negative; the table has no such label, metric or segment (the message names those that
            there are), or is not of one ranker against one baseline.
    """
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon is the loss that is allowed, so it cannot be {epsilon}; expected 0 or more.")
    for column, wanted in (("label", label), ("metric", metric)):
        there = metrics[column].unique(maintain_order=True).to_list()
        if wanted not in there:
            raise ValueError(f"there is no {column} `{wanted}` to decide on; there are {', '.join(there)}.")
    rows = metrics.filter(label=label, metric=metric).filter(pl.col("baseline").is_not_null())
    pairs = rows.select("ranker", "baseline").unique().rows()
    if len(pairs) != 1:
        raise ValueError(f"expected one ranker against one baseline, got {len(pairs)}: {sorted(pairs)}.")
    by_segment = {(row["segment_kind"], row["segment"]): row for row in rows.to_dicts()}
    unknown = [f"{kind}:{segment}" for kind, segment in protected if (kind, segment) not in by_segment]
    if unknown:
        there = [f"{kind}:{segment}" for kind, segment in by_segment if kind != "all"]
        raise ValueError(
            f"there is no segment {', '.join(unknown)} to protect; the data have {', '.join(there) or 'none'}."
        )
    overall = by_segment["all", "all"]
    checks = (
        _check(overall, "the interval of the gain lies above zero", _outcome_overall(overall), allow_unknown=False),
        *(
            _check(
                by_segment[place],
                f"the interval of the gain ends no lower than {signed(-epsilon)}",
                _outcome_protected(by_segment[place], epsilon),
                allow_unknown,
            )
            for place in dict.fromkeys(protected)
        ),
    )
    promote = all(check.passed for check in checks)
    ranker, baseline = pairs[0]
    return Decision(
        promote=promote,
        reason=_reason(overall, checks, promote, epsilon, metric, label),
        ranker=ranker,
        baseline=baseline,
        label=label,
        metric=metric,
        epsilon=epsilon,
        allow_unknown=allow_unknown,
        checks=checks,
    )


def _outcome_overall(row: dict[str, Any]) -> Outcome:
    if row["gain_low"] is None or row["verdict"] == "cannot tell":
        return "cannot tell"
    if row["gain_low"] > 0.0:
        return "better"
    return "worse" if row["gain_high"] < 0.0 else "no better"


def _outcome_protected(row: dict[str, Any], epsilon: float) -> Outcome:
    if row["gain_low"] is None or row["verdict"] == "cannot tell":
        return "cannot tell"
    if row["gain_low"] >= -epsilon:
        return "no loss"
    return "worse" if row["gain_high"] < 0.0 else "loss not ruled out"


def _check(row: dict[str, Any], asked: str, outcome: Outcome, allow_unknown: bool) -> Check:
    return Check(
        segment_kind=row["segment_kind"],
        segment=row["segment"],
        name=segment_name(row["segment_kind"], row["segment"]),
        asked=asked,
        outcome=outcome,
        passed=outcome in PASSED or (outcome == "cannot tell" and allow_unknown),
        **{
            figure: row[figure]
            for figure in (
                "gain",
                "gain_low",
                "gain_high",
                "minimum_detectable",
                "num_users",
                "num_impressions",
                "num_positives",
            )
        },
    )


def _reason(
    overall: dict[str, Any], checks: Sequence[Check], promote: bool, epsilon: float, metric: str, label: str
) -> str:
    """One paragraph: the overall gain, then what each protected segment says, the failures by their cause."""
    of_what = f"{METRIC_NAMES[metric]} ({LABEL_NAMES[label].lower()})"
    first, *protected = checks
    said = [f"{'Promote' if promote else 'Do not promote'} {overall['ranker']}."]
    if overall["value"] is None:
        said.append(f"Overall, there is no {of_what} to compare: no user has both outcomes.")
    else:
        said.append(
            {
                "better": "Overall, it ranks better than",
                "worse": "Overall, it ranks worse than",
                "no better": "Overall, it has not been shown to rank better than",
                "cannot tell": "Overall, there are too few users or positives to tell it from",
            }[first.outcome]
            + f" {overall['baseline']}: its {of_what} is {overall['value']:.4f}, a gain of {_gain(first)}, "
            f"over {first.num_users:,} users."
        )
    if not protected:
        said.append("No segment was protected, so a loss in any of them would have gone unnoticed.")
    causes: dict[Outcome, str] = {
        "worse": "Worse in a protected segment",
        "loss not ruled out": f"Too little data to rule out a loss of more than {epsilon:g}",
        "cannot tell": "Too few users or positives to tell anything",
        "no loss": f"No loss of more than {epsilon:g}",
    }
    for outcome, cause in causes.items():
        found = [check for check in protected if check.outcome == outcome]
        if found:
            allowed = ", which was allowed" if outcome == "cannot tell" and found[0].passed else ""
            said.append(f"{cause}{allowed}: {'; '.join(map(_figures, found))}.")
    return " ".join(said)


def _figures(check: Check) -> str:
    found = f"{check.name} {_gain(check)}"
    if check.outcome == "cannot tell":
        return f"{found}, of {check.num_users:,} users and {check.num_positives:,} positives"
    if check.outcome == "loss not ruled out" and check.minimum_detectable is not None:
        unseen = f"a change below {check.minimum_detectable:.4f} mostly goes unseen"
        return f"{found}, of {check.num_users:,} users, where {unseen}"
    return found


def _gain(check: Check) -> str:
    if check.gain is None:
        return "(no value)"
    if check.gain_low is None or check.gain_high is None:
        return f"{signed(check.gain)} (no interval)"
    return f"{signed(check.gain)} (95% interval {signed(check.gain_low)} to {signed(check.gain_high)})"
