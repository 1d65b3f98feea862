"""Ask a relevance teacher whether items answer queries, with its reasons (ELLM-rele).

reads   items, queries, relevance_grades, impressions
writes  relevance_chains      judged pairs on which the annotators agree with people and with each other
        relevance_answers     what the teacher says of judged pairs, and of pairs shown most that nobody judged
        teachers/             where asked for: a local teacher, fine-tuned on the chains, and its unfinished checkpoint
        relevance_cache/      every answer, so that nothing is asked twice
        reports/relevance_audit.csv   200 answers with their reasons, for people to audit

Only what is new or edited is asked about; a killed run loses the answers it was waiting for. When the budget of tokens
is spent, what is there is written, and a run with --force goes on.

Point in time: only pairs first shown before `labels_through` are looked at (or never shown: judged beside the log). It
is in the manifest of relevance_answers; nothing that is learnt from this table is dated earlier. Sides: annotators and
students see pairs of training and validation queries; pairs of test queries are asked about to judge the teacher.

By default rules are annotator and teacher, because they need no model: their chains are built from item attributes and,
as annotator, from what people said. That is ours, not the paper's [NF->P], and no substitute for a large model.
"""

import logging
import time
from typing import Self

import dataframely as dy
import polars as pl
from pydantic import AwareDatetime, BaseModel, Field, NonNegativeInt, model_validator

from embedders.built_chains import built_chain
from embedders.fingerprint import sha256_of_files
from embedders.model_files import find_model_files
from embedders.relevance_prompts import QueryItem
from embedders.title_facts import TitleReader
from feature_repo.table_schemas import Impressions, Items, Queries, RelevanceAnswers, RelevanceChains, RelevanceGrades
from jobs.lake import Lake
from jobs.relevance.answer_cache import AnswerCache
from jobs.relevance.answers import Asking, keep_answers
from jobs.relevance.chains import annotate
from jobs.relevance.disclosed_text import Disclosure
from jobs.relevance.fine_tune_settings import FineTune
from jobs.relevance.pairs import drawn_by_query, judged_pairs, labels_through, pool_pairs
from jobs.relevance.teachers import TeacherConfig
from jobs.relevance.token_budget import TokenBudget

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = (Items, Queries, RelevanceGrades, Impressions)
WRITES: tuple[type[dy.Schema], ...] = (RelevanceChains, RelevanceAnswers)

CACHE = "relevance_cache"
"""Folder of the lake."""

WITHOUT_RELEVANCE = "do without relevance: [label_relevance] enabled = false"


class Config(BaseModel, extra="forbid", frozen=True):
    """Who judges what, and what it may cost."""

    enabled: bool = False
    """The switch of all of relevance. False: nothing is asked, and every table of relevance is written empty."""
    annotators: tuple[TeacherConfig, ...] = Field((TeacherConfig(),), min_length=1, max_length=2)
    """Who writes chains for judged pairs, [[label_relevance.annotators]]: one, or two who must agree on the steps.
    Rules are told what people said (their chains are built from it), nobody else is."""
    teacher: TeacherConfig = TeacherConfig()
    """Who answers, [label_relevance.teacher]: rules, a local model or an endpoint."""
    disclosure: Disclosure = Disclosure()
    """What of a pair annotators and teacher may read, [label_relevance.disclosure]; of an endpoint, what leaves this
    process."""
    fine_tune: FineTune = FineTune()
    """Training of a local teacher on the chains, [label_relevance.fine_tune]."""
    trained_through: AwareDatetime | None = None
    """Pairs first shown before this time, such as 2025-06-01T00:00:00Z, are looked at; by default `trained_share`."""
    trained_share: float = Field(0.5, gt=0.0, le=1.0)
    """Share of the log's span whose pairs are looked at, cut down to a midnight UTC. What comes after it trains the
    ranker, which must meet relevance as it will be served."""
    good_from: float = Field(2.0, gt=0.0, le=3.0)
    """Least grade of a good pair."""
    max_annotated_pairs: NonNegativeInt = 5_000
    """Judged pairs of training and validation queries that the annotators are asked about: chains to train on."""
    max_judged_pairs: NonNegativeInt = 20_000
    """Judged pairs of training and validation queries that the teacher is asked about."""
    max_pool_pairs: NonNegativeInt = 20_000
    """Pairs that nobody judged, of training queries, the most shown first, that the teacher is asked about."""
    max_test_pairs: NonNegativeInt = 2_000
    """Judged pairs of test queries that the teacher is asked about, so that it can be judged; they train nobody."""
    max_tokens: NonNegativeInt = 5_000_000
    """Tokens that one run may spend, read and written, of all annotators and the teacher; it stops before more."""
    max_unreadable_share: float = Field(0.1, ge=0.0, le=1.0)
    """Answers that cannot be read are quarantined; with a larger share of them the step fails."""
    seed: NonNegativeInt = 0
    """Which queries are drawn where there are more pairs than asked about, and the rows of the audit sheet."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(one.kind != "rules" and one.decoding == "label_only" for one in self.annotators):
            raise ValueError("an annotator writes chains: its decoding cannot be label_only")
        if self.fine_tune.enabled and self.teacher.kind != "local":
            raise ValueError(f'fine_tune needs teacher.kind = "local", got {self.teacher.kind!r}')
        only_label = self.fine_tune.answers == "label_only"
        if self.fine_tune.enabled and only_label != (self.teacher.decoding == "label_only"):
            raise ValueError(
                f"a teacher is asked for what it has learnt: fine_tune.answers = {self.fine_tune.answers!r} does not "
                f"go with teacher.decoding = {self.teacher.decoding!r}"
            )
        if only_label and self.fine_tune.contrast_share:
            raise ValueError(
                'fine_tune.contrast_share shows steps of chains, and answers = "label_only" has none: set it to 0, or '
                'answers = "chain"'
            )
        return self


def outside_inputs(config: Config) -> str | None:
    """Hash of the files of local models: other weights under the same name make the step stale."""
    if not config.enabled:
        return None
    names = sorted({one.model for one in (*config.annotators, config.teacher) if one.kind == "local" and one.model})
    files = {name: find_model_files(name) for name in names}
    return " ".join(sha256_of_files(of.weights | of.tokenizer) for of in files.values())


def run(lake: Lake, config: Config) -> None:
    """Have pairs annotated, train the teacher where asked for, ask it, write the audit sheet.

    Raises:
        ValueError: there are no queries, nothing to ask about, no judged pairs where they are needed; too many answers
            could not be read; the budget was spent before there were chains to train the teacher on.
    """
    if not config.enabled:
        for schema in WRITES:
            lake.write(schema, schema.create_empty(), metadata={"enabled": False})
        logger.info("label_relevance: not enabled, this lake does without relevance")
        return
    started = time.monotonic()
    if not lake.exists(Queries) or lake.manifest(Queries).rows == 0:
        raise ValueError(
            "label_relevance: the log has no queries, and relevance is of an item to a query.\n"
            "  what to do: ingest a search log (query_id of impressions, and a table of queries), or "
            + WITHOUT_RELEVANCE
        )
    through = labels_through(lake, trained_share=config.trained_share, trained_through=config.trained_through)
    judged = judged_pairs(lake, good_from=config.good_from, before=through)
    pool = pool_pairs(lake, before=through, most=config.max_pool_pairs)
    _check_there_is_enough(config, judged, pool)

    learnt, test = judged.filter(pl.col("side") != "test"), judged.filter(pl.col("side") == "test")
    metadata = {
        "enabled": True,
        "labels_through": None if through is None else through.isoformat(),
        "good_from": config.good_from,
    }
    with AnswerCache.open(lake.folder(CACHE)) as cache:
        asking = Asking(
            lake=lake,
            reader=title_reader(lake, pl.concat([judged, pool])),
            disclosure=config.disclosure,
            cache=cache,
            budget=TokenBudget(config.max_tokens),
        )
        chains = annotate(
            asking,
            config.annotators,
            drawn_by_query(learnt, config.max_annotated_pairs, seed=config.seed),
            metadata=metadata,
        )
        teacher, folder = config.teacher, None
        if config.fine_tune.enabled:
            chains.check_complete()
            from jobs.relevance.teacher_training import Examples, trained_teacher  # here: torch takes seconds to import

            examples = Examples(
                train=chains.of("train"),
                validation=chains.of("validation"),
                labels_through=through,
                contrasted=lambda: _contrasted(asking, config, learnt, pool),
            )
            folder = trained_teacher(lake, config.fine_tune, teacher.model, examples, asking.reader)
            teacher = teacher.model_copy(update={"model": str(folder)})
        pairs = [
            drawn_by_query(learnt, config.max_judged_pairs, seed=config.seed),
            drawn_by_query(test, config.max_test_pairs, seed=config.seed),
            pool,
        ]
        keep_answers(
            asking,
            teacher,
            pl.concat(pairs),
            max_unreadable_share=config.max_unreadable_share,
            metadata={**metadata, "folder": None if folder is None else str(folder.relative_to(lake.root))},
            seed=config.seed,
        )
        logger.info("label_relevance: %s, %.1f s", asking.budget, time.monotonic() - started)


def _contrasted(asking: Asking, config: Config, learnt: pl.DataFrame, pool: pl.DataFrame) -> list[QueryItem]:
    """Pairs of training queries of which rules say what people say, as far as anybody judged them."""
    judged = drawn_by_query(learnt.filter(pl.col("side") == "train"), config.max_judged_pairs, seed=config.seed)
    told = zip(asking.texts(judged), judged.get_column("human_label").to_list(), strict=True)
    agreed = [pair for pair, label in told if built_chain(pair, reader=asking.reader).label == label]
    return [*agreed, *asking.texts(pool)]


def title_reader(lake: Lake, pairs: pl.DataFrame) -> TitleReader:
    """Knows the brands of the catalogue, and those that titles of training queries' items begin with.

    Args:
        lake: with items.
        pairs: as `judged_pairs` or `pool_pairs` give them, of all sides.
    """
    of_training = pairs.lazy().filter(pl.col("side") == "train").select("item_id").unique()
    items = lake.scan(Items)
    titles = items.join(of_training, on="item_id", how="semi").select(pl.col("title").drop_nulls().unique().sort())
    brands = items.select(pl.col("brand").drop_nulls().unique().sort())
    return TitleReader.of_titles(
        titles.collect().get_column("title").to_list(), brands.collect().get_column("brand").to_list()
    )


def _check_there_is_enough(config: Config, judged: pl.DataFrame, pool: pl.DataFrame) -> None:
    of_training = judged.filter(pl.col("side") == "train")
    if of_training.is_empty() and (config.teacher.kind == "rules" or config.fine_tune.enabled):
        why, otherwise = "rules alone know no relevance, so there is nothing to learn labels from", ""
        if config.fine_tune.enabled:
            why, otherwise = "fine-tuning needs them", ", take the teacher as it is ([label_relevance.fine_tune])"
        else:
            otherwise = ', ask a model: [label_relevance.teacher] kind = "local" or "endpoint"'
        raise ValueError(
            f"label_relevance: no pair of a training query is judged{_in_time(config)}, and {why}.\n"
            f"  what to do: ingest relevance grades{otherwise}, or {WITHOUT_RELEVANCE}"
        )
    if judged.is_empty() and pool.is_empty():
        raise ValueError(
            f"label_relevance: no pair is judged, and none of a training query was shown{_in_time(config)}, so there "
            "is nothing to ask about.\n  what to do: ingest impressions with query_id or relevance grades, raise "
            f"trained_share (or trained_through) or max_pool_pairs, or {WITHOUT_RELEVANCE}"
        )


def _in_time(config: Config) -> str:
    share = f"the first {config.trained_share:.0%} of the log (trained_share)"
    return f" within {share if config.trained_through is None else f'{config.trained_through:%Y-%m-%d %H:%M} (UTC)'}"
