"""Shuffling and leaving out columns of encoded examples, and the sign of what is lost."""

from collections import Counter
from dataclasses import dataclass

import dataframely as dy
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_repo.table_schemas import FeatureGroupValues
from ranker.ablation import (
    EncodedColumns,
    Judging,
    encoder_without,
    group_values,
    permuted,
    shuffle_within_users,
    varies_within_users,
    without,
)
from ranker.batches import OUT_OF_VOCABULARY, EncodedExamples
from ranker.feature_columns import FeatureColumns, FeatureEncoder
from ranker.judged_runs import Run

ROLES = {
    "category": "categorical",
    "brand": "categorical",
    "item_clicks": "count",
    "user_clicks": "count",
    "price": "scalar",
    "history_item_ids": "history",
    "history_timestamps": "timestamps",
    "user_content_vector_id": "vector_id",
    "item_content_vector_id": "vector_id",
    "user_learn_vector_id": "vector_id",
    "item_learn_vector_id": "vector_id",
}
GROUPS = {
    "ids": ("user_id", "item_id"),
    "attributes": ("category", "brand", "price"),
    "history": ("history_item_ids", "history_timestamps"),
    "content": ("user_content_vector_id", "item_content_vector_id"),
    "mixed": ("brand", "item_clicks", "user_learn_vector_id", "item_learn_vector_id"),
}


@dataclass(frozen=True)
class Matrix:
    """Vectors whose id is their row."""

    vectors: NDArray[np.float32]
    fingerprint: dict[str, str]

    def rows_of(self, vector_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return vector_ids


MATRICES = {
    name: Matrix(np.eye(40, dtype=np.float32), {"is": name[5:]}) for name, role in ROLES.items() if "vec" in role
}


def frame(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 12, rows), rng.integers(0, 20, rows)
    return pl.DataFrame(
        {
            "user_id": [f"u{one}" for one in user],
            "item_id": [f"i{one}" for one in item],
            "category": [f"c{one % 3}" if one % 5 else None for one in item],
            "brand": [f"b{one % 4}" for one in item],
            "item_clicks": rng.poisson(3.0, rows),
            "user_clicks": user,
            "price": pl.Series(np.where(rng.random(rows) < 0.2, np.nan, rng.random(rows)), nan_to_null=True),
            "history_item_ids": [[f"i{one}" for one in rng.integers(0, 20, rng.integers(0, 6))] for _ in range(rows)],
            "history_timestamps": [[0]] * rows,
            "user_content_vector_id": user,
            "item_content_vector_id": item,
            "user_learn_vector_id": pl.Series([one if one % 4 else None for one in user]),
            "item_learn_vector_id": item,
            "clicked": rng.random(rows) < 0.4,
        }
    )


def encoded(table: pl.DataFrame, roles: dict[str, str] = ROLES) -> tuple[FeatureEncoder, EncodedExamples]:
    columns = FeatureColumns.from_roles(roles)
    encoder = FeatureEncoder.fit(columns, frame().lazy(), history_length=4)
    return encoder, encoder.encode(table, {name: MATRICES[name] for name in columns.vector_ids})


def same(one: EncodedExamples, other: EncodedExamples) -> bool:
    arrays = ("ids_NF", "scalars_NS", "history_NL", "clicked_N", "converted_N", "item_attributes_IK")
    return (
        one.layout == other.layout
        and all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in arrays)
        and one.vectors.keys() == other.vectors.keys()
        and all(np.array_equal(one.vectors[name].rows_N, other.vectors[name].rows_N) for name in one.vectors)
        and one.vector_fingerprints == other.vector_fingerprints
    )


def users_of(table: pl.DataFrame) -> NDArray[np.int64]:
    return table["user_id"].rank("dense").cast(pl.Int64).to_numpy()


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(0, 2**31))
def test_rows_never_cross_users_and_each_is_used_once(users: list[int], seed: int) -> None:
    user_N = np.array(users, dtype=np.int64)
    order_N = shuffle_within_users(user_N, np.random.default_rng(seed))
    assert np.array_equal(user_N[order_N], user_N)
    assert np.array_equal(np.sort(order_N), np.arange(len(users)))
    assert np.array_equal(order_N, shuffle_within_users(user_N, np.random.default_rng(seed)))


def test_every_order_within_a_user_is_as_likely() -> None:
    user_N = np.array([7, 3, 7, 3, 7])
    rng = np.random.default_rng(0)
    orders = Counter(tuple(shuffle_within_users(user_N, rng)[[0, 2, 4]]) for _ in range(6000))
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 130  # 4.5 standard deviations


@pytest.mark.parametrize("group", GROUPS)
def test_permuting_arrays_is_permuting_the_columns_of_the_table(group: str) -> None:
    table = frame(seed=1)
    encoder, examples = encoded(table)
    order_N = shuffle_within_users(users_of(table), np.random.default_rng(5))
    shuffled = permuted(examples, EncodedColumns.of(examples.layout, GROUPS[group]), order_N)
    by_hand = table.with_columns(table[order_N].select(GROUPS[group]))
    assert same(shuffled, encoder.encode(by_hand, MATRICES))
    assert not same(shuffled, examples)
    assert same(examples, encoder.encode(table, MATRICES)), "the examples themselves stay as they are"


def test_permuting_twice_with_one_seed_gives_the_same_bits_and_ids_stay_where_they_are() -> None:
    table = frame(seed=1)
    _, examples = encoded(table)
    columns = EncodedColumns.of(examples.layout, GROUPS["mixed"])
    one, other = (
        permuted(examples, columns, shuffle_within_users(users_of(table), np.random.default_rng((3, 0))))
        for _ in range(2)
    )
    assert same(one, other)
    assert np.array_equal(one.ids_NF[:, :2], examples.ids_NF[:, :2])
    assert np.array_equal(one.clicked_N, examples.clicked_N)


@pytest.mark.parametrize("group", [name for name in GROUPS if name != "ids"])
def test_leaving_out_is_encoding_without(group: str) -> None:
    table = frame(seed=1)
    encoder, examples = encoded(table)
    smaller = encoder_without(encoder, GROUPS[group])
    expected_encoder, expected = encoded(
        table, {name: role for name, role in ROLES.items() if name not in GROUPS[group]}
    )
    assert same(without(examples, smaller, GROUPS[group]), expected)
    assert same(smaller.encode(table, MATRICES), expected)
    assert smaller.layout == expected_encoder.layout
    assert not {*GROUPS[group]} & {*smaller.columns.features}


def test_without_ids_every_user_and_candidate_is_one_never_seen() -> None:
    encoder, examples = encoded(frame(seed=1))
    smaller = encoder_without(encoder, GROUPS["ids"])
    nameless = without(examples, smaller, GROUPS["ids"])
    assert (nameless.ids_NF[:, :2] == OUT_OF_VOCABULARY).all()
    assert np.array_equal(nameless.ids_NF[:, 2:], examples.ids_NF[:, 2:])
    assert np.array_equal(nameless.history_NL, examples.history_NL)
    assert (examples.ids_NF[:, :2] != OUT_OF_VOCABULARY).any(), "the examples themselves stay as they are"


def test_a_group_that_is_constant_within_each_user_is_found() -> None:
    table = frame(seed=1)
    _, examples = encoded(table)

    def varies(*features: str, examples: EncodedExamples = examples) -> bool:
        return varies_within_users(examples, EncodedColumns.of(examples.layout, features), users_of(table))

    assert not varies("user_clicks")
    assert not varies("user_id")
    assert not varies("history_timestamps"), "no ranker reads it"
    assert varies("user_clicks", "item_clicks")
    assert varies("user_id", "item_id")
    assert varies("history_item_ids")
    assert varies("user_content_vector_id", "item_content_vector_id")
    _, unknown = encoded(table.with_columns(price=pl.lit(None, dtype=pl.Float64)))
    assert not varies("price", examples=unknown), "missing everywhere is constant"


def predictions(score: NDArray[np.float64], clicked: NDArray[np.bool_]) -> pl.DataFrame:
    rows = np.arange(len(score))
    return pl.DataFrame(
        {
            "impression_id": [f"m{row}" for row in rows],
            "user_id": [f"u{row // 20:03}" for row in rows],
            "clicked": clicked,
            "p_ctr": score,
            "user_segment": np.where(rows // 20 % 2, "cold_start", "others"),
            "item_segment": np.where(rows % 3, "long_tail", "others"),
        }
    )


Scored = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]


def values_of(with_group: list[Run], without_group: list[Run]) -> dy.DataFrame[FeatureGroupValues]:
    return group_values(with_group, without_group, ranker="learn", feature_group="content", method="retrained")


@pytest.fixture
def scored() -> Scored:
    """Clicks of 80 users, a score that knows something of them, and one that knows nothing."""
    rng = np.random.default_rng(0)
    truth = rng.random(1600)
    clicked = rng.random(1600) < truth
    return clicked, np.clip(truth + rng.normal(0, 0.2, 1600), 0, 1), rng.random(1600)


def test_a_group_that_carries_the_signal_helps_and_swapping_sides_swaps_the_sign(scored: Scored) -> None:
    clicked, knowing, ignorant = scored
    runs = [[Run("learn", 0, predictions(score, clicked))] for score in (knowing, ignorant)]
    helps = values_of(*runs)
    assert set(helps["verdict"]) == {"helps"}
    assert set(helps["metric"]) == {"uauc", "wuauc"}
    assert set(helps["segment"]) == {"all", "cold_start", "long_tail", "others"}
    assert np.allclose(helps["value_lost"], helps["value_with"] - helps["value_without"])
    assert (helps["low"] < helps["value_lost"]).all()
    assert (helps["value_lost"] < helps["high"]).all()
    hurts = values_of(*runs[::-1])
    assert set(hurts["verdict"]) == {"hurts"}
    for one, other, sign in (("value_lost", "value_lost", -1), ("low", "high", -1), ("value_with", "value_without", 1)):
        np.testing.assert_allclose(hurts[one], sign * helps[other], atol=1e-12)
    assert hurts["p_value"].equals(helps["p_value"])


def test_shuffles_are_averaged_and_seeds_are_counted_once(scored: Scored) -> None:
    clicked, knowing, ignorant = scored
    whole = [Run("learn", seed, predictions(knowing, clicked)) for seed in (0, 1)]
    shuffles = [Run("learn", number, predictions(np.roll(ignorant, number), clicked)) for number in range(4)]
    together = values_of(whole, shuffles)
    alone = [values_of(whole, [one]) for one in shuffles]
    np.testing.assert_allclose(together["value_without"], np.mean([one["value_without"] for one in alone], axis=0))
    assert set(together["num_seeds"]) == {2}


def test_a_method_that_can_say_nothing_says_so(scored: Scored) -> None:
    clicked, knowing, _ = scored
    values = group_values(
        [Run("learn", 0, predictions(knowing, clicked))],
        [],
        ranker="learn",
        feature_group="user_activity",
        method="permuted",
        judging=Judging(num_draws=100),
    )
    assert set(values["verdict"]) == {"cannot tell"}
    assert values["value_with"].null_count() == 0
    nothing = values.select("value_without", "value_lost", "low", "high", "p_value")
    assert nothing.null_count().row(0) == (values.height,) * 5
