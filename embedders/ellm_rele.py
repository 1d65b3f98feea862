"""ELLM-rele: a language model that judges relevance in steps, and whose certainty is the score (arXiv 2411.13045).

The model writes facts, comparisons and a label; the score is the expectation over the label's probabilities at the
label position, given the chain before it, averaged over chains (`embedders.label_tokens`).

What we keep: reasoning before the verdict, the steps, scores from output probabilities, self-consistency. What differs
[NF->P]: the form of the answer, and how it can be got:

    free         the paper's: m chains sampled token by token; one that cannot be parsed is drawn again, then given up
    constrained  m chains sampled too, but the fixed text of the form is fed, not written: only the values are the
                 model's, so every answer parses and the label position is known
    scored       nothing is sampled: facts are read by rules, the probabilities of all values of each step are read
                 off, and the m most probable chains are followed; 81 are all of them
    label_only   no reasoning: the label's probabilities right after the question; the comparison

A pair's draws depend on the seed and on the pair alone, so an answer does not change with the pairs beside it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from embedders.answer_form import AnswerForm
from embedders.causal_lm import CausalLM, GrowingRows, load_causal_lm
from embedders.chain_decoding import (
    Drawn,
    free_chains,
    labels_alone,
    most_probable_chains,
    random_of,
    sampled_chains,
)
from embedders.label_tokens import ATTEMPTS, TeacherAnswer, joined_answer
from embedders.relevance_prompts import PROMPT_VERSION, QueryItem
from embedders.title_facts import TitleReader

Decoding = Literal["free", "constrained", "scored", "label_only"]

_SETTINGS = "teacher.json"


class _Wanted(NamedTuple):
    """A chain to draw: of which pair, which of its chains, for which time."""

    pair: int
    chain: int
    attempt: int


class RelevanceTeacher:
    """A causal language model that answers `embedders.relevance_prompts`.

    Args:
        lm: pretrained, or trained by `embedders.fit_teacher`.
        reader: reads facts for `scored`; the one that the training chains were built with.
        rows_at_once: chains of one forward pass.

    Raises:
        ValueError: the model's tokenizer does not suit the form of the answers.
    """

    def __init__(self, lm: CausalLM, reader: TitleReader | None = None, *, rows_at_once: int = 32) -> None:
        if rows_at_once < 1:
            raise ValueError(f"RelevanceTeacher: rows_at_once must be 1 or more, got {rows_at_once}")
        self.lm, self.reader, self.rows_at_once = lm, reader or TitleReader(), rows_at_once
        self.form = AnswerForm(lm)

    def score(
        self,
        pairs: Sequence[QueryItem],
        *,
        decoding: Decoding = "constrained",
        num_chains: int = 5,
        temperature: float = 0.7,
        seed: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[TeacherAnswer]:
        """Judge pairs.

        Args:
            pairs: N queries with items.
            decoding: see the head of this file.
            num_chains: sampled for a pair; `scored`: most that are followed. `label_only` has one.
            temperature: of the draws; 0 takes the most probable token. It never bends the scores.
            seed: of the draws.
            on_progress: told of the number of pairs finished since the last call.

        Returns:
            One answer a pair, in their order. A pair of which no chain could be read is given back as failed.

        Raises:
            ValueError: num_chains or temperature is out of range.
        """
        if num_chains < 1 or temperature < 0:
            raise ValueError(
                f"score: expected num_chains >= 1 and temperature >= 0, got {num_chains} and {temperature}"
            )
        self.lm.model.eval()
        opening = GrowingRows.prefix(self.lm, self.form.instruction(label_only=decoding == "label_only"))
        answers: dict[int, TeacherAnswer] = {}
        at_once = self.rows_at_once if decoding == "label_only" else max(1, self.rows_at_once // num_chains)
        questions = [self.form.question(pair) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda number: len(questions[number]))
        for start in range(0, len(order), at_once):
            numbers = order[start : start + at_once]
            rows = opening.repeated(len(numbers))
            rows.feed([questions[number] for number in numbers])
            batch = [pairs[number] for number in numbers]
            if decoding in ("free", "constrained"):
                drawn = self._sampled(rows, batch, decoding == "free", num_chains, temperature, seed)
            elif decoding == "scored":
                facts = [(self.reader.query(p).facts(), self.reader.item(p).facts(p.category)) for p in batch]
                drawn = most_probable_chains(self.form, rows, facts, num_chains)
            else:
                drawn = [[one] for one in labels_alone(self.form, rows)]
            for number, of_pair in zip(numbers, drawn, strict=True):
                answers[number] = self._joined(of_pair, decoding, num_chains, len(questions[number]))
            if on_progress:
                on_progress(len(numbers))
        return [answers[number] for number in range(len(pairs))]

    def _sampled(
        self, rows: GrowingRows, pairs: list[QueryItem], free: bool, num_chains: int, temperature: float, seed: int
    ) -> list[list[Drawn]]:
        """All answers drawn for each pair, unreadable ones included."""
        drawn: list[list[Drawn]] = [[] for _ in pairs]
        wanted = [_Wanted(pair, chain, 0) for pair in range(len(pairs)) for chain in range(num_chains)]
        while wanted:
            again = []
            for start in range(0, len(wanted), self.rows_at_once):
                now = wanted[start : start + self.rows_at_once]
                some = rows.repeated(1)
                some.select([one.pair for one in now])
                randoms = [random_of(pairs[one.pair], seed, one.chain, one.attempt) for one in now]
                write = free_chains if free else sampled_chains
                for one, answer in zip(now, write(self.form, some, randoms, temperature), strict=True):
                    drawn[one.pair].append(answer)
                    # the most probable answer does not change by asking again
                    if answer.chain is None and temperature > 0 and one.attempt + 1 < ATTEMPTS:
                        again.append(one._replace(attempt=one.attempt + 1))
            wanted = again
        return drawn

    @staticmethod
    def _joined(drawn: list[Drawn], decoding: Decoding, num_chains: int, num_question: int) -> TeacherAnswer:
        # the chains of a scored pair share one reading, whose tokens each of them tells whole
        num_tokens = drawn[0].num_tokens if decoding == "scored" else sum(one.num_tokens for one in drawn)
        return joined_answer(
            [one.chain for one in drawn if one.chain is not None],
            num_chains=num_chains if decoding in ("free", "constrained") else len(drawn),
            num_attempts=len(drawn),
            num_tokens=num_question + num_tokens,
            problems=[one.problem for one in drawn if one.chain is None],
        )

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that `load_teacher` and any other program of that format reads."""
        folder.mkdir(parents=True, exist_ok=True)
        self.lm.model.save_pretrained(folder)
        self.lm.tokenizer.save_pretrained(folder)
        settings = {"prompt_version": PROMPT_VERSION, "brands": sorted(self.reader.brands)}
        (folder / _SETTINGS).write_text(json.dumps(settings, ensure_ascii=False, indent=1))


def load_teacher(
    name_or_path: str,
    *,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str | None = None,
    rows_at_once: int = 32,
) -> RelevanceTeacher:
    """A teacher that was saved, or any language model of this machine as it is (zero-shot).

    Args:
        name_or_path, dtype, device: see `embedders.causal_lm.load_causal_lm`.
        rows_at_once: chains of one forward pass.

    Raises:
        ValueError: there is no such model, it does not suit, or it was trained on another version of the prompt.
    """
    lm = load_causal_lm(name_or_path, dtype=dtype, device=device)
    settings_file = Path(name_or_path).expanduser() / _SETTINGS
    brands: list[str] = []
    if settings_file.is_file():
        settings = json.loads(settings_file.read_text())
        if settings["prompt_version"] != PROMPT_VERSION:
            raise ValueError(
                f"load_teacher: {name_or_path} was trained on the prompt {settings['prompt_version']}, this is "
                f"{PROMPT_VERSION}. Train it again, or use the version of this project it was trained with."
            )
        brands = settings["brands"]
    return RelevanceTeacher(lm, TitleReader(frozenset(brands)), rows_at_once=rows_at_once)
