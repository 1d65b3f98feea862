"""What KARMA reads of an item: standardised coordinates, and a learnt vector in the place of a missing picture."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embedders.karma_features import IMAGE_COMPONENTS, FrozenFeatures, StandardFeatures

RNG = np.random.default_rng(0)
CONTENT_NC = (RNG.normal(size=(30, 4)) * [1.0, 0.1, 3.0, 0.01] + 5.0).astype(np.float32)
IMAGE_NV = RNG.normal(size=(30, 3)).astype(np.float32)


def test_a_text_has_deviation_1_and_a_picture_weighs_as_much() -> None:
    features = StandardFeatures(FrozenFeatures(CONTENT_NC, IMAGE_NV))
    features.fit(CONTENT_NC, IMAGE_NV)
    found = features(torch.arange(30)).detach().numpy()
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(found[:, :4].std(axis=0), 1.0, atol=1e-3)
    assert found[:, 4:].var(axis=0).sum() == pytest.approx(4.0, abs=1e-3)


def test_pictures_are_read_by_their_principal_components() -> None:
    """What they differ by, turned and stretched, and nothing of what is beyond the components."""
    rng = np.random.default_rng(1)
    few = rng.normal(size=(200, 5)) * [9.0, 7.0, 5.0, 3.0, 2.0]
    image_NV = (few @ np.linalg.qr(rng.normal(size=(80, 5)))[0].T + 1.0).astype(np.float32)
    content_NC = rng.normal(size=(200, 4)).astype(np.float32)
    features = StandardFeatures(FrozenFeatures(content_NC, image_NV))
    features.fit(content_NC, image_NV)
    found = features(torch.arange(200)).detach().numpy()[:, 4:]
    assert features.width == 4 + IMAGE_COMPONENTS
    assert found.var(axis=0)[:-5].max() < 1e-6  # the largest are the last
    centred = few - few.mean(axis=0)
    ratio = np.linalg.norm(found[:50, None] - found[None, :50], axis=2) / np.maximum(
        np.linalg.norm(centred[:50, None] - centred[None, :50], axis=2), 1e-9
    )
    off_diagonal = ratio[~np.eye(50, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, off_diagonal[0], rtol=1e-3)  # all distances are kept, by one factor


@pytest.mark.parametrize("sample", [IMAGE_NV[:1], IMAGE_NV[[4, 4, 4]]], ids=["one picture", "the same placeholder"])
def test_pictures_that_come_later_are_as_large_as_they_are(sample: NDArray[np.float32]) -> None:
    """Nothing of the sample says how pictures differ, so they are centred by it and no more."""
    features = StandardFeatures(FrozenFeatures(CONTENT_NC, IMAGE_NV))
    features.fit(CONTENT_NC, sample)
    found = features(torch.arange(30))[:, 4:].detach().numpy()
    np.testing.assert_allclose(found, IMAGE_NV - sample[0], atol=1e-6)


def test_an_item_without_a_picture_has_the_learnt_vector() -> None:
    image_NV = IMAGE_NV.copy()
    image_NV[7] = 0.0
    features = StandardFeatures(FrozenFeatures(CONTENT_NC, image_NV))
    features.fit(CONTENT_NC, IMAGE_NV)
    torch.nn.init.constant_(features.no_image_P, 0.5)
    found = features(torch.tensor([[6, 7]]))[0, :, 4:]
    assert found[1].tolist() == [0.5] * 3
    assert 0.5 not in found[0].tolist()
    features.frozen = FrozenFeatures(CONTENT_NC)  # a catalogue without any picture
    assert features(torch.tensor([6]))[0, 4:].tolist() == [0.5] * 3
