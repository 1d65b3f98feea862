"""What a user's interest vector stands for: the history behind it and the items nearest to it. `tailrank explain`.

A vector is a list of numbers; its neighbours have titles. The nearest items come from a FAISS index over all items with
a vector (`embedders.vector_index`), whose recall against exact search is printed beside them.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedders.fingerprint import Fingerprint, check_same
from feature_repo.table_schemas import (
    ItemContentEmbeddings,
    ItemLearnEmbeddings,
    Items,
    UserContentInterests,
    UserHistories,
    UserLearnInterests,
)
from jobs.lake import Lake, TableError, table_name

RECALL_QUERIES = 200
"""Users that the recall of the index is measured on."""

SEED = 0


class VectorTables(NamedTuple):
    """Where a method's vectors are."""

    items: type[dy.Schema]
    users: type[dy.Schema]

    @property
    def item_vector(self) -> str:
        """Column of the item's vector."""
        return next(name for name in self.items.column_names() if name.endswith("_embedding"))

    @property
    def user_vector(self) -> str:
        """Column of the user's vector."""
        return next(name for name in self.users.column_names() if name.endswith("_interest"))


METHODS = {
    "learn": VectorTables(ItemLearnEmbeddings, UserLearnInterests),
    "content": VectorTables(ItemContentEmbeddings, UserContentInterests),
}


@dataclass(frozen=True)
class Explanation:
    """What is printed.

    Attributes:
        dated: event_timestamp of the user's vector.
        history: item_id, title, category, time; newest first.
        nearest: item_id, title, category, cosine, in_history; nearest first.
        index_kind: flat, ivf or hnsw.
        num_items: in the index.
        recall: of the index against exact search, over a sample of users.
    """

    dated: datetime
    history: pl.DataFrame
    nearest: pl.DataFrame
    index_kind: str
    num_items: int
    recall: float


def run(
    lake: Lake,
    user_id: str,
    *,
    as_of: datetime | None = None,
    method: str = "learn",
    k: int = 10,
    console: Console | None = None,
) -> Explanation:
    """Find and print the history behind a user's vector and the `k` items nearest to it.

    Args:
        lake: with the vectors of `method`.
        user_id: whose vector.
        as_of: the newest vectors dated at this time or before; None: the newest there are.
        method: `learn` or `content`.
        k: items to show.
        console: where to print.

    Raises:
        TableError: the vectors have not been made, the user has none (by then), or k is below 1.
        ValueError: there is no such method, or users' and items' vectors are of two models.
    """
    if method not in METHODS:
        raise ValueError(f"there are no vectors of method {method!r}; the methods are {', '.join(METHODS)}")
    explanation = explain(lake, METHODS[method], user_id, as_of, k)
    _print(console or Console(), user_id, method, explanation)
    return explanation


def explain(lake: Lake, tables: VectorTables, user_id: str, as_of: datetime | None, k: int) -> Explanation:
    """The explanation of one user; see `run`."""
    from embedders.vector_index import VectorIndex  # faiss takes a moment to import

    user_identity, item_identity = (
        Fingerprint.from_tags(lake.manifest(schema).fingerprint) if lake.manifest(schema).fingerprint else None
        for schema in (tables.users, tables.items)
    )
    if user_identity is None or item_identity is None:
        raise TableError(
            table_name(tables.users),
            "is empty: this lake does without LEARN",
            "set [fit_embedder] enabled = true and run tailrank run, or explain by --method content",
        )
    check_same(user_identity, item_identity, f"explain, {table_name(tables.users)} and {table_name(tables.items)}")
    users = _newest(lake, tables.users, "user_id", as_of)
    mine = users.filter(pl.col("user_id") == user_id).collect()
    if mine.is_empty():
        raise _unknown_user(lake, tables, users, user_id, as_of)
    dated: datetime = mine["event_timestamp"][0]
    items = _newest(lake, tables.items, "item_id", as_of).select("item_id", tables.item_vector).collect()
    vectors_ND = _matrix(items[tables.item_vector])
    index = VectorIndex.build(vectors_ND)
    others = users.select(tables.user_vector).collect()[tables.user_vector]
    others = others.sample(min(RECALL_QUERIES, len(others)), seed=SEED)
    history = _history(lake, user_id, dated)
    found = index.search(_matrix(mine[tables.user_vector]), k)
    is_found = found.ids_QK[0] >= 0
    nearest = pl.DataFrame(
        {
            "item_id": items["item_id"].gather(found.ids_QK[0][is_found]),
            "cosine": found.scores_QK[0][is_found].astype(np.float64),
        }
    ).with_columns(in_history=pl.col("item_id").is_in(history["item_id"].implode()))
    return Explanation(
        dated=dated,
        history=_with_titles(lake, history),
        nearest=_with_titles(lake, nearest),
        index_kind=index.kind,
        num_items=len(index),
        recall=index.recall_against_exact(_matrix(others), k),
    )


def _newest(lake: Lake, schema: type[dy.Schema], key: str, as_of: datetime | None) -> pl.LazyFrame:
    """The newest row of each key, dated at `as_of` or before."""
    rows: pl.LazyFrame = lake.scan(schema).lazy()
    if as_of is not None:
        rows = rows.filter(pl.col("event_timestamp") <= as_of)
    newest = rows.group_by(key).agg(pl.col("event_timestamp").max())
    return rows.join(newest, on=[key, "event_timestamp"], how="semi").sort(key)


def _matrix(vectors: pl.Series) -> NDArray[np.float32]:
    """A column of lists as [N, D]."""
    return np.ascontiguousarray(vectors.explode().to_numpy().reshape(len(vectors), -1))


def _history(lake: Lake, user_id: str, dated: datetime) -> pl.DataFrame:
    """item_id and time of what the user had clicked by then, newest first."""
    rows = lake.scan(UserHistories).lazy()
    mine = rows.filter((pl.col("user_id") == user_id) & (pl.col("event_timestamp") <= dated))
    newest = mine.sort("event_timestamp").tail(1).select("history_item_ids", "history_timestamps").collect()
    return newest.explode("history_item_ids", "history_timestamps").select(
        item_id="history_item_ids", time="history_timestamps"
    )[::-1]


def _with_titles(lake: Lake, rows: pl.DataFrame) -> pl.DataFrame:
    wanted = lake.scan(Items).lazy().select("item_id", "title", "category")
    return rows.join(wanted.collect(), on="item_id", how="left", maintain_order="left")


def _unknown_user(
    lake: Lake, tables: VectorTables, users: pl.LazyFrame, user_id: str, as_of: datetime | None
) -> TableError:
    """Why there is nothing to explain: no such user at all, or none yet."""
    name = table_name(tables.users)
    ever = lake.scan(tables.users).lazy().filter(pl.col("user_id") == user_id)
    first = ever.select(pl.col("event_timestamp").min()).collect().item()
    if first is not None:
        return TableError(
            name,
            f"user {user_id!r} has no vector at {as_of:%Y-%m-%d %H:%M} UTC; the first is of {first:%Y-%m-%d %H:%M}",
            "ask for a later time with --as-of, or leave it out",
        )
    known: Sequence[str] = users.select("user_id").collect()["user_id"].to_list()
    near = difflib.get_close_matches(user_id, known, n=3, cutoff=0.5) or list(known[:3])
    return TableError(
        name,
        f"there is no vector of user {user_id!r}: unknown, or without any click on an item that has one",
        f"name a user that has one, such as {', '.join(near)}",
    )


def _print(console: Console, user_id: str, method: str, explanation: Explanation) -> None:
    console.print(
        f"[bold]user {user_id}[/], {method} vector of {explanation.dated:%Y-%m-%d %H:%M} UTC", highlight=False
    )
    shown = explanation.history.head(len(explanation.nearest))
    older = explanation.history.height - shown.height
    past = _table(f"clicked before ({explanation.history.height:,} items, newest first)", "when", console.width)
    for row in shown.iter_rows(named=True):
        past.add_row(f"{row['time']:%Y-%m-%d}", *_item(row))
    console.print(past)
    if older > 0:
        console.print(f"[dim]and {older:,} older[/]", highlight=False)
    table = _table("nearest items", "cosine", console.width)
    for row in explanation.nearest.iter_rows(named=True):
        table.add_row(f"{row['cosine']:.3f}", *_item(row), style="dim" if row["in_history"] else "")
    console.print(table)
    console.print(
        f"[dim]dim: in the history already. Index: {explanation.index_kind} over {explanation.num_items:,} items, "
        f"recall against exact search {explanation.recall:.4f}[/]",
        highlight=False,
    )


def _table(title: str, first: str, width: int) -> Table:
    """Titles take what the other columns leave of the line."""
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, columns in ((first, 10), ("item", 14), ("title", max(20, min(60, width - 54))), ("category", 20)):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=columns)
    return table


def _item(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    return Text(row["item_id"]), Text(row["title"] or "(no title)"), Text(row["category"] or "")
