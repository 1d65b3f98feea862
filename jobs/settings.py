"""Settings of a flow: `tailrank.toml`, overridden by the environment, overridden by flags. Unknown keys are refused.

[lake]                 path = "lake"
[train_ranker]         seeds = [0, 1, 2]            one section a step: the fields of that step's Config
[sources.columns]      ...                          one section a raw source

TAILRANK__TRAIN_RANKER__SEEDS='[0, 1, 2]'           in the environment: values are written as in TOML
tailrank run --set train_ranker.seeds='[0, 1, 2]'   as a flag
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from jobs import flow
from jobs.lake import Lake
from jobs.train_ranker import PRESETS

DEFAULT_FILE = Path("tailrank.toml")
ENVIRONMENT_PREFIX = "TAILRANK__"


class Switch(NamedTuple):
    """A method that a team has or has not, by `enabled` of its steps, and what is trained with it."""

    steps: tuple[str, ...]
    """All of them must be on."""
    service: str
    """Feature service that needs the method."""
    rankers: tuple[str, ...]
    """Presets of `train_ranker` that read the service."""


SWITCHES = (
    Switch(("fit_embedder",), "ranker_learn_v1", ("learn", "gbdt_learn")),
    Switch(("fit_embedder_karma",), "ranker_karma_v1", ("karma",)),
    Switch(("label_relevance",), "ranker_relevance_v1", ("relevance",)),
    Switch(("fit_embedder", "fit_embedder_karma", "label_relevance"), "ranker_all_v1", ("all",)),
)
"""What the settings do not name, services and rankers, follows from which methods are switched on."""

C = TypeVar("C", bound=BaseModel)


class LakeConfig(BaseModel, extra="forbid", frozen=True):
    """Where the tables are."""

    path: str = "lake"
    """Folder of the lake; relative to the folder of tailrank.toml. One lake holds one log."""


@dataclass(frozen=True)
class Settings:
    """All settings of one flow, checked.

    Attributes:
        lake_path: folder of the lake, absolute.
        steps: the Config of each step, by the step's name.
    """

    lake_path: Path
    steps: Mapping[str, BaseModel]


def load_settings(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Iterable[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Read and check the settings of a flow.

    Args:
        file: a TOML file; by default `tailrank.toml` in the working directory, where there is one.
        environment: variables to look through, usually `os.environ`.
        flags: `section.key=value` each, the value written as in TOML (a bare word is a string).
        overrides: {section: {key: value}}, set by the command itself; the strongest of all.

    Raises:
        ValueError: no such file, not TOML, an unknown section or key (the nearest known one is named), a bad value.
    """
    if file is not None and not file.exists():
        raise ValueError(
            f"settings file {file} does not exist; name another with --config, or leave it out for defaults"
        )
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    document: dict[str, Any] = _read_toml(chosen) if chosen else {}
    stronger: dict[str, Any] = {}
    for key, value in sorted((environment or {}).items()):
        if key.startswith(ENVIRONMENT_PREFIX):
            _assign(stronger, key.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"), _toml_value(value), where=key)
    for flag in flags:
        name, equals, value = flag.partition("=")
        if not equals:
            raise ValueError(f"--set {flag}: expected section.key=value, for example train_ranker.seeds='[0, 1, 2]'")
        _assign(stronger, name.strip().split("."), _toml_value(value), where=f"--set {flag}")
    for section, values in (overrides or {}).items():
        for key, value in values.items():
            _assign(stronger, [section, key], value, where=section)
    return _check(document, stronger, chosen)


def _check(document: dict[str, Any], stronger: dict[str, Any], file: Path | None) -> Settings:
    where = str(file) if file else "settings"
    for found in (document, stronger):
        sources = found.get("sources", {})
        if not isinstance(sources, dict):
            raise ValueError(f"{where}: `sources` must be a section of sections, such as [sources.columns]")
        _refuse_unknown(found, ["lake", "sources", *flow.STEPS], f"{where}: section")
        _refuse_unknown(sources, flow.SOURCES, f"{where}: section sources.")
    folder = file.resolve().parent if file else Path.cwd()
    lake = _validate(LakeConfig, {**document.get("lake", {}), **stronger.get("lake", {})}, f"{where}: [lake]")
    lake_path = (folder / Path(lake.path).expanduser()).resolve()
    _remember_source(document, lake_path, lake_is_named="lake" in stronger)
    merged = _merge(document, stronger)
    ingest = merged.get("ingest", {})
    if isinstance(ingest, dict):
        source = ingest.get("source", "simulate")
        if merged.get("sources", {}).get(source):
            ingest["options"] = merged["sources"][source]
        if isinstance(ingest.get("path"), str):
            ingest["path"] = str((folder / Path(ingest["path"]).expanduser()).resolve())
        merged["ingest"] = ingest
    _follow_switches(merged, where)
    steps = {
        name: _validate(flow.step(name).config_class, merged.get(name, {}), f"{where}: [{name}]") for name in flow.STEPS
    }
    return Settings(lake_path=lake_path, steps=steps)


def _remember_source(document: dict[str, Any], lake_path: Path, *, lake_is_named: bool) -> None:
    """A lake holds one log, and remembers which. What the file says of a source is about the file's own lake.

    So `tailrank ingest SOURCE PATH --lake L` followed by `tailrank run --lake L` goes on with that log, whatever
    `[ingest]` of the file names. The file's `[sources.<source>]` still counts where it is of the same source.
    """
    before = flow.last_run(Lake(lake_path), "ingest")
    ingest = document.get("ingest", {})
    if before is None or not isinstance(ingest, dict) or ("source" in ingest and not lake_is_named):
        return
    if ingest.get("source", before.config["source"]) != before.config["source"]:
        ingest = {}
        document.get("sources", {}).pop(before.config["source"], None)
    document["ingest"] = {**ingest, **before.config}


def _follow_switches(merged: dict[str, Any], where: str) -> None:
    """Services and rankers of the methods that are on, and of no other, where the settings do not name any."""
    training_set, train_ranker = (merged.setdefault(name, {}) for name in ("build_training_set", "train_ranker"))
    if not isinstance(training_set, dict) or not isinstance(train_ranker, dict):
        return
    services = list(flow.step("build_training_set").config_class().model_dump()["services"])
    rankers = flow.step("train_ranker").config_class().model_dump()["rankers"]

    def enabled(step: str) -> bool:
        config = _validate(flow.step(step).config_class, merged.get(step, {}), f"{where}: [{step}]")
        return bool(config.model_dump()["enabled"])

    for switch in SWITCHES:
        if all(map(enabled, switch.steps)):
            services += [] if switch.service in services else [switch.service]
            rankers |= {name: PRESETS[name].model_dump() for name in switch.rankers}
        else:
            services = [name for name in services if name != switch.service]
            rankers = {name: one for name, one in rankers.items() if one["service"] != switch.service}
    training_set.setdefault("services", services)
    train_ranker.setdefault("rankers", rankers)


def _merge(weaker: dict[str, Any], stronger: dict[str, Any]) -> dict[str, Any]:
    """`stronger` over `weaker`, section by section."""
    merged = dict(weaker)
    for key, value in stronger.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not TOML: {error}") from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(document: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    if len(path) < 2:
        raise ValueError(f"{where}: expected section.key, got {'.'.join(path)}")
    for part in path[:-1]:
        document = document.setdefault(part, {})
        if not isinstance(document, dict):
            raise ValueError(f"{where}: {part} is a value, not a section")
    document[path[-1]] = value


def _refuse_unknown(found: Iterable[str], known: Iterable[str], what: str) -> None:
    known = list(known)
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{what} {name!r} is unknown; {hint}")


def _validate(config_class: type[C], values: Any, where: str) -> C:
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise ValueError(
            "\n".join(describe_problem(problem, config_class, where) for problem in error.errors())
        ) from error


def describe_problem(problem: Any, config_class: type[BaseModel], where: str) -> str:
    """One problem that pydantic found, in one line: where, which key, what was got, what to do."""
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        known = list(config_class.model_fields) if len(path) == 1 else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}" if known else "remove it"
        return f"{where} key {'.'.join(path)!r} is unknown; {hint}"
    # of a whole section the values are not told: they may be many, and a secret among them
    got = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
    return f"{where} {'.'.join(path)}{got}: {problem['msg'].removeprefix('Value error, ')}"  # pydantic's prefix
