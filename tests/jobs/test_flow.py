"""The order of the steps, and when a step has something to do. Small steps, made here, run on a real lake."""

import datetime as dt
from types import ModuleType, SimpleNamespace

import polars as pl
import pytest
from pydantic import BaseModel

from feature_repo.table_schemas import (
    Impressions,
    ItemContentEmbeddings,
    Queries,
    RelevanceGrades,
    TrueProbabilities,
    Users,
)
from jobs import flow
from jobs.lake import Lake, table_name

T = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)


class FirstConfig(BaseModel, extra="forbid", frozen=True):
    num_users: int = 2


class NoConfig(BaseModel, extra="forbid", frozen=True):
    pass


def write_users(lake: Lake, config: FirstConfig) -> None:
    ids = [f"u{i}" for i in range(config.num_users)]
    lake.write(Users, pl.DataFrame({"user_id": ids, "event_timestamp": [T] * len(ids)}))


def write_queries(lake: Lake, config: NoConfig) -> None:
    lake.write(Queries, lake.read(Users).select(query_id="user_id", query_text="user_id"))


def module(name: str, **contents: object) -> ModuleType:
    made = ModuleType(name, doc=f"{name} does its part.\n\nMore.")
    made.__dict__.update(contents)
    return made


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    raw = SimpleNamespace(version="raw 1")
    modules = {
        "first": module(
            "first",
            READS=(),
            WRITES=(Users,),
            Config=FirstConfig,
            run=write_users,
            outside_inputs=lambda config: raw.version,
        ),
        "second": module("second", READS=(Users,), WRITES=(Queries,), Config=NoConfig, run=write_queries),
    }
    monkeypatch.setattr(flow, "STEPS", tuple(modules))
    monkeypatch.setattr(flow, "step", lambda name: flow.Step(name, modules[name]))
    return raw


def configs(num_users: int = 2) -> dict[str, BaseModel]:
    return {"first": FirstConfig(num_users=num_users), "second": NoConfig()}


def test_a_second_run_does_nothing(lake: Lake, two_steps: SimpleNamespace):
    assert flow.run_steps(lake, configs()) == ["first", "second"]
    assert flow.run_steps(lake, configs()) == []


def test_a_changed_configuration_runs_the_step_and_what_reads_its_table(lake: Lake, two_steps: SimpleNamespace):
    flow.run_steps(lake, configs())
    assert flow.why_stale(lake, flow.step("first"), FirstConfig(num_users=3)) == "num_users changed: 2 -> 3"
    assert flow.run_steps(lake, configs(num_users=3)) == ["first", "second"]
    assert len(lake.read(Queries)) == 3


def test_changed_raw_files_run_the_step_but_an_equal_table_runs_nothing_after_it(
    lake: Lake, two_steps: SimpleNamespace
):
    flow.run_steps(lake, configs())
    two_steps.version = "raw 2"
    assert flow.run_steps(lake, configs()) == ["first"]


def test_a_table_of_a_command_outside_the_flow_makes_the_step_that_shows_it_stale(
    lake: Lake, two_steps: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    second = flow.step("second")
    monkeypatch.setattr(second.module, "SHOWS", (RelevanceGrades,), raising=False)
    assert flow.run_steps(lake, configs()) == ["first", "second"]
    assert flow.run_steps(lake, configs()) == []
    lake.write(RelevanceGrades, pl.DataFrame({"query_id": ["q"], "item_id": ["i"], "grade": [1.0]}))
    assert flow.why_stale(lake, second, NoConfig()) == "relevance_grades changed"
    assert flow.run_steps(lake, configs()) == ["second"]


def test_a_table_that_was_removed_is_made_again(lake: Lake, two_steps: SimpleNamespace):
    flow.run_steps(lake, configs())
    (lake.root / "queries" / "current").unlink()
    assert flow.why_stale(lake, flow.step("second"), NoConfig()) == "queries is missing"
    assert flow.run_steps(lake, configs()) == ["second"]


def test_force_runs_fresh_steps_and_names_choose_among_them(lake: Lake, two_steps: SimpleNamespace):
    flow.run_steps(lake, configs())
    assert flow.run_steps(lake, configs(), ["second"], force=True) == ["second"]


def test_a_step_that_fails_stays_stale(lake: Lake, two_steps: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="there is no such table"):
        flow.run_steps(lake, configs(), ["second"])
    assert flow.why_stale(lake, flow.step("second"), NoConfig()) == "never run"


def test_a_ledger_of_another_version_counts_as_never_run(lake: Lake, two_steps: SimpleNamespace):
    flow.run_steps(lake, configs())
    (lake.root / "ledger" / "first.json").write_text('{"config": {}}')
    assert flow.why_stale(lake, flow.step("first"), FirstConfig()) == "never run"


def test_an_unknown_step_is_refused_before_anything_runs(lake: Lake):
    with pytest.raises(ValueError, match="there is no step 'embed_item'"):
        flow.run_steps(lake, {}, ["ingest", "embed_item"])
    assert not lake.root.exists()


@pytest.mark.parametrize("attribute", ["READS", "WRITES", "Config", "run"])
def test_every_step_has_the_same_shape(attribute: str):
    for name in flow.STEPS:
        assert hasattr(flow.step(name).module, attribute), f"{name} has no {attribute}"


def test_every_step_reads_only_what_an_earlier_step_writes():
    written: set[str] = set()
    for name in flow.STEPS:
        one = flow.step(name)
        missing = {table_name(schema) for schema in one.reads} - written
        assert not missing, f"{name} reads {missing} before any step writes it"
        written |= {table_name(schema) for schema in one.writes}
    assert {table_name(schema) for schema in (ItemContentEmbeddings, TrueProbabilities)} <= written


def test_a_method_names_steps_that_stand_for_others():
    for instead in flow.METHODS.values():
        for name, other in instead.items():
            assert {name, other} <= set(flow.STEPS)
            assert flow.STEPS.index(name) <= flow.STEPS.index("fit_embedder") <= flow.STEPS.index(other)


def test_every_table_has_one_writer():
    writers: dict[str, str] = {}
    for name in flow.STEPS:
        for schema in flow.step(name).writes:
            assert table_name(schema) not in writers, f"{schema} is written by {name} and {writers[table_name(schema)]}"
            writers[table_name(schema)] = name


def test_every_configuration_works_without_being_told_anything():
    for name in flow.STEPS:
        config = flow.step(name).config_class()
        assert config.model_config["extra"] == "forbid"
        assert config.model_config["frozen"] is True


def test_every_field_of_every_configuration_is_explained():
    import ast
    import inspect

    for name in flow.STEPS:
        tree = ast.parse(inspect.getsource(flow.step(name).module))
        (config,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
        for at, node in enumerate(config.body):
            if isinstance(node, ast.AnnAssign):
                below = config.body[at + 1] if at + 1 < len(config.body) else None
                assert isinstance(below, ast.Expr), (
                    f"{name}.Config.{ast.unparse(node.target)} has no docstring below it"
                )


def test_a_lake_of_judged_pairs_alone_stops_at_steps_that_need_a_log_before_anything_runs(lake: Lake):
    defaults = {name: flow.step(name).config_class() for name in flow.STEPS}
    lake.write(Impressions, Impressions.create_empty())
    with pytest.raises(
        ValueError, match=r"made of judged pairs alone.*cannot run: train_ranker\.\n.*embed_items .*publish"
    ):
        flow.run_steps(lake, defaults, ["embed_items", "train_ranker"])
    assert flow.last_run(lake, "embed_items") is None
    others = [name for name in flow.STEPS if name not in (*flow.NEED_IMPRESSIONS, "ingest")]
    assert flow.needing_impressions(lake, defaults, others) == []
    judged = {**defaults, "ingest": flow.step("ingest").config_class(source="judged_pairs")}
    assert flow.needing_impressions(lake, judged, flow.STEPS) == list(flow.NEED_IMPRESSIONS)
    assert flow.needing_impressions(lake, defaults, flow.STEPS) == []  # ingest takes in a log first


def test_rankers_to_be_compared_with_one_that_is_not_trained_stop_the_run_before_it_begins(lake: Lake):
    defaults = {name: flow.step(name).config_class() for name in flow.STEPS}
    alone = {**defaults, "train_ranker": flow.step("train_ranker").config_class(rankers=["learn", "karma"])}
    with pytest.raises(ValueError, match=r"compares with `base`, which train_ranker does not train: learn, karma\.\n"):
        flow.run_steps(lake, alone, ["ingest", "train_ranker", "evaluate_ranker"])
    assert flow.last_run(lake, "ingest") is None
    compared = {**alone, "evaluate_ranker": flow.step("evaluate_ranker").config_class(baseline="learn")}
    flow.run_steps(lake, compared, [])
    with pytest.raises(ValueError, match="made of judged pairs|training_examples"):
        flow.run_steps(lake, alone, ["train_ranker"])  # by itself it may train what it likes, if it has what it needs


def test_steps_that_need_impressions_are_those_that_stand_on_them():
    on_the_log = {table_name(Impressions)}
    for name in flow.STEPS:
        one = flow.step(name)
        stands_on_it = bool(on_the_log & {table_name(schema) for schema in one.reads})
        assert stands_on_it or name not in flow.NEED_IMPRESSIONS, name
        if name in flow.NEED_IMPRESSIONS:
            on_the_log |= {table_name(schema) for schema in one.writes}
