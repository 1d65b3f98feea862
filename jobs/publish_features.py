"""Register the feature views with Feast and put the newest value of every feature into the online store.

reads   the feature tables (`jobs.feature_tables`)
writes  no table: Feast's registry and online store, <lake>/feast/
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import dataframely as dy
import polars as pl
from pydantic import BaseModel

from feature_repo.table_schemas import ItemRelevanceEmbeddings, QueryEmbeddings
from jobs.feast_store import PUBLISHED, declared, open_store, quiet_feast, repo_digest, repo_folder
from jobs.feature_tables import BY_NAME, FEATURE_TABLES, lake_keys
from jobs.lake import Lake
from jobs.relevance.fitted_students import check_one_student

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView
    from feast.repo_contents import RepoContents

logger = logging.getLogger(__name__)

READS: tuple[type[dy.Schema], ...] = FEATURE_TABLES
WRITES: tuple[type[dy.Schema], ...] = ()

NUM_KEYS_READ_BACK = 16
"""Keys of each view whose online values are compared with the table after every run."""


class Config(BaseModel, extra="forbid", frozen=True):
    """What to publish, and where."""

    feature_repo: str | None = None
    """Folder of your own Feast repository, where it imports our views; by default ours, as a project of its own."""


class Published(NamedTuple):
    """What a view held when it was last put online."""

    digest: str
    rows: int
    start: str
    end: str


def outside_inputs(config: Config) -> str:
    """Hash of the definitions, which are no tables."""
    return repo_digest(config.feature_repo)


def run(lake: Lake, config: Config) -> None:
    """Apply the definitions, materialize what changed, and read a sample back.

    Raises:
        ValueError: the Feast project holds what is not ours, the online store does not hold what was written, or the
            vectors of queries and of items are of two students (a run was killed between their tables).
    """
    if all(lake.exists(schema) and lake.manifest(schema).rows for schema in (QueryEmbeddings, ItemRelevanceEmbeddings)):
        check_one_student(lake, "publish_features")  # online, `relevance_on_demand` multiplies them
    store = open_store(lake, config.feature_repo)
    contents = declared(lake, config.feature_repo, store)
    apply(store, contents, str(repo_folder(config.feature_repo)))
    ledger_path = lake.folder("feast") / PUBLISHED
    ledger = json.loads(ledger_path.read_text()) if ledger_path.exists() else {}
    views = [view for view in store.list_feature_views() if view.tags.get("lake_table") in BY_NAME and view.online]
    views = _with_rows(lake, sorted(views, key=lambda each: str(each.name)))
    for view in views:
        key = f"{store.project}/{view.name}"
        digest = _digest(lake, store, view)
        if Published(*ledger.get(key, ("", 0, "", ""))).digest == digest and _differences(lake, store, view) == []:
            logger.info("publish_features: %s is online already", view.name)
            continue
        ledger[key] = materialize(lake, store, view)._replace(digest=digest)
        aside = ledger_path.with_suffix(".tmp")
        aside.write_text(json.dumps(ledger, indent=2))
        aside.replace(ledger_path)


def _with_rows(lake: Lake, views: list[FeatureView]) -> list[FeatureView]:
    """The views whose tables have rows; of the others it is said once that they are not online.

    An empty table is what a method that is switched off leaves. A table that was never written is worth a warning.
    """

    def rows(view: FeatureView) -> int | None:
        schema = BY_NAME[view.tags["lake_table"]]
        return lake.manifest(schema).rows if lake.exists(schema) else None

    for level, found, why in (
        (logging.INFO, 0, "empty, as a method that is switched off leaves it"),
        (logging.WARNING, None, "never written"),
    ):
        if offline := [f"{view.name} ({view.tags['lake_table']})" for view in views if rows(view) == found]:
            logger.log(level, "publish_features: not online, for the table is %s: %s", why, ", ".join(offline))
    return [view for view in views if rows(view)]


def apply(store: FeatureStore, contents: RepoContents, folder: str) -> None:
    """`feast apply`, unless it would delete or overwrite what is not ours.

    Raises:
        ValueError: it would.
    """
    from feast.infra.registry.registry import FeastObjectType
    from feast.repo_operations import apply_total_with_repo_instance

    def ours(one: Any) -> bool:
        return (getattr(one, "tags", None) or {}).get("made_by") == "tailrank"

    there = FeastObjectType.get_objects_from_registry(store.registry, store.project)
    here = FeastObjectType.get_objects_from_repo_contents(contents)
    foreign = []
    for kind in FeastObjectType:
        if kind == FeastObjectType.PROJECT:
            continue
        declared_here = {one.name: one for one in here[kind]}
        for one in there[kind]:
            deleted = one.name not in declared_here and not one.name.startswith("__")
            overwritten = one.name in declared_here and ours(declared_here[one.name])
            if (deleted or overwritten) and not ours(one):
                foreign.append(f"{kind.value} {one.name}")
    if foreign:
        raise ValueError(
            f"publish_features: Feast project {store.project!r} holds {len(foreign)} objects that are not tailrank's, "
            f"and applying {folder} would delete or overwrite them: {', '.join(sorted(foreign))}.\n"
            "  what to do: either give tailrank a project of its own (`project:` in feature_repo/feature_store.yaml; "
            "a registry and an online store can be shared by many projects),\n"
            "  or import our views into your own repository under your entities (feature_repo/item_features.py shows "
            'how) and name its folder: [publish_features] feature_repo = "..."'
        )
    with quiet_feast(hide_its_bars=True):
        apply_total_with_repo_instance(store, store.project, store.registry, contents, skip_source_validation=True)


def materialize(lake: Lake, store: FeatureStore, view: FeatureView) -> Published:
    """Put the newest row of each key online, and read a sample back.

    The interval is the table's own: from its first event_timestamp to its last. An end in the future would make Feast's
    `materialize-incremental` skip what arrives until then.

    Raises:
        ValueError: the online store does not hold what was written.
    """
    schema = BY_NAME[view.tags["lake_table"]]
    started = time.monotonic()
    start, end, rows = (
        lake.scan(schema)
        .select(pl.col("event_timestamp").min().alias("start"), pl.col("event_timestamp").max().alias("end"), pl.len())
        .collect(engine="streaming")
        .row(0)
    )
    with quiet_feast(hide_its_bars=True):
        store.materialize(start, end, feature_views=[view.name])
    if differences := _differences(lake, store, view):
        raise ValueError(
            f"publish_features: the online store does not hold what was written for {view.name}: "
            f"{len(differences)} values differ, first {differences[0]}.\n"
            "  what to do: run the step again; if it stays, another writer owns these keys (materialize and push must "
            "not both write one view), or the store refused rows: look at its log"
        )
    logger.info(
        "publish_features: %s online, newest of %s rows from %s to %s, %.1f s",
        view.name,
        f"{rows:_}",
        _minute(start),
        _minute(end),
        time.monotonic() - started,
    )
    return Published("", rows, start.isoformat(), end.isoformat())


def _digest(lake: Lake, store: FeatureStore, view: FeatureView) -> str:
    """Hash of all that decides what is online: the table, the view's declaration, the store."""
    fields = [(one.name, one.dtype.to_value_type().name, sorted(one.tags.items())) for one in view.features]
    declaration = [fields, view.join_keys, view.batch_source.path, view.batch_source.field_mapping]
    table = lake.manifest(BY_NAME[view.tags["lake_table"]]).digest
    decides = json.dumps([table, declaration, store.config.online_config], default=str)
    return hashlib.sha256(decides.encode()).hexdigest()


def _differences(lake: Lake, store: FeatureStore, view: FeatureView) -> list[str]:
    """Values of a sample of keys that are not online as the table has them (a hash picks the sample)."""
    features = [field.name for field in view.features]
    columns = lake_keys(view)
    keys = list(columns.values())
    table = lake.scan(BY_NAME[view.tags["lake_table"]]).lazy()
    every = table.select(keys).unique().collect()
    sample = every.sort(every.hash_rows(seed=0)).head(NUM_KEYS_READ_BACK)
    expected = (
        # the first filter is done while reading, so that vectors of other keys are never in memory
        table.filter(pl.col(key).is_in(sample.get_column(key).implode()) for key in keys)
        .join(sample.lazy(), on=keys, how="semi", maintain_order="left")
        .sort("event_timestamp", "created_timestamp", maintain_order=True)
        .select(*keys, *features)
        .unique(keys, keep="last")
        .collect()
    )
    with quiet_feast():
        online = store.get_online_features(
            features=[f"{view.name}:{name}" for name in features],
            entity_rows=expected.select(pl.col(ours).alias(theirs) for theirs, ours in columns.items()).to_dicts(),
        ).to_dict()
    return [
        f"{name} of {' and '.join(one)}: {_difference(want, got)}"
        for name in features
        for one, want, got in zip(
            expected.select(keys).iter_rows(), expected.get_column(name).to_list(), online[name], strict=True
        )
        if not _same(want, got)
    ]


def _same(want: Any, got: Any) -> bool:
    """Whether the online store gave back the value of the table: numbers bit by bit, times to the second.

    Feast's online stores keep times as whole seconds, so the fraction is there in training and not in serving.
    """
    if isinstance(want, list):
        return isinstance(got, list) and len(want) == len(got) and all(map(_same, want, got))
    if isinstance(want, datetime):
        return isinstance(got, datetime) and got.timestamp() == math.floor(want.timestamp())
    if isinstance(want, float):
        return isinstance(got, float) and (want == got or (math.isnan(want) and math.isnan(got)))
    return bool(want == got)


def _difference(want: Any, got: Any) -> str:
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        at = next(n for n, (one, other) in enumerate(zip(want, got, strict=True)) if not _same(one, other))
        return f"value {at} of {len(want)}: expected {want[at]!r}, got {got[at]!r}"
    return f"expected {str(want)[:80]}, got {str(got)[:80]}"


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"
