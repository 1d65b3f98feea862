"""What `tailrank explain --user` prints: the words of a vector, the history behind it, the items nearest to it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


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
        title_similarity: of the nearest items to the history, see `title_similarity`.
        random_similarity: the same of items drawn at random.
        words: what the vector reads as, likeliest first; none where the method has no decoder.
        unread: why a vector of a method with a decoder is not read; None where it is, or there is none.
    """

    dated: datetime
    history: pl.DataFrame
    nearest: pl.DataFrame
    index_kind: str
    num_items: int
    recall: float
    title_similarity: float | None
    random_similarity: float | None
    words: tuple[str, ...]
    unread: str | None = None


def print_explanation(console: Console, user_id: str, method: str, explanation: Explanation) -> None:
    """Print it, as wide as the console is."""
    console.print(
        f"[bold]user {user_id}[/], {method} vector of {explanation.dated:%Y-%m-%d %H:%M} UTC", highlight=False
    )
    for number, words in enumerate(explanation.words):
        console.print(Text("reads as: " if number == 0 else "      or: ", "bold"), end="")
        console.print(Text(words or "(no words)"), highlight=False)
    if explanation.unread is not None:
        console.print(Text(explanation.unread, "dim"))
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
    if explanation.title_similarity is not None and explanation.random_similarity is not None:
        console.print(
            f"title words shared with the history: {explanation.title_similarity:.3f} (mean Jaccard over pairs of "
            f"items); items drawn at random: {explanation.random_similarity:.3f}",
            highlight=False,
        )
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
