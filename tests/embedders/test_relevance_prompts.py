"""An answer is read back as it was written, or refused; nothing is repaired."""

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from embedders.relevance_prompts import (
    INSTRUCTION,
    LABELS,
    MATCHES,
    MAX_FACT,
    STEPS,
    Facts,
    QueryItem,
    Reasoning,
    fact,
    pair_text,
    parse,
    parse_label_only,
    prompt,
)

FACT = st.text(st.characters(exclude_characters='"\\\x7f', exclude_categories=["Cc", "Cs"]), max_size=MAX_FACT)
FACTS = st.builds(Facts, category=FACT, brand=FACT, model=FACT, attributes=FACT)
MATCH = st.sampled_from(MATCHES)
REASONING = st.builds(
    Reasoning,
    v=st.just(1),
    query=FACTS,
    item=FACTS,
    category=MATCH,
    brand=MATCH,
    model=MATCH,
    attributes=MATCH,
    label=st.sampled_from(LABELS),
)
CHAIN = Reasoning.of_values(["chair", "acme", "", "red", "stool", "", "x-1", "", "mismatch", "na", "na", "na", "bad"])


@given(REASONING)
def test_what_is_written_is_read_back(chain: Reasoning):
    line = chain.line()
    assert parse(line) == chain
    assert parse(f"  {line}\n") == chain
    assert parse(json.dumps(json.loads(line))) == chain  # blanks between the parts
    assert Reasoning.of_values(chain.values()) == chain
    assert line.endswith(f'"label":"{chain.label}"}}')


def test_the_label_stands_last_and_the_steps_before_it():
    line = CHAIN.line()
    assert list(json.loads(line)) == ["v", "query", "item", *STEPS, "label"]


def damaged() -> dict[str, str]:
    line, found = CHAIN.line(), json.loads(CHAIN.line())

    def changed(**values: Any) -> str:
        return json.dumps({**found, **values})

    def without(key: str) -> str:
        return json.dumps({name: value for name, value in found.items() if name != key})

    return {
        "text before": "Sure! " + line,
        "text after": line + " I hope this helps.",
        "a code fence": f"```json\n{line}\n```",
        "cut off": line[:-1],
        "cut in the middle": line[: len(line) // 2],
        "empty": "",
        "two answers": line + line,
        "two lines": json.dumps(found, indent=1),
        "a list": f"[{line}]",
        "single quotes": line.replace('"', "'"),
        "another version": changed(v=2),
        "the version as text": changed(v="1"),
        "the version as truth": changed(v=True),
        "the version as a fraction": changed(v=1.0),
        "no version": without("v"),
        "no label": without("label"),
        "no step": without("brand"),
        "no item": without("item"),
        "label first": json.dumps({"label": found["label"], **found}),
        "an unknown key": json.dumps({**{k: v for k, v in found.items() if k != "label"}, "why": "", "label": "bad"}),
        "a key after the label": changed(why=""),
        "a repeated key": line[:-1] + ',"label":"good"}',
        "an unknown label": changed(label="excellent"),
        "a label in capitals": changed(label="Good"),
        "no value for the label": changed(label=None),
        "an unknown match": changed(brand="partly"),
        "a match as truth": changed(brand=True),
        "a fact as a number": changed(query={**found["query"], "model": 7}),
        "a fact as a list": changed(query={**found["query"], "model": ["x"]}),
        "no fact": changed(query={**found["query"], "model": None}),
        "facts without one": changed(item={k: v for k, v in found["item"].items() if k != "model"}),
        "facts with one more": changed(item={**found["item"], "price": "3"}),
        "facts in another order": changed(item=dict(reversed(found["item"].items()))),
        "facts as text": changed(item="a chair"),
        "a fact with a quotation mark": changed(query={**found["query"], "model": 'x"y'}),
        "a fact with a line end": changed(query={**found["query"], "model": "x\ny"}),
        "a fact too long": changed(query={**found["query"], "model": "x" * (MAX_FACT + 1)}),
        "no number": line.replace('"v":1', '"v":NaN'),
        "deep": "[" * 100_000,
    }


@pytest.mark.parametrize("damage", damaged())
def test_a_damaged_answer_is_refused(damage: str):
    with pytest.raises(ValueError, match=r"parse \(ellm_rele_v1\): .*The answer begins"):
        parse(damaged()[damage])


@given(REASONING, st.data())
def test_no_letter_can_be_lost_or_doubled_unseen(chain: Reasoning, data: st.DataObject):
    line = chain.line()
    at = data.draw(st.integers(0, len(line) - 1))
    hurt = data.draw(st.sampled_from([line[:at] + line[at + 1 :], line[: at + 1] + line[at:], line[:at]]))
    assume(hurt != line)
    try:
        found = parse(hurt)
    except ValueError:
        return
    # only the inside of a fact can have changed: all that is compared and judged is what it was
    assert found.matches() == chain.matches()
    assert found.label == chain.label


@pytest.mark.parametrize("label", LABELS)
def test_a_label_alone_is_read(label: str):
    assert parse_label_only(f'{{"v":1,"label":"{label}"}}') == label


@pytest.mark.parametrize(
    "answer", ['{"v":1,"label":"fine"}', '{"label":"good"}', '{"v":true,"label":"good"}', "good", CHAIN.line()]
)
def test_another_answer_than_a_label_alone_is_refused(answer: str):
    with pytest.raises(ValueError, match="parse"):
        parse_label_only(answer)


def test_a_prompt_is_the_same_instruction_then_what_is_known_of_the_pair():
    pair = QueryItem("red\n  chair", "Chair", brand=" ")
    assert prompt(pair) == INSTRUCTION + "Query: red chair\nTitle: Chair\nAnswer:\n"
    full = pair_text(QueryItem("q", "t", "c", "b", "a"))
    assert full == "Query: q\nTitle: t\nCategory: c\nBrand: b\nAttributes: a\nAnswer:\n"


@given(st.text(max_size=300))
def test_any_text_can_be_made_a_fact(text: str):
    assert Facts(category=fact(text)).category == fact(text)


def test_inches_are_written_out():
    assert fact("3\" pipe, 1/2 '' thread") == "3 in pipe, 1/2 in thread"
