"""A calibration written into the weights does to the log-odds what it says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedders.mkd import InteractionStudent, RepresentationStudent, Student
from embedders.mkd_calibration import calibrate
from embedders.mkd_model import MkdModel

PAIRS = [("red chair", "chair red"), ("red", "chair"), ("chair", "table chair"), ("table", "red")]


@pytest.fixture(scope="module")
def folder(save_word_encoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_word_encoder(tmp_path_factory.mktemp("encoder"), ["red", "chair", "table"]))


@pytest.mark.parametrize("kind", [InteractionStudent, RepresentationStudent])
def test_log_odds_become_slope_times_themselves_plus_the_intercept(
    kind: type[Student], folder: str, tmp_path: Path
) -> None:
    student = kind.pretrained(folder)
    before = MkdModel(student).log_odds(PAIRS)
    calibrate(student, 0.4, -1.5)
    after = MkdModel(student).log_odds(PAIRS)
    np.testing.assert_allclose(after, 0.4 * before - 1.5, atol=1e-5)
    MkdModel(student).save(tmp_path / "kept")
    np.testing.assert_allclose(
        MkdModel.load(tmp_path / "kept").score(PAIRS), 1 / (1 + np.exp(-(0.4 * before - 1.5))), atol=1e-5
    )


def test_a_slope_that_loses_the_order_is_refused(folder: str) -> None:
    student = RepresentationStudent.pretrained(folder)
    with pytest.raises(ValueError, match="expected above 0"):
        calibrate(student, 0.0, 1.0)


def test_more_than_two_labels_are_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="3 labels"):
        calibrate(InteractionStudent.pretrained(folder, num_labels=3), 1.0, 1.0)
