"""What a user's interest vector stands for: the history behind it and the items nearest to it. `tailrank explain`.

A vector is a list of numbers; its neighbours have titles. The nearest items come from a FAISS index over all items with
a vector (`embedders.vector_index`), whose recall against exact search is printed beside them, and so is how far their
titles share words with those of the history. A vector of KARMA is read back as words, too, by the decoder that training
left beside the model.
"""

import difflib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console

from embedders.fingerprint import Fingerprint, check_same
from embedders.title_words import jaccard, title_words
from feature_repo.table_schemas import (
    ItemContentEmbeddings,
    ItemKarmaEmbeddings,
    ItemLearnEmbeddings,
    Items,
    KarmaCurves,
    UserContentInterests,
    UserHistories,
    UserKarmaInterests,
    UserLearnInterests,
)
from jobs.fitted_karma import fitted_karma
from jobs.lake import Lake, TableError, table_name
from jobs.printed_explanation import Explanation, print_explanation

RECALL_QUERIES = 200
"""Users that the recall of the index is measured on."""

ITEMS_FOR_COMPARISON = 200
"""Items drawn at random whose titles are compared with the history's, too: the similarity that no model gives."""

DRAWN_WORDS = 2
"""Texts that are drawn from the decoder beside the likeliest one [NF->P]; equal ones are shown once."""

TEMPERATURE = 0.7
"""Of those draws [NF->P]."""

SEED = 0

UNREAD = (
    "not read as words: this model was trained without L_recon, which teaches the decoder to read vectors "
    "([fit_embedder_karma] reconstruction = true, decodability above 0, and items with titles)"
)


class VectorTables(NamedTuple):
    """Where a method's vectors are.

    Attributes:
        items: table of the items' vectors.
        users: table of the users' vectors.
        name: what the method is called.
        switched_by: the step whose `enabled` it hangs on.
    """

    items: type[dy.Schema]
    users: type[dy.Schema]
    name: str
    switched_by: str

    @property
    def item_vector(self) -> str:
        """Column of the item's vector."""
        return next(name for name in self.items.column_names() if name.endswith("_embedding"))

    @property
    def user_vector(self) -> str:
        """Column of the user's vector."""
        return next(name for name in self.users.column_names() if name.endswith("_interest"))


METHODS = {
    "learn": VectorTables(ItemLearnEmbeddings, UserLearnInterests, "LEARN", "fit_embedder"),
    "karma": VectorTables(ItemKarmaEmbeddings, UserKarmaInterests, "KARMA", "fit_embedder_karma"),
    "content": VectorTables(ItemContentEmbeddings, UserContentInterests, "content vectors", "embed_items"),
}


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
        method: `learn`, `karma` or `content`.
        k: items to show.
        console: where to print.

    Raises:
        TableError: the vectors have not been made, the user has none (by then), or k is below 1.
        ValueError: there is no such method, users' and items' vectors are of two models, or the decoder is gone.
    """
    if method not in METHODS:
        raise ValueError(f"there are no vectors of method {method!r}; the methods are {', '.join(METHODS)}")
    explanation = explain(lake, METHODS[method], user_id, as_of, k)
    print_explanation(console or Console(), user_id, method, explanation)
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
            f"is empty: this lake does without {tables.name}",
            f"set [{tables.switched_by}] enabled = true and run tailrank run, or explain by --method content",
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
    history, nearest = _with_titles(lake, history), _with_titles(lake, nearest)
    can_be_read = tables is METHODS["karma"] and _learnt_to_read(lake)
    anything = items.select("item_id").sample(min(ITEMS_FOR_COMPARISON, len(items)), seed=SEED)
    return Explanation(
        dated=dated,
        history=history,
        nearest=nearest,
        index_kind=index.kind,
        num_items=len(index),
        recall=index.recall_against_exact(_matrix(others), k),
        title_similarity=title_similarity(nearest, history),
        random_similarity=title_similarity(_with_titles(lake, anything), history),
        words=_words(lake, user_identity, _matrix(mine[tables.user_vector])) if can_be_read else (),
        unread=UNREAD if tables is METHODS["karma"] and not can_be_read else None,
    )


def title_similarity(found: pl.DataFrame, history: pl.DataFrame) -> float | None:
    """Mean Jaccard similarity of the words of two titles, over all pairs of an item found and one of the history.

    An item is not compared with itself. Of a title without words nothing can be said: its pairs are left out.

    Args:
        found: `item_id`, `title`.
        history: `item_id`, `title`; an item that is there twice counts twice.

    Returns:
        In [0, 1]; None where no pair is left.
    """
    past, others = (
        [(item, words) for item, title in rows.select("item_id", "title").rows() if (words := title_words(title))]
        for rows in (history, found)
    )
    alike = [jaccard(words, then) for item, words in others for before, then in past if item != before]
    return sum(alike) / len(alike) if alike else None


def _learnt_to_read(lake: Lake) -> bool:
    """Whether KARMA's decoder was taught by L_recon. Without KARMA by now, that is said when it is loaded."""
    kept = lake.read(KarmaCurves).filter("is_best")
    return kept.is_empty() or kept["reconstruction_loss"].is_not_null().all()


def _words(lake: Lake, identity: Fingerprint, vector_1D: NDArray[np.float32]) -> tuple[str, ...]:
    """What the decoder of KARMA's model makes of a vector: the likeliest words, then some that are drawn.

    Raises:
        ValueError: the model is another one than the vectors', or the decoder's files are gone.
    """
    fitted = fitted_karma(lake)
    if fitted is None:
        raise TableError(
            table_name(UserKarmaInterests),
            "holds vectors, but this lake does without KARMA by now",
            "run tailrank run embed_users_karma embed_items_karma, or set [fit_embedder_karma] enabled = true",
        )
    check_same(fitted.fingerprint, identity, "explain, user_karma_interests (run embed_users_karma first)")
    decoder = fitted.load_decoder("explain")
    vector_1D = vector_1D.copy()  # torch warns of memory that cannot be written to
    texts = decoder.decode(vector_1D)
    for seed in range(DRAWN_WORDS):
        texts += decoder.decode(vector_1D, temperature=TEMPERATURE, seed=seed)
    printable = ("".join(each if each.isprintable() else " " for each in text) for text in texts)
    return tuple(dict.fromkeys(" ".join(text.split()) for text in printable))


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
