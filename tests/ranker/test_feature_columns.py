from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from ranker.batches import VectorPair
from ranker.feature_columns import FeatureColumns, FeatureEncoder

ROLES = {
    "category": "categorical",
    "brand": "categorical",
    "num_clicks_7d": "count",
    "ctr_7d": "rate",
    "history_item_ids": "history",
    "history_timestamps": "timestamps",
    "item_content_vector_id": "vector_id",
    "user_content_vector_id": "vector_id",
}


@dataclass(frozen=True)
class Matrix:
    """Three vectors, with ids 100, 200, 300."""

    vectors: NDArray[np.float32]
    fingerprint: dict[str, str]

    def rows_of(self, vector_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(np.isin(vector_ids, [100, 200, 300]), vector_ids // 100 - 1, -1)


MATRIX = Matrix(np.eye(3, dtype=np.float32), {"model_id": "eye"})
MATRICES = {"item_content_vector_id": MATRIX, "user_content_vector_id": MATRIX}


def frame() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": ["ann", "ann", "bob", "bob", "eve"],
            "item_id": ["tent", "lamp", "tent", "tent", "sock"],
            "category": ["camp", "light", "camp", None, "wool"],
            "brand": ["x", "y", "z", "x", "y"],
            "num_clicks_7d": [3, None, 0, 1, 2],
            "ctr_7d": [0.5, 0.1, None, 0.2, 0.3],
            "history_item_ids": [["lamp", "tent", "sock", "tent"], [], None, ["gone"], ["lamp"]],
            "history_timestamps": [[0], [], None, [0], [0]],
            "item_content_vector_id": [100, None, 300, 999, 200],
            "user_content_vector_id": [None, 100, 100, 100, 100],
            "clicked": [True, True, False, True, False],
            "converted": [True, False, False, None, False],
        }
    )


@pytest.fixture
def encoder() -> FeatureEncoder:
    return FeatureEncoder.fit(FeatureColumns.from_roles(ROLES), frame().lazy(), min_count=1, history_length=3)


def test_features_are_sorted_by_role() -> None:
    columns = FeatureColumns.from_roles(ROLES)
    assert columns.ids == ("user_id", "item_id", "category", "brand")
    assert columns.scalars == ("num_clicks_7d", "ctr_7d")
    assert columns.scalar_roles == ("count", "rate")
    assert columns.vectors == (VectorPair("content", "user_content_vector_id", "item_content_vector_id"),)
    assert "history_timestamps" not in columns.features


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shoe": "size"}, "'shoe': 'size'"),
        ({"other_item_ids": "history"}, "one history.*history_item_ids.*other_item_ids"),
        ({"item_learn_vector_id": "vector_id"}, r"\['item_learn_vector_id'\] without `user_learn_vector_id`"),
        ({"user_learn_vector_id": "vector_id"}, r"\['user_learn_vector_id'\] without `item_learn_vector_id`"),
        ({"learn_vector_id": "vector_id"}, "'learn_vector_id' must be named"),
        ({"user_vector_id": "vector_id"}, "'user_vector_id' must be named"),
    ],
)
def test_roles_that_no_ranker_can_read_are_refused(more: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureColumns.from_roles({**ROLES, **more})


def test_vectors_of_one_name_are_a_pair_in_order_of_appearance() -> None:
    names = ("item_learn_vector_id", "user_content_vector_id", "user_learn_vector_id", "item_content_vector_id")
    columns = FeatureColumns.from_roles(dict.fromkeys(names, "vector_id"))
    assert [pair.name for pair in columns.vectors] == ["learn", "content"]
    assert columns.vectors[0] == VectorPair("learn", "user_learn_vector_id", "item_learn_vector_id")
    assert columns.features[-4:] == columns.vector_ids == (*names[2::-2], *names[1::2])


def test_each_pair_is_gathered_from_its_own_matrices() -> None:
    learn = {"user_learn_vector_id": "vector_id", "item_learn_vector_id": "vector_id"}
    both = frame().with_columns(user_learn_vector_id=pl.lit(300), item_learn_vector_id=pl.Series([None, 200, 1, 2, 3]))
    other = Matrix(np.zeros((3, 5), np.float32), {"model_id": "zeros"})
    encoder = FeatureEncoder.fit(FeatureColumns.from_roles(ROLES | learn), both.lazy(), min_count=1)
    examples = encoder.encode(both, {**MATRICES, **dict.fromkeys(learn, other)})
    assert examples.vectors["item_content_vector_id"].rows_N.tolist() == [0, -1, 2, -1, 1]
    assert examples.vectors["item_learn_vector_id"].rows_N.tolist() == [-1, 1, -1, -1, -1]
    assert examples.vectors["user_learn_vector_id"].rows_N.tolist() == [2] * 5
    assert examples.vectors["user_learn_vector_id"].table_MV is other.vectors
    assert examples.vector_fingerprints == {
        **{name: {"model_id": "eye"} for name in MATRICES},
        **{name: {"model_id": "zeros"} for name in learn},
    }
    with pytest.raises(ValueError, match="no vector matrix for \\['item_learn_vector_id'\\]"):
        encoder.encode(both, {**MATRICES, "user_learn_vector_id": other})
    with pytest.raises(ValueError, match=r"vectors learn: both sides .*model_id: user_learn_vector_id has 'zeros'"):
        encoder.encode(both, {**MATRICES, "user_learn_vector_id": other, "item_learn_vector_id": MATRIX})


def test_frequent_ids_come_first_and_ties_by_name(encoder: FeatureEncoder) -> None:
    assert encoder.vocabularies["item_id"].ids.to_list() == ["tent", "lamp", "sock"]
    assert encoder.layout.num_rows == (5, 5, 5, 5)


def test_rare_ids_share_the_out_of_vocabulary_row() -> None:
    encoder = FeatureEncoder.fit(FeatureColumns.from_roles({}), frame().lazy(), min_count=2)
    examples = encoder.encode(frame())
    assert examples.ids_NF.tolist() == [[2, 2], [2, 1], [3, 2], [3, 2], [1, 1]]


def test_unknown_ids_read_as_one_and_null_categories_as_zero(encoder: FeatureEncoder) -> None:
    strangers = frame().with_columns(user_id=pl.lit("new"), category=pl.Series(["camp", None, "new", None, "wool"]))
    examples = encoder.encode(strangers, MATRICES)
    assert examples.ids_NF[:, 0].tolist() == [1] * 5
    assert examples.ids_NF[:, 2].tolist() == [2, 0, 1, 0, 4]


def test_histories_keep_the_newest_items_oldest_first_padded_on_the_right(encoder: FeatureEncoder) -> None:
    tent, lamp, sock, unknown = 2, 3, 4, 1
    assert encoder.encode(frame(), MATRICES).history_NL.tolist() == [
        [tent, sock, tent],
        [0, 0, 0],
        [0, 0, 0],
        [unknown, 0, 0],
        [lamp, 0, 0],
    ]


def test_scalars_stay_raw_with_nan_for_missing(encoder: FeatureEncoder) -> None:
    expected = [[3, 0.5], [np.nan, 0.1], [0, np.nan], [1, 0.2], [2, 0.3]]
    np.testing.assert_allclose(encoder.encode(frame(), MATRICES).scalars_NS, expected, rtol=1e-6)


def test_labels_that_are_not_known_yet_read_minus_one(encoder: FeatureEncoder) -> None:
    examples = encoder.encode(frame(), MATRICES)
    assert examples.clicked_N.tolist() == [True, True, False, True, False]
    assert examples.converted_N.tolist() == [1, 0, 0, -1, 0]
    without_labels = encoder.encode(frame().drop("clicked", "converted"), MATRICES)
    assert without_labels.converted_N.tolist() == [-1] * 5


def test_vectors_are_rows_of_a_matrix_and_minus_one_where_missing(encoder: FeatureEncoder) -> None:
    examples = encoder.encode(frame(), MATRICES)
    assert examples.vectors["item_content_vector_id"].rows_N.tolist() == [0, -1, 2, -1, 1]
    assert examples.vector_fingerprints == {name: {"model_id": "eye"} for name in MATRICES}


def test_only_categoricals_with_one_value_per_item_describe_the_items(encoder: FeatureEncoder) -> None:
    # tent is of brand x and z, but always of category camp where that is known
    assert encoder.layout.item_attributes == ("category",)
    camp, light, wool = encoder.vocabularies["category"].rows_of(pl.Series(["camp", "light", "wool"]))
    assert encoder.item_attributes_IK[:, 0].tolist() == [0, 0, camp, light, wool]


def test_chunks_encode_as_the_whole_frame_does(encoder: FeatureEncoder) -> None:
    whole = encoder.encode(frame(), MATRICES)
    chunked = encoder.encode_chunks([frame()[:2], frame()[2:2], frame()[2:]], 5, MATRICES)
    for name in ("ids_NF", "scalars_NS", "history_NL", "clicked_N", "converted_N"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(chunked, name))
    for name in MATRICES:
        np.testing.assert_array_equal(whole.vectors[name].rows_N, chunked.vectors[name].rows_N)


@pytest.mark.parametrize("num_rows", [4, 6])
def test_a_wrong_number_of_rows_is_refused(encoder: FeatureEncoder, num_rows: int) -> None:
    with pytest.raises(ValueError, match=f"expected {num_rows} rows"):
        encoder.encode_chunks([frame()], num_rows, MATRICES)


def test_a_missing_column_or_matrix_is_named(encoder: FeatureEncoder) -> None:
    with pytest.raises(ValueError, match="columns \\['brand'\\] are not in the examples"):
        encoder.encode(frame().drop("brand"), MATRICES)
    with pytest.raises(ValueError, match="no vector matrix for \\['user_content_vector_id'\\]"):
        encoder.encode(frame(), {"item_content_vector_id": MATRIX})


def test_ids_that_are_not_strings_are_read_as_strings() -> None:
    numbers = pl.DataFrame({"user_id": [7, 7, 8], "item_id": [1, 2, 1], "is_new": [True, False, True]})
    encoder = FeatureEncoder.fit(FeatureColumns.from_roles({"is_new": "categorical"}), numbers.lazy(), min_count=1)
    assert encoder.encode(numbers).ids_NF.tolist() == [[2, 2, 2], [2, 3, 3], [3, 2, 2]]


def test_an_empty_frame_encodes_to_nothing(encoder: FeatureEncoder) -> None:
    examples = encoder.encode(frame().clear(), MATRICES)
    assert len(examples) == 0
    assert examples.history_NL.shape == (0, 3)


def test_a_loaded_encoder_encodes_alike(encoder: FeatureEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = FeatureEncoder.load(tmp_path)
    assert loaded.layout == encoder.layout
    np.testing.assert_array_equal(loaded.item_attributes_IK, encoder.item_attributes_IK)
    np.testing.assert_array_equal(
        loaded.encode(frame(), MATRICES).history_NL, encoder.encode(frame(), MATRICES).history_NL
    )


def test_a_folder_with_another_vocabulary_is_refused(encoder: FeatureEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    pl.DataFrame({"id": ["lamp", "tent", "sock"]}).write_parquet(tmp_path / "vocabulary_item_id.parquet")
    with pytest.raises(ValueError, match=r"vocabularies do not match layout\.json"):
        FeatureEncoder.load(tmp_path)
