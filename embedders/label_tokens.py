"""From the tokens of answers and their log-probabilities to a relevance score (ELLM-rele).

The arithmetic alone, whoever produced the tokens: a model on this machine, or an endpoint that gives token
log-probabilities (`logprobs` and `top_logprobs` of the OpenAI-compatible ones).

    p_k   = softmax over the labels' tokens at the label position, given the chain before it
    score = sum_k k / (K - 1) * mean over the m chains of p_k            # p_good for two labels

arXiv 2411.13045 makes scores of the teacher's output probabilities; the formula and the mean over sampled chains are
our reading [NF->P]. Letters: K labels from worst to best, P tokens of an answer, C chains of a pair.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedders.relevance_prompts import LABELS, Label, Reasoning, parse, parse_label_only

ATTEMPTS = 3
"""Answers drawn for one chain before it is given up."""

_LABEL_VALUE = re.compile(r'"label"\s*:\s*"(?P<value>[^"]*)"\s*\}\s*$')


class LabelPlace(NamedTuple):
    """Where the label of an answer begins.

    Attributes:
        token: number of the token in which its first letter lies.
        before: what that token says before the letter, e.g. the quotation mark.
    """

    token: int
    before: str


class Chain(NamedTuple):
    """One answer that could be read.

    Attributes:
        label: what it says.
        probabilities_K: of the labels at the label position, whatever was said; adds up to 1.
        reasoning: None where only the label was asked for.
        weight: of this chain among those of the pair; sampled chains weigh the same.
    """

    label: Label
    probabilities_K: NDArray[np.float64]
    reasoning: Reasoning | None
    weight: float = 1.0


@dataclass(frozen=True)
class TeacherAnswer:
    """What a teacher says of one pair.

    Attributes:
        score: 0 to 1, higher is more relevant; None where no answer could be read (nothing is guessed), and of rules,
            which know no certainty.
        probabilities: of the labels from worst to best, a mean over chains; None where there is no score.
        label: what most chains say; None where no answer could be read.
        reasoning: the steps on which most chains of that label agree, by the first such chain; None where no answer
            could be read, or where only the label was asked for.
        agreement: share (by weight) of the readable chains that say `label`; None where no answer could be read.
        num_chains: chains asked for.
        num_parsed: chains that could be read.
        num_attempts: answers drawn for them, repeats of unreadable ones included.
        num_tokens: read and written for this pair. What many pairs share is not counted, but an endpoint counts all
            that it reads.
        problems: why answers could not be read.
    """

    score: float | None
    probabilities: tuple[float, ...] | None
    label: Label | None
    reasoning: Reasoning | None
    agreement: float | None
    num_chains: int
    num_parsed: int
    num_attempts: int
    num_tokens: int
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """No chain could be read, so there is no label."""
        return self.label is None


def expected_score(probabilities_K: NDArray[np.float64]) -> float:
    """The mean grade, scaled to [0, 1]: 0 when the worst label is certain, 1 when the best is.

    Args:
        probabilities_K: of K >= 2 labels from worst to best; add up to 1.
    """
    grades_K = np.arange(len(probabilities_K)) / (len(probabilities_K) - 1)
    return float(np.clip(probabilities_K @ grades_K, 0.0, 1.0))  # sums of float64 may end a digit beyond


def label_place(pieces: Sequence[str]) -> LabelPlace:
    """Find the token in which the label of an answer begins, whatever comes before it.

    Args:
        pieces: the texts of the P tokens; together they are the answer.

    Raises:
        ValueError: the answer does not end in a label.
    """
    answer = "".join(pieces)
    found = _LABEL_VALUE.search(answer)
    if found is None:
        raise ValueError(f'label_place: expected an answer that ends in "label":"...", got ...{answer[-60:]!r}')
    begin, start = found.start("value"), 0
    for number, piece in enumerate(pieces):
        if start + len(piece) > begin:
            return LabelPlace(number, piece[: begin - start])
        start += len(piece)
    raise AssertionError("the pattern found a place inside the answer")


def label_of_token(token: str, before: str = "", labels: Sequence[str] = LABELS) -> int | None:
    """Number of the label that a token begins at the label position; None: of none, or of several.

    A token may hold all of a label or its first letters, after `before`, and the marks that close the answer.
    """
    if not token.startswith(before):
        return None
    rest = token[len(before) :]
    letters = rest.rstrip('"} \r\n')
    if not letters:
        return None
    fits = [k for k, name in enumerate(labels) if name == letters or (rest == letters and name.startswith(letters))]
    return fits[0] if len(fits) == 1 else None


def label_probabilities(
    alternatives: Mapping[str, float], before: str = "", labels: Sequence[str] = LABELS
) -> NDArray[np.float64]:
    """Probabilities [K] of the labels, by the tokens that could stand at the label position.

    Args:
        alternatives: log-probabilities (or logits: only differences count) by token text. A label of which no token is
            among them gets 0: ask an endpoint for enough alternatives.
        before: see `LabelPlace`.
        labels: from worst to best.

    Raises:
        ValueError: none of the tokens begins a label.
    """
    logs: list[list[float]] = [[] for _ in labels]
    for token, log_probability in alternatives.items():
        k = label_of_token(token, before, labels)
        if k is not None and log_probability > -np.inf:
            logs[k].append(log_probability)
    highest = max((max(of_label) for of_label in logs if of_label), default=None)
    if highest is None:
        some = ", ".join(repr(token) for token in list(alternatives)[:5])
        raise ValueError(
            f"label_probabilities: none of the {len(alternatives)} tokens at the label position begins one of "
            f"{', '.join(labels)}; they are {some}. Ask for more alternatives."
        )
    masses_K = np.array([sum(np.exp(log - highest) for log in of_label) for of_label in logs], np.float64)
    return masses_K / masses_K.sum()


def read_chain(
    pieces: Sequence[str], alternatives: Sequence[Mapping[str, float]], *, label_only: bool = False
) -> Chain:
    """An answer and what the model gave to each label where it wrote its own.

    Args:
        pieces: the texts of the P tokens of the answer, without special tokens.
        alternatives: for each of them the log-probabilities of the tokens that could have stood there.
        label_only: the answer is without reasoning.

    Raises:
        ValueError: the answer cannot be parsed, or no label is among the alternatives.
    """
    answer = "".join(pieces)
    reasoning = None if label_only else parse(answer)
    label = parse_label_only(answer) if reasoning is None else reasoning.label
    place = label_place(pieces)
    return Chain(label, label_probabilities(alternatives[place.token], place.before), reasoning)


def joined_answer(
    chains: Sequence[Chain], *, num_chains: int, num_attempts: int, num_tokens: int, problems: Sequence[str] = ()
) -> TeacherAnswer:
    """One answer of the C chains of a pair: mean probabilities, the label and the steps of the majority (by weight).

    Where two labels have the same weight, the one with the higher mean probability wins; then the worse.
    """
    if not chains:
        return TeacherAnswer(None, None, None, None, None, num_chains, 0, num_attempts, num_tokens, tuple(problems))
    weights_C = np.array([chain.weight for chain in chains], np.float64)
    weights_C /= weights_C.sum()
    probabilities_K = weights_C @ np.stack([chain.probabilities_K for chain in chains])
    said_K = [
        sum(weight for weight, chain in zip(weights_C, chains, strict=True) if chain.label == name) for name in LABELS
    ]
    winner = max(range(len(LABELS)), key=lambda k: (round(said_K[k], 12), probabilities_K[k], -k))
    steps: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for weight, chain in zip(weights_C, chains, strict=True):
        if chain.label == LABELS[winner] and chain.reasoning is not None:
            steps[chain.reasoning.matches()] += weight
    reasoning = None
    if steps:
        usual = max(steps, key=lambda matches: steps[matches])
        reasoning = next(
            chain.reasoning
            for chain in chains
            if chain.reasoning and chain.label == LABELS[winner] and chain.reasoning.matches() == usual
        )
    return TeacherAnswer(
        score=expected_score(probabilities_K),
        probabilities=tuple(float(p) for p in probabilities_K),
        label=LABELS[winner],
        reasoning=reasoning,
        agreement=float(min(1.0, said_K[winner])),
        num_chains=num_chains,
        num_parsed=len(chains),
        num_attempts=num_attempts,
        num_tokens=num_tokens,
        problems=tuple(problems),
    )


def parse_rate(answers: Iterable[TeacherAnswer]) -> float:
    """Readable answers as a share of all that were drawn, repeats included; NaN where none was drawn."""
    parsed = attempts = 0
    for answer in answers:
        parsed, attempts = parsed + answer.num_parsed, attempts + answer.num_attempts
    return parsed / attempts if attempts else float("nan")
