"""A relevance teacher on this machine: batches of pairs, so that a killed job loses one batch, within a budget."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedders.fingerprint import sha256_of_files
from embedders.label_tokens import ATTEMPTS
from embedders.model_files import find_model_files
from embedders.relevance_prompts import PROMPT_VERSION, STEPS, QueryItem
from embedders.title_facts import TitleReader
from jobs.relevance.disclosed_text import Disclosure
from jobs.relevance.token_budget import TokenBudget

if TYPE_CHECKING:
    from embedders.ellm_rele import Decoding, RelevanceTeacher
    from jobs.relevance.teachers import OnAnswer, TeacherConfig

PAIRS_AT_ONCE = 64
"""Pairs that are judged before their answers are handed on: what a killed job loses at most."""


CATALOGUE = "catalogue"
"""Part `reader` of the identity of a teacher for which rules read facts, with the names of the lake's brands."""


class LocalTeacher:
    """A language model of this machine.

    Args:
        load: reads the model; called when the first pair is asked about, so that a run that finds all answers in the
            cache does without.
        weights: identity of what `load` reads: weights, tokenizer, number format, brands.
        decoding, num_chains, temperature, seed: see `embedders.ellm_rele.RelevanceTeacher.score`.
        disclosure: what of a pair is read.
        reader: of the catalogue, where `scored` reads facts with it; None: the model has one of its own.
        pairs_at_once: judged between two calls of `on_answer`.
    """

    def __init__(
        self,
        load: "Callable[[], RelevanceTeacher]",
        weights: dict[str, str],
        *,
        decoding: "Decoding" = "constrained",
        num_chains: int = 5,
        temperature: float = 0.7,
        seed: int = 0,
        disclosure: Disclosure | None = None,
        reader: TitleReader | None = None,
        pairs_at_once: int = PAIRS_AT_ONCE,
    ) -> None:
        self._load, self._weights = load, weights
        self._decoding: Decoding = decoding
        self._num_chains, self._temperature, self._seed = num_chains, temperature, seed
        self.disclosure, self._reader, self._pairs_at_once = disclosure or Disclosure(), reader, pairs_at_once
        self._loaded: RelevanceTeacher | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What does not matter to a way of decoding is left out: nothing is asked anew for it."""
        draws: dict[str, Any] = {}
        if self._decoding != "label_only":
            draws["num_chains"] = self._num_chains
        if self._decoding in ("free", "constrained"):
            draws |= {"temperature": float(self._temperature), "seed": self._seed if self._temperature else 0}
        told = {name: str(value) for name, value in draws.items()}
        return {"kind": "local", "prompt": PROMPT_VERSION, "decoding": self._decoding, **told, **self._weights}

    def facts(self, pair: QueryItem) -> tuple[str, ...]:
        """See `jobs.relevance.teachers.Teacher`."""
        return () if self._reader is None else facts_read(self._reader, pair)

    def answers(self, pairs: Sequence[QueryItem], *, on_answer: "OnAnswer", budget: TokenBudget) -> None:
        """Judge pairs, batch by batch, as many as fit into the budget; see `jobs.relevance.teachers.Teacher`."""
        self._loaded = teacher = self._loaded or self._load()
        start = 0
        while start < len(pairs):
            reserved, end = 0, start
            for pair in pairs[start : start + self._pairs_at_once]:
                most = most_tokens(teacher, pair, self._decoding, self._num_chains)
                if not budget.reserve(most, wait=end == start):
                    break
                reserved, end = reserved + most, end + 1
            if end == start:
                return
            used = 0
            try:
                answers = teacher.score(
                    pairs[start:end],
                    decoding=self._decoding,
                    num_chains=self._num_chains,
                    temperature=self._temperature,
                    seed=self._seed,
                )
                used = sum(answer.num_tokens for answer in answers)
            finally:
                budget.settle(reserved, used)
            for number, answer in enumerate(answers, start):
                on_answer(number, answer)
            start = end


def most_tokens(teacher: "RelevanceTeacher", pair: QueryItem, decoding: "Decoding", num_chains: int) -> int:
    """The most that `num_tokens` of the pair's answer can be."""
    from embedders.chain_decoding import MAX_FACT_TOKENS, MAX_FREE_TOKENS, NUM_FACTS

    form = teacher.form
    question = len(form.question(pair))
    pieces = [len(piece) for piece in form.chain_pieces[:-1]]
    match = max(len(tokens) for tokens in form.matches)
    if decoding == "label_only":
        return question + len(form.label_only_pieces[0])
    if decoding == "free":
        return question + num_chains * ATTEMPTS * MAX_FREE_TOKENS
    if decoding == "constrained":
        return question + num_chains * (sum(pieces) + NUM_FACTS * MAX_FACT_TOKENS + len(STEPS) * match)
    read = [teacher.reader.query(pair).facts(), teacher.reader.item(pair).facts(pair.category)]
    facts = sum(len(teacher.lm.tokens(value)) for each in read for value in each.values())
    followed = sum(
        min(num_chains, 3 ** (step + 1)) * (match + length) for step, length in enumerate(pieces[NUM_FACTS + 1 :])
    )
    return question + facts + sum(pieces[: NUM_FACTS + 1]) + followed


def open_local(config: "TeacherConfig", *, reader: TitleReader, disclosure: Disclosure) -> LocalTeacher:
    """The model that settings name; see `jobs.relevance.teachers.open_teacher`."""
    files = find_model_files(config.model)
    # the brands that a trained teacher's chains were built with
    trained_with = None if files.gguf_file else _existing(files.folder / "teacher.json")

    def load() -> "RelevanceTeacher":
        from embedders.ellm_rele import load_teacher  # here: torch takes seconds to import

        teacher = load_teacher(config.model, dtype=config.dtype, rows_at_once=config.rows_at_once)
        if trained_with is None:
            teacher.reader = reader
        return teacher

    weights = {
        "model": files.model_id,
        "weights": sha256_of_files(files.weights),
        "tokenizer": sha256_of_files(files.tokenizer),
        "dtype": _dtype_here() if config.dtype == "auto" else config.dtype,
    }
    is_scored = config.decoding == "scored"  # where rules read the facts
    if is_scored and trained_with:
        brands = json.loads(trained_with.read_text())["brands"]
        weights["brands"] = hashlib.sha256("\n".join(sorted(brands)).encode()).hexdigest()
    elif is_scored:
        weights["reader"] = CATALOGUE
    return LocalTeacher(
        load,
        weights,
        decoding=config.decoding or "constrained",
        num_chains=config.num_chains,
        temperature=config.temperature,
        seed=config.seed,
        disclosure=disclosure,
        reader=reader if is_scored and trained_with is None else None,
    )


def facts_read(reader: TitleReader, pair: QueryItem) -> tuple[str, ...]:
    """All that rules read off a pair."""
    return repr(reader.query(pair)), repr(reader.item(pair))


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _dtype_here() -> str:
    """What `auto` is on this machine (`embedders.causal_lm.load_causal_lm`)."""
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"
