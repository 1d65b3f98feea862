"""Pairs of a query and an item, as the steps of relevance see them: judged or not, when first shown, on which side.

Time. Texts are judged, not clicks, but what taught a model has a time all the same: a pair counts from its first
impression, and one that was never shown from the beginning. Only pairs of before `labels_through` teach anything, and
nothing that was taught by them is dated earlier.

Sides. All pairs of a query are on one side (`embedders.query_split`): models learn from `train`, stop early and are
calibrated on `validation`, and are judged on `test`.
"""

import hashlib
import logging
from datetime import datetime, timezone

import polars as pl

from embedders.built_chains import ROUNDING
from embedders.prompts import QUERY_TEXT
from embedders.query_split import sides_of
from embedders.relevance_prompts import QueryItem
from feature_repo.table_schemas import Impressions, Items, Queries, RelevanceGrades
from jobs.lake import Lake

logger = logging.getLogger(__name__)

PAIR_COLUMNS = (
    "query_id",
    "item_id",
    "query_text",
    "grade",  # null: nobody judged the pair
    "human_label",  # good | bad; null as above
    "first_shown",  # null: never
    "num_shown",
    "side",  # train | validation | test
)
"""One row per (query_id, item_id)."""

PAIR = ("query_id", "item_id")

ITEM_TEXTS = ("title", "category", "brand", "attributes")
"""What is read of an item."""


def labels_through(lake: Lake, *, trained_share: float, trained_through: datetime | None) -> datetime | None:
    """The time before which pairs must have been shown to teach anything; None where there are no impressions.

    Args:
        lake: with or without impressions.
        trained_share: share of the log's span that is learnt from, cut down to a midnight UTC.
        trained_through: this time in place of the share.

    Raises:
        ValueError: it is before the log, or in the future.
    """
    now, has_log = lake.now(), lake.exists(Impressions) and lake.manifest(Impressions).rows > 0
    if not has_log:
        first, last, period = None, None, "there are no impressions"
    else:
        time = pl.col("event_timestamp")
        span = lake.scan(Impressions).select(time.min().alias("first"), time.max().alias("last")).collect()
        first, last = span.row(0)
        period = f"the log covers {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    if trained_through is not None:
        through = trained_through.astimezone(timezone.utc)
        if through > now or (first is not None and through <= first):
            raise ValueError(
                f"label_relevance: trained_through = {through:%Y-%m-%d %H:%M} UTC, but {period} and now is "
                f"{now:%Y-%m-%d %H:%M}.\n  what to do: name a time after the log begins that is not in the future"
            )
        return through
    if first is None or last is None:
        return None
    at: datetime = first + trained_share * (last - first)
    through = at.astimezone(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    if through <= first:
        raise ValueError(
            f"label_relevance: {period}, and {trained_share:.0%} of it ends before the first midnight, so there is "
            "nothing to learn from.\n  what to do: ingest more days, raise trained_share, or name a time "
            "(trained_through)"
        )
    return through


def judged_pairs(lake: Lake, *, good_from: float, before: datetime | None) -> pl.DataFrame:
    """The pairs that people judged: `PAIR_COLUMNS`, by query_id and item_id.

    Args:
        lake: without grades there are none.
        good_from: least grade of a good pair.
        before: pairs first shown at this time or later are left out, and impressions from then on are not counted;
            None: none are.
    """
    if not lake.exists(RelevanceGrades) or not lake.exists(Queries):
        return _with_sides(_with_queries(lake, _no_pairs(), good_from).collect())
    grades = lake.scan(RelevanceGrades).select(*PAIR, "grade")
    shown = _shown(_rows_of_log(lake).join(grades, on=PAIR, how="semi"), before)  # of the log only what is judged
    pairs = grades.join(shown, on=PAIR, how="left").with_columns(pl.col("num_shown").fill_null(0))
    judged = pairs.collect(engine="streaming")
    in_time = judged if before is None else judged.filter((pl.col("first_shown") < before).fill_null(True))
    found = _with_queries(lake, in_time.lazy(), good_from)
    kept = found.join(_items_with_text(lake), on="item_id", how="semi").sort(PAIR).collect(engine="streaming")
    num_grades, num_in_time = len(judged), len(in_time)
    logger.info(
        "relevance: %s of %s judged pairs kept%s; left out: %s first shown later, %s without a query or an item text",
        f"{len(kept):_}",
        f"{num_grades:_}",
        "" if before is None else f", first shown before {before:%Y-%m-%d %H:%M} or never",
        f"{num_grades - num_in_time:_}",
        f"{num_in_time - len(kept):_}",
    )
    return _with_sides(kept)


def pool_pairs(lake: Lake, *, before: datetime | None, most: int) -> pl.DataFrame:
    """Pairs of the train side that were shown and that nobody judged: `PAIR_COLUMNS`, the most shown first.

    Args:
        lake: without queries there are none.
        before: only impressions before it count; None: all.
        most: so many at most.
    """
    if most == 0 or not lake.exists(Queries):
        return _with_sides(_with_queries(lake, _no_pairs(), 0.0).collect())
    texts = lake.scan(Queries).select("query_id", "query_text").collect()
    train = _with_sides(texts).filter(pl.col("side") == "train").select("query_id")
    rows = _rows_of_log(lake)
    if before is not None:
        rows = rows.filter(pl.col("event_timestamp") < before)
    # rows are dropped before they are counted: the fewer distinct pairs, the less memory
    rows = rows.join(train.lazy(), on="query_id", how="semi").join(_items_with_text(lake), on="item_id", how="semi")
    if lake.exists(RelevanceGrades):
        rows = rows.join(lake.scan(RelevanceGrades).select(PAIR), on=PAIR, how="anti")
    chosen = _shown(rows, None).sort(*_MOST_SHOWN_FIRST, descending=_DESCENDING).head(most)
    graded = chosen.with_columns(grade=pl.lit(None, pl.Float64))
    found = _with_queries(lake, graded, good_from=0.0).sort(*_MOST_SHOWN_FIRST, descending=_DESCENDING)
    return _with_sides(found.collect(engine="streaming"))


def shown_pairs(lake: Lake, *, before: datetime | None) -> pl.DataFrame:
    """query_id, item_id, first_shown and num_shown of every pair of the log, the most shown first.

    A pair's place depends on nothing that comes after `before` and after its own first impression: if later impressions
    counted, a pair near the top would be one that is going to be popular. Negatives that were drawn by us count as
    shown: if only real impressions had a score, its absence would tell the ranker which rows nobody clicked.

    Args:
        lake: with or without impressions.
        before: only impressions before it are counted, and pairs first shown later (num_shown 0) follow in the order
            in which they were; None: all are counted.
    """
    shown = _shown(_rows_of_log(lake), before)
    return shown.sort(*_MOST_SHOWN_FIRST, descending=_DESCENDING).collect(engine="streaming")


def drawn_by_query(pairs: pl.DataFrame, most: int, *, seed: int) -> pl.DataFrame:
    """Whole queries in an order that depends on their text and the seed alone, until there are `most` pairs.

    A draw is part of a larger draw, and new queries leave the old ones in their order.
    """
    queries = pairs.get_column("query_text").unique()
    digests = [hashlib.blake2b(f"{seed}\n{query}".encode(), digest_size=16).digest() for query in queries]
    order = pl.DataFrame({"query_text": queries, "order": pl.Series(digests, dtype=pl.Binary)})
    return pairs.join(order, on="query_text").sort("order", *PAIR).head(most).drop("order")


def query_items(lake: Lake, pairs: pl.DataFrame) -> list[QueryItem]:
    """The texts of pairs, in their order; the title of an item without one is empty.

    Args:
        lake: with all of the items.
        pairs: query_text and item_id.
    """
    items = lake.scan(Items).select("item_id", *ITEM_TEXTS)
    wanted = pairs.lazy().select("item_id").unique()
    texts = items.join(wanted, on="item_id", how="semi").collect(engine="streaming")
    joined = pairs.select("query_text", "item_id").join(texts, on="item_id", how="left", maintain_order="left")
    return [
        QueryItem(query, title or "", category, brand, attributes)
        for query, title, category, brand, attributes in joined.select("query_text", *ITEM_TEXTS).iter_rows()
    ]


_MOST_SHOWN_FIRST = ("num_shown", "first_shown", *PAIR)
_DESCENDING = [True, False, False, False]


def _rows_of_log(lake: Lake) -> pl.LazyFrame:
    """Pair and time of each impression that has a query."""
    log = lake.scan(Impressions) if lake.exists(Impressions) else Impressions.create_empty(lazy=True)
    return log.filter(pl.col("query_id").is_not_null()).select(*PAIR, "event_timestamp")


def _shown(rows: pl.LazyFrame, before: datetime | None) -> pl.LazyFrame:
    """One row per pair of these rows of the log: first_shown, and num_shown (before that time)."""
    time = pl.col("event_timestamp")
    counted = pl.len() if before is None else (time < before).sum()
    return rows.group_by(PAIR).agg(first_shown=time.min(), num_shown=counted.cast(pl.Int64))


def _no_pairs() -> pl.LazyFrame:
    types = {"query_id": pl.String, "item_id": pl.String, "grade": pl.Float64}
    return pl.LazyFrame(schema={**types, "first_shown": pl.Datetime("us", "UTC"), "num_shown": pl.Int64})


def _items_with_text(lake: Lake) -> pl.LazyFrame:
    said = pl.any_horizontal([_is_said(name) for name in ITEM_TEXTS])
    return lake.scan(Items).filter(said.fill_null(False)).select("item_id")


def _with_queries(lake: Lake, pairs: pl.LazyFrame, good_from: float) -> pl.LazyFrame:
    queries = lake.scan(Queries) if lake.exists(Queries) else Queries.create_empty(lazy=True)
    is_good = pl.col("grade") >= good_from - ROUNDING
    label = pl.when(is_good).then(pl.lit("good")).when(is_good.is_not_null()).then(pl.lit("bad"))
    said = queries.filter(_is_said("query_text")).select("query_id", "query_text")
    return pairs.join(said, on="query_id").with_columns(human_label=label)


def _is_said(column: str) -> pl.Expr:
    return pl.col(column).str.strip_chars().str.len_chars() > 0


def _with_sides(pairs: pl.DataFrame) -> pl.DataFrame:
    """By queries as students read them: two that read alike, but for an entity or a tag, are on one side."""
    read = pairs.select(pl.coalesce(QUERY_TEXT, "query_text")).to_series().to_list()
    with_sides = pairs.with_columns(side=pl.Series(sides_of(read).tolist(), dtype=pl.String))
    return with_sides.select([name for name in PAIR_COLUMNS if name in with_sides.columns])
