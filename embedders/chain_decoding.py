"""How the tokens of a chain are chosen: sampled freely, sampled inside the form, or scored without sampling.

Every function takes rows that have just read their questions, and gives chains in the order of the rows. Label
probabilities are always those of the model itself: the temperature bends what is drawn, never what is scored.

Letters: R rows, V vocabulary, B pairs.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.answer_form import AnswerForm
from embedders.causal_lm import GrowingRows
from embedders.label_tokens import Chain, label_place, read_chain
from embedders.relevance_prompts import LABELS, MATCHES, STEPS, Facts, QueryItem, Reasoning, fact

MAX_FACT_TOKENS = 24
"""A fact that goes on is closed."""

MAX_FREE_TOKENS = 256
"""An answer that goes on is cut, and so cannot be parsed."""

LEAST_WEIGHT = 1e-4
"""A chain that is less likely is not followed."""

NUM_FACTS = 2 * len(STEPS)


class Drawn(NamedTuple):
    """One chain as it came.

    Attributes:
        chain: None where the answer could not be read.
        num_tokens: of the answer, as written or fed.
        problem: why it could not be read; empty where it could.
    """

    chain: Chain | None
    num_tokens: int
    problem: str = ""


def random_of(pair: QueryItem, seed: int, chain: int, attempt: int = 0) -> np.random.Generator:
    """The source of one chain's draws: the same for the same pair, whatever stands beside it."""
    told = json.dumps([*pair, seed, chain, attempt]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(told).digest()[:16], "big"))


def drawn_tokens(
    logits_RV: Tensor, allowed_V: Tensor, randoms: Sequence[np.random.Generator | None], temperature: float
) -> list[int]:
    """One allowed token a row, from softmax(logits / temperature); temperature 0: the most probable.

    Rows without a source of draws are left out: their token is -1.
    """
    allowed_RV = logits_RV.masked_fill(~allowed_V, -torch.inf)
    if temperature == 0:
        best = allowed_RV.argmax(dim=1).tolist()
        return [-1 if random is None else token for token, random in zip(best, randoms, strict=True)]
    tokens = []
    for logits_V, random in zip(allowed_RV, randoms, strict=True):
        if random is None:
            tokens.append(-1)
            continue
        sums_V = torch.softmax(logits_V.double() / temperature, dim=0).cumsum(dim=0)
        at = torch.searchsorted(sums_V, random.random() * sums_V[-1], right=True)
        tokens.append(int(at.clamp(max=len(sums_V) - 1)))
    return tokens


def free_chains(
    form: AnswerForm, rows: GrowingRows, randoms: Sequence[np.random.Generator], temperature: float
) -> list[Drawn]:
    """The model writes every letter; what it wrote is then parsed."""
    written: list[list[int]] = [[] for _ in randoms]
    alternatives: list[list[dict[str, float]]] = [[] for _ in randoms]
    open_rows: list[np.random.Generator | None] = list(randoms)
    for _ in range(MAX_FREE_TOKENS):
        tokens = drawn_tokens(rows.logits_BV, form.in_text_mask, open_rows, temperature)
        for row, token in enumerate(tokens):
            if open_rows[row] is None:
                continue
            if token in form.lm.end:
                open_rows[row] = None
                continue
            alternatives[row].append(form.label_alternatives(rows.logits_BV[row]))
            written[row].append(token)
            if _is_over(form, written[row]):
                open_rows[row] = None
        if not any(open_rows):
            break
        rows.feed([[token] if open_rows[row] else [] for row, token in enumerate(tokens)])
    return [_read(form, ids, tops) for ids, tops in zip(written, alternatives, strict=True)]


def _is_over(form: AnswerForm, ids: list[int]) -> bool:
    newest = form.lm.vocabulary[ids[-1]] or ""
    if "\n" in newest and form.lm.text(ids).strip():
        return True
    if "}" not in newest:
        return False
    try:
        label_place([form.lm.text(ids)])
    except ValueError:
        return False
    return True


def _read(form: AnswerForm, ids: list[int], alternatives: list[dict[str, float]]) -> Drawn:
    try:
        return Drawn(read_chain(form.lm.pieces(ids), alternatives), len(ids))
    except ValueError as error:
        return Drawn(None, len(ids), str(error))


def sampled_chains(
    form: AnswerForm, rows: GrowingRows, randoms: Sequence[np.random.Generator], temperature: float
) -> list[Drawn]:
    """The form is fed, the model writes the values: facts up to their closing mark, comparisons and label by choice."""
    before = rows.lengths
    values: list[list[str]] = [[] for _ in randoms]
    last: list[Sequence[int]] = [[] for _ in randoms]
    for number, piece in enumerate(form.chain_pieces[:-1]):
        rows.feed([[*value, *piece] for value in last])
        if number < NUM_FACTS:
            for row, ids in enumerate(_written_facts(form, rows, randoms, temperature)):
                values[row].append(fact(form.lm.text(ids)))
            last = [[] for _ in randoms]
        elif number < NUM_FACTS + len(STEPS):
            tokens = drawn_tokens(rows.logits_BV, form.match_start_mask, randoms, temperature)
            chosen = [form.match_starts.index(token) for token in tokens]
            last = [form.matches[choice] for choice in chosen]
            for row, choice in enumerate(chosen):
                values[row].append(MATCHES[choice])
    drawn = []
    for row, random in enumerate(randoms):
        probabilities_K = form.label_probabilities(rows.logits_BV[row])
        label = LABELS[_label_drawn(probabilities_K, random, temperature)]
        chain = Chain(label, probabilities_K, Reasoning.of_values([*values[row], label]))
        drawn.append(Drawn(chain, rows.lengths[row] - before[row]))
    return drawn


def _written_facts(
    form: AnswerForm, rows: GrowingRows, randoms: Sequence[np.random.Generator], temperature: float
) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in randoms]
    open_rows: list[np.random.Generator | None] = list(randoms)
    for _ in range(MAX_FACT_TOKENS):
        tokens = drawn_tokens(rows.logits_BV, form.closing_mask | form.in_fact_mask, open_rows, temperature)
        for row, token in enumerate(tokens):
            if open_rows[row] is None:
                continue
            if form.closing_mask[token]:
                open_rows[row] = None
            else:
                written[row].append(token)
        if not any(open_rows):
            break
        rows.feed([[token] if open_rows[row] else [] for row, token in enumerate(tokens)])
    return written


def _label_drawn(probabilities_K: NDArray[np.float64], random: np.random.Generator, temperature: float) -> int:
    if temperature == 0:
        return int(probabilities_K.argmax())
    bent_K = np.exp(np.log(np.maximum(probabilities_K, 1e-300)) / temperature)
    return int(
        np.searchsorted(np.cumsum(bent_K / bent_K.sum()), random.random(), side="right").clip(0, len(LABELS) - 1)
    )


class _Path(NamedTuple):
    """Comparisons so far: their log-probability, values, and the row that has read them."""

    log_probability: float
    matches: tuple[int, ...]
    row: int


def most_probable_chains(
    form: AnswerForm, rows: GrowingRows, facts: Sequence[tuple[Facts, Facts]], num_chains: int
) -> list[list[Drawn]]:
    """Nothing is sampled: the given facts are read, then the likeliest comparisons are followed, step by step.

    A value's probability is among the three that a comparison can have. The weight of a chain is the product over its
    steps; the chains of a pair are weighed among those followed. All 81 of them give the exact sum.

    Args:
        facts: of query and item, for each of the B rows.
        num_chains: most chains followed of one pair.

    Returns:
        the chains of each pair, the likeliest first.
    """
    pairs, before = range(len(facts)), rows.lengths
    pieces = form.chain_pieces
    said = [[*query.values(), *item.values()] for query, item in facts]
    rows.feed(
        [
            [id for piece, value in zip(pieces, values, strict=False) for id in (*piece, *form.lm.tokens(value))]
            for values in said
        ]
    )
    rows.feed([pieces[NUM_FACTS]] * len(facts))
    num_tokens = [after - first for after, first in zip(rows.lengths, before, strict=True)]
    paths = [[_Path(0.0, (), row)] for row in pairs]
    for step in range(len(STEPS)):
        logs_RM = torch.log_softmax(rows.logits_BV[:, form.match_starts].double(), dim=1).cpu().numpy()
        for pair in pairs:
            grown = [
                _Path(path.log_probability + float(log), (*path.matches, value), path.row)
                for path in paths[pair]
                for value, log in enumerate(logs_RM[path.row])
            ]
            grown.sort(key=lambda path: -path.log_probability)
            likely = [path for path in grown if path.log_probability > np.log(LEAST_WEIGHT)]
            paths[pair] = (likely or grown[:1])[:num_chains]
        followed = [path for of_pair in paths for path in of_pair]
        rows.select([path.row for path in followed])
        fed = [(*form.matches[path.matches[-1]], *pieces[NUM_FACTS + 1 + step]) for path in followed]
        rows.feed(fed)
        row = 0
        for pair in pairs:
            num_tokens[pair] += sum(len(fed[row + place]) for place in range(len(paths[pair])))
            paths[pair] = [path._replace(row=row + place) for place, path in enumerate(paths[pair])]
            row += len(paths[pair])
    return [
        [_scored(form, rows.logits_BV[path.row], said[pair], path, num_tokens[pair]) for path in paths[pair]]
        for pair in pairs
    ]


def _scored(form: AnswerForm, logits_V: Tensor, said: list[str], path: _Path, num_tokens: int) -> Drawn:
    probabilities_K = form.label_probabilities(logits_V)
    label = LABELS[int(probabilities_K.argmax())]
    reasoning = Reasoning.of_values([*said, *(MATCHES[value] for value in path.matches), label])
    return Drawn(Chain(label, probabilities_K, reasoning, weight=float(np.exp(path.log_probability))), num_tokens)


def labels_alone(form: AnswerForm, rows: GrowingRows) -> list[Drawn]:
    """Without reasoning: the label's probabilities right after the question."""
    piece = form.label_only_pieces[0]
    rows.feed([piece] * len(rows))
    drawn = []
    for logits_V in rows.logits_BV:
        probabilities_K = form.label_probabilities(logits_V)
        drawn.append(Drawn(Chain(LABELS[int(probabilities_K.argmax())], probabilities_K, None), len(piece)))
    return drawn
