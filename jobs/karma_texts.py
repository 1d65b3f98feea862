"""Titles and queries as KARMA's language model reads them: token ids, cut to a few words."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.prompts import cleaned
from feature_repo.table_schemas import Items
from jobs.lake import Lake

TITLE_TOKENS = 24
"""Of a title; what comes after is cut off."""

TEXTS_AT_ONCE = 10_000

TITLE = pl.coalesce(cleaned("title"), cleaned("category"))
"""What an item is called, over the columns of `Items`; null where it has neither."""


class TokenRows(Sequence[Sequence[int]]):
    """Token ids of many texts in one array: lists of Python's integers would take ten times the memory.

    Args:
        ids_T: text after text.
        offsets_N: [N + 1]: those of text n are `offsets_N[n] : offsets_N[n + 1]`.
    """

    def __init__(self, ids_T: NDArray[np.int32], offsets_N: NDArray[np.int64]) -> None:
        self.ids_T, self.offsets_N = ids_T, offsets_N

    def __len__(self) -> int:
        return len(self.offsets_N) - 1

    @overload
    def __getitem__(self, row: int) -> list[int]: ...

    @overload
    def __getitem__(self, row: slice) -> list[list[int]]: ...

    def __getitem__(self, row: int | slice) -> list[int] | list[list[int]]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        ids: list[int] = self.ids_T[self.offsets_N[row] : self.offsets_N[row + 1]].tolist()
        return ids


def tokenised(texts: Sequence[str], tokenizer: Any, most_tokens: int) -> TokenRows:
    """The first tokens of each text, without any special token; an empty text has none."""
    ids: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    lengths: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        found = tokenizer(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)["input_ids"]
        cut = [one[:most_tokens] for one in found]
        lengths += map(len, cut)
        ids.append(np.fromiter((number for one in cut for number in one), np.int32))
    return TokenRows(np.concatenate(ids), np.cumsum([0, *lengths], dtype=np.int64))


def titles_of(lake: Lake, item_ids: pl.Series) -> list[str]:
    """What each item is called: its title, else its category, cleaned; empty where it has neither or is not known."""
    wanted = pl.DataFrame({"item_id": item_ids})
    known = lake.scan(Items).join(wanted.lazy(), on="item_id", how="semi").select("item_id", title=TITLE).collect()
    titled = wanted.join(known, on="item_id", how="left", maintain_order="left")
    return titled.get_column("title").fill_null("").to_list()
