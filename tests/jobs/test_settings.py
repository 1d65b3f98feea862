import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs import flow
from jobs.settings import SWITCHES, load_settings
from jobs.train_ranker import PRESETS


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    file = folder / "tailrank.toml"
    file.write_text(text)
    return file


def test_without_a_file_every_step_has_its_defaults(empty_folder: Path):
    settings = load_settings()
    assert settings.lake_path == empty_folder / "lake"
    assert settings.steps["ingest"].model_dump()["source"] == "simulate"


def test_the_file_is_overridden_by_the_environment_and_that_by_flags(empty_folder: Path):
    written(empty_folder, "[embed_items]\nbackbone = 'file'\n[collect_histories]\nmax_length = 7\n")

    def backbone(**kwargs: object) -> object:
        return load_settings(**kwargs).steps["embed_items"].model_dump()["backbone"]  # type: ignore[arg-type]

    environment = {"TAILRANK__EMBED_ITEMS__BACKBONE": "environment", "TAILRANK_LAKE": "ignored"}
    assert backbone() == "file"
    assert backbone(environment=environment) == "environment"
    assert backbone(environment=environment, flags=["embed_items.backbone=flag"]) == "flag"
    assert load_settings().steps["collect_histories"].model_dump()["max_length"] == 7


def test_the_lake_and_the_raw_log_are_relative_to_the_file_that_names_them(empty_folder: Path):
    (empty_folder / "team").mkdir()
    file = written(empty_folder / "team", "[lake]\npath = 'tables'\n[ingest]\nsource = 'movielens'\npath = 'raw'\n")
    settings = load_settings(file)
    assert settings.lake_path == empty_folder / "team" / "tables"
    assert settings.steps["ingest"].model_dump()["path"] == empty_folder / "team" / "raw"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[embed_item]\n", "section 'embed_item' is unknown; did you mean 'embed_items'?"),
        ("[embed_items]\nbackbne = 'x'\n", r"\[embed_items\] key 'backbne' is unknown; did you mean 'backbone'?"),
        ("[label_relevance.teacher]\nkind = 'endpoint'\n", r"\[label_relevance\] teacher: an endpoint needs `url`"),
        ("[sources.movielense]\n", "'movielense' is unknown; did you mean 'movielens'?"),
        ("[collect_histories]\nmax_length = 'ten'\n", r"\[collect_histories\] max_length = 'ten': .*integer"),
        ("[collect_histories\n", "is not TOML"),
        ("embed_items = 3\n", r"\[embed_items\]"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_nearest_known_word(empty_folder: Path, text: str, message: str):
    written(empty_folder, text)
    with pytest.raises(ValueError, match=message):
        load_settings()


def test_an_unknown_key_in_the_environment_or_a_flag_is_refused_too():
    with pytest.raises(ValueError, match="did you mean 'train_ranker'"):
        load_settings(environment={"TAILRANK__TRAIN_RANKR__SEEDS": "[0]"})
    with pytest.raises(ValueError, match="key 'seed' is unknown; did you mean 'seeds'"):
        load_settings(flags=["train_ranker.seed=[0]"])
    with pytest.raises(ValueError, match="expected section.key=value"):
        load_settings(flags=["seeds"])


def test_a_settings_file_that_is_named_must_be_there(empty_folder: Path):
    with pytest.raises(ValueError, match="does not exist"):
        load_settings(empty_folder / "other.toml")


def named(*flags: str) -> tuple[list[str], list[str]]:
    """Services and rankers of the settings."""
    steps = load_settings(flags=flags).steps
    return (
        list(steps["build_training_set"].model_dump()["services"]),
        list(steps["train_ranker"].model_dump()["rankers"]),
    )


def test_a_lake_without_learn_leaves_out_the_services_and_rankers_that_need_it_unless_they_are_named():
    services, rankers = named()
    assert "ranker_learn_v1" in services
    assert "learn" in rankers
    without, left = named("fit_embedder.enabled=false")
    assert without == [name for name in services if name != "ranker_learn_v1"]
    assert set(left) == {name for name in rankers if "learn" not in name}
    own = named("fit_embedder.enabled=false", "build_training_set.services=['ranker_learn_v1']")
    assert own[0] == ["ranker_learn_v1"]


def test_relevance_brings_its_service_and_ranker_when_it_is_enabled_unless_others_are_named():
    services, rankers = named()
    assert not [name for name in (*services, *rankers) if "relevance" in name]
    more, trained = named("label_relevance.enabled=true")
    assert more == [*services, "ranker_relevance_v1"]
    assert trained == [*rankers, "relevance"]
    assert named("label_relevance.enabled=false") == named()
    own = ("build_training_set.services=['ranker_base_v1']", "train_ranker.rankers=['base']")
    assert named("label_relevance.enabled=true", *own) == (["ranker_base_v1"], ["base"])
    only = named("label_relevance.enabled=true", "fit_embedder.enabled=false")
    assert only == (
        ["ranker_base_v1", "ranker_content_v1", "ranker_relevance_v1"],
        ["base", "content", "gbdt_base", "relevance"],
    )


def test_karma_brings_its_service_and_ranker_and_the_three_methods_together_the_one_of_all():
    services, rankers = named()
    assert not [name for name in (*services, *rankers) if "karma" in name or "all" in name]
    assert named("fit_embedder_karma.enabled=true") == ([*services, "ranker_karma_v1"], [*rankers, "karma"])
    assert named("fit_embedder_karma.enabled=true", "label_relevance.enabled=true") == (
        [*services, "ranker_karma_v1", "ranker_relevance_v1", "ranker_all_v1"],
        [*rankers, "karma", "relevance", "all"],
    )
    without_learn = named(
        "fit_embedder_karma.enabled=true", "label_relevance.enabled=true", "fit_embedder.enabled=false"
    )
    assert without_learn == (
        ["ranker_base_v1", "ranker_content_v1", "ranker_karma_v1", "ranker_relevance_v1"],
        ["base", "content", "gbdt_base", "karma", "relevance"],
    )


def test_settings_that_name_nothing_are_the_defaults_of_each_step():
    for name, config in load_settings().steps.items():
        assert config == type(config)(), name


def test_every_switch_is_of_a_step_that_has_one_and_of_presets_that_read_its_service():
    for switch in SWITCHES:
        for step in switch.steps:
            assert "enabled" in flow.step(step).config_class.model_fields
        assert {PRESETS[name].service for name in switch.rankers} == {switch.service}


def test_a_switch_that_is_no_truth_value_is_refused(empty_folder: Path):
    written(empty_folder, "[fit_embedder]\nenabled = 'perhaps'\n")
    with pytest.raises(ValueError, match=r"\[fit_embedder\] enabled = 'perhaps'"):
        load_settings()


def remember(lake: Path, **ingest: str) -> BaseModel:
    """Leave the ledger that an ingest into this lake leaves."""
    config = load_settings(overrides={"ingest": ingest}).steps["ingest"]
    entry = {
        "config": json.loads(config.model_dump_json()),
        "outside_inputs": None,
        "reads": {},
        "writes": {},
        "finished": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
    }
    (lake / "ledger").mkdir(parents=True)
    (lake / "ledger" / "ingest.json").write_text(json.dumps(entry))
    return config


def test_a_lake_remembers_what_was_ingested_into_it(empty_folder: Path):
    config = remember(empty_folder / "lake", source="movielens", path="/data")
    assert load_settings().steps["ingest"] == config
    assert load_settings(flags=["ingest.source=simulate"]).steps["ingest"] != config


def test_a_lake_that_is_named_goes_on_with_its_own_log_whatever_the_file_ingests(empty_folder: Path):
    config = remember(empty_folder / "other", source="movielens", path="/data")
    written(empty_folder, "[ingest]\nsource = 'simulate'\n[sources.simulate]\nsize = 'toy'\n")
    named = {"lake": {"path": str(empty_folder / "other")}}
    assert load_settings(overrides=named).steps["ingest"] == config
    assert load_settings().steps["ingest"].model_dump()["options"] == {"size": "toy"}


def test_options_of_the_same_source_still_come_from_the_file(empty_folder: Path):
    remember(empty_folder / "other", source="movielens", path="/data")
    written(empty_folder, "[ingest]\nsource = 'movielens'\n[sources.movielens]\nclicked_from_stars = 3.5\n")
    ingest = load_settings(overrides={"lake": {"path": str(empty_folder / "other")}}).steps["ingest"].model_dump()
    assert ingest["path"] == Path("/data")
    assert ingest["options"] == {"clicked_from_stars": 3.5}
