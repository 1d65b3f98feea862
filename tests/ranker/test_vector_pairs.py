"""Rankers with two pairs of vectors, of which the second exists from some day on only, or not at all while training.

Users click what shares their parity. Only the vectors tell it: the pair `content` is noise, the pair `learn` has it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from embedders.fingerprint import Fingerprint
from ranker.batches import EncodedExamples, ExampleLayout, VectorColumn, VectorPair
from ranker.fit import FitSettings
from ranker.gbdt import GbdtRanker, GbdtSettings
from ranker.losses import cross_entropy, log_loss
from ranker.network_ranker import NetworkRanker, NetworkSettings
from ranker.ranker import Ranker, Scores, Validation
from ranker.vector_pairs import check_one_space, pair_columns

PAIRS = tuple(VectorPair(name, f"user_{name}_vector_id", f"item_{name}_vector_id") for name in ("content", "learn"))
LAYOUT = ExampleLayout(
    ids=("user_id", "item_id"),
    num_rows=(3, 3),
    scalars=("s",),
    scalar_roles=("rate",),
    history=None,
    history_length=0,
    item_attributes=(),
    vectors=PAIRS,
    vocabulary_digest="d",
)
COUNT, WIDTHS = 60, {"content": 70, "learn": 8}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_table(rng: np.random.Generator, name: str) -> NDArray[np.float32]:
    table_MV = rng.normal(size=(COUNT, WIDTHS[name]))
    if name == "learn":
        table_MV[:, 0] = np.where(np.arange(COUNT) % 2 == 0, 4.0, -4.0)
    return (table_MV / np.linalg.norm(table_MV, axis=1, keepdims=True)).astype(np.float32)


TABLES = {
    column: draw_table(np.random.default_rng(number), pair.name)
    for pair in PAIRS
    for number, column in enumerate((pair.context, pair.item))
}


def draw(rows: int, *, seed: int, learn_from: float = 0.0) -> EncodedExamples:
    """Examples of which the first `learn_from` of the rows have no vectors of the pair `learn`."""
    rng = np.random.default_rng(seed)
    user_N, item_N = rng.integers(0, COUNT, (2, rows)).astype(np.int32)
    clicked_N = rng.random(rows) < np.where(user_N % 2 == item_N % 2, 0.6, 0.2)

    def column(name: str) -> VectorColumn:
        rows_N = np.where(rng.random(rows) < 0.05, -1, user_N if name.startswith("user") else item_N)
        if "learn" in name:
            rows_N[: round(learn_from * rows)] = -1
        return VectorColumn(rows_N.astype(np.int32), TABLES[name], {"model_id": name})

    return EncodedExamples(
        layout=LAYOUT,
        ids_NF=np.ones((rows, 2), dtype=np.int32),
        scalars_NS=rng.normal(size=(rows, 1)).astype(np.float32),
        history_NL=np.zeros((rows, 0), dtype=np.int32),
        clicked_N=clicked_N,
        converted_N=(clicked_N & (rng.random(rows) < 0.5)).astype(np.int8),
        item_attributes_IK=np.zeros((3, 0), dtype=np.int32),
        vectors={name: column(name) for name in TABLES},
    )


VALIDATION, TEST = draw(800, seed=1), draw(2000, seed=2)


def make_network(seed: int = 0) -> Ranker:
    fit_settings = FitSettings(passes=4, evaluations_per_pass=1, batch_size=128, learning_rate=5e-3, seed=seed)
    return NetworkRanker(NetworkSettings(auxiliary="detached"), fit_settings)


def make_gbdt(seed: int = 0) -> Ranker:
    return GbdtRanker(GbdtSettings(num_rounds=60, min_rows_in_leaf=20, seed=seed, num_threads=1))


MAKERS: dict[str, Callable[[], Ranker]] = {"network": make_network, "gbdt": make_gbdt}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fit(kind: str, train: EncodedExamples, validation: EncodedExamples = VALIDATION) -> Ranker:
    def validate(scores: Scores) -> Validation:
        return Validation(log_loss(scores, validation.clicked_N, validation.converted_N), None)

    ranker = MAKERS[kind]()
    ranker.fit(train, validation, validate)
    return ranker


@pytest.fixture(scope="module")
def half(kind: str) -> Ranker:
    """Fitted on rows of which the older half has no `learn` vectors."""
    return fit(kind, draw(4000, seed=0, learn_from=0.5))


@pytest.fixture(scope="module")
def never(kind: str) -> Ranker:
    """Fitted on rows without any `learn` vector."""
    return fit(kind, draw(3000, seed=0, learn_from=1.0))


def without(examples: EncodedExamples, *columns: str) -> EncodedExamples:
    nothing = np.full(len(examples), -1, dtype=np.int32)
    return replace(
        examples,
        vectors={
            name: replace(column, rows_N=nothing) if name in columns else column
            for name, column in examples.vectors.items()
        },
    )


def auc(ranker: Ranker, examples: EncodedExamples) -> float:
    return float(roc_auc_score(examples.clicked_N, ranker.predict(examples).p_ctr))


def test_what_only_the_second_pair_tells_is_learnt_though_half_the_rows_lack_it(half: Ranker) -> None:
    both_N = np.all([TEST.vectors[name].rows_N >= 0 for name in (PAIRS[1].context, PAIRS[1].item)], axis=0)
    known = TEST.take(both_N)
    perfect = roc_auc_score(
        known.clicked_N, known.vectors[PAIRS[1].context].rows_N % 2 == known.vectors[PAIRS[1].item].rows_N % 2
    )
    assert auc(half, known) > perfect - 0.03
    assert auc(half, without(known, PAIRS[1].context, PAIRS[1].item)) == pytest.approx(0.5, abs=0.05)
    assert auc(half, without(known, PAIRS[0].context, PAIRS[0].item)) > perfect - 0.04


def test_rows_without_the_second_pair_get_the_mean_click_rate(half: Ranker) -> None:
    scores = half.predict(without(TEST, PAIRS[1].context, PAIRS[1].item))
    assert np.isfinite(scores).all()
    assert scores.p_ctr.mean() == pytest.approx(TEST.clicked_N.mean(), abs=0.06)


def test_without_any_training_vector_a_pair_is_ignored_for_ever(never: Ranker) -> None:
    scores = never.predict(TEST)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(never.predict(without(TEST, PAIRS[1].context, PAIRS[1].item)), scores)
    prior = np.full(len(TEST), TEST.clicked_N.mean())
    assert cross_entropy(scores.p_ctr, TEST.clicked_N) < 1.03 * cross_entropy(prior, TEST.clicked_N)


def test_a_saved_ranker_still_ignores_what_it_never_saw_and_gives_the_same_bits(
    half: Ranker, never: Ranker, tmp_path: Path
) -> None:
    for name, ranker in (("half", half), ("never", never)):
        ranker.save(tmp_path / name)
        loaded = type(ranker).load(tmp_path / name)
        np.testing.assert_array_equal(loaded.predict(TEST), ranker.predict(TEST))


def test_the_fingerprints_of_every_pair_are_checked(half: Ranker) -> None:
    for name, column in TEST.vectors.items():
        other = replace(column, fingerprint={"model_id": "another"})
        with pytest.raises(ValueError, match=f"{name} was made by another encoder.*'{name}'.*'another'"):
            half.predict(replace(TEST, vectors={**TEST.vectors, name: other}))


def test_pairs_in_another_order_are_refused(half: Ranker) -> None:
    turned = replace(TEST, layout=replace(LAYOUT, vectors=PAIRS[::-1]))
    with pytest.raises(ValueError, match="vectors: expected .*content.*learn.* got .*learn.*content"):
        half.predict(turned)


def test_vectors_of_two_widths_are_no_pair() -> None:
    train = draw(50, seed=0)
    learn = train.vectors[PAIRS[1].item]
    train = replace(train, vectors={**train.vectors, PAIRS[1].item: replace(learn, table_MV=learn.table_MV[:, :5])})
    with pytest.raises(ValueError, match="user_learn_vector_id is 8 wide and item_learn_vector_id 5"):
        fit("network", train)


def test_a_ranker_saved_by_another_version_says_so(half: Ranker, tmp_path: Path) -> None:
    half.save(tmp_path)
    path = tmp_path / "ranker.json"
    description = json.loads(path.read_text())
    pairs = description["layout"]["vectors"]
    description["layout"]["vectors"] = [{"user": pair["context"], **pair} for pair in pairs]
    del description["layout"]["vectors"][1]["context"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"each pair .*differing: \['context', 'user'\].*train the ranker again"):
        type(half).load(tmp_path)
    description["layout"]["user_vector"] = description["layout"].pop("vectors")[0]["user"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="layout: expected the entries .*train the ranker again"):
        type(half).load(tmp_path)


def test_a_querys_vector_stands_where_a_users_does(half: Ranker, kind: str) -> None:
    asked = VectorPair("relevance", "query_relevance_vector_id", "item_relevance_vector_id")
    renamed = dict(zip((PAIRS[1].context, PAIRS[1].item), (asked.context, asked.item), strict=True))

    def of_the_query(examples: EncodedExamples) -> EncodedExamples:
        return replace(
            examples,
            layout=replace(LAYOUT, vectors=(PAIRS[0], asked)),
            vectors={renamed.get(name, name): column for name, column in examples.vectors.items()},
        )

    ranker = fit(kind, of_the_query(draw(4000, seed=0, learn_from=0.5)), of_the_query(VALIDATION))
    np.testing.assert_array_equal(ranker.predict(of_the_query(TEST)), half.predict(TEST))


def test_columns_are_paired_by_name_in_order_of_appearance() -> None:
    columns = ("item_relevance_vector_id", "user_content_vector_id", "query_relevance_vector_id")
    assert pair_columns([*columns, "item_content_vector_id"]) == (
        VectorPair("relevance", "query_relevance_vector_id", "item_relevance_vector_id"),
        VectorPair("content", "user_content_vector_id", "item_content_vector_id"),
    )
    with pytest.raises(ValueError, match="without `user_relevance_vector_id` or `query_relevance_vector_id`"):
        pair_columns(columns[:1])
    with pytest.raises(ValueError, match=r"\['query_relevance_vector_id'\] without `item_relevance_vector_id`"):
        pair_columns(columns[2:])
    with pytest.raises(ValueError, match="are three vectors of one name, and a pair has two"):
        pair_columns([*columns[::2], "user_relevance_vector_id"])


def test_the_sides_of_a_pair_are_of_one_model_but_a_mean_of_its_vectors_will_do() -> None:
    pair = PAIRS[0]
    item = Fingerprint("minilm", "w", "t", "learn_v1", "mean", 8, "l2", "float32")
    check_one_space(pair, item.as_tags(), item.as_tags())
    check_one_space(pair, item.of_mean_of_history().as_tags(), item.as_tags())
    later = replace(item, trained_through="2025-06-01", weights_sha256="v")
    with pytest.raises(ValueError, match="content: both sides must be of one model") as raised:
        check_one_space(pair, later.as_tags(), item.as_tags())
    assert "trained_through: user_content_vector_id has '2025-06-01', item_content_vector_id 'frozen'" in str(
        raised.value
    )
    assert "weights_sha256" in str(raised.value)
