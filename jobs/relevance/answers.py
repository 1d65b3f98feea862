"""Asks a relevance teacher about pairs, shard by shard, and keeps what it says: table, quarantine, audit sheet."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import STEPS, QueryItem
from embedders.title_facts import TitleReader
from feature_repo.table_schemas import RelevanceAnswers
from jobs.admission import BROKEN_RULES
from jobs.lake import Lake, TableError
from jobs.progress import progress_bar
from jobs.relevance.answer_cache import AnswerCache
from jobs.relevance.audit_sheet import drawn, write_audit_sheet
from jobs.relevance.disclosed_text import Disclosure, disclosed
from jobs.relevance.pairs import query_items
from jobs.relevance.teachers import Teacher, TeacherConfig, addresses_of, ask, open_teacher
from jobs.relevance.token_budget import TokenBudget

logger = logging.getLogger(__name__)

PAIRS_AT_ONCE = 5_000
"""Pairs of one shard: what is in memory at once."""

AUDIT_SHEET = "relevance_audit.csv"

UNREADABLE = "unreadable"
"""The rule that such an answer breaks, in the quarantine."""


class Asking(NamedTuple):
    """What all who are asked share.

    Attributes:
        lake: where the texts are.
        reader: of rules, and of models that leave reading to rules.
        disclosure: what may be read.
        cache: of answers.
        budget: of the run.
    """

    lake: Lake
    reader: TitleReader
    disclosure: Disclosure
    cache: AnswerCache
    budget: TokenBudget

    def open(self, config: TeacherConfig) -> Teacher:
        """A teacher that reads what may be read."""
        return open_teacher(config, reader=self.reader, disclosure=self.disclosure)

    def texts(self, pairs: pl.DataFrame) -> list[QueryItem]:
        """What may be read of pairs."""
        return [disclosed(pair, self.disclosure) for pair in query_items(self.lake, pairs)]


class _Counts(NamedTuple):
    """Of pairs: by whether people judged them, and of those by side; how often the teacher says the same."""

    answered: int = 0
    unreadable: int = 0
    left: int = 0
    judged: int = 0
    agreed: int = 0
    test: int = 0
    agreed_test: int = 0

    def __add__(self, other: "_Counts") -> "_Counts":  # type: ignore[override]
        return _Counts(*(mine + its for mine, its in zip(self, other, strict=True)))


def keep_answers(
    asking: Asking,
    config: TeacherConfig,
    pairs: pl.DataFrame,
    *,
    max_unreadable_share: float,
    metadata: Mapping[str, Any],
    seed: int,
) -> None:
    """Write `relevance_answers` anew (what has been asked before is read from the cache), then the audit sheet.

    Args:
        asking: what there is to ask with.
        config: who is asked.
        pairs: about what, as `jobs.relevance.pairs` gives them; the first are asked about first.
        max_unreadable_share: of answers; with more, the old table stays.
        metadata: of the manifest.
        seed: of the audit sheet.

    Raises:
        ValueError: too many answers could not be read.
    """
    teacher = asking.open(config)
    counts, problems, used_before = _Counts(), [], asking.budget.used
    try:
        with (
            asking.lake.writer(
                RelevanceAnswers,
                fingerprint=teacher.identity,
                metadata=metadata,
                max_quarantined_share=max_unreadable_share,
            ) as writer,
            progress_bar(f"label_relevance: teacher ({config.kind})", total=len(pairs), unit="pairs") as advance,
        ):
            for some in pairs.iter_slices(PAIRS_AT_ONCE):
                texts = asking.texts(some)
                addresses = addresses_of(teacher, texts)
                answers = ask(teacher, texts, asking.cache, asking.budget, advance, addresses=addresses)
                writer.write_shard(_rows(some, answers, addresses))
                unreadable = _unreadable_rows(some, texts, answers, addresses)
                if not unreadable.is_empty():
                    writer.refuse(unreadable)
                    problems += unreadable.get_column("problems").explode().drop_nulls().head(3).to_list()
                counts += _counted(some, answers)
            writer.metadata["num_left"] = counts.left
    except TableError as error:
        if not counts.unreadable:
            raise
        raise ValueError(
            f"label_relevance: {counts.unreadable:_} of {counts.unreadable + counts.answered:_} answers could not be "
            f"read, more than max_unreadable_share = {max_unreadable_share}: {'; '.join(problems[:3])}\n"
            f"  all of them: {error.quarantine}\n"
            '  what to do: a larger model, teacher.decoding = "constrained" or "scored" (local models), another '
            "teacher.seed to draw again, or a higher max_unreadable_share"
        ) from error
    _log(asking, counts, asking.budget.used - used_before)
    _write_sheet(asking, pairs, seed)


def _rows(pairs: pl.DataFrame, answers: Sequence[TeacherAnswer | None], addresses: Sequence[str]) -> pl.DataFrame:
    """Rows of `RelevanceAnswers`: the answers that could be read."""
    rows = []
    keys = pairs.select("query_id", "item_id").iter_rows()
    for (query_id, item_id), answer, address in zip(keys, answers, addresses, strict=True):
        if answer is None or answer.label is None:
            continue
        chain = answer.reasoning
        rows.append(
            {
                "query_id": query_id,
                "item_id": item_id,
                "score": answer.score,
                "label": answer.label,
                **{f"{step}_match": None if chain is None else getattr(chain, step) for step in STEPS},
                "chain": None if chain is None else chain.line(),
                "agreement": answer.agreement,
                "num_chains": answer.num_chains,
                "num_parsed": answer.num_parsed,
                "num_attempts": answer.num_attempts,
                "num_tokens": answer.num_tokens,
                "answer_hash": address,
            }
        )
    return pl.DataFrame(rows, schema=dict(RelevanceAnswers.create_empty().schema))


def _unreadable_rows(
    pairs: pl.DataFrame, texts: Sequence[QueryItem], answers: Sequence[TeacherAnswer | None], addresses: Sequence[str]
) -> pl.DataFrame:
    rows = [
        {
            "query_id": query_id,
            "item_id": item_id,
            "query": text.query,
            "title": text.title,
            "problems": list(answer.problems),
            "num_attempts": answer.num_attempts,
            "num_tokens": answer.num_tokens,
            "answer_hash": address,
            BROKEN_RULES: [UNREADABLE],
        }
        for (query_id, item_id), text, answer, address in zip(
            pairs.select("query_id", "item_id").iter_rows(), texts, answers, addresses, strict=True
        )
        if answer is not None and answer.label is None
    ]
    return pl.DataFrame(rows, schema_overrides={"problems": pl.List(pl.String), BROKEN_RULES: pl.List(pl.String)})


def _counted(pairs: pl.DataFrame, answers: Sequence[TeacherAnswer | None]) -> _Counts:
    said = np.array(["" if answer is None else answer.label or "" for answer in answers], "U4")
    was_asked = np.array([answer is not None for answer in answers], np.bool_)
    human = pairs.get_column("human_label").fill_null("").to_numpy().astype("U4")
    is_test = (pairs.get_column("side") == "test").to_numpy()
    is_judged, agrees = (said != "") & (human != ""), (said != "") & (said == human)
    return _Counts(
        answered=int((said != "").sum()),
        unreadable=int((was_asked & (said == "")).sum()),
        left=int((~was_asked).sum()),
        judged=int(is_judged.sum()),
        agreed=int(agrees.sum()),
        test=int((is_judged & is_test).sum()),
        agreed_test=int((agrees & is_test).sum()),
    )


def _log(asking: Asking, counts: _Counts, num_tokens: int) -> None:
    logger.info(
        "label_relevance: %s pairs answered, %s of them judged by people, who say the same of %s; of %s pairs of test "
        "queries %s; %s unreadable, %s left, %s tokens",
        f"{counts.answered:_}",
        f"{counts.judged:_}",
        _share(counts.agreed, counts.judged),
        f"{counts.test:_}",
        _share(counts.agreed_test, counts.test),
        f"{counts.unreadable:_}",
        f"{counts.left:_}",
        f"{num_tokens:_}",
    )
    if counts.left:
        goes_on = "`tailrank run label_relevance --force` goes on with the pairs left; or raise max_tokens"
        logger.warning(
            "label_relevance: %s; %s pairs are left. What has been answered is written and kept.\n  what to do: %s",
            asking.budget,
            f"{counts.left:_}",
            goes_on if asking.budget.used else "raise max_tokens: it is less than the next pair may take",
        )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _write_sheet(asking: Asking, pairs: pl.DataFrame, seed: int) -> None:
    """The audit sheet of the answers in the lake."""
    known = pairs.select("query_id", "item_id", "query_text", "human_label")
    judged = asking.lake.read(RelevanceAnswers).join(known, on=["query_id", "item_id"])
    rows = drawn(judged, seed=seed)
    path = asking.lake.folder("reports") / AUDIT_SHEET
    write_audit_sheet(path, rows, asking.texts(rows))
    logger.info("label_relevance: audit sheet of %s answers: %s", f"{len(rows):_}", path)
