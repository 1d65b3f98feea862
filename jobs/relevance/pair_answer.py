"""What the relevance teacher of a lake says of one pair: as it is stored, as it was asked before, or asked now.

Rules and local models cost nothing but time, so they are asked where nothing is kept. An endpoint costs tokens, and
what a text says leaves this machine, so it is asked only where that is said. Whatever is asked now is kept in the cache
of answers, so it is asked once.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import polars as pl

from embedders.label_tokens import TeacherAnswer
from embedders.relevance_prompts import QueryItem, parse
from embedders.title_facts import TitleReader
from feature_repo.table_schemas import RelevanceAnswers
from jobs import flow, label_relevance
from jobs.lake import Lake, TableError, table_name
from jobs.relevance.answer_cache import AnswerCache, address_of
from jobs.relevance.disclosed_text import Disclosure, disclosed
from jobs.relevance.local_teacher import CATALOGUE, facts_read
from jobs.relevance.pairs import judged_pairs, pool_pairs
from jobs.relevance.teachers import TeacherConfig, addresses_of, ask, open_teacher
from jobs.relevance.token_budget import TokenBudget

WAY_TO_A_SERVER = ("url", "api_key_variable", "timeout_seconds", "retries")
"""Settings of an endpoint that decide where and how it is asked, not what it answers."""

Source = Literal["stored answer", "asked before", "asked now", "stored, of other texts", "not asked", "no tokens left"]


class PairAnswer(NamedTuple):
    """What the teacher says, and where that comes from.

    Attributes:
        answer: None where it was not asked.
        source: how it was come by.
        teacher: who, in a word or two.
        dated: when a stored answer was written; None of any other.
        is_of_lake: the teacher is the one that answered for the lake; False: the settings name another by now.
    """

    answer: TeacherAnswer | None
    source: Source
    teacher: str
    dated: datetime | None
    is_of_lake: bool = True


def labelling_of(lake: Lake, now: label_relevance.Config | None = None) -> label_relevance.Config:
    """The settings that `label_relevance` last ran with in this lake; else those of now, else the defaults.

    Where a server is and with what key it is asked are as set now, for it may have moved; and a teacher is told what
    both settings disclose.
    """
    last = flow.last_run(lake, "label_relevance")
    if last is None:
        return now or label_relevance.Config()
    labelling = label_relevance.Config.model_validate(last.config)
    if now is None or not now.enabled:
        return labelling
    then = labelling.disclosure
    disclosure = Disclosure(
        fields=tuple(name for name in then.fields if name in now.disclosure.fields),
        redact=then.redact or now.disclosure.redact,
    )
    labelling = labelling.model_copy(update={"disclosure": disclosure})
    if {labelling.teacher.kind, now.teacher.kind} != {"endpoint"} or labelling.teacher.model != now.teacher.model:
        return labelling
    as_set_now = {name: getattr(now.teacher, name) for name in WAY_TO_A_SERVER}
    return labelling.model_copy(update={"teacher": labelling.teacher.model_copy(update=as_set_now)})


def check_has_answers(lake: Lake) -> None:
    """Make sure that the lake has a relevance teacher.

    Raises:
        TableError: nobody was asked in this lake.
    """
    if not lake.exists(RelevanceAnswers) or lake.manifest(RelevanceAnswers).metadata.get("enabled") is False:
        raise TableError(
            table_name(RelevanceAnswers),
            "this lake does without relevance, so there is nobody to explain a pair",
            "set [label_relevance] enabled = true and run tailrank run label_relevance distill_relevance",
        )


def answer_of_pair(
    lake: Lake,
    pair: QueryItem,
    *,
    query_ids: Sequence[str],
    item_id: str,
    labelling: label_relevance.Config,
    may_spend: bool = False,
) -> PairAnswer:
    """Find or ask for the teacher's answer.

    Args:
        lake: with `relevance_answers`.
        pair: its texts as they are now.
        query_ids: of the log's queries of this text; none where nobody has asked it.
        item_id: of the item.
        labelling: see `labelling_of`.
        may_spend: ask an endpoint, too.

    Raises:
        ValueError: the teacher cannot be asked: the model is gone, the server does not answer.
    """
    manifest = lake.manifest(RelevanceAnswers)
    config = _teacher_of(lake, labelling)
    name = config.kind if not config.model else f"{config.kind}: {config.model.rstrip('/').rsplit('/', 1)[-1]}"
    stored = _stored(lake, query_ids, item_id)
    shown = disclosed(pair, labelling.disclosure)
    reader = _reader(lake, config, labelling) if manifest.fingerprint.get("reader") == CATALOGUE else None
    facts = () if reader is None else facts_read(reader, shown)
    address = address_of(shown, manifest.fingerprint, facts)
    if stored is not None and stored["answer_hash"] == address:
        return PairAnswer(_answer(stored), "stored answer", name, manifest.created_timestamp)
    with AnswerCache.open(lake.folder(label_relevance.CACHE)) as cache:
        if (before := cache.get([address]).get(address)) is not None:
            return PairAnswer(before, "asked before", name, None)
        if config.kind == "endpoint" and not may_spend:
            if stored is None:
                return PairAnswer(None, "not asked", name, None)
            return PairAnswer(_answer(stored), "stored, of other texts", name, manifest.created_timestamp)
        teacher = open_teacher(
            config, reader=reader or _reader(lake, config, labelling), disclosure=labelling.disclosure
        )
        is_of_lake = teacher.identity == manifest.fingerprint
        (address,) = addresses_of(teacher, [shown])
        if (before := cache.get([address]).get(address)) is not None:
            return PairAnswer(before, "asked before", name, None, is_of_lake)
        (answer,) = ask(teacher, [pair], cache, TokenBudget(labelling.max_tokens))
        return PairAnswer(answer, "no tokens left" if answer is None else "asked now", name, None, is_of_lake)


def _teacher_of(lake: Lake, labelling: label_relevance.Config) -> TeacherConfig:
    """The teacher of the settings; where it was fine-tuned in this lake, the model that came of it."""
    folder = lake.manifest(RelevanceAnswers).metadata.get("folder")
    return labelling.teacher.model_copy(update={"model": str(lake.root / folder)}) if folder else labelling.teacher


def _reader(lake: Lake, config: TeacherConfig, labelling: label_relevance.Config) -> TitleReader:
    """Knows the brands that it knew when the lake's answers were given; not needed where a model reads by itself."""
    if config.kind != "rules" and config.decoding != "scored":
        return TitleReader()
    through = lake.manifest(RelevanceAnswers).metadata.get("labels_through")
    before = datetime.fromisoformat(through) if through else None
    judged = judged_pairs(lake, good_from=labelling.good_from, before=before)
    pool = pool_pairs(lake, before=before, most=labelling.max_pool_pairs)
    return label_relevance.title_reader(lake, pl.concat([judged, pool]))


def _stored(lake: Lake, query_ids: Sequence[str], item_id: str) -> dict[str, Any] | None:
    """The pair's row of `relevance_answers`; the first of several queries of one text."""
    is_asked = (pl.col("item_id") == item_id) & pl.col("query_id").is_in(list(query_ids))
    rows = lake.scan(RelevanceAnswers).filter(is_asked).sort("query_id").head(1).collect()
    return rows.row(0, named=True) if len(rows) else None


def _answer(row: Mapping[str, Any]) -> TeacherAnswer:
    """A row of `relevance_answers` as it was given."""
    score = row["score"]
    return TeacherAnswer(
        score=score,
        probabilities=None if score is None else (1.0 - score, score),
        label=row["label"],
        reasoning=None if row["chain"] is None else parse(row["chain"]),
        agreement=row["agreement"],
        num_chains=row["num_chains"],
        num_parsed=row["num_parsed"],
        num_attempts=row["num_attempts"],
        num_tokens=row["num_tokens"],
    )
