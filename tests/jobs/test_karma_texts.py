"""Titles and queries as token ids: those of the tokenizer, cut, whatever array they lie in."""

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.table_schemas import Items
from jobs import karma_texts
from jobs.karma_texts import TokenRows, titles_of, tokenised
from jobs.lake import Lake

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@given(st.lists(st.lists(st.integers(0, 50_000), max_size=5), max_size=6))
def test_token_rows_are_a_sequence_of_lists(lists: list[list[int]]):
    flat = np.array([number for one in lists for number in one], np.int32)
    rows = TokenRows(flat, np.cumsum([0, *map(len, lists)], dtype=np.int64))
    assert list(rows) == lists
    assert len(rows) == len(lists)
    assert rows[1:3] == lists[1:3]
    assert [rows[-1 - at] for at in range(len(lists))] == lists[::-1]
    for beyond in (len(lists), -len(lists) - 1):
        with pytest.raises(IndexError):
            rows[beyond]


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_tokens_are_the_tokenizers_first_ones(
    byte_level_tokenizer: "PreTrainedTokenizerFast", at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(karma_texts, "TEXTS_AT_ONCE", at_once)
    texts = ["red chair", "", "a very long title of a chair that is red and has three legs", "ü"]
    rows = tokenised(texts, byte_level_tokenizer, 6)
    assert list(rows) == [byte_level_tokenizer(text, add_special_tokens=False)["input_ids"][:6] for text in texts]
    assert rows[1] == []
    assert len(rows[2]) == 6
    assert len(tokenised([], byte_level_tokenizer, 6)) == 0


def test_an_item_is_called_by_its_title_else_by_its_category(lake: Lake):
    at = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
    rows = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ["Red&nbsp;<b>chair</b>", None, "  ", None],
            "category": ["chairs", "lamps > desk", "tables", None],
            "event_timestamp": [at] * 4,
            "created_timestamp": [at] * 4,
        }
    )
    lake.write(Items, pl.concat([Items.create_empty(), rows], how="diagonal_relaxed"))
    wanted = pl.Series(["d", "c", "never listed", "a", "b"])
    assert titles_of(lake, wanted) == ["", "tables", "", "Red chair", "lamps > desk"]
