"""What the explainable relevance teacher is asked, and the one form in which it may answer (ELLM-rele).

ELLM-rele, arXiv 2411.13045: a language model decides whether an item answers a query in steps, and only then gives its
verdict. The order of the answer is the order of the reasoning: facts of the query, facts of the item, one comparison a
step, the label LAST, so that the label's probability is conditioned on the whole chain.

What we keep: the steps category, brand and model, then the verdict; attributes read off both texts first. What differs,
because the paper's wording could not be read [NF->P]: the words of the prompt, the step for all other attributes, one
line of JSON as the form, two labels.

An answer is an alternation of fixed pieces of text and values, so a decoder can write the fixed pieces itself and leave
only the values to the model; and because no value may hold a quotation mark, the place of each value is known.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, StringConstraints, ValidationError

PROMPT_VERSION = "ellm_rele_v1"
"""Any change of the words or of the form needs a new one: answers are kept under it."""

STEPS = ("category", "brand", "model", "attributes")
"""What is compared, in this order; each text has one fact for each."""

Match = Literal["match", "mismatch", "na"]
MATCHES: tuple[Match, ...] = get_args(Match)
"""na: the query asks for nothing of the kind, or the item does not say."""

Label = Literal["bad", "good"]
LABELS: tuple[Label, ...] = get_args(Label)
"""From worst to best: the place of a label is its grade."""

MAX_FACT = 120
"""Letters of one fact."""

Fact = Annotated[str, StringConstraints(strict=True, max_length=MAX_FACT, pattern=r'^[^"\\\x00-\x1f\x7f]*$')]


class QueryItem(NamedTuple):
    """A query and an item; what is not known of the item is None."""

    query: str
    title: str
    category: str | None = None
    brand: str | None = None
    attributes: str | None = None


class Facts(BaseModel, frozen=True, extra="forbid"):
    """What a text says, one value for each step; empty where it says nothing."""

    category: Fact = ""
    brand: Fact = ""
    model: Fact = ""
    attributes: Fact = ""

    def values(self) -> tuple[str, ...]:
        """In the order of `STEPS`."""
        return (self.category, self.brand, self.model, self.attributes)


class Reasoning(BaseModel, frozen=True, extra="forbid"):
    """A chain: facts, one comparison a step, and the label at the end."""

    v: Literal[1] = 1
    query: Facts
    item: Facts
    category: Match
    brand: Match
    model: Match
    attributes: Match
    label: Label

    def matches(self) -> tuple[Match, ...]:
        """The comparisons in the order of `STEPS`."""
        return (self.category, self.brand, self.model, self.attributes)

    def values(self) -> tuple[str, ...]:
        """Everything that stands between the fixed pieces, in order."""
        return (*self.query.values(), *self.item.values(), *self.matches(), self.label)

    def line(self) -> str:
        """The answer as text; `parse` is the inverse."""
        return "".join(alternated(CHAIN_PIECES, self.values()))

    @classmethod
    def of_values(cls, values: Sequence[str]) -> Self:
        """The inverse of `values`."""
        n = len(STEPS)
        assert len(values) == 3 * n + 1, f"a chain has {3 * n + 1} values, got {len(values)}"
        return cls.model_validate(
            {
                "query": dict(zip(STEPS, values[:n], strict=True)),
                "item": dict(zip(STEPS, values[n : 2 * n], strict=True)),
                **dict(zip(STEPS, values[2 * n : 3 * n], strict=True)),
                "label": values[-1],
            }
        )


CHAIN_PIECES = (
    '{"v":1,"query":{"category":"',
    '","brand":"',
    '","model":"',
    '","attributes":"',
    '"},"item":{"category":"',
    '","brand":"',
    '","model":"',
    '","attributes":"',
    '"},"category":"',
    '","brand":"',
    '","model":"',
    '","attributes":"',
    '","label":"',
    '"}',
)
"""The fixed text around the values of a chain: before each, and after the last."""

LABEL_ONLY_PIECES = ('{"v":1,"label":"', '"}')

_ORDER = ("v", "query", "item", *STEPS, "label")


def alternated(fixed: Sequence[str], values: Sequence[str]) -> tuple[str, ...]:
    """fixed[0], values[0], fixed[1], ..., fixed[-1]."""
    assert len(fixed) == len(values) + 1, f"{len(fixed)} fixed pieces do not go around {len(values)} values"
    return (*(piece for both in zip(fixed, values, strict=False) for piece in both), fixed[-1])


INSTRUCTION = (
    "Decide step by step whether the item answers the shop query.\n"
    "First write what the query asks for and what the item is: category, brand, model, attributes (material, size, "
    "colour, use). Leave a value empty when the text does not say.\n"
    "Then compare each of the four: match, mismatch, or na when the query does not ask for it or the item does not "
    "say.\n"
    "A different category is bad. A different brand or model than asked for is worse than none. Nothing asked, nothing "
    "lost.\n"
    "Last comes the label, good or bad. Answer with one line of JSON in this form:\n"
    + "".join(alternated(CHAIN_PIECES, (*["..."] * 8, *["match|mismatch|na"] * 4, "good|bad")))
    + "\n"
)
"""The same for every pair, and first, so that a model reads it once."""

LABEL_ONLY_INSTRUCTION = (
    "Decide whether the item answers the shop query. The label is good or bad. Answer with one line of JSON in this "
    "form:\n" + "".join(alternated(LABEL_ONLY_PIECES, ("good|bad",))) + "\n"
)
"""Of the comparison without reasoning."""


def pair_text(pair: QueryItem) -> str:
    """The part of the prompt that tells one pair from another; each known field is one line."""
    fields = (
        ("Query", pair.query),
        ("Title", pair.title),
        ("Category", pair.category),
        ("Brand", pair.brand),
        ("Attributes", pair.attributes),
    )
    lines = [f"{name}: {one_line}" for name, value in fields if (one_line := " ".join((value or "").split()))]
    return "\n".join([*lines, "Answer:\n"])


def prompt(pair: QueryItem, *, label_only: bool = False) -> str:
    """What a model is asked about a pair."""
    return (LABEL_ONLY_INSTRUCTION if label_only else INSTRUCTION) + pair_text(pair)


def fact(text: str) -> str:
    """A text as a fact may hold it: one line, no quotation mark (inches are written out), not too long."""
    inches = re.sub(r'(?<=\d)\s*(?:"|\'\'|”)', " in", text)
    return " ".join(re.sub(r'["\\\x00-\x1f\x7f]', " ", inches).split())[:MAX_FACT].rstrip()


def parse(answer: str) -> Reasoning:
    """The chain that an answer holds; blanks between the parts of the JSON are allowed, nothing else is.

    Raises:
        ValueError: the answer is not one line of JSON in this form: other text around it, a missing, unknown, repeated
            or displaced key, another version, a value that is not allowed. Nothing is guessed or repaired.
    """
    found = _one_object(answer)
    _check_keys(found, _ORDER, answer)
    _check_version(found, answer)
    for part in ("query", "item"):
        if isinstance(found[part], dict):
            _check_keys(found[part], STEPS, answer)
    try:
        return Reasoning.model_validate(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise _refused(f"{where}: {first['msg']}, got {str(first['input'])[:40]!r}", answer) from None


def parse_label_only(answer: str) -> Label:
    """The label of an answer without reasoning.

    Raises:
        ValueError: as `parse`.
    """
    found = _one_object(answer)
    _check_keys(found, ("v", "label"), answer)
    _check_version(found, answer)
    if found["label"] not in LABELS:
        raise _refused(f"label: expected one of {', '.join(LABELS)}, got {str(found['label'])[:40]!r}", answer)
    return found["label"]


def _one_object(answer: str) -> dict[str, Any]:
    text = answer.strip()
    if "\n" in text or "\r" in text:
        raise _refused("expected one line", answer)
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refused(f"expected JSON and nothing else ({error})", answer) from None
    if not isinstance(found, dict):
        raise _refused(f"expected a JSON object, got {type(found).__name__}", answer)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"repeated key {', '.join(repeated)}")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_keys(found: dict[str, Any], expected: Sequence[str], answer: str) -> None:
    if tuple(found) != tuple(expected):
        raise _refused(f"expected the keys {', '.join(expected)} in this order, got {', '.join(found)}", answer)


def _check_version(found: dict[str, Any], answer: str) -> None:
    if type(found["v"]) is not int or found["v"] != 1:  # in Python, True and 1.0 are equal to 1
        raise _refused(f"v: expected version 1, got {found['v']!r}", answer)


def _refused(what: str, answer: str) -> ValueError:
    return ValueError(f"parse ({PROMPT_VERSION}): {what}. The answer begins {answer.strip()[:60]!r}.")
