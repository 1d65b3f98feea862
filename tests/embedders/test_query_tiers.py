import numpy as np
import pytest

from embedders.query_tiers import rarest_word_frequency, tiers_of, words_of


def test_words_are_runs_of_letters_and_digits_in_lower_case():
    assert words_of("Leaf-Green 3/4 in. PAINT") == ["leaf", "green", "3", "4", "in", "paint"]
    assert words_of("---") == []


def test_a_query_is_as_frequent_as_its_rarest_word():
    training = ["white door", "door door hinge", "white paint", "White Door"]
    # door is in three distinct training queries (twice in one of them), white in three, hinge in one
    found = rarest_word_frequency(["door", "white hinge", "door knob", "!"], training)
    assert found.tolist() == [3, 1, 0, 0]


def test_a_training_query_that_comes_twice_counts_once():
    assert rarest_word_frequency(["door"], ["door", "door"]).tolist() == [1]


def test_tiers_begin_at_their_edges():
    assert tiers_of(np.array([0, 1, 4, 5, 900])).tolist() == ["tail", "torso", "torso", "head", "head"]
    assert tiers_of(np.array([9, 10, 99, 100]), (10, 100)).tolist() == ["tail", "torso", "torso", "head"]
    with pytest.raises(ValueError, match="ascend"):
        tiers_of(np.array([1]), (5, 5))
