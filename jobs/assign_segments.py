"""Put users, items and impressions of the test split into segments by what was known before it (LEARN's, and ours).

reads   impressions, split_windows, training_examples; items, users (what their columns say)
writes  user_segments, item_segments     one row per user, item of the test split, those without any history included
        impression_segments              one row per test impression: a column per kind of segment

Counted are the `lookback_days` before the start of the test window, never the test itself: clicks of a user; of an item
conversions that had become known, or clicks where the log knows no conversion at all before the test. The manifests say
which (`user_rule`, `item_rule`) and how the test impressions spread over the tiers (`share_of_impressions`); that of
`impression_segments` has the rule of each kind in words, and each segment's share of impressions and clicks.
"""

import logging
from datetime import datetime, timedelta

import dataframely as dy
import polars as pl
from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator
from rich.console import Console

from feature_repo.table_schemas import (
    Impressions,
    ImpressionSegments,
    Items,
    ItemSegments,
    SplitWindows,
    TrainingExamples,
    Users,
    UserSegments,
)
from jobs.impression_segments import shares_of, write_impression_segments
from jobs.lake import Lake, TableError, table_name
from jobs.log_before_test import open_log
from jobs.segment_kinds import Cuts, SegmentColumn, ascending, check_names
from jobs.segment_table import shares_table
from ranker.segments import ITEM_LONG_TAIL_MAX, TIERS, USER_LONG_TAIL_MAX, item_segments, user_segments

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Impressions, SplitWindows, TrainingExamples, Items, Users)
WRITES: tuple[type[dy.Schema], ...] = (UserSegments, ItemSegments, ImpressionSegments)


class Config(BaseModel, extra="forbid", frozen=True):
    """Which kinds of segments, and where each ends."""

    user_long_tail_max: PositiveInt = USER_LONG_TAIL_MAX
    """A user with more clicks than this in the look-back is in `others`."""
    item_long_tail_max: PositiveInt = ITEM_LONG_TAIL_MAX
    """An item with more conversions (or clicks) than this in the look-back is in `others`."""
    lookback_days: PositiveInt = 180
    """Days before the test window that are counted."""
    kinds: tuple[str, ...] | None = None
    """user_segment, item_segment, user_item_segment (their cross), category, item_age, item_text, position, query; by
    default all that this log has columns for. The configured columns come in addition."""
    columns: dict[str, SegmentColumn] = {}
    """Further kinds, by any column: `brand = {table = "items", column = "brand"}`; a number by quartiles or `edges`."""
    item_age_days: tuple[PositiveInt, ...] = Field(default=(7, 30, 180), min_length=1)
    """Ages of an item, in days, that end a range."""
    position_edges: tuple[PositiveInt, ...] = Field(default=(1, 4, 10), min_length=1)
    """Positions at which a range begins; the top of the slate is 0."""
    query_edges: tuple[PositiveInt, ...] = Field(default=(1, 10, 100), min_length=1)
    """Impressions of a query before the test at which a range begins: never shown, tail, torso, head."""
    max_categories: PositiveInt = Field(default=12, le=50)
    """Categories with a segment of their own, the biggest; so many values of a text column that has over 50."""
    memory_limit: str = Field(default="2GB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")
    """Memory that DuckDB may use; beyond it, it spills to disk, inside the lake."""

    @field_validator("item_age_days", "position_edges", "query_edges")
    @classmethod
    def _ascending(cls, edges: tuple[int, ...]) -> tuple[int, ...]:
        return ascending(edges)

    @model_validator(mode="after")
    def _known_kinds(self) -> "Config":
        check_names(self.kinds, self.columns)
        return self


def run(lake: Lake, config: Config) -> None:
    """Replace the tables of segments.

    Raises:
        TableError: a table is missing, or there is no test window, or no example in it.
        ValueError: a kind or a column was asked for that the log does not have.
    """
    train_start, test_start = _starts(lake)
    start = test_start - timedelta(days=config.lookback_days)
    test = lake.scan(TrainingExamples).filter(pl.col("split") == "test")
    shown_by_user, shown_by_item = (
        test.group_by(key).agg(num_impressions=pl.len()).sort(key).collect(engine="streaming")
        for key in ("user_id", "item_id")
    )
    if shown_by_user.is_empty():
        raise TableError(
            table_name(TrainingExamples),
            f"no example in the test split, which starts at {test_start:%Y-%m-%d %H:%M} UTC",
            "choose other split windows and run build_training_set again",
        )
    clicks = lake.scan(Impressions).filter("clicked", ~pl.col("is_sampled"), pl.col("event_timestamp") < test_start)
    conversions = lake.scan(Impressions).filter("converted", pl.col("conversion_timestamp") < test_start)
    recent_clicks = clicks.filter(pl.col("event_timestamp") >= start)
    recent_conversions = conversions.filter(pl.col("conversion_timestamp") >= start)
    knows_conversions = not conversions.head(1).collect().is_empty()
    window = f"in the {config.lookback_days} days before {test_start:%Y-%m-%d %H:%M} UTC"
    user_rule = f"clicks of the user {window}"
    item_rule = (
        f"conversions of the item that became known {window}"
        if knows_conversions
        else f"clicks of the item {window}: the log knows no conversion before then"
    )
    users = user_segments(_counts(shown_by_user, recent_clicks, "user_id"), config.user_long_tail_max)
    items = item_segments(
        _counts(shown_by_item, recent_conversions if knows_conversions else recent_clicks, "item_id"),
        config.item_long_tail_max,
    )
    _write(lake, UserSegments, users, shown_by_user, "user_rule", user_rule)
    _write(lake, ItemSegments, items, shown_by_item, "item_rule", item_rule)
    tier_rules = {
        "user_segment": _tier_rule(user_rule, config.user_long_tail_max),
        "item_segment": _tier_rule(item_rule, config.item_long_tail_max),
    }
    cuts = Cuts(config.columns, config.item_age_days, config.position_edges, config.query_edges, config.max_categories)
    with open_log(lake, train_start, test_start, config.memory_limit) as known:
        write_impression_segments(lake, known, config.kinds, cuts, tier_rules, num_rows=_total(shown_by_user))
    Console().print(shares_table(shares_of(lake)))


def _total(shown: pl.DataFrame) -> int:
    return int(shown.get_column("num_impressions").sum())


def _tier_rule(rule: str, long_tail_max: int) -> str:
    long_tail = "1" if long_tail_max == 1 else f"1 to {long_tail_max:,}"
    return f"{rule[0].upper()}{rule[1:]}. Cold-start 0, long-tail {long_tail}, others more"


def _starts(lake: Lake) -> tuple[datetime, datetime]:
    """Of the first window, and of the test window."""
    windows = lake.read(SplitWindows)
    test = windows.filter(pl.col("split") == "test")
    if test.is_empty():
        raise TableError(
            table_name(SplitWindows),
            f"no test window (found: {', '.join(windows.get_column('split')) or 'nothing'})",
            "run build_training_set with a test window",
        )
    train_start: datetime = windows.get_column("start").min()  # type: ignore[assignment]
    test_start: datetime = test.item(0, "start")
    return train_start, test_start


def _counts(shown: pl.DataFrame, events: pl.LazyFrame, key: str) -> pl.DataFrame:
    """`key`, `num_interactions`: events of each user or item of the test split, 0 where there is none."""
    counted = events.group_by(key).agg(num_interactions=pl.len())
    return (
        shown.lazy()
        .join(counted, on=key, how="left", maintain_order="left")
        .select(key, pl.col("num_interactions").fill_null(0))
        .collect(engine="streaming")
    )


def _write(
    lake: Lake, schema: type[dy.Schema], segments: pl.DataFrame, shown: pl.DataFrame, rule_name: str, rule: str
) -> None:
    key, segment = segments.columns[:2]
    impressions = segments.join(shown, on=key).group_by(segment).agg(pl.col("num_impressions").sum())
    by_tier = dict(impressions.iter_rows())
    total = sum(by_tier.values())
    shares = {tier: by_tier.get(tier, 0) / total for tier in TIERS}
    lake.write(schema, segments, metadata={rule_name: rule, "share_of_impressions": shares})
    members = segments.get_column(segment).cast(pl.String)
    logger.info(
        "%s by %s; share of test impressions: %s",
        table_name(schema),
        rule,
        ", ".join(f"{tier} {share:.1%} ({(members == tier).sum():_} of them)" for tier, share in shares.items()),
    )
    if not segments.get_column("num_interactions").sum():
        logger.warning("%s: nothing to count (%s), so all are cold_start", table_name(schema), rule)
