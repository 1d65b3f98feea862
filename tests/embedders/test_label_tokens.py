"""Scores against numbers worked by hand, and the label's place whatever comes before it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedders.label_tokens import (
    Chain,
    TeacherAnswer,
    expected_score,
    joined_answer,
    label_of_token,
    label_place,
    label_probabilities,
    parse_rate,
    read_chain,
)
from embedders.relevance_prompts import Label, Reasoning

FACTS = ["chair", "", "", "red"] * 2


def chain(label: Label, good: float, step: str = "match", weight: float = 1.0) -> Chain:
    reasoning = Reasoning.of_values([*FACTS, step, "na", "na", "na", label])
    return Chain(label, np.array([1 - good, good]), reasoning, weight)


def test_the_score_is_the_mean_grade_scaled_to_one():
    assert expected_score(np.array([0.25, 0.75])) == 0.75
    assert expected_score(np.array([0.1, 0.2, 0.3, 0.4])) == pytest.approx((0.2 + 2 * 0.3 + 3 * 0.4) / 3)
    assert expected_score(np.array([1.0, 0.0])) == 0.0
    assert expected_score(np.array([0.0, 0.0, 1.0])) == 1.0


def test_probabilities_are_a_softmax_over_the_labels_tokens_alone():
    tops = {"good": 2.0, "bad": 1.0, "fine": 9.0, '"': 8.0}
    np.testing.assert_allclose(label_probabilities(tops), [1 / (1 + math.e), math.e / (1 + math.e)])
    # logits and log-probabilities differ by a constant, which cancels
    moved = {token: value - 12.3 for token, value in tops.items()}
    np.testing.assert_allclose(label_probabilities(moved), label_probabilities(tops))


def test_all_tokens_that_begin_a_label_count_for_it():
    tops = {"good": math.log(0.3), "go": math.log(0.1), 'good"}': math.log(0.2), "b": math.log(0.2), "x": 0.0}
    np.testing.assert_allclose(label_probabilities(tops), [0.25, 0.75])
    with_mark = {'":"good': math.log(0.6), '":"bad': math.log(0.2), "good": 5.0}
    np.testing.assert_allclose(label_probabilities(with_mark, before='":"'), [0.25, 0.75])


def test_a_label_that_is_not_among_the_alternatives_gets_nothing_and_none_at_all_is_refused():
    np.testing.assert_array_equal(label_probabilities({"good": -0.1, "fine": -3.0}), [0.0, 1.0])
    with pytest.raises(ValueError, match="none of the 2 tokens at the label position begins one of bad, good"):
        label_probabilities({"fine": -0.1, "ok": -3.0})


def test_a_token_that_could_begin_two_labels_counts_for_none():
    labels = ("irrelevant", "irregular", "exact")
    assert label_of_token("irre", labels=labels) is None
    assert label_of_token("irrel", labels=labels) == 0
    assert label_of_token("exact", labels=labels) == 2
    assert label_of_token("exac}", labels=labels) is None
    assert label_of_token("", labels=labels) is None


@given(st.lists(st.text(max_size=20), max_size=8), st.sampled_from(["good", "bad"]), st.data())
def test_the_label_is_found_whatever_comes_before_and_however_the_text_is_cut(
    texts: list[str], label: str, data: st.DataObject
):
    before = "".join(texts) + data.draw(st.sampled_from(["", '"label":"bad"}', '{"label":"good","label":"']))
    answer = f'{before},"label":"{label}"}}'
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=30)))
    ends = [*cuts, len(answer)]
    pieces = [answer[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    place = label_place(pieces)
    begin = sum(map(len, pieces[: place.token])) + len(place.before)
    assert begin == len(answer) - len(label) - 2
    assert pieces[place.token].startswith(place.before)
    assert len(pieces[place.token]) > len(place.before)


@pytest.mark.parametrize("answer", ["", "good", '{"label":"good"', '{"label":"good"} ok', '{"label":good}'])
def test_an_answer_without_a_label_at_its_end_has_no_place(answer: str):
    with pytest.raises(ValueError, match="expected an answer that ends in"):
        label_place([answer])


def test_an_answer_of_an_endpoint_is_read_from_its_tokens_and_their_alternatives():
    line = Reasoning.of_values([*FACTS, "match", "na", "na", "na", "good"]).line()
    at = line.rindex("good")
    pieces = [*line[: at - 1], '"good', '"}']
    nothing: list[dict[str, float]] = [{"x": 0.0}] * (at - 1)
    tops = [*nothing, {'"good': math.log(0.6), '"bad': math.log(0.3), "?": math.log(0.1)}, {'"}': 0.0}]
    read = read_chain(pieces, tops)
    assert read.label == "good"
    np.testing.assert_allclose(read.probabilities_K, [1 / 3, 2 / 3])
    with pytest.raises(ValueError, match="parse"):
        read_chain([*pieces, " done"], [*tops, {}])
    alone = read_chain(['{"v":1,"label":"', "bad", '"}'], [{}, {"bad": 0.0, "good": 0.0}, {}], label_only=True)
    assert (alone.label, alone.reasoning, alone.probabilities_K.tolist()) == ("bad", None, [0.5, 0.5])


def test_chains_are_averaged_and_the_majority_speaks():
    chains = [chain("good", 0.9), chain("good", 0.8, "na"), chain("bad", 0.1), chain("good", 0.6, "na")]
    answer = joined_answer(chains, num_chains=5, num_attempts=6, num_tokens=100, problems=["cut"])
    assert answer.score == pytest.approx((0.9 + 0.8 + 0.1 + 0.6) / 4)
    assert answer.probabilities == pytest.approx((0.4, 0.6))
    assert answer.label == "good"
    assert answer.agreement == 0.75
    assert answer.reasoning == chains[1].reasoning
    assert (answer.num_chains, answer.num_parsed, answer.num_attempts) == (5, 4, 6)
    assert answer.problems == ("cut",)
    assert not answer.failed
    assert parse_rate([answer]) == pytest.approx(4 / 6)


def test_weights_decide_the_mean_and_the_majority():
    answer = joined_answer(
        [chain("good", 1.0, weight=0.2), chain("good", 1.0, weight=0.2), chain("bad", 0.0, weight=0.6)],
        num_chains=3,
        num_attempts=3,
        num_tokens=0,
    )
    assert answer.score == pytest.approx(0.4)
    assert (answer.label, answer.agreement) == ("bad", pytest.approx(0.6))


def test_a_tie_of_chains_goes_to_the_likelier_label():
    tied = [chain("good", 0.7), chain("bad", 0.45)]
    assert joined_answer(tied, num_chains=2, num_attempts=2, num_tokens=0).label == "good"
    even = [chain("good", 0.5), chain("bad", 0.5)]
    assert joined_answer(even, num_chains=2, num_attempts=2, num_tokens=0).label == "bad"


def test_without_a_chain_nothing_is_guessed():
    answer = joined_answer([], num_chains=2, num_attempts=6, num_tokens=9, problems=["no"] * 6)
    assert answer.failed
    assert answer.score is answer.label is answer.agreement is answer.reasoning is answer.probabilities is None
    assert math.isnan(parse_rate([]))


def test_a_label_without_a_score_is_an_answer():
    reasoning = chain("bad", 0.0).reasoning
    assert not TeacherAnswer(None, None, "bad", reasoning, 1.0, 1, 1, 1, 0).failed
