"""One row per test impression with its segment of each kind, written batch by batch; and what share each segment is."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from feature_repo.table_schemas import ImpressionSegments
from jobs.lake import Lake
from jobs.log_before_test import LogBeforeTest
from jobs.segment_kinds import BUILT_IN, Cuts, SegmentKind, kind_of
from ranker.segments import in_order

logger = logging.getLogger(__name__)

ALWAYS = ("user_segment", "item_segment")
"""Written even where everybody is in one tier: a report without them says nothing of the tail."""

COUNTS = ("num_impressions", "num_clicks", "num_conversions")


class SegmentShare(NamedTuple):
    """How much of the test a segment is. Shares are of all test impressions, clicks, conversions; null of none."""

    kind: str
    segment: str
    of_impressions: float
    of_clicks: float | None
    of_conversions: float | None


def write_impression_segments(
    lake: Lake,
    known: LogBeforeTest,
    names: Sequence[str] | None,
    cuts: Cuts,
    tier_rules: Mapping[str, str],
    *,
    num_rows: int,
) -> None:
    """Replace `impression_segments`.

    Args:
        lake: where it is written.
        known: the log before the test, and the test's rows; user_segments and item_segments among its tables.
        names: built-in kinds; None for all that tell test impressions of this log apart.
        cuts: configured columns and edges.
        tier_rules: in words, of `user_segment` and `item_segment`.
        num_rows: test examples there are: each gets one row.

    Raises:
        ValueError: a kind was asked for by name that the log cannot give.
    """
    kinds = [
        kind_of(name, cuts, known, tier_rules)
        for name in (ALWAYS if names is None else names)
        if name not in cuts.columns
    ]
    left_out: dict[str, str] = {}
    if names is None:
        kinds += _those_that_tell_apart(known, cuts, tier_rules, left_out)
    kinds += [kind_of(name, cuts, known, tier_rules) for name in cuts.columns]
    counts: list[pl.DataFrame] = []
    values = {name: sql for kind in kinds for name, sql in kind.values.items()}
    with lake.writer(ImpressionSegments) as writer:
        for rows in known.test_rows(values, _tables(kinds)):
            cut = rows.select(
                "impression_id", "clicked", "converted", *(kind.cut.cast(pl.String).alias(kind.name) for kind in kinds)
            )
            counts += [_counts(cut, kind.name) for kind in kinds]
            writer.write_shard(cut.drop("clicked", "converted"))
        segments = _segments(counts, kinds)
        for kind in kinds:
            if not segments[kind.name]:
                raise ValueError(
                    f"assign_segments: no impression of the test split is in a segment of {kind.name}: what it is cut "
                    "by is empty there. Leave it out, or fill it in the source."
                )
        writer.metadata = {
            "kinds": {kind.name: {"rule": kind.rule, "segments": segments[kind.name]} for kind in kinds},
            "left_out": left_out,
        }
        assert (writer.kept, writer.quarantined) == (num_rows, 0), (
            f"{num_rows} examples, {writer.kept} rows of segments"
        )
    for name, reason in left_out.items():
        logger.info("impression_segments: %s left out: %s", name, reason)


def shares_of(lake: Lake) -> list[SegmentShare]:
    """Every segment of the table and its share of the test, kind by kind."""
    manifest = lake.manifest(ImpressionSegments)
    kinds = manifest.metadata["kinds"]
    return [
        SegmentShare(kind, segment, **{f"of_{what}": share for what, share in shares.items()})
        for kind, one in kinds.items()
        for segment, shares in one["segments"].items()
    ]


def _those_that_tell_apart(
    known: LogBeforeTest, cuts: Cuts, tier_rules: Mapping[str, str], left_out: dict[str, str]
) -> list[SegmentKind]:
    """Built-in kinds that this log has columns for, and that put its test impressions into more than one segment."""
    kinds = []
    for name in BUILT_IN:
        if name in ALWAYS:
            continue
        try:
            kind = kind_of(name, cuts, known, tier_rules)
        except ValueError as error:
            left_out[name] = str(error).removeprefix("assign_segments: ")
            continue
        found = known.distinct_in_test(kind.values, kind.tables).select(kind.cut.alias(name)).get_column(name)
        segments = found.drop_nulls().unique().to_list()
        if len(segments) > 1:
            kinds.append(kind)
        else:
            left_out[name] = f"all test impressions are `{segments[0]}`" if segments else "no test impression has one"
    return kinds


def _tables(kinds: Sequence[SegmentKind]) -> list[str]:
    return list(dict.fromkeys(table for kind in kinds for table in kind.tables))


def _counts(cut: pl.DataFrame, kind: str) -> pl.DataFrame:
    return cut.group_by(segment=pl.col(kind)).agg(
        pl.lit(kind).alias("kind"),
        pl.len().cast(pl.Int64).alias("num_impressions"),
        pl.col("clicked", "converted").sum().cast(pl.Int64).name.map(lambda name: COUNTS[1 + (name == "converted")]),
    )


def _segments(
    counts: Sequence[pl.DataFrame], kinds: Sequence[SegmentKind]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """By kind and segment: share of impressions, clicks and conversions."""
    total = pl.concat(counts).group_by("kind", "segment").agg(pl.col(COUNTS).sum())
    everything = total.filter(pl.col("kind") == kinds[0].name).select(COUNTS).sum().row(0)
    segments = {}
    for kind in kinds:
        rows = {segment: numbers for _, segment, *numbers in total.filter(pl.col("kind") == kind.name).iter_rows()}
        rows.pop(None, None)
        segments[kind.name] = {
            name: {
                count.removeprefix("num_"): number / whole if whole else None
                for count, number, whole in zip(COUNTS, rows[name], everything, strict=True)
            }
            for name in in_order(rows)
        }
    return segments
