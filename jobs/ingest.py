"""Raw log to canonical tables: the adapter of the source reads, this job checks, dates, counts and commits.

reads   nothing (but its own last items, to tell a revised text from a first one)
writes  items, item_images, users, queries, impressions, relevance_grades, true_probabilities
        (empty where the source has none, so that nothing of an earlier source stays behind)

A log without impressions is an error. A source of judged pairs alone (`HAS_IMPRESSIONS = False` in its module) has
none: what needs no log can run on such a lake, `jobs.flow.needing_impressions` says what cannot.
"""

import contextlib
import datetime as dt
import hashlib
import importlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import dataframely as dy
import polars as pl
from pydantic import BaseModel, Field, ValidationError

from feature_repo.table_schemas import (
    Impressions,
    ItemImages,
    Items,
    Queries,
    RelevanceGrades,
    TrueProbabilities,
    Users,
)
from jobs.catalogues import Catalogue, FirstSeen, dated, empty_folder, with_created_timestamp
from jobs.lake import Lake, TableError, TableWriter, table_name
from jobs.raw_sources import PICTURES_PER_SHARD, LeftOut, RawSource, Refused, Shard
from jobs.raw_sources.tabular_files import id_text
from jobs.raw_sources.times import TimeNotation, as_utc
from jobs.settings import describe_problem

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = ()
WRITES: tuple[type[dy.Schema], ...] = (
    Items,
    ItemImages,
    Users,
    Queries,
    Impressions,
    RelevanceGrades,
    TrueProbabilities,
)
CATALOGUES: tuple[type[dy.Schema], ...] = (Items, ItemImages, Users, Queries)
"""Tables with one row per id, which a log may give many times."""

ROWS_PER_SHARD = 500_000
"""The shards of an adapter are put together up to so many rows."""

SECONDS_BETWEEN_LINES = 15.0


class Config(BaseModel, extra="forbid", frozen=True):
    """Which log to take in."""

    source: Literal["simulate", "movielens", "online_retail", "fashion_traffic", "columns", "judged_pairs"] = "simulate"
    """The adapter: a module of `jobs.raw_sources`."""
    path: Path | None = None
    """Folder of the raw files; the simulator needs none."""
    max_quarantined_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Where more of a table's rows break its rules, fail and leave the old tables as they are.

    Not of item_images: what shows an item without its picture can still be ranked.
    """
    options: dict[str, Any] = {}
    """Settings of the adapter: the section `[sources.<source>]`."""


def run(lake: Lake, config: Config) -> None:
    """Read the source to its end, then commit all its tables: the impressions (of a source without any: the grades)
    first, nothing where they are refused.

    Raises:
        ValueError: the source cannot be read; the message names the file or the setting.
        TableError: a column is missing or of the wrong type, too many rows are refused, or there are no impressions
            (of a source of judged pairs: no judgements).
    """
    source, options = _adapter(config)
    needed = Impressions if gives_impressions(config) else RelevanceGrades
    now = lake.now()  # one time for all, so that what is dated now is not in the future of a rule
    identity = {"name": config.source, "path": str(config.path), "options": options.model_dump(mode="json")}
    with contextlib.ExitStack() as stack:
        writers: dict[type[dy.Schema], TableWriter] = {}
        for schema in sorted(WRITES, key=lambda schema: schema is needed):  # the last to enter commits first
            writers[schema] = stack.enter_context(
                lake.writer(
                    schema,
                    max_quarantined_share=1.0 if schema is ItemImages else config.max_quarantined_share,
                    rules=_not_in_future(schema, now),
                    metadata={"source": identity},
                )
            )
        spool = stack.enter_context(empty_folder(lake.folder("staging") / "ingest"))
        intake = _Intake(writers, spool, now)
        last_line = time.monotonic()
        for piece in source.shards(config.path, options):
            intake.take(piece)
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                logger.info("ingest: %s impressions so far", f"{intake.num_offered:_}")
        intake.write_log(config, needed)
        intake.write_catalogues(_items_before(lake, identity))
        if num_refused := writers[ItemImages].quarantined:
            logger.warning(
                "item_images: %s pictures could not be taken in; their items do without, the reasons lie in %s",
                f"{num_refused:_}",
                lake.root / "quarantine",
            )
        writers[Impressions].metadata |= {
            "label_rule": source.label_rule(options),
            "share_sampled": intake.num_sampled / max(intake.num_offered, 1),
            "left_out": dict(intake.left_out),
            "num_impressions_without_item": intake.num_without_item,
        }
    if intake.num_offered == 0:
        logger.info(
            "ingest: %s judged pairs of %s queries and %s items, and no impressions: enough to learn relevance from "
            "(tailrank run label_relevance distill_relevance publish_features), but nothing to rank or to evaluate",
            *(f"{lake.manifest(schema).rows:_}" for schema in (RelevanceGrades, Queries, Items)),
        )


def gives_impressions(config: Config) -> bool:
    """Whether the source is a log; one of judged pairs alone is none."""
    return bool(getattr(_module(config), "HAS_IMPRESSIONS", True))


def outside_inputs(config: Config) -> str:
    """Identity of the raw files: paths, sizes and times of change. The settings say the rest."""
    source, options = _adapter(config)
    files = [] if config.source == "simulate" else sorted(set(source.raw_files(config.path, options)))
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _adapter(config: Config) -> tuple[RawSource, BaseModel]:
    """The module of the source and its settings."""
    source = _module(config)
    try:
        return source, source.Config.model_validate(config.options)
    except ValidationError as error:
        where = f"[sources.{config.source}]"
        problems = [describe_problem(problem, source.Config, where) for problem in error.errors()]
        raise ValueError("\n".join(problems)) from error


def _module(config: Config) -> RawSource:
    return cast(RawSource, importlib.import_module(f"jobs.raw_sources.{config.source}"))


class _Intake:
    """What has been read so far: impressions and judgements go to the lake, catalogues wait for the log's end."""

    def __init__(self, writers: Mapping[type[dy.Schema], TableWriter], spool: Path, now: dt.datetime) -> None:
        self.left_out: Counter[str] = Counter()
        self.num_offered = self.num_sampled = self.num_without_item = self.num_judged = 0
        self._writers, self._now = writers, now
        self._waiting: dict[type[dy.Schema], list[pl.DataFrame]] = {schema: [] for schema in WRITES}
        self._catalogues = {schema: Catalogue(schema, spool) for schema in CATALOGUES}
        self._first_seen = {Items: FirstSeen("item_id", now), Users: FirstSeen("user_id", now)}

    def take(self, piece: Shard | LeftOut | Refused) -> None:
        if isinstance(piece, LeftOut):
            self.left_out[piece.rule] += piece.num_rows
            return
        if isinstance(piece, Refused):
            self._writers[piece.schema].refuse(piece.frame)
            return
        schema, frame = piece.schema, _canonical(piece)
        if schema in self._catalogues:
            self._catalogues[schema].add(frame)
            return
        waiting = self._waiting[schema]
        if waiting and waiting[0].schema != frame.schema:
            self._write_waiting(schema)
        waiting.append(frame)
        if sum(map(len, waiting)) >= ROWS_PER_SHARD:
            self._write_waiting(schema)

    def _write_waiting(self, schema: type[dy.Schema]) -> None:
        if not self._waiting[schema]:
            return
        frame = pl.concat(self._waiting[schema])
        self._waiting[schema].clear()
        self._writers[schema].write_shard(frame)
        if schema is Impressions:
            self.num_offered += len(frame)
            self.num_sampled += int(frame.get_column("is_sampled").sum())
            for seen in self._first_seen.values():
                seen.add(frame)
        elif schema is RelevanceGrades:
            self.num_judged += len(frame)

    def write_log(self, config: Config, needed: type[dy.Schema]) -> None:
        """Write what is left of the tables that go straight to the lake."""
        for schema in WRITES:
            self._write_waiting(schema)
        for rule, num_rows in self.left_out.items():
            logger.info("ingest: %s rows left out: %s", f"{num_rows:_}", rule)
        if (self.num_offered if needed is Impressions else self.num_judged) == 0:
            raise TableError(
                table_name(needed),
                f"the source {config.source} gave no rows ({sum(self.left_out.values()):_} were left out by its rules)",
                f"check that the files in {config.path} hold rows, and the rules that leave rows out",
            )

    def write_catalogues(self, items_before: pl.DataFrame) -> None:
        """Write items, their pictures, users and queries, dated by the impressions.

        Where there are none, an item without a date keeps that of the last run, for nothing else dates it.
        """
        items_seen, users_seen = self._first_seen[Items].merged(), self._first_seen[Users].merged()
        log_start = items_seen.get_column("first_seen").min()
        log_start = log_start if isinstance(log_start, dt.datetime) else self._now
        item_dates = [Items.create_empty().select("item_id", first_seen="event_timestamp")]
        for items in self._catalogues[Items].frames():
            if self.num_offered == 0:
                before = items_before.select("item_id", first_seen="event_timestamp")
                items = dated(items, before, self._now, truncate_to="1us")
            else:
                items = dated(items, items_seen, log_start, truncate_to="1d")
            self._writers[Items].write_shard(with_created_timestamp(items, items_before, self._now))
            item_dates.append(items.select("item_id", first_seen="event_timestamp"))
        self._write_pictures(pl.concat(item_dates), items_seen, log_start)
        users_given = False
        for users in self._catalogues[Users].frames():
            users_given |= not users.is_empty()
            self._writers[Users].write_shard(dated(users, users_seen, log_start, truncate_to="1us"))
        if not users_given:
            self._writers[Users].write_shard(users_seen.select("user_id", event_timestamp="first_seen"))
        for queries in self._catalogues[Queries].frames():
            self._writers[Queries].write_shard(queries)
        for schema, catalogue in self._catalogues.items():
            if catalogue.num_repeated:
                logger.info(
                    "%s: %s repeated rows, the first of each kept", table_name(schema), f"{catalogue.num_repeated:_}"
                )
        without = items_seen.join(self._catalogues[Items].ids, on="item_id", how="anti")
        self.num_without_item = int(without.get_column("num_impressions").sum())
        if self.num_without_item:
            logger.info(
                "impressions: %s of %s are of %s items that the source does not describe (kept: they have no text)",
                f"{self.num_without_item:_}",
                f"{self.num_offered:_}",
                f"{len(without):_}",
            )

    def _write_pictures(self, item_dates: pl.DataFrame, items_seen: pl.DataFrame, log_start: dt.datetime) -> None:
        """Write pictures: one without a date is as old as its item, or as the first impression of it."""
        shown_only = items_seen.select("item_id", "first_seen").join(item_dates, on="item_id", how="anti")
        since = pl.concat([item_dates, shown_only.with_columns(pl.col("first_seen").dt.truncate("1d"))])
        for pictures in self._catalogues[ItemImages].frames():
            if "event_timestamp" not in pictures.columns:
                pictures = pictures.with_columns(event_timestamp=pl.lit(None, pl.Datetime("us", "UTC")))
            for some in pictures.iter_slices(PICTURES_PER_SHARD):
                dates = some.join(since, on="item_id", how="left", maintain_order="left")
                dated_at = pl.coalesce("event_timestamp", "first_seen", pl.lit(log_start, pl.Datetime("us", "UTC")))
                self._writers[ItemImages].write_shard(dates.with_columns(event_timestamp=dated_at))
        if num_without := len(self._catalogues[ItemImages].ids.join(item_dates, on="item_id", how="anti")):
            logger.info("item_images: %s are of items that the source does not describe", f"{num_without:_}")


def _canonical(piece: Shard) -> pl.DataFrame:
    """A shard with the declared columns: absent ones that may be null added, ids as text, times in UTC.

    What is missing or wrong beyond that is the lake's to refuse.
    """
    declared = piece.schema.create_empty().schema
    optional = {name: declared[name] for name, column in piece.schema.columns().items() if column.nullable}
    frame = piece.frame
    expressions = [pl.lit(None, dtype).alias(name) for name, dtype in optional.items() if name not in frame.columns]
    for name, have in frame.schema.items():
        if isinstance(declared.get(name), pl.Datetime) and isinstance(have, pl.Datetime):
            expressions.append(as_utc(pl.col(name), have, TimeNotation()))
        elif name.endswith("_id") and have.is_integer():
            expressions.append(id_text(pl.col(name), have))
    return frame.with_columns(expressions).select(name for name in declared if name in {*frame.columns, *optional})


def _not_in_future(schema: type[dy.Schema], now: dt.datetime) -> dict[str, pl.Expr]:
    times = [name for name in ("event_timestamp", "conversion_timestamp") if name in schema.column_names()]
    return {f"{name}_not_in_future": pl.col(name) <= now for name in times}


def _items_before(lake: Lake, identity: dict[str, Any]) -> pl.DataFrame:
    """The items of the last run of the same source with the same settings; none of another log's."""
    if lake.exists(Items) and lake.manifest(Items).metadata.get("source") == identity:
        return lake.read(Items)
    return Items.create_empty()
