"""The judge of text to 3-D, on features and pictures whose answer is known."""

from dataclasses import replace

import pytest
import torch
from tiny_objects import box, joined

from diffusion.data.augment import mirrored, with_colours
from diffusion.judge import (
    ELEVATION_DEG,
    ORIENTATIONS,
    SIDE,
    VIEWS,
    balanced_gallery,
    colour_histogram,
    features,
    geometry_key,
    gradient_histograms,
    judge_cameras,
    noun_agreement,
    shuffled,
    visible_palette,
)


def seen(mesh):
    from splat.raycast import raycast

    views, _ = raycast(mesh, judge_cameras(), threads=1)
    return views


def described(*meshes):
    views = [seen(m) for m in meshes]
    return features(torch.stack([v.images for v in views]), torch.stack([v.masks for v in views]))


def test_the_nearest_neighbour_decides_and_any_of_five_forgives():
    gallery = torch.eye(8)
    nouns = ["chair", "chair", "table", "table", "lamp", "lamp", "car", "car"]
    sample = torch.tensor([[0.9, 0, 0.8, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0.9, 0, 0.8, 0.7]])
    result = noun_agreement(sample, ["chair", "car"], gallery, nouns, count=3)
    assert result.neighbours[:, :2].tolist() == [[0, 2], [4, 6]]
    assert result.nearest == 0.5 and result.any_of == 1.0
    assert noun_agreement(sample, ["tree", "tree"], gallery, nouns).any_of == 0.0


def test_what_is_left_out_is_no_neighbour():
    gallery = torch.eye(6)
    nouns = ["a", "b", "a", "b", "a", "b"]
    left_out = torch.eye(6, dtype=torch.bool)
    result = noun_agreement(gallery, nouns, gallery, nouns, left_out, count=5)
    assert not (result.neighbours == torch.arange(6)[:, None]).any()
    assert noun_agreement(gallery, nouns, gallery, nouns).nearest == 1.0


def test_random_features_agree_as_often_as_chance_says():
    g = torch.Generator().manual_seed(0)
    nouns = [f"noun {i % 20}" for i in range(160)]
    samples, gallery = torch.randn(4000, 16, generator=g), torch.randn(160, 16, generator=g)
    asked = [f"noun {i % 20}" for i in range(4000)]
    assert noun_agreement(samples, asked, gallery, nouns).nearest == pytest.approx(1 / 20, abs=0.012)


def test_the_gallery_has_as_many_of_each_noun_and_different_geometries_first():
    nouns = ["tree"] * 50 + ["jar"] * 6 + ["key"] * 2
    geometries = [str(i) for i in range(50)] + ["x", "x", "x", "y", "z", "z"] + ["p", "q"]
    for seed in range(5):
        chosen = balanced_gallery(nouns, geometries, 3, seed)
        assert [nouns[i] for i in chosen] == ["jar"] * 3 + ["key"] * 2 + ["tree"] * 3
        assert {geometries[i] for i in chosen[:3]} == {"x", "y", "z"}
        assert chosen == balanced_gallery(nouns, geometries, 3, seed)
    assert balanced_gallery(nouns, geometries, 3, 0) != balanced_gallery(nouns, geometries, 3, 1)


def test_shuffled_nouns_are_never_the_own_ones_and_stay_balanced():
    nouns = ["a", "b", "c", "a", "b", "c", "d", "d"]
    for seed in range(10):
        other = shuffled(nouns, seed)
        assert all(x != y for x, y in zip(nouns, other, strict=True))
        assert sorted(other) == sorted(nouns)


def test_a_recolour_has_the_geometry_of_the_original_and_nothing_else_has():
    mesh = box()
    assert geometry_key(mesh) == geometry_key(with_colours(mesh, lambda rgb: 1 - rgb))
    assert geometry_key(mesh) == geometry_key(mirrored(mesh))  # a box is its own mirror image
    assert geometry_key(mesh) != geometry_key(box(size=(1.0, 0.6, 0.25)))


def test_gradients_vote_for_their_direction_and_brightness_does_not_matter():
    ramp = torch.arange(16.0)[None, None, None].expand(1, 1, 16, 16) / 16  # rises to the right: direction 0
    bins = gradient_histograms(ramp).reshape(1, ORIENTATIONS, 4, -1).sum((0, 2, 3))
    assert set(bins.topk(2).indices.tolist()) == {0, ORIENTATIONS - 1}  # half a bin from either
    assert gradient_histograms(ramp.mT).reshape(1, ORIENTATIONS, 4, -1).sum((0, 2, 3)).argmax() == ORIENTATIONS // 2
    torch.testing.assert_close(gradient_histograms(ramp), gradient_histograms(1 - 0.5 * ramp), atol=0.05, rtol=0)
    assert gradient_histograms(torch.ones(1, 3, 16, 16)).abs().max() == 0


def test_features_tell_shapes_apart_before_colours_and_colours_too():
    chair = joined(box(size=(1.0, 0.1, 1.0)), box(size=(1.0, 1.0, 0.1), center=(0, 0.5, -0.45)))
    tall = box(size=(0.2, 1.0, 0.2))
    blue_chair = with_colours(chair, lambda rgb: torch.tensor([0.1, 0.2, 0.8]).expand_as(rgb))
    f = described(chair, blue_chair, tall)
    assert f.shape[0] == 3
    torch.testing.assert_close(f.norm(dim=1), torch.ones(3))
    same, other = float(f[0] @ f[1]), float(f[0] @ f[2])
    assert other < same < 0.999


def test_colours_count_by_share_and_not_by_place_or_edge():
    left, right = torch.ones(1, VIEWS, SIDE, SIDE, 3), torch.ones(1, VIEWS, SIDE, SIDE, 3)
    masks = torch.zeros(2, VIEWS, SIDE, SIDE)
    for i, (image, start) in enumerate(((left, 4), (right, 30))):
        image[:, :, start : start + 20, start : start + 20] = torch.tensor([0.8, 0.1, 0.1])
        masks[i, :, start : start + 20, start : start + 20] = 1
    a = colour_histogram(torch.cat([left, right]), masks)
    torch.testing.assert_close(a.square().sum(1), torch.ones(2))
    assert float(a[0] @ a[1]) > 0.999
    half = colour_histogram(0.4 + 0.6 * left, 0.6 * masks[:1])  # the same thing, translucent on white
    assert float(a[0] @ half[0]) > 0.999
    blue = colour_histogram(left.flip(-1), masks[:1])
    assert float(a[0] @ blue[0]) < 0.1
    assert colour_histogram(left, 0 * masks[:1]).abs().max() == 0


def test_white_things_on_white_are_still_seen():
    white = box(color=(255, 255, 255), size=(0.2, 1.0, 0.2))
    flat = box(color=(255, 255, 255), size=(1.0, 0.2, 1.0))
    f = described(white, flat, box(color=(250, 250, 250), size=(0.2, 1.0, 0.2)))
    assert float(f[0] @ f[2]) > float(f[0] @ f[1]) + 0.2


def test_the_cameras_are_four_quarter_turns():
    cameras = judge_cameras()
    assert len(cameras) == VIEWS and (cameras.width, cameras.height) == (SIDE, SIDE)
    flat = torch.nn.functional.normalize(cameras.centers[:, [0, 2]], dim=1)
    torch.testing.assert_close((flat[:-1] * flat[1:]).sum(1), torch.zeros(VIEWS - 1), atol=1e-6, rtol=0)
    assert torch.rad2deg(torch.asin(cameras.centers[0, 1] / cameras.centers[0].norm())) == pytest.approx(
        ELEVATION_DEG, abs=1e-3
    )


def test_the_visible_palette_is_the_objects_and_not_the_backgrounds():
    views = seen(joined(box(color=(200, 30, 30)), box(color=(20, 50, 180), size=(0.1, 0.6, 0.1))))
    palette = visible_palette(views.images, views.masks)
    assert palette.words[0] == "red" and palette.shares[0] > 0.7
    assert "blue" in palette.words and sum(s for w, s in zip(palette.words, palette.shares) if w == "white") < 0.01
    half = replace(views, images=0.5 * views.images + 0.5, masks=0.5 * views.masks)
    assert visible_palette(half.images, torch.where(half.masks == 0.5, 0.51, half.masks)).words[0] == "red"
