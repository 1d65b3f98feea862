"""Words of titles: whatever separates them, in any script, and how much two titles share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedders.title_words import jaccard, title_words


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Red_chair, RED (2-pack)", {"red", "chair", "2", "pack"}),
        ("Stühle für Büro", {"stühle", "für", "büro"}),
        ("赤い椅子", {"赤い椅子"}),
        (" - ", set()),
        (None, set()),
    ],
)
def test_words_are_runs_of_letters_and_digits_in_lower_case(title: str | None, words: set[str]) -> None:
    assert title_words(title) == words


words = st.frozensets(st.sampled_from("abcdef"))


@given(words, words)
def test_jaccard_is_symmetric_and_one_only_for_the_same_words(one: frozenset[str], other: frozenset[str]) -> None:
    assert jaccard(one, other) == jaccard(other, one)
    assert 0.0 <= jaccard(one, other) <= 1.0
    assert (jaccard(one, other) == 1.0) == (one == other and bool(one))


def test_a_hand_worked_pair() -> None:
    assert jaccard(title_words("red chair"), title_words("Red sofa, large")) == 1 / 4
