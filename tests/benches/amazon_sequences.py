"""Real sequences of purchases and reviews, split for retrieval. What benches of embedding models share.

next      a user's last item is the test target, the one before it the validation target, the rest trains
multi     of a user with at least 8 items the last quarter are targets; 5 % of these users are there for validation
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.histories import Sequences

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MAX_HISTORY = 50
AMAZON_2018 = {"industrial": "Industrial_and_Scientific", "office": "Office_Products"}


@dataclass(frozen=True)
class Split:
    """Rows of the catalogue: what trains, and who is asked what."""

    num_items: int
    train: Sequences
    validation_history: Sequences
    validation_targets: Sequences
    test_history: Sequences
    test_targets: Sequences


def items_of(data: str) -> pl.DataFrame:
    """The catalogue: `item_id`, `title` and what else there is, one row an item."""
    if data == "games":
        return pl.read_parquet(DATA / "amazon_games_llmrank" / "items.parquet")
    return pl.read_parquet(DATA / "amazon18_minionerec" / f"{AMAZON_2018[data]}.items.parquet")


def sequences_of(data: str) -> tuple[list[list[int]], int]:
    """Every user's items, oldest first, as rows of the catalogue; and the size of the catalogue."""
    items = items_of(data)
    if data == "games":
        frame = pl.read_parquet(DATA / "amazon_games_llmrank" / "sequences.parquet")
        whole = frame.select(pl.concat_list("item_id_list", "item_id")).to_series()
    else:
        rows = pl.read_parquet(DATA / "amazon18_minionerec" / f"{AMAZON_2018[data]}.valid_test.parquet")
        # a row is a user's last items at one time: the latest row of a user continues the earlier ones
        in_order = rows.with_columns(is_test=pl.col("split") == "test").sort("is_test", "order_in_split")
        latest = in_order.group_by("user_id", maintain_order=True).last()
        whole = latest.select(pl.concat_list("history_item_id", "item_id")).to_series()
    row_of = {item: row for row, item in enumerate(items["item_id"].to_list())}
    return [[row_of[item] for item in one] for one in whole.to_list()], len(items)


def split_next(users: list[list[int]], num_items: int) -> Split:
    """Leave one out for the test, one for validation."""
    tested = [one for one in users if len(one) >= 3]
    return Split(
        num_items,
        train=Sequences.of_lists([one[:-2] for one in tested if len(one) >= 4]),
        validation_history=Sequences.of_lists([one[:-2] for one in tested]),
        validation_targets=Sequences.of_lists([one[-2:-1] for one in tested]),
        test_history=Sequences.of_lists([one[:-1] for one in tested]),
        test_targets=Sequences.of_lists([one[-1:] for one in tested]),
    )


def split_multi(users: list[list[int]], num_items: int) -> Split:
    """The last quarter of the longer users are targets."""
    rng = np.random.default_rng(0)
    longer = [one for one in users if len(one) >= 8]
    held_out = rng.random(len(longer)) < 0.05
    ends = [len(one) - max(2, len(one) // 4) for one in longer]
    heads, tails = (
        [one[:end] for one, end in zip(longer, ends, strict=True)],
        [one[end:] for one, end in zip(longer, ends, strict=True)],
    )

    def chosen(lists: list[list[int]], mask: NDArray[np.bool_]) -> Sequences:
        return Sequences.of_lists([one for one, is_in in zip(lists, mask, strict=True) if is_in])

    return Split(
        num_items,
        train=Sequences.of_lists([*heads, *(one for one in users if len(one) < 8)]),
        validation_history=chosen(heads, held_out),
        validation_targets=chosen(tails, held_out),
        test_history=chosen(heads, ~held_out),
        test_targets=chosen(tails, ~held_out),
    )
