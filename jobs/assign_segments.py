"""Put the users and items of the test split into tiers by what was known of them before it (LEARN's segments).

reads   impressions, split_windows, training_examples
writes  user_segments, item_segments     one row per user, item of the test split, those without any history included

Counted are the `lookback_days` before the start of the test window, never the test itself: clicks of a user; of an item
conversions that had become known, or clicks where the log knows no conversion at all before the test. The manifests say
which (`user_rule`, `item_rule`) and how the test impressions spread over the tiers (`share_of_impressions`).
"""

import logging
from datetime import datetime, timedelta

import dataframely as dy
import polars as pl
from pydantic import BaseModel, PositiveInt

from feature_repo.table_schemas import Impressions, ItemSegments, SplitWindows, TrainingExamples, UserSegments
from jobs.lake import Lake, TableError, table_name
from ranker.segments import ITEM_LONG_TAIL_MAX, TIERS, USER_LONG_TAIL_MAX, item_segments, user_segments

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Impressions, SplitWindows, TrainingExamples)
WRITES: tuple[type[dy.Schema], ...] = (UserSegments, ItemSegments)


class Config(BaseModel, extra="forbid", frozen=True):
    """Where the tiers end."""

    user_long_tail_max: PositiveInt = USER_LONG_TAIL_MAX
    """A user with more clicks than this in the look-back is in `others`."""
    item_long_tail_max: PositiveInt = ITEM_LONG_TAIL_MAX
    """An item with more conversions (or clicks) than this in the look-back is in `others`."""
    lookback_days: PositiveInt = 180
    """Days before the test window that are counted."""


def run(lake: Lake, config: Config) -> None:
    """Replace both tables of segments.

    Raises:
        TableError: a table is missing, or there is no test window, or no example in it.
    """
    test_start = _test_start(lake)
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


def _test_start(lake: Lake) -> datetime:
    windows = lake.read(SplitWindows)
    test = windows.filter(pl.col("split") == "test")
    if test.is_empty():
        raise TableError(
            table_name(SplitWindows),
            f"no test window (found: {', '.join(windows.get_column('split')) or 'nothing'})",
            "run build_training_set with a test window",
        )
    start: datetime = test.item(0, "start")
    return start


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
