"""Rows that grow together give what each would give alone, read at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from embedders.causal_lm import CausalLM, GrowingRows, load_causal_lm

ATOL = 2e-4
PREFIX = [5, 9, 12, 7]
TOKEN = st.integers(1, 300)


def logits_at_once(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(torch.tensor([ids])).logits[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.lists(TOKEN, max_size=6)] * 3), min_size=1, max_size=4))
def test_pieces_of_any_lengths_give_the_logits_of_each_row_read_alone_and_at_once(
    make_lm: Callable[..., CausalLM], feeds: list[tuple[list[int], ...]]
):
    lm = make_lm()
    rows = GrowingRows.prefix(lm, PREFIX).repeated(3)
    for pieces in feeds:
        rows.feed(pieces)
    for row in range(3):
        whole = PREFIX + [token for pieces in feeds for token in pieces[row]]
        assert rows.lengths[row] == len(whole)
        torch.testing.assert_close(rows.logits_BV[row], logits_at_once(lm, whole)[-1], atol=ATOL, rtol=1e-4)


def test_rows_can_be_chosen_repeated_and_continued_and_the_prefix_stays_as_it_was(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    prefix = GrowingRows.prefix(lm, PREFIX)
    before = prefix.logits_BV.clone()
    rows = prefix.repeated(2)
    rows.feed([[3, 4, 5], [6]])
    rows.select([1, 0, 1])
    rows.feed([[8], [], [9, 10]])
    for row, more in enumerate(([6, 8], [3, 4, 5], [6, 9, 10])):
        torch.testing.assert_close(rows.logits_BV[row], logits_at_once(lm, PREFIX + more)[-1], atol=ATOL, rtol=1e-4)
    assert prefix.lengths == [len(PREFIX)]
    assert torch.equal(prefix.logits_BV, before)


def test_what_comes_later_does_not_change_what_was_said_before(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    one, other = logits_at_once(lm, [*PREFIX, 20, 21, 22]), logits_at_once(lm, [*PREFIX, 20, 99, 98])
    torch.testing.assert_close(one[: len(PREFIX) + 1], other[: len(PREFIX) + 1])
    assert not torch.allclose(one[-1], other[-1])


def test_letters_of_several_tokens_come_with_their_last_token(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    text = "a帐é🏕b"
    ids = lm.tokens(text)
    pieces = lm.pieces(ids)
    assert len(pieces) == len(ids) > len(text)
    assert "".join(pieces) == text


def test_the_vocabulary_names_every_row_of_the_logits_and_no_special_token(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    assert len(lm.vocabulary) == lm.vocabulary_size == lm.model.config.vocab_size
    assert lm.vocabulary[lm.end[0]] is None
    assert lm.vocabulary[-1] is None
    assert lm.vocabulary[lm.tokens("good")[0]] == "good"


def test_a_saved_model_is_loaded_with_its_head(make_lm: Callable[..., CausalLM], tmp_path: Path):
    lm = make_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = load_causal_lm(str(tmp_path), device="cpu")
    assert torch.equal(logits_at_once(again, PREFIX), logits_at_once(lm, PREFIX))
    assert again.opening_tokens("red chair") == lm.tokens("red chair")


def test_an_encoder_is_refused(tmp_path: Path, make_lm: Callable[..., CausalLM]):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path)
    make_lm().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a decoder"):
        load_causal_lm(str(tmp_path))
