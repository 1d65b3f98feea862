"""What KARMA reads of an item: standardised coordinates, and a learnt vector in the place of a missing picture."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embedders.karma_features import FrozenFeatures, StandardFeatures

RNG = np.random.default_rng(0)
CONTENT_NC = (RNG.normal(size=(30, 4)) * [1.0, 0.1, 3.0, 0.01] + 5.0).astype(np.float32)
IMAGE_NV = RNG.normal(size=(30, 3)).astype(np.float32)


def test_each_coordinate_has_mean_0_and_a_picture_weighs_as_much_as_a_text() -> None:
    features = StandardFeatures(FrozenFeatures(CONTENT_NC, IMAGE_NV))
    features.fit(CONTENT_NC, IMAGE_NV)
    found = features(torch.arange(30)).detach().numpy()
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(found[:, :4].std(axis=0), 1.0, atol=1e-3)
    np.testing.assert_allclose(found[:, 4:].var(axis=0), 4.0 / 3.0, atol=1e-2)  # three of them weigh as four


@pytest.mark.parametrize("sample", [IMAGE_NV[:1], IMAGE_NV[[4, 4, 4]]], ids=["one picture", "the same placeholder"])
def test_pictures_that_come_later_are_as_large_as_they_are(sample: NDArray[np.float32]) -> None:
    """Nothing of the sample says how pictures differ, so they are centred by it and no more."""
    features = StandardFeatures(FrozenFeatures(CONTENT_NC, IMAGE_NV))
    features.fit(CONTENT_NC, sample)
    found = features(torch.arange(30))[:, 4:].detach().numpy()
    np.testing.assert_allclose(found, (IMAGE_NV - sample[0]) * np.sqrt(4.0 / 3.0), atol=1e-6)


def test_an_item_without_a_picture_has_the_learnt_vector() -> None:
    image_NV = IMAGE_NV.copy()
    image_NV[7] = 0.0
    features = StandardFeatures(FrozenFeatures(CONTENT_NC, image_NV))
    features.fit(CONTENT_NC, IMAGE_NV)
    torch.nn.init.constant_(features.no_image_V, 0.5)
    found = features(torch.tensor([[6, 7]]))[0, :, 4:]
    assert found[1].tolist() == [0.5] * 3
    assert 0.5 not in found[0].tolist()
    features.frozen = FrozenFeatures(CONTENT_NC)  # a catalogue without any picture
    assert features(torch.tensor([6]))[0, 4:].tolist() == [0.5] * 3
