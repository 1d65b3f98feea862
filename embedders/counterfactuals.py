"""Pairs with one value of the item replaced, so that one step of the reasoning must change its answer.

Two uses, both ours [NF->P]. Asked: does a teacher's step follow the item (bench_relevance_faithfulness.py)? Taught: in
a shop's log nearly every item shown is of the brand and the model asked for, so chains of judged pairs hardly ever say
mismatch there, and a teacher learns never to say it. A pair and the same pair changed say match once and mismatch once.
Nobody judges such pairs, so their labels teach nothing (`embedders.answer_loss.TeacherExample`).
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from embedders.built_chains import built_chain
from embedders.relevance_prompts import STEPS, Match, QueryItem, Reasoning
from embedders.title_facts import TitleReader, squashed


class Stated(NamedTuple):
    """A value that the query asks for and the item states.

    Attributes:
        kind: `category`, `brand`, `model`, or of an attribute: a unit, `size`, `colour`, `material`.
        value: lower case; of a unit the number alone.
    """

    kind: str
    value: str


def stated(pair: QueryItem, step: str, *, reader: TitleReader) -> Stated | None:
    """What makes a step a match, so that another value in its place would make it a mismatch; None where nothing does.

    Args:
        step: one of `STEPS`.
    """
    query, item = reader.query(pair), reader.item(pair)
    if step == "category" and query.category and query.category[-1] in item.category:
        return Stated("category", query.category[-1])
    if step == "brand" and query.brand and query.brand == item.brand:
        return Stated("brand", query.brand)
    if step == "model" and (shared := [name for name in query.models if name in item.models]) and len(item.models) == 1:
        return Stated("model", shared[0])
    if step == "attributes":
        for kind, values in query.attributes.items():
            if item.attributes.get(kind) == values and len(values) == 1:
                return Stated(kind, values[0])
    return None


def flipped(pair: QueryItem, step: str, other: str, *, reader: TitleReader) -> QueryItem | None:
    """The pair with another value of the item in place of the one `stated`, in all its texts: to ask whether the
    teacher's step follows.

    Returns:
        None where no value is stated, or where the texts write it in another way than it is read.
    """
    found = stated(pair, step, reader=reader)
    if found is None:
        return None
    # hyphens and blanks that reading leaves out, and the ending of a plural
    letters = r"[-\s]?".join(re.escape(sign) for sign in squashed(found.value))
    if found.kind not in ("category", "brand", "model", "colour", "material"):
        letters = r"[-\s]?".join(re.escape(part) for part in found.value.split("-"))
    pattern = re.compile(rf"(?<![\w/.-]){letters}(?:e?s)?(?!\w)", re.IGNORECASE)

    def put(text: str | None) -> str | None:
        return text and pattern.sub(lambda there: _written_like(there.group(), other), text)

    changed = pair._replace(
        title=put(pair.title) or "",
        category=put(pair.category),
        brand=put(pair.brand),
        attributes=put(pair.attributes),
    )
    return None if changed == pair or stated(changed, step, reader=reader) == found else changed


def _written_like(there: str, other: str) -> str:
    """In the capitals of what it replaces: a value in another case would give itself away."""
    if there.isupper():
        return other.upper()
    return other.title() if there[:1].isupper() else other


class Changed(NamedTuple):
    """A pair and the same pair with one value of the item replaced."""

    before: QueryItem
    after: QueryItem


def changed_pairs(pairs: Sequence[QueryItem], step: str, *, reader: TitleReader, seed: int = 0) -> Iterator[Changed]:
    """Every pair that states a value of this step, in random order, with a value of the same kind that another of the
    pairs states.

    Args:
        step: one of `STEPS`.
    """
    rng = np.random.default_rng([seed, STEPS.index(step)])
    found: dict[int, Stated] = {}
    values: dict[str, set[str]] = {}
    for number, pair in enumerate(pairs):
        if (value := stated(pair, step, reader=reader)) is not None:
            found[number] = value
            values.setdefault(value.kind, set()).add(value.value)
    of_kind = {kind: sorted(some) for kind, some in values.items()}
    for number in rng.permutation(sorted(found)):
        pair, value = pairs[number], found[int(number)]
        if others := [one for one in of_kind[value.kind] if one != value.value]:
            after = flipped(pair, step, others[rng.integers(len(others))], reader=reader)
            if after is not None:
                yield Changed(pair, after)


class Contrast(NamedTuple):
    """A pair whose chain says match at a step, and the pair changed, whose chain says mismatch there and nothing else
    that differs; labels are what the rules say.
    """

    step: str
    as_it_is: tuple[QueryItem, Reasoning]
    changed: tuple[QueryItem, Reasoning]


def contrasts(pairs: Sequence[QueryItem], most: int, *, reader: TitleReader, seed: int = 0) -> list[Contrast]:
    """Chains by rules of pairs as they are and changed.

    Args:
        pairs: of training queries; nobody needs to have judged them. Where people said what rules would not, the rules'
            chain of the pair as it is contradicts them: leave such pairs out.
        most: how many; the steps take turns while they have any, so that rare ones are not left behind.
        reader: what the rules know.
        seed: of which pairs are taken, and of what is changed into what.
    """
    left = {step: _contrasts(pairs, step, reader, seed) for step in STEPS}
    made: list[Contrast] = []
    while left and len(made) < most:
        for step in tuple(left):
            if (one := next(left[step], None)) is None:
                del left[step]
            elif len(made) < most:
                made.append(one)
    return made


def _contrasts(pairs: Sequence[QueryItem], step: str, reader: TitleReader, seed: int) -> Iterator[Contrast]:
    for before, after in changed_pairs(pairs, step, reader=reader, seed=seed):
        as_it_is, changed = built_chain(before, reader=reader), built_chain(after, reader=reader)
        if _matches(as_it_is)[step] == "match" and _matches(changed) == {**_matches(as_it_is), step: "mismatch"}:
            yield Contrast(step, (before, as_it_is), (after, changed))


def _matches(chain: Reasoning) -> dict[str, Match]:
    return dict(zip(STEPS, chain.matches(), strict=True))
