"""KARMA's model is found where its table says, whole and over the encoders that it was trained on, or not at all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import ItemContentEmbeddings, ItemImageEmbeddings, KarmaCurves
from jobs.admission import TableError
from jobs.fitted_embedder import sha256_of_model
from jobs.fitted_karma import FittedKarma, check_content, fitted_karma
from jobs.lake import Lake

THROUGH = "2025-06-20T00:00:00+00:00"
TEXT = Fingerprint("words", "w", "t", "learn_v1", "mean", 8, "l2", "float32")
PICTURES = Fingerprint("pixels", "p", "none", "none", "mean", 4, "l2", "float32")


def write_images(lake: Lake, encoder: Fingerprint) -> None:
    rows = pl.DataFrame(
        {
            "item_id": ["i0"],
            "event_timestamp": [lake.now()],
            "created_timestamp": [lake.now()],
            "item_image_vector_id": [0],
            "item_image_embedding": [[1.0, 0.0, 0.0, 0.0]],
            "item_image_hash": ["0"],
        },
        schema_overrides={"item_image_embedding": pl.List(pl.Float32)},
    )
    lake.write(ItemImageEmbeddings, rows, fingerprint=encoder.as_tags())


def write_model(lake: Lake, images: Fingerprint | None) -> None:
    """Files that hash to what the manifest says; nobody loads them."""
    told = {}
    for name in ("serving", "decoder"):
        folder = lake.root / "embedders" / "karma" / "abc" / name
        (folder / "language_model").mkdir(parents=True)
        (folder / "karma.json").write_text(name)
        (folder / "language_model" / "config.json").write_text("{}")
        told[name] = {"folder": f"embedders/karma/abc/{name}", "files_sha256": sha256_of_model(folder)}
    model = TEXT.of_karma(images, weights_sha256="cc", dimension=16, trained_through=THROUGH)
    lake.write(
        KarmaCurves,
        KarmaCurves.create_empty(),
        fingerprint=model.as_tags(),
        metadata={**told, "uses_images": images is not None},
    )


@pytest.fixture
def karma_lake(lake: Lake) -> Lake:
    lake.write(ItemContentEmbeddings, ItemContentEmbeddings.create_empty(), fingerprint=TEXT.as_tags())
    write_images(lake, PICTURES)
    write_model(lake, PICTURES)
    return lake


def fitted(lake: Lake) -> FittedKarma:
    found = fitted_karma(lake)
    assert found is not None
    return found


def test_the_manifest_names_the_model(karma_lake: Lake):
    found = fitted(karma_lake)
    assert found.trained_through.isoformat() == THROUGH
    assert found.serving.path == karma_lake.root / "embedders/karma/abc/serving"
    assert found.decoder.path == karma_lake.root / "embedders/karma/abc/decoder"
    assert found.uses_images
    assert found.is_whole()


def test_a_lake_may_do_without_karma(lake: Lake):
    lake.write(KarmaCurves, KarmaCurves.create_empty())
    assert fitted_karma(lake) is None


def test_a_lake_in_which_the_step_has_not_run_says_so(lake: Lake):
    with pytest.raises(TableError, match="run the step that writes it"):
        fitted_karma(lake)


def in_a_subfolder(folder: Path) -> None:
    (folder / "language_model" / "config.json").write_text("{ }")


def gone(folder: Path) -> None:
    (folder / "karma.json").unlink()


def added(folder: Path) -> None:
    (folder / "language_model" / "more.json").write_text("{}")


@pytest.mark.parametrize("part", ["serving", "decoder"])
@pytest.mark.parametrize("change", [in_a_subfolder, gone, added])
def test_changed_files_are_refused(karma_lake: Lake, part: str, change: Callable[[Path], None]):
    change(karma_lake.root / "embedders" / "karma" / "abc" / part)
    found = fitted(karma_lake)
    assert not found.is_whole()
    load = found.load if part == "serving" else found.load_decoder
    with pytest.raises(ValueError, match=rf"explain: .*karma_curves.*{part}.*\n.*tailrank run fit_embedder_karma"):
        load("explain")


def test_the_encoders_it_was_trained_on_are_accepted_and_named(karma_lake: Lake):
    assert check_content(karma_lake, fitted(karma_lake), "test") == (TEXT, PICTURES)


def test_other_encoders_are_refused(karma_lake: Lake):
    write_images(karma_lake, replace(PICTURES, weights_sha256="q"))
    with pytest.raises(ValueError, match=r"test, .*images.*\n.*pooling: expected .*pixels"):
        check_content(karma_lake, fitted(karma_lake), "test")
    write_images(karma_lake, PICTURES)
    other = replace(TEXT, prompt="learn_v2")
    karma_lake.write(ItemContentEmbeddings, ItemContentEmbeddings.create_empty(), fingerprint=other.as_tags())
    with pytest.raises(ValueError, match="learn_v2"):
        check_content(karma_lake, fitted(karma_lake), "test")


def test_a_model_without_images_does_not_mind_those_that_came_later(lake: Lake):
    lake.write(ItemContentEmbeddings, ItemContentEmbeddings.create_empty(), fingerprint=TEXT.as_tags())
    write_model(lake, None)
    assert check_content(lake, fitted(lake), "test") == (TEXT, None)
    write_images(lake, PICTURES)
    assert check_content(lake, fitted(lake), "test") == (TEXT, None)
