from collections.abc import Callable
from pathlib import Path

import pytest

from embedders.backbone import load_backbone
from embedders.mkd_losses import UNKNOWN
from embedders.student_encoder import CitedSpans, load_encoder, save_encoder

WORDS = ["red", "blue", "drill", "saw", "makita", "cordless"]


@pytest.fixture(scope="module")
def folder(save_word_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_word_encoder(tmp_path_factory.mktemp("encoder"), WORDS)


def test_a_pair_is_read_as_query_then_item_with_segments(folder: Path) -> None:
    _, reader = load_encoder(str(folder), max_tokens=32)
    lists = reader.pairs([("red drill", "makita drill"), ("saw", "saw")])
    assert [ids.tolist() for ids in lists.ids] == [[2, 4, 6, 3, 8, 6, 3], [2, 7, 3, 7, 3]]
    assert lists.segments is not None
    assert lists.segments[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    tokens = reader.padded(lists, [1, 0])
    assert tokens.ids_NL.tolist() == [[2, 7, 3, 7, 3, 1, 1], [2, 4, 6, 3, 8, 6, 3]]
    assert tokens.mask_NL.sum(dim=1).tolist() == [5, 7]
    assert tokens.segment_NL is not None


def test_tokens_of_cited_spans_are_highlighted_on_their_own_side(folder: Path) -> None:
    _, reader = load_encoder(str(folder), max_tokens=32)
    cited = [CitedSpans(query=((0, 3),), item=((7, 12),)), None, CitedSpans((), ())]
    lists = reader.pairs([("red drill", "makita drill"), ("red drill", "saw"), ("saw", "saw")], cited)
    assert lists.highlights is not None
    x = UNKNOWN
    assert [one.tolist() for one in lists.highlights] == [[x, 1, 0, x, 0, 1, x], [x] * 6, [x, 0, x, 0, x]]


def test_a_span_of_part_of_a_word_highlights_the_word_and_one_beside_it_does_not(folder: Path) -> None:
    _, reader = load_encoder(str(folder), max_tokens=32)
    lists = reader.pairs([("red drill", "saw")], [CitedSpans(query=((2, 4),), item=((3, 9),))])
    assert lists.highlights is not None
    assert lists.highlights[0].tolist() == [UNKNOWN, 1, 0, UNKNOWN, 0, UNKNOWN]


def test_a_long_pair_loses_tokens_of_its_longer_side_and_highlights_stay_in_place(folder: Path) -> None:
    _, reader = load_encoder(str(folder), max_tokens=8)
    lists = reader.pairs([("red drill", "makita cordless red drill saw")], [CitedSpans((), ((7, 15),))])
    assert lists.ids[0].tolist() == [2, 4, 6, 3, 8, 9, 4, 3]
    assert lists.highlights is not None
    assert lists.highlights[0].tolist() == [UNKNOWN, 0, 0, UNKNOWN, 0, 1, 0, UNKNOWN]


def test_texts_are_cut_at_the_models_own_limit(folder: Path) -> None:
    _, reader = load_encoder(str(folder), max_tokens=500)
    assert reader.max_tokens == 32
    assert reader.texts(["red " * 60]).lengths().tolist() == [32]


def test_the_encoder_has_no_pooler_and_saved_it_is_a_folder_that_backbones_read(folder: Path, tmp_path: Path) -> None:
    encoder, reader = load_encoder(str(folder), max_tokens=32)
    assert not [name for name in encoder.state_dict() if "pooler" in name]
    save_encoder(encoder, reader, tmp_path / "saved")
    assert load_backbone(str(tmp_path / "saved")).encode(["red drill"]).shape == (1, 32)


def test_a_gguf_file_is_refused_as_a_student(tmp_path: Path) -> None:
    (tmp_path / "some.gguf").touch()
    with pytest.raises(ValueError, match="reads from left to right; a student needs an encoder"):
        load_encoder(str(tmp_path / "some.gguf"), max_tokens=32)


def test_weights_that_are_not_all_there_are_refused(folder: Path, tmp_path: Path) -> None:
    encoder, reader = load_encoder(str(folder), max_tokens=32)
    del encoder.get_submodule("encoder.layer.1").output
    save_encoder(encoder, reader, tmp_path / "part")
    with pytest.raises(ValueError, match=r"its weights lack encoder\.layer\.1\.output"):
        load_encoder(str(tmp_path / "part"), max_tokens=32)
