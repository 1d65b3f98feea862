"""LEARN's model that `fit_embedder` left in the lake, as the steps that embed with it find it."""

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


class ModelFolder(NamedTuple):
    """Files of a trained model, as a table's manifest names them.

    Attributes:
        path: of the folder.
        files_sha256: what its files hash to.
    """

    path: Path
    files_sha256: str

    def is_whole(self) -> bool:
        """Whether the files are there, as they were written."""
        return self.path.is_dir() and sha256_of_model(self.path) == self.files_sha256

    def checked(self, step: str, *, named_by: str, trained_by: str) -> Path:
        """The folder, for reading.

        Raises:
            ValueError: its files are gone or changed.
        """
        if not self.is_whole():
            raise ValueError(
                f"{step}: the model that {named_by} names is not in {self.path}, or its files have changed.\n"
                f"  what to do: restore the folder, or train it again: tailrank run {trained_by} --force"
            )
        return self.path


class FittedEmbedder(NamedTuple):
    """LEARN's trained model.

    Attributes:
        fingerprint: its identity, that of its item vectors and of its user vectors.
        trained_through: it has seen the interactions before this time, so no vector of it is earlier.
        files: of the model.
    """

    fingerprint: Fingerprint
    trained_through: datetime
    files: ModelFolder

    @property
    def folder(self) -> Path:
        """Of its files."""
        return self.files.path

    def is_whole(self) -> bool:
        """Whether the files are there, as they were written."""
        return self.files.is_whole()

    def load(self, step: str) -> "LearnModel":
        """Read the model.

        Raises:
            ValueError: its files are gone or changed.
        """
        from embedders.learn_model import LearnModel  # here: torch takes seconds to import

        return LearnModel.load(self.files.checked(step, named_by="embedder_curves", trained_by="fit_embedder"))


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
        files=ModelFolder(lake.root / manifest.metadata["folder"], manifest.metadata["files_sha256"]),
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
    """Hash over the files of a model, those of folders inside it included."""
    return sha256_of_files({path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})
