"""Equal identities mean equal answers: whatever is computed with is in it, and nothing else is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from embedders.causal_lm import CausalLM, load_causal_lm
from embedders.ellm_rele import RelevanceTeacher, load_teacher
from embedders.relevance_prompts import QueryItem
from embedders.teacher_identity import brands_sha256, tokenizer_sha256, weights_sha256
from embedders.title_facts import TitleReader


def test_a_model_that_was_saved_and_loaded_is_the_same(make_lm: Callable[..., CausalLM], tmp_path: Path):
    teacher = RelevanceTeacher(make_lm(), TitleReader(frozenset({"acme", "bolt"})))
    teacher.save(tmp_path / "saved")
    loaded = load_teacher(str(tmp_path / "saved"), device="cpu")
    before, after = dict(teacher.identity), dict(loaded.identity)
    assert (before.pop("model_id"), after.pop("model_id")) == ("tiny", "saved")
    assert before == after
    assert all(isinstance(value, str) for value in before.values())


def test_one_weight_is_enough_to_be_another(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    before = weights_sha256(lm.model)
    assert weights_sha256(make_lm().model) == before
    with torch.no_grad():
        next(lm.model.parameters()).view(-1)[7] += 1e-3
    assert weights_sha256(lm.model) != before
    assert weights_sha256(make_lm(seed=1).model) != before


def test_another_number_format_is_another(make_lm: Callable[..., CausalLM], tmp_path: Path):
    RelevanceTeacher(make_lm()).save(tmp_path / "m")
    hashes = {
        weights_sha256(load_causal_lm(str(tmp_path / "m"), dtype=dtype, device="cpu").model)
        for dtype in ("float32", "bfloat16")  # type: ignore[attr-defined]
    }
    assert len(hashes) == 2


def test_asking_does_not_change_who_is_asked(make_lm: Callable[..., CausalLM]):
    teacher = RelevanceTeacher(make_lm())
    before = tokenizer_sha256(teacher.lm.tokenizer), weights_sha256(teacher.lm.model)
    teacher.lm.tokenizer(["a", "a longer one"], padding=False, truncation=True, max_length=1)
    teacher.score([QueryItem("red chair", "Red Chair")], decoding="scored")
    assert (tokenizer_sha256(teacher.lm.tokenizer), weights_sha256(teacher.lm.model)) == before


def test_another_end_of_text_is_another_tokenizer(byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    byte_level_tokenizer.save_pretrained(tmp_path)
    other = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer_sha256(other) == tokenizer_sha256(byte_level_tokenizer)
    other.eos_token = "good"
    assert tokenizer_sha256(other) != tokenizer_sha256(byte_level_tokenizer)


@pytest.mark.parametrize("other", [["acme"], ["acme", "bolt", "coil"], ["acme bolt"]])
def test_brands_count_as_a_set(other: list[str]):
    assert brands_sha256(["bolt", "acme"]) == brands_sha256(["acme", "bolt"]) != brands_sha256(other)
