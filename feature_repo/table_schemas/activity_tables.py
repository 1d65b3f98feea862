"""Feature tables that are counted from the log."""

import dataframely as dy
import polars as pl

from feature_repo.table_schemas.columns import count, key, probability, time


class UserActivity(dy.Schema):
    """One row per (user, midnight) at which a trailing count changes. Knows nothing of the day that begins then."""

    user_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    user_num_impressions_1d = count()
    user_num_impressions_7d = count()
    user_num_impressions_30d = count()
    user_num_impressions_180d = count()
    user_num_clicks_1d = count()
    user_num_clicks_7d = count()
    user_num_clicks_30d = count()
    user_num_clicks_180d = count()
    user_num_conversions_1d = count()
    user_num_conversions_7d = count()
    user_num_conversions_30d = count()
    user_num_conversions_180d = count()
    user_ctr_1d = probability()  # rates are smoothed towards the log's own rate so far
    user_ctr_7d = probability()
    user_ctr_30d = probability()
    user_ctr_180d = probability()
    user_cvr_1d = probability()
    user_cvr_7d = probability()
    user_cvr_30d = probability()
    user_cvr_180d = probability()


class ItemActivity(dy.Schema):
    """One row per (item, midnight) at which a trailing count changes. Knows nothing of the day that begins then."""

    item_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    item_num_impressions_1d = count()
    item_num_impressions_7d = count()
    item_num_impressions_30d = count()
    item_num_impressions_180d = count()
    item_num_clicks_1d = count()
    item_num_clicks_7d = count()
    item_num_clicks_30d = count()
    item_num_clicks_180d = count()
    item_num_conversions_1d = count()
    item_num_conversions_7d = count()
    item_num_conversions_30d = count()
    item_num_conversions_180d = count()
    item_ctr_1d = probability()
    item_ctr_7d = probability()
    item_ctr_30d = probability()
    item_ctr_180d = probability()
    item_cvr_1d = probability()
    item_cvr_7d = probability()
    item_cvr_30d = probability()
    item_cvr_180d = probability()


class UserHistories(dy.Schema):
    """One row per (user, midnight after a day with clicks): the last items clicked before it, newest last."""

    user_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    history_item_ids = dy.List(dy.String(nullable=False), nullable=False, min_length=1)
    history_timestamps = dy.List(dy.Datetime(nullable=False, time_unit="us", time_zone="UTC"), nullable=False)

    @dy.rule()
    def one_timestamp_per_item(cls) -> pl.Expr:
        return pl.col("history_item_ids").list.len() == pl.col("history_timestamps").list.len()

    @dy.rule()
    def history_is_older_than_the_row(cls) -> pl.Expr:
        return pl.col("history_timestamps").list.max() < pl.col("event_timestamp")
