"""The flow: the steps in order, what each reads and writes, and whether it has anything to do.

A step is a module of this package with `READS`, `WRITES`, `Config` and `run(lake, config)`. It is stale when its
configuration, a table that it reads or a table that it wrote is no longer what it was when it last ended; a fresh
step is skipped. What a step saw is written to `<lake>/ledger/<step>.json`.
"""

import importlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any

import dataframely as dy
from pydantic import BaseModel, ValidationError

from feature_repo.table_schemas import Impressions
from jobs.lake import Lake, table_name

logger = logging.getLogger(__name__)

STEPS = (
    "ingest",
    "aggregate_activity",
    "collect_histories",
    "embed_items",
    "embed_images",
    "embed_users",
    "fit_embedder",
    "embed_items_learn",
    "embed_users_learn",
    "fit_embedder_karma",
    "embed_items_karma",
    "embed_users_karma",
    "label_relevance",
    "distill_relevance",
    "publish_features",
    "build_training_set",
    "assign_segments",
    "train_ranker",
    "evaluate_ranker",
)
"""Modules of `jobs`, in the order in which they run: every table is written before it is read."""

METHODS: Mapping[str, Mapping[str, str]] = {
    "content": {},
    "learn": {
        "fit_embedder": "fit_embedder",
        "embed_items": "embed_items_learn",
        "embed_users": "embed_users_learn",
    },
    "karma": {
        "fit_embedder": "fit_embedder_karma",
        "embed_items": "embed_items_karma",
        "embed_users": "embed_users_karma",
    },
}
"""Whose model is trained, and how items and users are embedded: method -> the step that does it instead of the one
named."""

SOURCES = ("simulate", "movielens", "online_retail", "fashion_traffic", "columns", "judged_pairs")
"""Modules of `jobs.raw_sources`."""

NEED_IMPRESSIONS = (
    "aggregate_activity",
    "collect_histories",
    "embed_users",
    "fit_embedder",
    "embed_items_learn",
    "embed_users_learn",
    "fit_embedder_karma",
    "embed_items_karma",
    "embed_users_karma",
    "build_training_set",
    "assign_segments",
    "train_ranker",
    "evaluate_ranker",
)
"""Steps that learn from what was shown and clicked. The others can run on judged pairs alone."""


@dataclass(frozen=True)
class Step:
    """One step of the flow."""

    name: str
    module: ModuleType

    @property
    def reads(self) -> tuple[type[dy.Schema], ...]:
        """Tables that it reads."""
        return tuple(self.module.READS)

    @property
    def shows(self) -> tuple[type[dy.Schema], ...]:
        """Tables of commands outside the flow that it shows where they are there; new ones make it stale."""
        return tuple(getattr(self.module, "SHOWS", ()))

    @property
    def writes(self) -> tuple[type[dy.Schema], ...]:
        """Tables that it writes."""
        return tuple(self.module.WRITES)

    @property
    def config_class(self) -> type[BaseModel]:
        """Its configuration."""
        config_class: type[BaseModel] = self.module.Config
        return config_class

    def outside_inputs(self, config: BaseModel) -> str | None:
        """Identity of what the step reads outside the lake (raw files), if it says so."""
        digest = getattr(self.module, "outside_inputs", None)
        found: str | None = None if digest is None else digest(config)
        return found


class LedgerEntry(BaseModel, frozen=True):
    """What a step saw when it last ended well. Digests by table; null where a table was not there."""

    config: dict[str, Any]
    outside_inputs: str | None
    reads: dict[str, str | None]
    writes: dict[str, str | None]
    finished: datetime
    seconds: float


def step(name: str) -> Step:
    """The step of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in STEPS:
        raise ValueError(f"there is no step {name!r}; the steps are {', '.join(STEPS)}")
    return Step(name, importlib.import_module(f"jobs.{name}"))


def last_run(lake: Lake, name: str) -> LedgerEntry | None:
    """The ledger's entry of a step, if it has ever ended well in this lake."""
    path = lake.root / "ledger" / f"{name}.json"
    try:
        return LedgerEntry.model_validate_json(path.read_text()) if path.exists() else None
    except ValidationError:
        return None  # written by another version: as good as none, the step runs again


def why_stale(lake: Lake, one: Step, config: BaseModel) -> str | None:
    """Why the step must run, in a few words; None when it is fresh."""
    entry = last_run(lake, one.name)
    if entry is None:
        return "never run"
    now = _observe(lake, one, config)
    for key in sorted({*now.config, *entry.config}):
        if now.config.get(key) != entry.config.get(key):
            return f"{key} changed: {_short(entry.config.get(key))} -> {_short(now.config.get(key))}"
    if now.outside_inputs != entry.outside_inputs:
        return "raw files changed"
    for table, digest in now.reads.items():
        if digest != entry.reads.get(table):
            return f"{table} changed"
    for table, digest in now.writes.items():
        if digest != entry.writes.get(table):
            return f"{table} is {'missing' if digest is None else 'not what this step wrote'}"
    return None


def needing_impressions(lake: Lake, configs: Mapping[str, BaseModel], names: Iterable[str]) -> list[str]:
    """Those of the steps that cannot run on this lake, because its source has no impressions: judged pairs alone.

    Args:
        lake: where the tables are.
        configs: Config of every step; ingest's says which source is read first, where it is among the steps.
        names: of the steps.
    """
    names = list(names)
    if "ingest" in names:
        has_impressions = bool(step("ingest").module.gives_impressions(configs["ingest"]))
    else:
        has_impressions = not lake.exists(Impressions) or lake.manifest(Impressions).rows > 0
    return [] if has_impressions else [name for name in names if name in NEED_IMPRESSIONS]


def run_steps(
    lake: Lake, configs: Mapping[str, BaseModel], names: Iterable[str] | None = None, *, force: bool = False
) -> list[str]:
    """Run the steps that are stale, in the order of the flow.

    Args:
        lake: where the tables are.
        configs: Config of every step, by name.
        names: only these steps, whatever their place; by default all.
        force: run fresh steps, too.

    Returns:
        Names of the steps that ran.

    Raises:
        ValueError: there is no such step; or one needs impressions, and the lake's source has none; or rankers are to
            be compared with one that is not among them.
    """
    wanted = list(names) if names is not None else list(STEPS)
    chosen = [step(name) for name in wanted]  # every name is checked before anything runs
    if impossible := needing_impressions(lake, configs, wanted):
        can = [name for name in STEPS if name not in NEED_IMPRESSIONS and name != "ingest"]
        raise ValueError(
            f"lake {lake.root} is made of judged pairs alone. Without impressions these steps cannot run: "
            f"{', '.join(impossible)}.\n"
            f"  what to do: name those that can, tailrank run {' '.join(can)}, or take in a log into another lake"
        )
    _check_baseline(configs, wanted)
    ran = []
    for one in sorted(chosen, key=lambda each: STEPS.index(each.name)):
        config = configs[one.name]
        reason = "forced" if force else why_stale(lake, one, config)
        if reason is None:
            logger.info("%s: fresh, nothing to do", one.name)
            continue
        logger.info("%s: %s", one.name, reason)
        started = time.monotonic()
        one.module.run(lake, config)
        seconds = time.monotonic() - started
        entry = _observe(lake, one, config).model_copy(update={"seconds": seconds})
        path = lake.folder("ledger") / f"{one.name}.json"
        aside = path.with_suffix(f".{os.getpid()}.tmp")  # several processes may train one model, and end together
        aside.write_text(entry.model_dump_json(indent=2))
        aside.replace(path)
        logger.info("%s: done in %.1f s", one.name, seconds)
        ran.append(one.name)
    return ran


def _check_baseline(configs: Mapping[str, BaseModel], names: Sequence[str]) -> None:
    """What is to be trained and then compared has something to be compared with: training may take hours."""
    if not {"train_ranker", "evaluate_ranker"} <= set(names):
        return
    rankers, baseline = (
        getattr(configs["train_ranker"], "rankers", None),
        getattr(configs["evaluate_ranker"], "baseline", None),
    )
    if rankers is not None and baseline is not None and baseline not in rankers:
        raise ValueError(
            f"evaluate_ranker compares with `{baseline}`, which train_ranker does not train: {', '.join(rankers)}.\n"
            f"  what to do: add {baseline} to [train_ranker] rankers, or name one of them as [evaluate_ranker] baseline"
        )


def _observe(lake: Lake, one: Step, config: BaseModel) -> LedgerEntry:
    def digests(schemas: tuple[type[dy.Schema], ...]) -> dict[str, str | None]:
        return {table_name(schema): lake.manifest(schema).digest if lake.exists(schema) else None for schema in schemas}

    return LedgerEntry(
        config=json.loads(config.model_dump_json()),
        outside_inputs=one.outside_inputs(config),
        reads=digests(one.reads + one.shows),
        writes=digests(one.writes),
        finished=lake.now(),
        seconds=0.0,
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:27]}..."
