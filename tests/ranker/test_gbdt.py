import numpy as np
import pytest
from numpy.typing import NDArray

from ranker.batches import EncodedExamples, ExampleLayout, VectorColumn, VectorPair
from ranker.gbdt import GbdtRanker, GbdtSettings
from ranker.losses import log_loss
from ranker.ranker import Scores, Validate, Validation
from ranker.tree_inputs import PrincipalAxes, TreeInputs

SETTINGS = GbdtSettings(num_rounds=60, rounds_per_evaluation=10, patience=2, min_rows_in_leaf=5, num_threads=1)


def make_examples(
    rows: int = 400, *, converted: NDArray[np.int8] | None = None, pairs: tuple[str, ...] = (), seed: int = 0
) -> EncodedExamples:
    rng = np.random.default_rng(seed)
    layout = ExampleLayout(
        ids=("user_id", "item_id", "category"),
        num_rows=(12, 12, 5),
        scalars=("s",),
        scalar_roles=("rate",),
        history="history",
        history_length=4,
        item_attributes=("category",),
        vectors=tuple(VectorPair(name, f"user_{name}_vector_id", f"item_{name}_vector_id") for name in pairs),
        vocabulary_digest="d",
    )
    scalars_NS = rng.normal(size=(rows, 1)).astype(np.float32)
    clicked_N = rng.random(rows) < 1 / (1 + np.exp(-2 * scalars_NS[:, 0]))
    tables = {name: rng.normal(size=(10, 6 + 2 * number)).astype(np.float32) for number, name in enumerate(pairs)}

    def column(table_MV: NDArray[np.float32]) -> VectorColumn:
        return VectorColumn(rng.integers(-1, 10, rows).astype(np.int32), table_MV, {"model_id": "m"})

    return EncodedExamples(
        layout=layout,
        ids_NF=rng.integers(2, 5, (rows, 3)).astype(np.int32),
        scalars_NS=scalars_NS,
        history_NL=rng.integers(0, 12, (rows, 4)).astype(np.int32),
        clicked_N=clicked_N,
        converted_N=(clicked_N & (rng.random(rows) < 0.4)).astype(np.int8) if converted is None else converted,
        item_attributes_IK=np.array([0, 0, 2, 2, 3, 3, 4, 4, 2, 3, 4, 0], dtype=np.int32)[:, None],
        vectors={f"{side}_{name}_vector_id": column(tables[name]) for name in pairs for side in ("user", "item")},
    )


def judge_on(examples: EncodedExamples) -> Validate:
    def validate(scores: Scores) -> Validation:
        return Validation(log_loss(scores, examples.clicked_N, examples.converted_N), None)

    return validate


def test_history_inputs_count_matches_of_the_candidate() -> None:
    one = make_examples(1)
    # the candidate is item 2 of category 2; of the history, item 2 is the same and 2, 3, 8 share the category
    one.ids_NF[0] = [5, 2, 2]
    one.history_NL[0] = [2, 3, 8, 6]
    inputs = TreeInputs.fit(one, num_components=2)
    found = dict(zip(inputs.names, inputs.matrix(one)[0], strict=True))
    assert found["history_length"] == 4
    assert found["history_same_item"] == 1
    assert found["history_same_category"] == 3
    assert found["history_same_category_share"] == 0.75


def test_an_unknown_candidate_matches_nothing_rather_than_other_unknowns() -> None:
    one = make_examples(1)
    one.ids_NF[0] = [1, 1, 1]
    one.history_NL[0] = [1, 1, 0, 0]
    inputs = TreeInputs.fit(one, num_components=2)
    found = dict(zip(inputs.names, inputs.matrix(one)[0], strict=True))
    assert found["history_length"] == 2
    assert np.isnan([found["history_same_item"], found["history_same_category"]]).all()


def test_user_and_item_ids_are_not_read_and_a_missing_category_is_missing() -> None:
    one = make_examples(1)
    inputs = TreeInputs.fit(one, num_components=2)
    assert not {"user_id", "item_id"} & set(inputs.names)
    one.ids_NF[0, 2] = 0
    assert np.isnan(inputs.matrix(one)[0, inputs.names.index("category")])


@pytest.mark.parametrize("name", ["content", "learn"])
def test_cosine_equals_its_definition_and_is_missing_with_either_vector(name: str) -> None:
    examples = make_examples(50, pairs=("content", "learn"))
    user, item = examples.vectors[f"user_{name}_vector_id"], examples.vectors[f"item_{name}_vector_id"]
    inputs = TreeInputs.fit(examples, num_components=3)
    cosine_N = inputs.matrix(examples)[:, inputs.names.index(f"{name}_cosine")]
    known_N = (user.rows_N >= 0) & (item.rows_N >= 0)
    u_NV, v_NV = user.table_MV[user.rows_N[known_N]], item.table_MV[item.rows_N[known_N]]
    expected = (u_NV * v_NV).sum(axis=1) / np.linalg.norm(u_NV, axis=1) / np.linalg.norm(v_NV, axis=1)
    np.testing.assert_allclose(cosine_N[known_N], expected, rtol=1e-4, atol=1e-6)
    assert np.isnan(cosine_N[~known_N]).all()


def test_each_pair_has_its_own_inputs_in_order() -> None:
    examples = make_examples(50, pairs=("content", "learn"))
    inputs = TreeInputs.fit(examples, num_components=2)
    of_pair = ["cosine", *(f"{side}_component_{number}" for side in ("context", "item") for number in range(2))]
    assert inputs.names[-10:] == [f"{pair}_{name}" for pair in ("content", "learn") for name in of_pair]
    item = examples.vectors["item_learn_vector_id"]
    axes = PrincipalAxes.of(item, 2)
    known_N = item.rows_N >= 0
    expected = (item.table_MV[item.rows_N[known_N]] - axes.mean_V) @ axes.axes_VP
    found_NZ = inputs.matrix(examples)
    np.testing.assert_allclose(found_NZ[known_N][:, -2:], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(found_NZ[~known_N][:, -2:]).all()


def test_principal_axes_find_the_direction_that_differs_most() -> None:
    rng = np.random.default_rng(0)
    table_MV = rng.normal(size=(200, 5)).astype(np.float32) * np.array([0.1, 0.1, 3.0, 0.1, 1.0], np.float32)
    axes = PrincipalAxes.of(VectorColumn(np.arange(200, dtype=np.int32), table_MV, {}), num_components=2)
    assert np.abs(axes.axes_VP).argmax(axis=0).tolist() == [2, 4]
    nothing = PrincipalAxes.of(VectorColumn(np.full(9, -1, dtype=np.int32), table_MV, {}), num_components=2)
    assert nothing.axes_VP.shape == (5, 2)


def test_the_kept_trees_are_those_of_the_best_validation() -> None:
    train, validation = make_examples(), make_examples(seed=1)
    merits = iter([0.5, 0.7, 0.6, 0.6])
    seen: list[NDArray[np.float64]] = []

    def judge(scores: Scores) -> Validation:
        seen.append(scores.p_ctr)
        return Validation(1.0, next(merits))

    ranker = GbdtRanker(SETTINGS)
    curve = ranker.fit(train, validation, judge)
    assert [row.is_best for row in curve] == [False, True, False, False]
    assert ranker.ctr_trees is not None
    assert ranker.ctr_trees.num_trees() == 20
    np.testing.assert_allclose(ranker.predict(validation).p_ctr, seen[1], rtol=1e-9)


def test_without_conversions_p_cvr_is_the_smoothed_prior() -> None:
    train = make_examples(converted=np.zeros(400, dtype=np.int8))
    ranker = GbdtRanker(SETTINGS)
    ranker.fit(train, train, judge_on(train))
    num_clicked = train.clicked_N.sum()
    np.testing.assert_allclose(ranker.predict(train).p_cvr, 0.5 / (num_clicked + 1))


def test_conversions_unknown_in_validation_do_not_stop_the_fit() -> None:
    train = make_examples()
    validation = make_examples(seed=1, converted=np.full(400, -1, dtype=np.int8))
    ranker = GbdtRanker(SETTINGS)
    ranker.fit(train, validation, judge_on(validation))
    assert ranker.cvr_trees is not None
    assert ranker.cvr_trees.num_trees() == SETTINGS.rounds_per_evaluation


def test_no_outcome_known_at_all_still_fits_clicks() -> None:
    train = make_examples(converted=np.full(400, -1, dtype=np.int8))
    ranker = GbdtRanker(SETTINGS)
    ranker.fit(train, train, judge_on(train))
    scores = ranker.predict(train)
    assert scores.p_cvr.tolist() == [0.5] * 400
    assert np.corrcoef(scores.p_ctr, train.clicked_N)[0, 1] > 0.3


@pytest.mark.parametrize("num_rounds", [5, 10, 15])
def test_rounds_need_not_be_a_multiple_of_the_evaluations(num_rounds: int) -> None:
    train = make_examples()
    settings = GbdtSettings(num_rounds=num_rounds, rounds_per_evaluation=10, min_rows_in_leaf=5, num_threads=1)
    ranker = GbdtRanker(settings)
    merits = iter([0.1, 0.2])
    ranker.fit(train, train, lambda scores: Validation(1.0, next(merits)))
    assert ranker.ctr_trees is not None
    assert ranker.ctr_trees.num_trees() == num_rounds
