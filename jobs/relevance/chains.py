"""The chains that a relevance teacher is trained on: annotators judge judged pairs, and what they agree on is kept.

ELLM-rele (arXiv 2411.13045): two large models write k chains for each pair, and a pair is kept where most chains of
both say what people said and where the two agree on the steps. The chain that is kept is the first annotator's, of its
majority.

Rules may be an annotator, too, where no large model is at hand. That is ours, not the paper's [NF->P], and so is that
they are told what people said: their chains are built from item attributes and human labels, so they never disagree
with people, and what they add beside a model is that its steps must agree with what the texts say literally.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from embedders.built_chains import built_chain
from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import Label, QueryItem, Reasoning, parse
from embedders.title_facts import TitleReader
from feature_repo.table_schemas import RelevanceChains
from jobs.progress import progress_bar
from jobs.relevance.answers import Asking
from jobs.relevance.pairs import PAIR
from jobs.relevance.teachers import TeacherConfig, ask

logger = logging.getLogger(__name__)


class Agreement(NamedTuple):
    """What became of the pairs that annotators were asked about; each is counted once, at the first that applies.

    Attributes:
        asked: all of them.
        left: an annotator was not asked, because the budget was spent before.
        unreadable: an annotator gave no chain that could be read.
        against_people: most chains of an annotator say what people did not say.
        against_each_other: the annotators' steps differ.
        kept: none of these.
    """

    asked: int
    left: int
    unreadable: int
    against_people: int
    against_each_other: int
    kept: int

    def __str__(self) -> str:
        asked, left, unreadable, people, other, kept = (f"{number:_}" for number in self)
        return (
            f"{kept} of {asked} pairs kept; left out: {unreadable} unreadable, {people} against people, {other} on "
            f"which the annotators differ, {left} not asked about"
        )


class KeptChains(NamedTuple):
    """What the annotators agree on.

    Attributes:
        pairs: all that they were asked about, with `side`.
        texts: what they read, in that order.
        chains: rows of `RelevanceChains`.
        agreement: what became of the pairs.
    """

    pairs: pl.DataFrame
    texts: Sequence[QueryItem]
    chains: pl.DataFrame
    agreement: Agreement

    def of(self, side: str) -> list[tuple[QueryItem, Reasoning]]:
        """Pairs of a side with their chains, in the order in which they were asked about."""
        line_of = {(query, item): line for query, item, line in self.chains.select(*PAIR, "chain").iter_rows()}
        keys = self.pairs.select(*PAIR, "side").iter_rows()
        return [
            (text, parse(line_of[query, item]))
            for (query, item, of_side), text in zip(keys, self.texts, strict=True)
            if of_side == side and (query, item) in line_of
        ]

    def check_complete(self) -> None:
        """Stop where a teacher would be trained on a part of the chains only to be trained again on all of them.

        Raises:
            ValueError: the budget was spent before all pairs were annotated.
        """
        if self.agreement.left:
            raise ValueError(
                f"label_relevance: the budget of tokens was spent before {self.agreement.left:_} of "
                f"{self.agreement.asked:_} pairs were annotated, so the teacher was not fine-tuned.\n"
                "  what to do: run it again (it goes on with the pairs left, answers so far are kept), raise "
                "max_tokens, or lower max_annotated_pairs"
            )


def annotate(
    asking: Asking, annotators: Sequence[TeacherConfig], pairs: pl.DataFrame, *, metadata: Mapping[str, Any]
) -> KeptChains:
    """Ask the annotators about judged pairs and write `relevance_chains`.

    Args:
        asking: what there is to ask with.
        annotators: one or two.
        pairs: judged ones, as `jobs.relevance.pairs` gives them.
        metadata: of the manifest; who the annotators are and what became of the pairs is added.
    """
    texts, labels = asking.texts(pairs), pairs.get_column("human_label").to_list()
    identities: list[Mapping[str, str]] = []
    answers: list[list[TeacherAnswer | None]] = []
    used_before = asking.budget.used
    for number, config in enumerate(annotators, start=1):
        annotator = asking.open(config)
        name = f"label_relevance: annotator {number} ({config.kind})"
        with progress_bar(name, total=len(texts), unit="pairs") as advance:
            if config.kind == "rules":
                identities.append({**annotator.identity, "told": "what people said"})
                answers.append([_told(text, label, asking.reader) for text, label in zip(texts, labels, strict=True)])
                advance(len(texts))
            else:
                identities.append(annotator.identity)
                answers.append(ask(annotator, texts, asking.cache, asking.budget, advance))
    chains, agreement = agreed_chains(pairs, answers)
    asking.lake.write(RelevanceChains, chains, metadata={**metadata, "annotators": identities, **agreement._asdict()})
    logger.info(
        "label_relevance: annotators (%s): %s, %s tokens",
        ", ".join(config.kind for config in annotators),
        agreement,
        f"{asking.budget.used - used_before:_}",
    )
    return KeptChains(pairs, texts, chains, agreement)


def _told(pair: QueryItem, label: Label, reader: TitleReader) -> TeacherAnswer:
    return TeacherAnswer(
        score=None,
        probabilities=None,
        label=label,
        reasoning=built_chain(pair, label, reader=reader),
        agreement=1.0,
        num_chains=1,
        num_parsed=1,
        num_attempts=1,
        num_tokens=0,
    )


def agreed_chains(
    pairs: pl.DataFrame, annotations: Sequence[Sequence[TeacherAnswer | None]]
) -> tuple[pl.DataFrame, Agreement]:
    """Rows of `RelevanceChains`: the pairs on which all annotators agree with people and with each other.

    Args:
        pairs: query_id, item_id and human_label.
        annotations: of each annotator, one answer a pair.
    """
    rows = []
    left = unreadable = against_people = against_each_other = 0
    keys = pairs.select("query_id", "item_id", "human_label").iter_rows()
    for (query_id, item_id, human_label), *answers in zip(keys, *annotations, strict=True):
        given = [answer for answer in answers if answer is not None]
        chains = [answer.reasoning for answer in given if answer.reasoning is not None]
        if len(given) < len(answers):
            left += 1
        elif len(chains) < len(answers):
            unreadable += 1
        elif any(answer.label != human_label for answer in given):
            against_people += 1
        elif len({chain.matches() for chain in chains}) > 1:
            against_each_other += 1
        else:
            num_chains = sum(answer.num_chains for answer in given)
            that_say_so = sum((answer.agreement or 0.0) * answer.num_parsed for answer in given)
            rows.append((query_id, item_id, chains[0].line(), human_label, that_say_so / num_chains, num_chains))
    frame = pl.DataFrame(rows, schema=dict(RelevanceChains.create_empty().schema), orient="row")
    agreement = Agreement(len(pairs), left, unreadable, against_people, against_each_other, len(frame))
    return frame, agreement
