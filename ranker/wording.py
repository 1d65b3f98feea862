"""The words of the report: what labels and segments are called, and the verdict in two sentences."""

from collections.abc import Sequence
from typing import Any

import dataframely as dy

from feature_repo.table_schemas import SegmentMetrics
from ranker.segments import TIER_KINDS

CEILING = "ceiling"
"""Name under which the true probabilities of a simulated log are judged: what no ranker can beat, but for luck."""

LABEL_NAMES = {
    "clicked": "Clicks",
    "converted": "Conversions, given a click",
    "clicked_and_converted": "Clicks that convert",
}

METRIC_NAMES = {"auc": "AUC", "uauc": "UAUC", "wuauc": "WUAUC"}

DEFINITIONS = {
    "AUC": "Probability that a random positive scores above a random negative, over all pairs of the log. "
    "A tie counts one half.",
    "UAUC": "Plain mean over users of the AUC of their own impressions. Users without both a positive and a negative "
    "have no AUC: they are left out and counted.",
    "WUAUC": "The same mean, each user weighted by their impressions (also called GAUC).",
    "Interval": "95%, by a bootstrap of users: each draw gives every user a Poisson(1) number of copies. "
    "It says how far the figure would move had other users come, not had the model been trained from another seed. "
    "The pooled AUC is resampled to first order in the weights; UAUC and WUAUC exactly.",
    "Gain": "The ranker's value minus the baseline's, on the same impressions and the same draws.",
    "Verdict": "Better or worse where the two-sided p-value of the gain (normal, with the draws' spread as standard "
    "error), Holm-adjusted, is below 0.05; otherwise no difference was found, which is not proof of none. Adjusted "
    "together are, of one ranker, label and metric, all impressions and the tiers of users and items; each further "
    "kind of segment by itself. A segment with too few users or positives says that it cannot tell.",
    "Detectable": "The minimum detectable difference: the smallest gain that data of this size would show, at level "
    "0.05, four times out of five, before the adjustment for many segments. Where no difference was found, one below "
    "this may well be there.",
    "Segments": "A segment keeps its own impressions only, so a user counts in its UAUC when they have both classes "
    "within it.",
}


KIND_NAMES = {
    "user_segment": "Users by tier",
    "item_segment": "Items by tier",
    "user_item_segment": "Users and items by tier",
    "item_age": "Age of the item",
    "item_text": "Text of the item",
    "query": "Queries by impressions before the test",
}


def kind_name(kind: str) -> str:
    """Heading over the segments of one kind: "Age of the item"; a kind that we do not know is called by its column."""
    return KIND_NAMES.get(kind) or (kind[:1].upper() + kind[1:]).replace("_", " ")


def segment_name(kind: str, segment: str) -> str:
    """What a reader calls a segment, where its kind is not named beside it: "cold-start users", "category: Tents"."""
    name = short_segment_name(kind, segment)
    return name if kind == "all" or kind in KIND_NAMES else f"{kind.replace('_', ' ')}: {name}"


def short_segment_name(kind: str, segment: str) -> str:
    """What a reader calls a segment under the heading of its kind: "cold-start users", "Tents"."""
    if kind == "all":
        return "all impressions"
    if kind in ("user_segment", "item_segment", "user_item_segment"):
        return " × ".join(_tier_name(part) for part in _tiers(kind, segment))
    if kind == "item_text":
        return {"text": "items with text", "no text": "items without text"}.get(segment, segment)
    if kind == "query":
        return segment if segment == "no query" else f"queries shown {segment} times"
    if kind == "item_age":
        return f"items {segment}" if segment.startswith("new ") else f"items {segment} old"
    return segment


def _tiers(kind: str, segment: str) -> list[str]:
    """ "cold_start users", or both sides of a cross."""
    if kind == "user_item_segment":
        return segment.split(" x ")
    return [f"{segment} {'users' if kind == 'user_segment' else 'items'}"]


def _tier_name(tier: str) -> str:
    words = tier.replace("cold_start", "cold-start").replace("long_tail", "long-tail")
    return f"other {words.removeprefix('others ')}" if words.startswith("others ") else words


def signed(value: float, digits: int = 4) -> str:
    """+0.0123 or −0.0045, with a true minus sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def verdict(metrics: dy.DataFrame[SegmentMetrics], ranker: str) -> list[str]:
    """Two sentences on a ranker: overall, then by segment. They claim no more than the table does.

    Judged by the UAUC of clicks, the figure that follows what a ranker can change.
    """
    rows = metrics.filter(label="clicked", metric="uauc", ranker=ranker).to_dicts()
    if not rows or rows[0]["value"] is None:
        return [f"There is nothing to say of {ranker}: no user has both a click and an impression without one."]
    overall, segments = rows[0], rows[1:]
    if overall["baseline"] is None:
        return [_value_sentence(overall), "There is no baseline, so this says nothing of better or worse."]
    return [_overall_sentence(overall), *_segments_sentence(segments)]


def _value_sentence(row: dict[str, Any]) -> str:
    left_out = row["num_impressions_skipped"] / max(row["num_impressions"], 1)
    interval = f" (95% interval {row['low']:.4f} to {row['high']:.4f})" if row["low"] is not None else ""
    return (
        f"The UAUC of clicks is {row['value']:.4f}{interval}, over {row['num_users']:,} users; "
        f"{row['num_users_skipped']:,} others, with {left_out:.0%} of the impressions, have one class only."
    )


def _overall_sentence(row: dict[str, Any]) -> str:
    ranker, baseline = row["ranker"], row["baseline"]
    if row["gain"] is None or row["gain_low"] is None:
        return f"Whether {ranker} ranks better than {baseline} cannot be told: too few users have both classes."
    figures = (
        f"its UAUC of clicks is {row['value']:.4f}, a gain of {signed(row['gain'])} "
        f"(95% interval {signed(row['gain_low'])} to {signed(row['gain_high'])})"
    )
    if row["verdict"] in ("better", "worse"):
        return f"Overall, {ranker} ranks {row['verdict']} than {baseline}: {figures}."
    if row["verdict"] == "no difference":
        return f"Overall, no difference was found between {ranker} and {baseline}: {figures}."
    return f"Whether {ranker} ranks better than {baseline} cannot be told from so little data: {figures}."


FOUND = (
    ("better", "it is better for", "better in"),
    ("worse", "it is worse for", "worse in"),
    ("no difference", "no difference was found for", "no difference in"),
    ("cannot tell", "there is too little to tell for", "too little to tell in"),
)
"""Verdict, how it is said of segments that are named, and of those that are counted."""

MAX_NAMED = 8
"""Segments beside the tiers that a sentence still names; if there are more, it counts them."""


def _segments_sentence(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was found for each tier, and for how many of the other segments; whatever is worse is named."""
    if not rows:
        return []
    further = [row for row in rows if row["segment_kind"] not in TIER_KINDS]
    counted = further if len(further) > MAX_NAMED else []
    named = [row for row in rows if row not in counted]
    parts = [
        f"{lead} {_list([_named(row) for row in named if row['verdict'] == said])}"
        for said, lead, _ in FOUND
        if any(row["verdict"] == said for row in named)
    ]
    counts = []
    for said, _, lead in FOUND:
        if several := [row for row in counted if row["verdict"] == said]:
            # a segment in which nobody has both classes has no gain, and is never worse
            names = [
                f"{segment_name(row['segment_kind'], row['segment'])} {signed(row['gain'])}"
                for row in several
                if said == "worse"
            ]
            counts.append(f"{lead} {len(several)}" + (f" ({', '.join(names)})" if names else ""))
    if counts:
        parts.append(f"of {len(counted)} {'further ' if named else ''}segments, {_list(counts)}")
    return [f"By segment, {'; '.join(parts)}."]


def _named(row: dict[str, Any]) -> str:
    name = segment_name(row["segment_kind"], row["segment"])
    return f"{name} ({signed(row['gain'])})" if row["verdict"] in ("better", "worse") else name


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
