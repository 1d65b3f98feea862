"""Conventions of the definitions, and that Feast by itself can work with them from anywhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_repo import table_schemas
from feature_repo.request_features import relevances
from jobs.feast_store import declared, open_store
from jobs.feature_tables import BY_NAME, lake_keys
from jobs.lake import Lake, table_name

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"scalar", "count", "rate", "categorical", "history", "timestamps", "vector_id", "vector"}


@pytest.fixture(scope="module")
def contents(published_relevance_lake: Lake) -> Any:
    return declared(published_relevance_lake, None, open_store(published_relevance_lake))


def test_everything_has_an_owner_a_description_and_our_mark(contents: Any) -> None:
    objects = [
        *(entity for entity in contents.entities if not entity.name.startswith("__")),
        *contents.feature_views,
        *contents.on_demand_feature_views,
        *contents.feature_services,
        *contents.data_sources,
    ]
    assert len(objects) == 3 + 21 + 4 + 6 + 13
    for one in objects:
        assert one.owner, one.name
        assert one.description, one.name
        assert one.tags["made_by"] == "tailrank", one.name


def test_every_field_has_a_role_and_is_a_column_of_its_table_of_the_same_kind(contents: Any) -> None:
    schemas = {table_name(schema): schema for schema in vars(table_schemas).values() if hasattr(schema, "column_names")}
    kinds = {"Int64": "INT64", "Float64": "DOUBLE", "String": "STRING"}
    for view in contents.feature_views:
        columns = schemas[view.tags["lake_table"]].create_empty().schema
        assert {*lake_keys(view).values()} <= {*columns}
        assert {*lake_keys(view)} == {*view.join_keys}
        for field in view.features:
            assert field.tags["role"] in ROLES, field.name
            assert field.description, field.name
            column = columns[field.name]
            if str(column) in kinds:
                assert field.dtype.to_value_type().name == kinds[str(column)], field.name


def test_every_feature_table_is_served_and_no_other(contents: Any) -> None:
    assert {view.tags["lake_table"] for view in contents.feature_views} == BY_NAME.keys()


def test_feature_names_are_unique_so_that_any_may_meet_in_one_service(contents: Any) -> None:
    names = [field.name for view in contents.feature_views for field in view.features]
    assert len(names) == len(set(names))


def test_every_activity_column_of_the_tables_is_served(contents: Any) -> None:
    views = {view.name: {field.name for field in view.features} for view in contents.feature_views}
    for view, schema in (("user_activity", table_schemas.UserActivity), ("item_activity", table_schemas.ItemActivity)):
        assert views[view] == set(schema.column_names()[3:])


def test_a_vector_view_has_one_vector_with_its_width_and_the_fingerprint_of_the_table(contents: Any) -> None:
    vectors = [field for view in contents.feature_views for field in view.features if field.tags["role"] == "vector"]
    assert {field.name: (field.vector_length, field.tags["model_id"]) for field in vectors} == {
        "item_content_embedding": (4, "made up"),
        "item_learn_embedding": (8, "made up too"),
        "user_content_interest": (4, "made up"),
        "user_learn_interest": (8, "made up too"),
        "item_karma_embedding": (128, "karma"),  # of a lake that has none
        "user_karma_interest": (128, "karma"),
        "item_relevance_embedding": (8, "made up, to be relevant"),
        "query_relevance_embedding": (8, "made up, to be relevant"),
    }
    (learn,) = (field for field in vectors if field.name == "item_learn_embedding")
    assert learn.tags["trained_through"] == "2025-06-13 00:00:00+00:00"
    for view in contents.feature_views:
        roles = [field.tags["role"] for field in view.features]
        assert roles.count("vector") <= 1, "Feast allows one vector a view"


def test_before_a_lake_holds_vectors_they_are_declared_as_wide_as_the_default_models_make_them(lake: Lake) -> None:
    before: Any = declared(lake, None, open_store(lake))
    widths = {field.name: field.vector_length for view in before.feature_views for field in view.features}
    assert widths["item_content_embedding"] == widths["user_content_interest"] == 384
    assert widths["item_learn_embedding"] == widths["user_learn_interest"] == 64
    assert widths["item_karma_embedding"] == widths["user_karma_interest"] == 128
    assert widths["item_relevance_embedding"] == widths["query_relevance_embedding"] == 384


def test_each_service_adds_to_an_earlier_one(contents: Any) -> None:
    services = {one.name: [view.name for view in one.feature_view_projections] for one in contents.feature_services}
    base, content, learn = (services[name] for name in ("ranker_base_v1", "ranker_content_v1", "ranker_learn_v1"))
    assert content[: len(base)] == base
    assert learn[: len(content)] == content
    assert learn[len(content) :] == [
        "user_interest_learn_version",
        "user_interest_learn",
        "item_learn_version",
        "item_learn",
        "user_item_learn_cosine",
    ]
    karma = services["ranker_karma_v1"]
    assert karma[: len(content)] == content
    assert karma[len(content) :] == [
        "user_interest_karma_version",
        "user_interest_karma",
        "item_karma_version",
        "item_karma",
        "user_item_karma_cosine",
    ]
    relevance = services["ranker_relevance_v1"]
    assert relevance[: len(content)] == content
    assert relevance[len(content) :] == [
        "query_relevance_version",
        "query_relevance",
        "item_relevance_version",
        "item_relevance",
        "query_item_relevance",
        "relevance_on_demand",
    ]
    assert services["ranker_all_v1"] == [*learn, *karma[len(content) :], *relevance[len(content) :]]


def test_the_service_has_the_querys_vector_without_the_scale_and_the_bias_beside_it(contents: Any) -> None:
    (service,) = [one for one in contents.feature_services if one.name == "ranker_relevance_v1"]
    (projection,) = [one for one in service.feature_view_projections if one.name == "query_relevance"]
    assert [one.name for one in projection.features] == ["query_relevance_embedding"]
    (view,) = [one for one in contents.on_demand_feature_views if one.name == "relevance_on_demand"]
    assert [one.name for one in view.source_feature_view_projections["query_relevance"].features] == [
        "query_relevance_embedding",
        "query_relevance_scale",
        "query_relevance_bias",
    ]


@pytest.mark.parametrize(
    ("name", "user_vector", "item_vector"),
    [
        ("user_item_content_cosine", "user_content_interest", "item_content_embedding"),
        ("user_item_learn_cosine", "user_learn_interest", "item_learn_embedding"),
        ("user_item_karma_cosine", "user_karma_interest", "item_karma_embedding"),
    ],
)
def test_feast_rebuilds_the_on_demand_function_from_its_text_and_it_survives_missing_vectors(
    contents: Any, name: str, user_vector: str, item_vector: str
) -> None:
    from feast.transformation.udf_rehydrate import rehydrate_udf_from_source

    (view,) = [one for one in contents.on_demand_feature_views if one.name == name]
    transformation = view.to_proto().spec.feature_transformation.user_defined_function
    rebuilt = rehydrate_udf_from_source(transformation.body_text, preferred_name=transformation.name)
    assert rebuilt is not None, "Feast falls back to pickled bytes, which another version of Python may not read"
    rows = {
        user_vector: [[1.0, 0.0], None, [3.0, 4.0], [], [0.0, 0.0]],
        item_vector: [[0.6, 0.8], [1.0, 0.0], [3.0, 4.0], [1.0, 0.0], [1.0, 0.0]],
    }
    assert rebuilt(rows) == view.feature_transformation.udf(rows) == {name: [0.6, None, 1.0, None, None]}


def test_feast_rebuilds_relevance_from_its_text_and_whatever_is_missing_leaves_it_null(contents: Any) -> None:
    from feast.transformation.udf_rehydrate import rehydrate_udf_from_source

    (view,) = [one for one in contents.on_demand_feature_views if one.name == "relevance_on_demand"]
    transformation = view.to_proto().spec.feature_transformation.user_defined_function
    rebuilt = rehydrate_udf_from_source(transformation.body_text, preferred_name=transformation.name)
    assert rebuilt is not None
    rows = {
        "query_relevance_embedding": [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], None, [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]],
        "item_relevance_embedding": [[0.6, 0.8], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], None, [1.0, 0.0], [1.0, 0.0]],
        "query_relevance_scale": [5.0, 5e3, 5e3, 5.0, 5.0, None, 5.0],
        "query_relevance_bias": [-3.0, 0.0, 0.0, 1.0, 1.0, 1.0, None],
    }
    expected = {"relevance_on_demand": [0.5, 1.0, 0.0, None, None, None, None]}
    assert rebuilt(rows) == view.feature_transformation.udf(rows) == expected


def test_relevances_equal_scipys_sigmoid() -> None:
    from scipy.special import expit

    rng = np.random.default_rng(0)
    cosines_of_pairs, scales, biases = (rng.normal(size=200) * size for size in (1.0, 30.0, 5.0))
    found = relevances(cosines_of_pairs.tolist(), scales.tolist(), biases.tolist())
    np.testing.assert_allclose(found, expit(scales * cosines_of_pairs + biases), rtol=1e-12)


def test_a_notebook_reads_features_offline_and_online_with_feast_alone(published_lake: Lake) -> None:
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(published_lake.root / "feast"))
    service = store.get_feature_service("ranker_learn_v1")
    entity_df = pd.DataFrame(
        {
            "user_id": ["u1", "u7"],
            "item_id": ["i3", "i9"],
            "event_timestamp": pd.to_datetime(["2025-06-10 12:00", "2025-06-10 12:00"], utc=True),
        }
    )
    offline = store.get_historical_features(entity_df, features=service).to_df().sort_values("user_id")
    assert list(offline["item_num_clicks_7d"].fillna(-1)) == [3009, -1]
    assert len(offline["item_content_embedding"].iloc[0]) == 4
    assert -1 <= offline["user_item_content_cosine"].iloc[0] <= 1
    online = store.get_online_features(
        features=service, entity_rows=[{"user_id": "u1", "item_id": "i3"}, {"user_id": "u7", "item_id": "i9"}]
    ).to_dict()
    assert online["item_num_clicks_7d"] == [3029, None]
    assert online["category"] == ["c0", None]
    assert len(online["user_content_interest"][0]) == 4
    assert online["user_content_interest"][1] is None
    assert online["user_learn_interest"][1] is None
    for method in ("content", "learn"):
        cosine = f"user_item_{method}_cosine"
        user, item = (
            np.array(online[f"{name}_{method}_{what}"][0])
            for name, what in (("user", "interest"), ("item", "embedding"))
        )
        expected = float(user @ item / np.linalg.norm(user) / np.linalg.norm(item))
        assert online[cosine] == [pytest.approx(expected, abs=1e-12), None]


def test_the_learn_cosine_is_the_same_offline_online_and_by_hand(published_lake: Lake) -> None:
    """At a time after the last vector was written, so that what was known then is what is online now."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(published_lake.root / "feast"))
    pairs = [(f"u{user}", f"i{item}") for user in range(8) for item in range(8)]
    entity_df = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(
        event_timestamp=pd.Timestamp("2025-09-01", tz="UTC")
    )
    service = store.get_feature_service("ranker_learn_v1")
    offline = store.get_historical_features(entity_df, service).to_df().sort_values(["user_id", "item_id"])
    keys = [{"user_id": user, "item_id": item} for user, item in pairs]
    online = store.get_online_features(service, keys).to_dict()

    def newest(schema: Any, key: str, vector: str) -> dict[str, Any]:
        table = published_lake.read(schema).sort("event_timestamp")
        return {one: np.array(vector, np.float64) for one, vector in table.select(key, vector).iter_rows()}

    users = newest(table_schemas.UserLearnInterests, "user_id", "user_learn_interest")
    items = newest(table_schemas.ItemLearnEmbeddings, "item_id", "item_learn_embedding")
    by_hand = [
        float(users[user] @ items[item] / np.sqrt(users[user] @ users[user] * (items[item] @ items[item])))
        if user in users
        else None
        for user, item in pairs
    ]
    assert by_hand[-8:] == [None] * 8
    assert online["user_item_learn_cosine"] == by_hand
    assert [None if pd.isna(one) else one for one in offline["user_item_learn_cosine"]] == by_hand


@pytest.mark.slow
def test_feast_apply_in_the_folder_and_a_notebook_at_the_root_use_one_registry(tmp_path: Path) -> None:
    """The whole project copied, so that the default lake is the copy's; only Feast's own command and class are used."""
    project = tmp_path / "project"
    for package in ("feature_repo", "jobs"):
        shutil_copy(ROOT / package, project / package)
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("TAILRANK_LAKE", None)

    def python(code: str, folder: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    applied = python(
        "import sys; from feast.cli.cli import cli; sys.argv = ['feast', 'apply']; cli()", project / "feature_repo"
    )
    for service in ("ranker_learn_v1", "ranker_relevance_v1"):
        assert f"Created feature service {service}" in applied
    for view in ("query_relevance", "query_relevance_version", "item_relevance", "query_item_relevance", "item_karma"):
        assert f"Created feature view {view}\n" in applied
    assert "Created on demand feature view relevance_on_demand" in applied
    assert "Created entity query" in applied
    listing = (
        "from feast import FeatureStore; s = FeatureStore(repo_path='feature_repo'); "
        "print(sorted(v.name for v in s.list_feature_services())); "
        "print(s.get_feature_view('item_activity').batch_source.path)"
    )
    assert python(listing, project).splitlines() == [
        "['ranker_all_v1', 'ranker_base_v1', 'ranker_content_v1', 'ranker_karma_v1', 'ranker_learn_v1', "
        "'ranker_relevance_v1']",
        str(project / "lake" / "item_activity" / "current" / "*.parquet"),
    ]
    assert (project / "lake" / "feast" / "registry.db").exists()
    assert (project / "lake" / "feast" / "online_store.db").exists()
    assert list(project.rglob("*.db")) == list((project / "lake" / "feast").glob("*.db"))


def shutil_copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
