"""The embedding model that `fit_embedder` left in the lake, as the steps that embed with it find it."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from embedders.fingerprint import Fingerprint, check_same, sha256_of_files
from feature_repo.table_schemas import EmbedderCurves, ItemContentEmbeddings
from jobs.lake import Lake

if TYPE_CHECKING:
    from embedders.learn_model import LearnModel

MODELS = "embedders/learn"
"""Folder of the lake: one folder a model, and the checkpoint of one that is being trained."""


class FittedEmbedder(NamedTuple):
    """A trained model.

    Attributes:
        fingerprint: its identity, that of its item vectors and of its user vectors.
        trained_through: it has seen the interactions before this time, so no vector of it is earlier.
        folder: of its files.
        files_sha256: what they hash to.
    """

    fingerprint: Fingerprint
    trained_through: datetime
    folder: Path
    files_sha256: str

    def is_whole(self) -> bool:
        """Whether the files are there, as they were written."""
        return self.folder.is_dir() and sha256_of_model(self.folder) == self.files_sha256

    def load(self, step: str) -> "LearnModel":
        """Read the model.

        Raises:
            ValueError: its files are gone or changed.
        """
        from embedders.learn_model import LearnModel  # here: torch takes seconds to import

        if not self.is_whole():
            raise ValueError(
                f"{step}: the model that embedder_curves names is not in {self.folder}, or its files have changed.\n"
                "  what to do: restore the folder, or train it again: tailrank run fit_embedder --force"
            )
        return LearnModel.load(self.folder)


def fitted_learn(lake: Lake) -> FittedEmbedder | None:
    """LEARN's model; None where the lake does without LEARN ([fit_embedder] enabled = false).

    Raises:
        TableError: `fit_embedder` has not run.
    """
    manifest = lake.manifest(EmbedderCurves)
    if not manifest.fingerprint:
        return None
    fingerprint = Fingerprint.from_tags(manifest.fingerprint)
    assert fingerprint.trained_through is not None
    return FittedEmbedder(
        fingerprint=fingerprint,
        trained_through=datetime.fromisoformat(fingerprint.trained_through),
        folder=lake.root / manifest.metadata["folder"],
        files_sha256=manifest.metadata["files_sha256"],
    )


def check_content(lake: Lake, fitted: FittedEmbedder, step: str) -> Fingerprint:
    """Identity of the content vectors, after making sure that the model was trained on such.

    Raises:
        ValueError: they are of another encoder; the message names both sides.
    """
    content = Fingerprint.from_tags(lake.manifest(ItemContentEmbeddings).fingerprint)
    model = fitted.fingerprint
    assert model.trained_through is not None
    over_these = content.of_learn(
        weights_sha256=model.weights_sha256, dimension=model.dimension, trained_through=model.trained_through
    )
    check_same(model, over_these, f"{step}, item_content_embeddings (run fit_embedder first)")
    return content


def sha256_of_model(folder: Path) -> str:
    """Hash over the files of a model."""
    return sha256_of_files({path.name: path for path in folder.iterdir()})
