"""A tiny model learns twenty pairs by heart, and then says and scores what it learnt."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from embedders.answer_form import AnswerForm
from embedders.answer_loss import IGNORED, AnswerLoss, TeacherExample, answer_batch, token_rows
from embedders.built_chains import built_chain
from embedders.causal_lm import CausalLM, GrowingRows
from embedders.ellm_rele import RelevanceTeacher
from embedders.fit_teacher import TeacherEpochRow, TeacherSettings, TeacherWatch, fit_teacher
from embedders.relevance_prompts import QueryItem, prompt
from embedders.title_facts import TitleReader

READER = TitleReader(frozenset({"acme", "bolt"}))
ON = torch.device("cpu")


def twenty() -> list[TeacherExample]:
    """Every colour and brand asked of every other: good when the brand is the one asked for."""
    pairs = [
        QueryItem(f"{asked} {colour} {thing}", f"{brand} Red {thing.title()}")
        for asked in ("acme", "bolt")
        for brand in ("Acme", "Bolt")
        for colour, thing in (("red", "chair"), ("blue", "chair"), ("red", "lamp"), ("blue", "lamp"), ("red", "sofa"))
    ]
    return [TeacherExample(pair, built_chain(pair, reader=READER)) for pair in pairs]


@pytest.fixture(scope="module")
def learnt(make_lm: Callable[..., CausalLM]) -> tuple[CausalLM, tuple[TeacherEpochRow, ...]]:
    settings = TeacherSettings(epochs=45, batch_size=10, pairs_at_once=10, learning_rate=6e-3)
    return fit_teacher(make_lm(width=64), twenty(), settings)


def test_a_tiny_model_learns_twenty_pairs_then_parses_and_scores_them_right(
    learnt: tuple[CausalLM, tuple[TeacherEpochRow, ...]],
):
    lm, curve = learnt
    assert curve[-1].train_loss < 0.02 < 1 < curve[0].train_loss
    teacher, examples = RelevanceTeacher(lm, READER), twenty()
    pairs = [one.pair for one in examples]
    asked: dict[str, Any] = {"num_chains": 1, "temperature": 0.0}
    for answers in (
        teacher.score(pairs, decoding="free", **asked),
        teacher.score(pairs, decoding="constrained", **asked),
        teacher.score(pairs, decoding="scored", num_chains=8),
    ):
        assert [answer.reasoning for answer in answers] == [one.reasoning for one in examples]
        for answer, one in zip(answers, examples, strict=True):
            assert answer.score is not None
            assert answer.score > 0.9 if one.reasoning.label == "good" else answer.score < 0.1


def test_free_and_constrained_answers_are_scored_alike_where_they_say_the_same(
    learnt: tuple[CausalLM, tuple[TeacherEpochRow, ...]],
):
    lm, _ = learnt
    teacher, pairs = RelevanceTeacher(lm, READER), [one.pair for one in twenty()[:4]]
    for pair, free, within in zip(
        pairs,
        teacher.score(pairs, decoding="free", num_chains=1, temperature=0.0),
        teacher.score(pairs, decoding="constrained", num_chains=1, temperature=0.0),
        strict=True,
    ):
        assert free.score == pytest.approx(within.score, abs=1e-5)
        form, chain = teacher.form, free.reasoning
        assert chain is not None
        # by hand: everything up to the label, read at once; the label's tokens and the close cut off
        ids = [*form.instruction(), *form.question(pair), *form.answer(chain)]
        cut = len(form.labels[0 if chain.label == "bad" else 1]) + len(form.chain_pieces[-1]) + len(lm.end)
        with torch.inference_mode():
            logits_V = lm.model(torch.tensor([ids[:-cut]])).logits[0, -1]
        assert free.score == pytest.approx(form.label_probabilities(logits_V)[1], abs=1e-4)


def test_the_label_alone_is_learnt_too(make_lm: Callable[..., CausalLM]):
    settings = TeacherSettings(answers="label_only", epochs=40, batch_size=10, pairs_at_once=10, learning_rate=4e-3)
    lm, curve = fit_teacher(make_lm(width=64), twenty(), settings)
    answers = RelevanceTeacher(lm).score([one.pair for one in twenty()], decoding="label_only")
    assert [answer.label for answer in answers] == [one.reasoning.label for one in twenty()]
    assert curve[-1].train_loss < curve[0].train_loss


def test_of_a_pair_that_nobody_judged_everything_before_the_label_is_learnt(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    form, one = AnswerForm(lm), twenty()[0]
    (judged, unjudged) = token_rows(form, [one, one._replace(is_judged=False)])
    assert unjudged.question == judged.question
    assert lm.text(unjudged.answer) == one.reasoning.line().removesuffix(one.reasoning.label + '"}')
    assert judged.answer[: len(unjudged.answer)] == unjudged.answer
    with pytest.raises(ValueError, match="has no label to learn"):
        token_rows(form, [one, one._replace(is_judged=False)], "label_only")


def test_only_the_tokens_of_answers_carry_loss(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    form = AnswerForm(lm)
    examples = [twenty()[0], TeacherExample(QueryItem("table", "A very much longer title of a table"), twenty()[1][1])]
    rows = token_rows(form, examples)
    ids_BS, mask_BS, target_BA = answer_batch(rows, ON)
    opening = form.instruction()
    for row, (question_ids, answer_ids) in enumerate(rows):
        assert lm.text([*opening, *question_ids]) == prompt(examples[row].pair)
        assert lm.text(answer_ids[:-1]) == examples[row].reasoning.line()
        assert answer_ids[-1:] == lm.end
        assert ids_BS[row][mask_BS[row].bool()].tolist() == question_ids + answer_ids
        assert target_BA[row][target_BA[row] != IGNORED].tolist() == answer_ids
    loss = AnswerLoss(lm.model, opening)(ids_BS, mask_BS, target_BA)
    gradients = torch.autograd.grad(loss, list(lm.model.parameters()))
    by_hand = torch.zeros(())
    for question_ids, answer_ids in rows:  # each read whole, alone, without padding
        start = len(opening) + len(question_ids)
        logits_SV = lm.model(torch.tensor([[*opening, *question_ids, *answer_ids]])).logits[0]
        logs_SV = torch.log_softmax(logits_SV, dim=1)
        for at, token in enumerate(answer_ids):
            by_hand = by_hand - logs_SV[start + at - 1, token]
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-4)
    for gradient, other in zip(gradients, torch.autograd.grad(by_hand, list(lm.model.parameters())), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=2e-3)


def test_the_vocabulary_is_multiplied_by_one_piece_of_memory(make_lm: Callable[..., CausalLM]):
    """By a slice of the states a CPU multiplies a copy of the vocabulary for every row: most of a step's time."""
    lm = make_lm()
    form = AnswerForm(lm)
    rows = token_rows(form, twenty()[:4])
    seen: list[bool] = []
    lm.model.get_output_embeddings().register_forward_pre_hook(
        lambda layer, given: seen.append(given[0].is_contiguous())
    )
    AnswerLoss(lm.model, form.instruction())(*answer_batch(rows, ON))
    GrowingRows.prefix(lm, [5, 9, 12]).repeated(3).feed([[3, 4, 5], [6], [7, 8]])
    assert len(seen) == 4
    assert all(seen)


def test_the_label_cannot_be_seen_from_where_it_is_predicted(make_lm: Callable[..., CausalLM]):
    # the same chain with the other label: the loss of everything before the label stays what it was
    lm = make_lm()
    form, (pair, chain, _) = AnswerForm(lm), twenty()[0]
    other = chain.model_copy(update={"label": "bad" if chain.label == "good" else "good"})
    one, two = (form.answer(each) for each in (chain, other))
    at = next(place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    opening = [*form.instruction(), *form.question(pair)]
    with torch.inference_mode():
        logits = [lm.model(torch.tensor([opening + ids])).logits[0, : len(opening) + at] for ids in (one, two)]
    torch.testing.assert_close(logits[0], logits[1])
    assert "good" not in prompt(pair).split("Query:")[1]


def fitted(
    make_lm: Callable[..., CausalLM], watch: TeacherWatch | None = None, **changes: Any
) -> tuple[CausalLM, tuple[TeacherEpochRow, ...]]:
    changed = {"epochs": 3, "batch_size": 4, "pairs_at_once": 2, "learning_rate": 1e-3, **changes}
    return fit_teacher(
        make_lm(),
        twenty()[:6],
        TeacherSettings(**changed),
        validation=twenty()[6:8],
        watch=watch,
        stopwatch=lambda: 0.0,
    )


def same(one: CausalLM, other: CausalLM) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(make_lm: Callable[..., CausalLM]):
    (first, curve), (second, again), (third, _) = fitted(make_lm), fitted(make_lm), fitted(make_lm, seed=1)
    assert same(first, second)
    assert curve == again
    assert not same(first, third)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_run_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(
    make_lm: Callable[..., CausalLM], stopped_after: int
):
    whole, curve = fitted(make_lm)
    kept: list[dict[str, Any]] = []

    class KilledError(Exception):
        pass

    def keep(checkpoint: dict[str, Any]) -> None:
        kept.append(checkpoint)
        if len(kept) == stopped_after:
            raise KilledError

    with pytest.raises(KilledError):
        fitted(make_lm, TeacherWatch(on_checkpoint=keep))
    torch.rand(7)  # whatever happened to the generator in between
    resumed, resumed_curve = fitted(make_lm, TeacherWatch(resume_from=kept[-1]))
    assert same(whole, resumed)
    assert resumed_curve == curve


def test_bfloat16_learns_nearly_the_same(make_lm: Callable[..., CausalLM]):
    full, (*_, whole_row) = fitted(make_lm)
    half, (*_, half_row) = fitted(make_lm, precision="bfloat16")
    assert not same(full, half)
    assert half_row.train_loss == pytest.approx(whole_row.train_loss, rel=0.05)
    assert next(half.model.parameters()).dtype == torch.float32


def test_it_stops_when_validation_no_longer_gains_and_keeps_the_best_weights(make_lm: Callable[..., CausalLM]):
    scores, seen = iter([0.1, 0.3, 0.2, 0.9]), []

    def validate(lm: CausalLM) -> float:
        seen.append({name: weight.clone() for name, weight in lm.model.state_dict().items()})
        return next(scores)

    settings = TeacherSettings(epochs=9, patience=1, batch_size=4, learning_rate=1e-3)
    told: list[TeacherEpochRow] = []
    pairs: list[int] = []
    lm, curve = fit_teacher(
        make_lm(),
        twenty()[:6],
        settings,
        validate=validate,
        watch=TeacherWatch(on_pairs=pairs.append, on_epoch=told.append),
    )
    assert [row.validation_score for row in curve] == [0.1, 0.3, 0.2]
    assert [row.is_best for row in curve] == [False, True, False]
    assert all(torch.equal(weight, seen[1][name]) for name, weight in lm.model.state_dict().items())
    assert len(told) == 3
    assert sum(pairs) == 3 * 6


def test_gradients_added_up_are_the_gradient_of_the_batch(make_lm: Callable[..., CausalLM]):
    (whole, _), (parts, _) = (fitted(make_lm, epochs=1, batch_size=6, pairs_at_once=at_once) for at_once in (6, 1))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        # Adam's first step is the sign of the gradient, so compare where the gradient is not noise
        assert float(((a - b).abs() < 1e-4).float().mean()) > 0.98


def test_nothing_to_train_on_and_answers_too_long_are_refused(make_lm: Callable[..., CausalLM]):
    with pytest.raises(ValueError, match="no examples"):
        fit_teacher(make_lm(), [], TeacherSettings())
    long = TeacherExample(QueryItem("chair", "chair " * 2000), twenty()[0].reasoning)
    with pytest.raises(ValueError, match="reads at most 1024"):
        fit_teacher(make_lm(), [long], TeacherSettings())


def test_a_loss_that_is_no_number_stops_the_fit(make_lm: Callable[..., CausalLM]):
    lm = make_lm()
    with torch.no_grad():
        next(lm.model.parameters()).fill_(np.nan)
    with pytest.raises(ValueError, match="training loss became nan in epoch 0"):
        fit_teacher(lm, twenty()[:2], TeacherSettings())


def test_adapters_without_their_package_say_what_to_install(
    make_lm: Callable[..., CausalLM], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "peft", None)  # as Python marks a package that cannot be imported
    with pytest.raises(ValueError, match="pip install peft"):
        fit_teacher(make_lm(), twenty()[:2], TeacherSettings(low_rank=4))


def test_adapters_learn_are_added_into_the_weights_and_resume_in_the_same_bits(make_lm: Callable[..., CausalLM]):
    kept: list[dict[str, Any]] = []
    changes: dict[str, Any] = {"low_rank": 4, "learning_rate": 1e-2}
    whole, curve = fitted(make_lm, TeacherWatch(on_checkpoint=kept.append), **changes)
    assert type(whole.model) is type(make_lm().model)
    assert list(whole.model.state_dict()) == list(make_lm().model.state_dict())
    assert curve[-1].train_loss < curve[0].train_loss
    assert all("lora" in name for name in kept[0]["weights"])
    resumed, _ = fitted(make_lm, TeacherWatch(resume_from=kept[0]), **changes)
    assert same(whole, resumed)
