"""KARMA's model that `fit_embedder_karma` left in the lake, as the steps that embed with it find it.

embedders/karma/<digest>/serving    what makes vectors of users and items
embedders/karma/<digest>/decoder    what says in words what a vector means; nothing that serves reads it
"""

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from embedders.fingerprint import Fingerprint, check_same
from feature_repo.table_schemas import ItemContentEmbeddings, ItemImageEmbeddings, KarmaCurves
from jobs.fitted_embedder import ModelFolder
from jobs.lake import Lake

if TYPE_CHECKING:
    from embedders.karma_decoder import KarmaDecoder
    from embedders.karma_model import KarmaModel

MODELS = "embedders/karma"
"""Folder of the lake: one folder a model, and the checkpoint of one that is being trained."""

NAMED = {"named_by": "karma_curves", "trained_by": "fit_embedder_karma"}


class FittedKarma(NamedTuple):
    """A trained model.

    Attributes:
        fingerprint: its identity, that of its item vectors and of its user vectors.
        trained_through: it has seen the interactions before this time, so no vector of it is earlier.
        uses_images: whether it reads image vectors beside content vectors.
        serving: files of what makes vectors.
        decoder: files of what puts a vector into words.
    """

    fingerprint: Fingerprint
    trained_through: datetime
    uses_images: bool
    serving: ModelFolder
    decoder: ModelFolder

    def is_whole(self) -> bool:
        """Whether all files are there, as they were written."""
        return self.serving.is_whole() and self.decoder.is_whole()

    def load(self, step: str) -> "KarmaModel":
        """Read what makes vectors.

        Raises:
            ValueError: its files are gone or changed.
        """
        folder = self.serving.checked(step, **NAMED)
        from embedders.karma_model import KarmaModel  # here: torch takes seconds to import

        return KarmaModel.load(folder)

    def load_decoder(self, step: str) -> "KarmaDecoder":
        """Read what puts a vector into words.

        Raises:
            ValueError: its files are gone or changed.
        """
        from embedders.karma_decoder import KarmaDecoder

        folder, language_model = (files.checked(step, **NAMED) for files in (self.decoder, self.serving))
        return KarmaDecoder.load(folder, language_model)


class FrozenEncoders(NamedTuple):
    """What the vectors that KARMA reads were made by.

    Attributes:
        content: of the content vectors.
        images: of the image vectors; None where the model reads none.
    """

    content: Fingerprint
    images: Fingerprint | None


def fitted_karma(lake: Lake) -> FittedKarma | None:
    """KARMA's model; None where the lake does without KARMA ([fit_embedder_karma] enabled = false).

    Raises:
        TableError: `fit_embedder_karma` has not run.
    """
    manifest = lake.manifest(KarmaCurves)
    if not manifest.fingerprint:
        return None
    fingerprint = Fingerprint.from_tags(manifest.fingerprint)
    assert fingerprint.trained_through is not None
    serving, decoder = (
        ModelFolder(lake.root / manifest.metadata[name]["folder"], manifest.metadata[name]["files_sha256"])
        for name in ("serving", "decoder")
    )
    return FittedKarma(
        fingerprint=fingerprint,
        trained_through=datetime.fromisoformat(fingerprint.trained_through),
        uses_images=manifest.metadata["uses_images"],
        serving=serving,
        decoder=decoder,
    )


def check_content(lake: Lake, fitted: FittedKarma, step: str) -> FrozenEncoders:
    """Identity of the content and image vectors, after making sure that the model was trained on such.

    Raises:
        ValueError: they are of another encoder; the message names both sides.
    """
    content = Fingerprint.from_tags(lake.manifest(ItemContentEmbeddings).fingerprint)
    images = images_encoder(lake) if fitted.uses_images else None
    model = fitted.fingerprint
    assert model.trained_through is not None
    over_these = content.of_karma(
        images,
        weights_sha256=model.weights_sha256,
        dimension=model.dimension,
        trained_through=model.trained_through,
        dtype=model.dtype,
    )
    check_same(model, over_these, f"{step}, item_content_embeddings and images (run fit_embedder_karma first)")
    return FrozenEncoders(content, images)


def images_encoder(lake: Lake) -> Fingerprint | None:
    """Identity of the image vectors; None where the lake has none."""
    if not lake.exists(ItemImageEmbeddings) or not (manifest := lake.manifest(ItemImageEmbeddings)).rows:
        return None
    return Fingerprint.from_tags(manifest.fingerprint)
