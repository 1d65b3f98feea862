"""Feast, opened for a lake: with the lake's own paths, the offline store asked for, and without Feast's noise.

`import feast` takes seconds, so it happens inside the functions here and in the jobs that use them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobs.lake import Lake
from jobs.registry_path import FEATURE_REPO

if TYPE_CHECKING:
    from feast import FeatureStore
    from feast.repo_contents import RepoContents

logger = logging.getLogger(__name__)

OFFLINE_STORES: dict[str, dict[str, Any]] = {
    "asof": {"type": "jobs.asof_offline_store.AsofOfflineStore"},
    "duckdb": {"type": "duckdb"},
}
"""Stores that a job may put in place of the one in feature_store.yaml."""

REFUSED_OFFLINE_STORES = {
    "file": "it loses rows: those before the first feature value, those past the ttl, and all but one of equal rows",
    "dask": "it loses rows: those before the first feature value, those past the ttl, and all but one of equal rows",
    "ray": "it takes minutes for a thousand rows, and turns float32 vectors into lists of doubles",
}
"""Stores that a training set must not come from, and why."""

PUBLISHED = "published.json"
"""In <lake>/feast: what is online, so that nothing is materialized twice."""

YAML_HEADER = """\
# Written by tailrank: feature_repo/feature_store.yaml with the paths of this lake. To read features:
#     FeatureStore(repo_path="{folder}")
# Never `feast apply` here: Feast would take this folder for a repository without features and delete them all.
"""


def repo_folder(feature_repo: str | None) -> Path:
    """The Feast repository: ours, or a team's own that imports our views.

    Raises:
        ValueError: there is no feature_store.yaml in it.
    """
    folder = Path(feature_repo).expanduser().resolve() if feature_repo else FEATURE_REPO
    if not (folder / "feature_store.yaml").is_file():
        raise ValueError(
            f"feature_repo: {folder} has no feature_store.yaml; name the folder where `feast apply` is run"
        )
    return folder


def repo_digest(feature_repo: str | None) -> str:
    """Hash of the definitions: it changes whenever `feast apply` might do something else."""
    folder = repo_folder(feature_repo)
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), folder / "feature_store.yaml", folder / ".feastignore"]):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def open_store(lake: Lake, feature_repo: str | None = None, offline_store: str | None = None) -> FeatureStore:
    """Open Feast on a lake.

    With our own repository, sqlite registry and online store are those of this lake; whatever else its yaml names
    (Postgres, Redis) is used as it is, and so is all of a team's own yaml.

    Args:
        lake: whose features.
        feature_repo: folder of a team's own repository; ours by default.
        offline_store: a key of `OFFLINE_STORES`; None: as the yaml says.

    Raises:
        ValueError: no such repository.
    """
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    folder = repo_folder(feature_repo)
    if folder == FEATURE_REPO:
        folder = _write_yaml_of(lake)
    document = yaml.safe_load(os.path.expandvars((folder / "feature_store.yaml").read_text()))
    if offline_store is not None:
        document["offline_store"] = OFFLINE_STORES[offline_store]
    config = RepoConfig(**document)
    config.repo_path = folder
    return FeatureStore(repo_path=str(folder), config=config)


def _write_yaml_of(lake: Lake) -> Path:
    """Write <lake>/feast/feature_store.yaml, if it is not as it should be; returns its folder."""
    folder = lake.folder("feast")
    document = yaml.safe_load((FEATURE_REPO / "feature_store.yaml").read_text())  # ${SECRETS} stay unexpanded
    registry, online_store = document["registry"], document.get("online_store", {})
    if str(registry["path"]).startswith("sqlite:///"):
        registry["path"] = f"sqlite:///{folder / 'registry.db'}"
        registry.pop("sqlalchemy_config_kwargs", None)  # only made a relative path absolute
    if online_store.get("type") == "sqlite":
        online_store["path"] = str(folder / "online_store.db")
    text = YAML_HEADER.format(folder=folder) + yaml.safe_dump(document, sort_keys=False)
    path = folder / "feature_store.yaml"
    if path.exists() and f'repo_path="{folder}"' not in path.read_text():
        # Feast remembers absolute paths: applying this registry would drop the tables of the lake it was copied from.
        logger.warning("%s was copied or moved: its Feast registry and online store begin anew", lake.root)
        for name in ("registry.db", "online_store.db", PUBLISHED):
            (folder / name).unlink(missing_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return folder


def declared(lake: Lake, feature_repo: str | None, store: FeatureStore) -> RepoContents:
    """Everything that the repository declares, as `feast apply` would see it, for this lake."""
    from feast.repo_operations import _get_repo_contents

    folder = repo_folder(feature_repo)
    with _importing_from(folder), _environment("TAILRANK_LAKE", str(lake.root)), quiet_feast():
        return _get_repo_contents(folder, store.project, store.config)


@contextlib.contextmanager
def quiet_feast(*, hide_its_bars: bool = False) -> Iterator[None]:
    """Without Feast's prints and its warnings about its own experimental parts; errors come through.

    `hide_its_bars` swallows all of stderr, so it is not for the inside of a progress bar of ours.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if hide_its_bars:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Feast imports a repository's files as top-level modules (`entities`, ...) of the working directory.

    Modules of that name from elsewhere step aside meanwhile, and everything imported from `folder` is forgotten
    afterwards, so that two repositories can be read in one process.
    """
    tops = {path.relative_to(folder).parts[0].removesuffix(".py") for path in folder.rglob("*.py")}
    aside = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
    for name in aside:
        del sys.modules[name]
    before, no_bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = no_bytecode
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(folder) and not name.startswith("feature_repo"):
                del sys.modules[name]
        sys.modules.update(aside)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
