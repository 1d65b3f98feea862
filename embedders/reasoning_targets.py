"""What a teacher's reasoning gives a student to learn: steps, cited words, and classes of attributes (MKD).

MKD, arXiv 2411.13045, turns the parsed reasoning into learning tasks. Which ones, and how a text becomes a target,
could not be read; what follows is ours [NF->P]:
    steps       match, mismatch or not asked for, as the chain says
    highlight   the words of the facts behind each step that says match or mismatch, in the query and in the title
    classes     category (its last word, which names the thing) and brand, of the query and of the item; only values
                that enough chains have, as a class of three examples cannot be learnt

Letters: N pairs, A steps, C attributes with classes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedders.mkd_losses import UNKNOWN
from embedders.relevance_prompts import LABELS, STEPS, Facts, QueryItem, Reasoning
from embedders.student_encoder import CitedSpans, Span
from embedders.teacher_signal import MATCH, MISMATCH, NOT_ASKED, TeacherSignal
from embedders.title_facts import singular, squashed

CLASSED = ("category", "brand")
"""Facts that become classes, in the order in which the contrastive loss reads them."""

_NUMBER_OF = {"match": MATCH, "mismatch": MISMATCH, "na": NOT_ASKED}
_WORD = re.compile(r"[a-z0-9]+(?:[-/.'+&][a-z0-9]+)*", re.IGNORECASE)


def matches_of(chains: Sequence[Reasoning | None]) -> NDArray[np.int8]:
    """The steps of each chain, as `TeacherSignal` has them; UNKNOWN where there is no chain. [N, A]"""
    unknown = (UNKNOWN,) * len(STEPS)
    rows = [unknown if chain is None else tuple(_NUMBER_OF[match] for match in chain.matches()) for chain in chains]
    return np.array(rows, np.int8).reshape(len(chains), len(STEPS))


def cited_spans(pair: QueryItem, chain: Reasoning) -> CitedSpans:
    """Where the facts that the chain compared stand in the texts. A fact that was not compared is not cited."""
    compared = [step for step, match in zip(STEPS, chain.matches(), strict=True) if match != "na"]
    return CitedSpans(
        _places(pair.query, [getattr(chain.query, step) for step in compared]),
        _places(pair.title, [getattr(chain.item, step) for step in compared]),
    )


@dataclass(frozen=True)
class FactClasses:
    """Classes of facts, learnt from chains of the training split.

    Attributes:
        values: of each of `CLASSED`, its values; the place of a value is its class.
    """

    values: tuple[tuple[str, ...], ...]

    @classmethod
    def of_chains(cls, chains: Iterable[Reasoning | None], *, least: int = 20, most: int = 500) -> Self:
        """The values that at least `least` chains name (of the query or of the item), at most the `most` frequent."""
        counts: list[Counter[str]] = [Counter() for _ in CLASSED]
        for chain in chains:
            if chain is None:
                continue
            for place, name in enumerate(CLASSED):
                counts[place].update({_class_value(name, facts) for facts in (chain.query, chain.item)} - {""})
        ordered = [sorted(count.items(), key=lambda one: (-one[1], one[0]))[:most] for count in counts]
        return cls(tuple(tuple(value for value, times in of if times >= least) for of in ordered))

    @property
    def num_classes(self) -> tuple[int, ...]:
        """Of each attribute; never 0, so that a head can be made."""
        return tuple(max(1, len(values)) for values in self.values)

    def of_facts(self, facts: Sequence[Facts | None]) -> NDArray[np.int64]:
        """The classes of each text's facts; UNKNOWN for a value without a class. [N, C]"""
        place_of = [{value: place for place, value in enumerate(values)} for values in self.values]
        rows = [
            [
                UNKNOWN if one is None else places.get(_class_value(name, one), UNKNOWN)
                for name, places in zip(CLASSED, place_of, strict=True)
            ]
            for one in facts
        ]
        return np.array(rows, np.int64).reshape(len(facts), len(CLASSED))


def signal_of(
    pairs: Sequence[QueryItem],
    query_N: NDArray[np.int64],
    *,
    label_N: NDArray[np.int8] | None = None,
    probabilities_NK: NDArray[np.float32] | None = None,
    chains: Sequence[Reasoning | None] | None = None,
    classes: FactClasses | None = None,
) -> TeacherSignal:
    """Everything that is known of pairs, as the students take it.

    Args:
        pairs: N texts.
        query_N: which query each is of.
        label_N: of people, 0 or 1; UNKNOWN.
        probabilities_NK: of the teacher; NaN rows are unknown.
        chains: of the teacher; None where it gave none that can be read.
        classes: of the facts of training chains; None: no classes.

    Raises:
        ValueError: parts are of different numbers of pairs.
    """
    if chains is not None and len(chains) != len(pairs):
        raise ValueError(f"signal_of: {len(chains)} chains of {len(pairs)} pairs; give one or None for each")
    cited: list[CitedSpans | None] | None = None
    query_facts: list[Facts | None] | None = None
    item_facts: list[Facts | None] | None = None
    if chains is not None:
        both = zip(pairs, chains, strict=True)
        cited = [None if chain is None else cited_spans(pair, chain) for pair, chain in both]
        query_facts = [None if chain is None else chain.query for chain in chains]
        item_facts = [None if chain is None else chain.item for chain in chains]
    return TeacherSignal.of(
        query_N,
        num_labels=len(LABELS),
        num_steps=len(STEPS),
        label_N=label_N,
        probabilities_NK=probabilities_NK,
        match_NA=None if chains is None else matches_of(chains),
        highlight=cited,
        query_class_NC=None if query_facts is None or classes is None else classes.of_facts(query_facts),
        item_class_NC=None if item_facts is None or classes is None else classes.of_facts(item_facts),
    )


def _class_value(name: str, facts: Facts) -> str:
    value: str = getattr(facts, name).lower()
    if name != "category":
        return " ".join(value.split())
    return singular(value.split()[-1]) if value.split() else ""


def _places(text: str, facts: Sequence[str]) -> tuple[Span, ...]:
    """Where the words of the facts stand; plural and singular, hyphens and capitals are alike."""
    wanted = {form for fact in facts for word in _WORD.findall(fact) for form in _forms(word)}
    return tuple(found.span() for found in _WORD.finditer(text) if wanted & _forms(found[0]))


def _forms(word: str) -> set[str]:
    return {squashed(word), squashed(singular(word.lower()))}
