"""What every ranker must do, checked on a world with a known answer.

tiny_world: even users like even items and odd users odd ones; besides, some items are better than others, which their
click rate tells. An item's topic vector carries its parity, its category does not. Cold items are shown in the test
rows only, so whoever ranks them well must have read the vectors. The service `content` has one pair of vectors, the
topics; in `learn` they are the second pair, known from the middle of the training rows on, and the first, wider pair
is noise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ranker.batches import EncodedExamples
from ranker.feature_columns import FeatureColumns, FeatureEncoder
from ranker.fit import FitSettings
from ranker.gbdt import GbdtRanker, GbdtSettings
from ranker.losses import cross_entropy, log_loss
from ranker.network_ranker import NetworkRanker, NetworkSettings
from ranker.ranker import Ranker, Scores, TrainingCurve, Validate, Validation

ROLES = {
    "category": "categorical",
    "user_num_clicks_7d": "count",
    "item_ctr_7d": "rate",
    "price_cents": "scalar",
    "history_item_ids": "history",
}
VECTORS = {name: (f"user_{name}_vector_id", f"item_{name}_vector_id") for name in ("content", "learn")}
NUM_USERS, NUM_ITEMS, NUM_COLD, WIDTH, NOISE_WIDTH = 120, 60, 30, 12, 72


@dataclass(frozen=True)
class Matrix:
    """Vectors whose id is their row."""

    vectors: NDArray[np.float32]
    fingerprint: dict[str, str]

    def rows_of(self, vector_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return vector_ids  # -1 is "none" on both sides


class World(NamedTuple):
    train: EncodedExamples
    validation: EncodedExamples
    test: EncodedExamples
    is_cold: NDArray[np.bool_]
    unknown: EncodedExamples
    """One row of which nothing is known: new user, new item, no feature, no history, no vector."""


class Fitted(NamedTuple):
    ranker: Ranker
    curve: TrainingCurve
    world: World
    make: Callable[[int], Ranker]


def draw_frame(rng: np.random.Generator, rows: int, items: NDArray[np.int64]) -> pl.DataFrame:
    user, item = rng.integers(0, NUM_USERS, rows), rng.choice(items, rows)
    likes, quality = user % 2 == item % 2, item % 7 / 6
    clicked = rng.random(rows) < np.where(likes, 0.6, 0.15) * (0.4 + quality)
    converted = clicked & (rng.random(rows) < np.where(likes, 0.6, 0.2))
    liked_items = [rng.choice(NUM_ITEMS // 2, rng.integers(0, 6), replace=False) * 2 + one % 2 for one in user]
    return pl.DataFrame(
        {
            "user_id": [f"u{one}" for one in user],
            "item_id": [f"i{one}" for one in item],
            "category": [f"c{one // 2 % 5}" for one in item],
            "user_num_clicks_7d": rng.poisson(5, rows),
            "item_ctr_7d": np.where(item < NUM_ITEMS, 0.1 + 0.4 * quality + 0.05 * rng.normal(size=rows), np.nan),
            "price_cents": rng.integers(100, 10_000, rows),
            "history_item_ids": pl.Series(
                [[f"i{one}" for one in ids] for ids in liked_items], dtype=pl.List(pl.String)
            ),
            **{column: ids for pair in VECTORS.values() for column, ids in zip(pair, (user, item), strict=True)},
            "clicked": clicked,
            "converted": converted,
        }
    ).with_columns(
        pl.col("item_ctr_7d").fill_nan(None),
        # the last impressions of a log are too young for their conversions to be known
        converted=pl.when(pl.int_range(pl.len()) < rows - rows // 10).then("converted"),
    )


def draw_matrices(rng: np.random.Generator, name: str, width: int) -> tuple[Matrix, Matrix]:
    """Of the users and of the items."""

    def draw(count: int) -> Matrix:
        vectors = rng.normal(size=(count, width))
        if name == "topics":
            vectors[:, 0] = np.where(np.arange(count) % 2 == 0, 3.0, -3.0)
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return Matrix(unit, {"model_id": name, "dimension": str(width)})

    return draw(NUM_USERS), draw(NUM_ITEMS + NUM_COLD)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on many threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    rng = np.random.default_rng(7)
    warm, cold = np.arange(NUM_ITEMS), np.arange(NUM_ITEMS, NUM_ITEMS + NUM_COLD)
    train, validation = draw_frame(rng, 6000, warm), draw_frame(rng, 1500, warm)
    train = train.with_columns(pl.when(pl.int_range(pl.len()) >= 3000).then(pl.col(*VECTORS["learn"])))
    test = pl.concat([draw_frame(rng, 1500, warm), draw_frame(rng, 1500, cold)])
    nothing = test.head(1).with_columns(
        *(
            pl.lit(None, dtype=test.schema[name]).alias(name)
            for name in (*ROLES, *VECTORS["content"], *VECTORS["learn"])
        ),
        user_id=pl.lit("new user"),
        item_id=pl.lit("new item"),
    )
    topics, noise = draw_matrices(rng, "topics", WIDTH), draw_matrices(rng, "noise", NOISE_WIDTH)
    services = {"base": {}, "content": {"content": topics}, "learn": {"content": noise, "learn": topics}}
    found = {}
    for service, pairs in services.items():
        matrices = {
            column: one for name, both in pairs.items() for column, one in zip(VECTORS[name], both, strict=True)
        }
        roles = ROLES | dict.fromkeys(matrices, "vector_id")
        encoder = FeatureEncoder.fit(FeatureColumns.from_roles(roles), train.lazy(), history_length=5)
        parts = [encoder.encode(frame, matrices) for frame in (train, validation, test, nothing)]
        found[service] = World(*parts[:3], np.arange(test.height) >= 1500, parts[3])
    return found


def make_network(auxiliary: str) -> Callable[[int], Ranker]:
    def make(seed: int) -> Ranker:
        fit_settings = FitSettings(passes=5, evaluations_per_pass=1, batch_size=256, learning_rate=1e-2, seed=seed)
        return NetworkRanker(NetworkSettings(auxiliary=auxiliary), fit_settings)  # type: ignore[arg-type]

    return make


def make_gbdt(seed: int) -> Ranker:
    return GbdtRanker(GbdtSettings(num_rounds=200, min_rows_in_leaf=20, seed=seed, num_threads=1))


RANKERS: dict[str, tuple[str, Callable[[int], Ranker]]] = {
    "base": ("base", make_network("none")),
    "content": ("content", make_network("detached")),
    "learn_joint": ("learn", make_network("joint")),
    "gbdt_base": ("base", make_gbdt),
    "gbdt_learn": ("learn", make_gbdt),
}


def judge_on(examples: EncodedExamples) -> Validate:
    def validate(scores: Scores) -> Validation:
        return Validation(
            log_loss(scores, examples.clicked_N, examples.converted_N), roc_auc_score(examples.clicked_N, scores.p_ctr)
        )

    return validate


def fit(ranker: Ranker, world: World) -> TrainingCurve:
    return ranker.fit(world.train, world.validation, judge_on(world.validation))


@pytest.fixture(scope="module")
def all_fitted(worlds: dict[str, World]) -> dict[str, Fitted]:
    found = {}
    for name, (service, make) in RANKERS.items():
        ranker = make(0)
        found[name] = Fitted(ranker, fit(ranker, worlds[service]), worlds[service], make)
    return found


@pytest.fixture(params=RANKERS)
def fitted(request: pytest.FixtureRequest, all_fitted: dict[str, Fitted]) -> Fitted:
    return all_fitted[request.param]


def test_fit_improves_on_the_prior(fitted: Fitted) -> None:
    world = fitted.world
    test = world.test.take(~world.is_cold)
    scores = fitted.ranker.predict(test)
    known = test.converted_N >= 0
    click_prior = np.full(len(test), world.train.clicked_N.mean())
    conversion_prior = np.full(known.sum(), (world.train.converted_N == 1).sum() / (world.train.converted_N >= 0).sum())
    assert cross_entropy(scores.p_ctr, test.clicked_N) < 0.98 * cross_entropy(click_prior, test.clicked_N)
    converted = test.converted_N[known] == 1
    assert cross_entropy(scores.p_ctcvr[known], converted) < 0.98 * cross_entropy(conversion_prior, converted)


def test_predictions_are_probabilities_and_a_conversion_needs_a_click(fitted: Fitted) -> None:
    scores = fitted.ranker.predict(fitted.world.test)
    for probabilities in scores:
        assert probabilities.shape == (len(fitted.world.test),)
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (scores.p_ctcvr <= scores.p_ctr).all()
    np.testing.assert_array_equal(scores.p_ctcvr, scores.p_ctr * scores.p_cvr)


def test_same_seed_same_bits_and_another_seed_others(fitted: Fitted) -> None:
    world = fitted.world._replace(train=fitted.world.train.take(np.arange(600)))
    first, again, other = fitted.make(0), fitted.make(0), fitted.make(1)
    curves = [fit(ranker, world) for ranker in (first, again, other)]
    without_seconds = [[row._replace(seconds=0.0) for row in curve] for curve in curves]
    assert without_seconds[0] == without_seconds[1] != without_seconds[2]
    scores = first.predict(world.test)
    np.testing.assert_array_equal(again.predict(world.test), scores)
    assert (other.predict(world.test).p_ctr != scores.p_ctr).mean() > 0.5


def test_a_loaded_ranker_gives_the_same_bits(fitted: Fitted, tmp_path: Path) -> None:
    fitted.ranker.save(tmp_path)
    loaded = type(fitted.ranker).load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(fitted.world.test), fitted.ranker.predict(fitted.world.test))


def test_the_best_validation_is_the_one_kept(fitted: Fitted) -> None:
    world = fitted.world
    best = [row for row in fitted.curve if row.is_best]
    assert len(best) == 1
    assert best[0].validation_uauc == max(row.validation_uauc or 0.0 for row in fitted.curve)
    assert [row.epoch for row in fitted.curve] == list(range(len(fitted.curve)))
    now = judge_on(world.validation)(fitted.ranker.predict(world.validation))
    assert now.uauc == pytest.approx(best[0].validation_uauc, abs=1e-9)


def test_an_impression_of_which_nothing_is_known_scores_near_the_prior(fitted: Fitted) -> None:
    scores = fitted.ranker.predict(fitted.world.unknown)
    prior = fitted.world.train.clicked_N.mean()
    assert prior / 2 < scores.p_ctr[0] < min(prior * 2, 0.9)
    assert 0 < scores.p_ctcvr[0] < scores.p_ctr[0]


def test_each_thing_may_be_unknown_by_itself(fitted: Fitted) -> None:
    test = fitted.world.test
    blanks = [
        replace(test, ids_NF=np.ones_like(test.ids_NF)),
        replace(test, ids_NF=np.zeros_like(test.ids_NF)),
        replace(test, history_NL=np.zeros_like(test.history_NL)),
        replace(test, scalars_NS=np.full_like(test.scalars_NS, np.nan)),
        replace(test, scalars_NS=np.full_like(test.scalars_NS, 3e38)),
    ]
    missing = np.full(len(test), -1, dtype=np.int32)
    blanks += [
        replace(test, vectors={**test.vectors, column: replace(vectors, rows_N=missing)})
        for column, vectors in test.vectors.items()
    ]
    for blank in blanks:
        assert np.isfinite(fitted.ranker.predict(blank)).all()


def test_no_rows_give_no_scores(fitted: Fitted) -> None:
    nothing = fitted.world.test.take(np.arange(0))
    assert [len(probabilities) for probabilities in fitted.ranker.predict(nothing)] == [0, 0, 0]


def test_a_row_scores_the_same_alone_and_in_company(fitted: Fitted) -> None:
    rows = np.array([3, 700, 2999])
    alone = fitted.ranker.predict(fitted.world.test.take(rows)).p_ctr
    np.testing.assert_allclose(alone, fitted.ranker.predict(fitted.world.test).p_ctr[rows], rtol=1e-5)


def test_examples_of_another_vocabulary_are_refused(fitted: Fitted) -> None:
    other = replace(fitted.world.test, layout=replace(fitted.world.test.layout, vocabulary_digest="other"))
    with pytest.raises(ValueError, match="vocabulary_digest.*expected.*got other"):
        fitted.ranker.predict(other)


def test_vectors_of_another_encoder_are_refused_naming_both(fitted: Fitted) -> None:
    test = fitted.world.test
    for name, column in test.vectors.items():
        other = replace(column, fingerprint={**column.fingerprint, "model_id": "another-encoder"})
        with pytest.raises(ValueError, match=f"{name}.*model_id.*'{column.fingerprint['model_id']}'.*'another-enc"):
            fitted.ranker.predict(replace(test, vectors={**test.vectors, name: other}))


def test_a_ranker_that_is_not_fitted_says_so(fitted: Fitted, tmp_path: Path) -> None:
    fresh = fitted.make(0)
    with pytest.raises(ValueError, match="not fitted"):
        fresh.predict(fitted.world.test)
    with pytest.raises(ValueError, match="not fitted"):
        fresh.save(tmp_path)


def test_no_training_rows_are_refused(fitted: Fitted) -> None:
    world = fitted.world
    with pytest.raises(ValueError, match="no training row"):
        fitted.make(0).fit(world.train.take(np.arange(0)), world.validation, judge_on(world.validation))


@pytest.mark.parametrize(
    ("content", "base"),
    [("content", "base"), ("learn_joint", "base"), ("gbdt_learn", "gbdt_base")],
)
def test_content_ranks_cold_items_where_ids_cannot(all_fitted: dict[str, Fitted], content: str, base: str) -> None:
    def cold_auc(name: str) -> float:
        one = all_fitted[name]
        cold = one.world.test.take(one.world.is_cold)
        return float(roc_auc_score(cold.clicked_N, one.ranker.predict(cold).p_ctr))

    assert cold_auc(base) < 0.6
    assert cold_auc(content) > cold_auc(base) + 0.05
