"""Canonical tables: what a raw source must give."""

import dataframely as dy
import polars as pl

from feature_repo.table_schemas.columns import MAX_TEXT_CHARACTERS, identifier, key, probability, text, time


class Items(dy.Schema):
    """One row per item, as it is now. Category, brand and price are also served by Feast, as ID features."""

    item_id = key()
    title = text()
    category = text()
    brand = text()
    price_cents = dy.Int64(nullable=True, min=0)
    keywords = text()
    attributes = text()
    description = text()
    event_timestamp = time()  # since when the item can be shown
    created_timestamp = time()


class ItemImages(dy.Schema):
    """One row per item that has a picture, as it is now: the bytes of the file (JPEG, PNG, WebP, ...)."""

    item_id = key()
    image = dy.Binary(nullable=False)
    event_timestamp = time()  # since when the picture can be shown

    @dy.rule()
    def image_is_not_empty(cls) -> pl.Expr:
        return pl.col("image").bin.size() > 0


class Users(dy.Schema):
    """One row per user."""

    user_id = key()
    event_timestamp = time()  # first seen


class Queries(dy.Schema):
    """One row per distinct query."""

    query_id = key()
    query_text = dy.String(nullable=False, min_length=1, max_length=MAX_TEXT_CHARACTERS)


class Impressions(dy.Schema):
    """One row per item shown to a user, with what came of it. A conversion counts from `conversion_timestamp` on."""

    impression_id = key()
    request_id = identifier(nullable=True)  # the slate: one page of results
    user_id = identifier()
    item_id = identifier()
    query_id = identifier(nullable=True)  # null in a feed
    position = dy.Int32(nullable=True, min=0)  # 0 = top of the slate
    event_timestamp = time()
    clicked = dy.Bool(nullable=False)
    converted = dy.Bool(nullable=False)
    conversion_timestamp = time(nullable=True)
    is_sampled = dy.Bool(nullable=False)  # a negative drawn by us: nobody saw this item

    @dy.rule()
    def conversion_needs_click(cls) -> pl.Expr:
        return ~pl.col("converted") | pl.col("clicked")

    @dy.rule()
    def conversion_timestamp_goes_with_converted(cls) -> pl.Expr:
        return pl.col("converted") == pl.col("conversion_timestamp").is_not_null()

    @dy.rule()
    def conversion_not_before_impression(cls) -> pl.Expr:
        return pl.col("conversion_timestamp").is_null() | (pl.col("conversion_timestamp") >= pl.col("event_timestamp"))

    @dy.rule()
    def sampled_rows_are_negatives(cls) -> pl.Expr:
        return ~pl.col("is_sampled") | ~pl.col("clicked")


class RelevanceGrades(dy.Schema):
    """One row per judged (query, item): by people, or by the simulator's rule."""

    query_id = key()
    item_id = key()
    grade = dy.Float64(nullable=False, min=0.0, max=3.0)  # 0 irrelevant .. 3 exact


class TrueProbabilities(dy.Schema):
    """One row per simulated impression: the probabilities its outcome was drawn from. The ceiling of any ranker."""

    impression_id = key()
    p_ctr = probability()
    p_cvr = probability()  # of converting, given the click
    p_ctcvr = probability()
