import numpy as np
import pytest

from embedders.mkd_losses import UNKNOWN
from embedders.reasoning_targets import FactClasses, cited_spans, matches_of, signal_of
from embedders.relevance_prompts import Facts, QueryItem, Reasoning
from embedders.teacher_signal import MATCH, MISMATCH, NOT_ASKED


def chain(**changed) -> Reasoning:
    known = {
        "query": Facts(category="string trimmer", brand="ryobi", attributes="18 v"),
        "item": Facts(category="cordless trimmers", brand="makita", model="xru07", attributes="18 v, black"),
        "category": "match",
        "brand": "mismatch",
        "model": "na",
        "attributes": "match",
        "label": "bad",
    }
    return Reasoning(**{**known, **changed})


PAIR = QueryItem("Ryobi 18v string trimmers", "Makita 18-Volt V Cordless Trimmer XRU-07 Black")


def cited(pair: QueryItem, of: Reasoning) -> tuple[list[str], list[str]]:
    spans = cited_spans(pair, of)
    return [pair.query[a:b] for a, b in spans.query], [pair.title[a:b] for a, b in spans.item]


def test_steps_are_numbered_as_the_students_read_them():
    assert matches_of([chain(), None]).tolist() == [[MATCH, MISMATCH, NOT_ASKED, MATCH], [UNKNOWN] * 4]
    assert matches_of([]).shape == (0, 4)


def test_words_of_compared_facts_are_cited_in_any_number_and_case():
    query, title = cited(PAIR, chain(category="match", attributes="na"))
    assert query == ["Ryobi", "string", "trimmers"]
    assert title == ["Makita", "Cordless", "Trimmer"]


def test_a_fact_that_was_not_compared_is_not_cited_and_a_hyphen_hides_no_model():
    _, title = cited(PAIR, chain(category="na", brand="na", attributes="na"))
    assert title == []
    _, title = cited(PAIR, chain(category="na", brand="na", attributes="na", model="mismatch"))
    assert title == ["XRU-07"]


def test_a_word_is_found_as_a_word_and_not_inside_another():
    pair = QueryItem("in", "Inside 3 in. tin")
    assert cited(pair, chain(category="na", brand="na", attributes="match", item=Facts(attributes="3 in")))[1] == [
        "3",
        "in",
    ]


def test_only_values_that_enough_chains_name_become_classes():
    classes = FactClasses.of_chains([chain(), chain(), chain(item=Facts(category="hammer", brand="Estwing"))], least=2)
    # trimmer and trimmers are one thing, named by all three queries; hammer by one item only
    assert classes.values == (("trimmer",), ("ryobi", "makita"))
    assert classes.num_classes == (1, 2)
    found = classes.of_facts([Facts(category="big trimmers", brand="makita"), Facts(category="hammer"), None])
    assert found.tolist() == [[0, 1], [UNKNOWN, UNKNOWN], [UNKNOWN, UNKNOWN]]


def test_the_most_frequent_values_are_kept_and_a_chain_counts_once():
    classes = FactClasses.of_chains([chain(), chain(item=Facts(brand="ryobi"))], least=1, most=1)
    assert classes.values == (("trimmer",), ("ryobi",))


def test_without_values_there_is_still_a_head_and_nothing_to_learn():
    classes = FactClasses.of_chains([None])
    assert classes.num_classes == (1, 1)
    assert classes.of_facts([Facts(brand="ryobi")]).tolist() == [[UNKNOWN, UNKNOWN]]


def test_the_signal_holds_what_is_known_and_marks_the_rest():
    classes = FactClasses.of_chains([chain()] * 2, least=2)
    signal = signal_of(
        [PAIR, PAIR],
        np.array([4, 4]),
        label_N=np.array([0, 1], np.int8),
        chains=[chain(), None],
        classes=classes,
    )
    assert signal.label_N.tolist() == [0, 1]
    assert np.isnan(signal.probabilities_NK).all()
    assert signal.probabilities_NK.shape == (2, 2)
    assert signal.match_NA[1].tolist() == [UNKNOWN] * 4
    assert signal.highlight is not None
    assert signal.highlight[1] is None
    assert signal.query_class_NC.tolist() == [[0, classes.values[1].index("ryobi")], [UNKNOWN, UNKNOWN]]
    assert signal_of([PAIR], np.array([0])).highlight is None
    with pytest.raises(ValueError, match="1 chains of 2 pairs"):
        signal_of([PAIR, PAIR], np.array([0, 0]), chains=[None])
