"""Textures from pictures, where the truth is a formula."""

import dataclasses

import numpy as np
import pytest
import torch
from shapes import hill, joined, moved, painted, sphere

from splat import bake_texture
from splat.bake_texture import BakeConfig, bake, baked
from splat.cameras import Cameras
from splat.errors import InputError
from splat.level_photos import levelled
from splat.mesh import Mesh
from splat.raycast import raycast
from splat.unwrap import UnwrapConfig, unwrapped
from splat.views import Views

SIZE = 128


def cameras(count: int, elevation: float, side: int = 96, azimuth: float = 0.0) -> Cameras:
    return Cameras.orbit(count, 4.0, elevation, 40.0, side, side, azimuth_deg=azimuth)


def all_round() -> Cameras:
    return Cameras.cat([cameras(6, 0.0), cameras(4, 55.0), cameras(4, -55.0, azimuth=30)])


def truth(mesh: Mesh, where: Cameras) -> Views:
    views, _ = raycast(dataclasses.replace(mesh, colors=painted(mesh.vertices)), where)
    return views


def texel_truth(mesh: Mesh, size: int = SIZE) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of the texels that show the mesh, and what they should hold."""
    texels = bake_texture._texels(mesh, size)
    return texels.rows, painted(torch.from_numpy(texels.points))


@pytest.fixture(scope="module")
def ball() -> Mesh:
    return unwrapped(sphere(3), UnwrapConfig(SIZE))


@pytest.fixture(scope="module")
def pictures() -> Views:
    return truth(sphere(5), all_round())


def test_texels_hold_what_the_pictures_show(ball, pictures):
    out = baked(ball, [pictures], BakeConfig(SIZE))
    rows, expected = texel_truth(ball)
    error = (out.texture.reshape(-1, 3)[rows] - expected).abs()
    assert out.texture.shape == (SIZE, SIZE, 3) and error.mean() < 0.01 and error.quantile(0.999) < 0.06
    assert torch.equal(baked(ball, [pictures], BakeConfig(SIZE)).texture, out.texture)


def test_seams_do_not_show(ball, pictures):
    """Drawn from between the cameras, the textured ball is the painted one, along the cuts between charts too."""
    out = baked(ball, [pictures], BakeConfig(SIZE))
    between = Cameras.cat([cameras(3, 20.0, azimuth=17), cameras(2, -30.0, azimuth=40)])
    drawn, _ = raycast(out, between)
    inside = drawn.masks > 0.99
    error = (drawn.images - truth(sphere(5), between).images).abs().amax(-1)[inside]
    assert error.mean() < 0.012 and error.max() < 0.08


def test_the_nearer_surface_does_not_bleed_on_what_it_hides():
    """A red sheet before a blue one; the blue one is seen past its edges, from above and from behind."""
    red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
    sheet = hill(8, 0.0)
    upright = Mesh(torch.stack([sheet.vertices[:, 0], -sheet.vertices[:, 2], sheet.vertices[:, 1]], 1) - 0.5, sheet.faces)
    front, back = moved(upright, 0, 1, 0.4), moved(Mesh(3 * upright.vertices, upright.faces), 0, 1.5, -0.4)
    both = joined(front, back)
    colors = torch.cat([red.expand(len(front.vertices), 3), blue.expand(len(back.vertices), 3)])
    views, _ = raycast(dataclasses.replace(both, colors=colors), Cameras.cat([cameras(5, e, 128) for e in (5.0, 40.0, -35.0)]))
    mesh = unwrapped(both, UnwrapConfig(SIZE))
    out = baked(mesh, [views], BakeConfig(SIZE))
    texels = bake_texture._texels(mesh, SIZE)
    of_front = texels.points[:, 2] > -0.3
    found = out.texture.reshape(-1, 3)[texels.rows]
    assert (found[of_front] - red).abs().amax(1).quantile(0.99) < 0.02
    assert (found[~of_front] - blue).abs().amax(1).quantile(0.99) < 0.02


def test_a_picture_that_contradicts_the_others_is_left_out(ball, pictures):
    more = truth(sphere(5), Cameras.cat([cameras(8, 25.0, azimuth=20), cameras(8, -20.0, azimuth=40)]))
    wrong = pictures.images.clone()
    wrong[1] = torch.tensor([0.0, 1.0, 0.0])
    spoilt = dataclasses.replace(pictures, images=wrong)
    rows, expected = texel_truth(ball)

    def error(config: BakeConfig) -> float:
        return float((baked(ball, [spoilt, more], config).texture.reshape(-1, 3)[rows] - expected).abs().mean())

    assert error(BakeConfig(SIZE)) < 0.5 * error(BakeConfig(SIZE, outlier=0))


def test_masks_hide(ball, pictures):
    wrong = torch.where(torch.arange(len(pictures))[:, None, None, None] < 6, 0.0, pictures.images)
    masks = (torch.arange(len(pictures)) >= 6).float()[:, None, None].expand(pictures.images.shape[:3])
    out = baked(ball, [dataclasses.replace(pictures, images=wrong, masks=masks)], BakeConfig(SIZE))
    rows, expected = texel_truth(ball)
    assert (out.texture.reshape(-1, 3)[rows] - expected).abs().mean() < 0.02


def test_masks_weigh_whole_pictures_too(ball, pictures):
    """A picture that counts a quarter is not a hidden one."""
    quarter = dataclasses.replace(pictures, masks=0.25 * pictures.masks)
    expected = baked(ball, [dataclasses.replace(pictures, masks=pictures.masks)], BakeConfig(SIZE, outlier=0)).texture
    assert torch.allclose(baked(ball, [quarter], BakeConfig(SIZE, outlier=0)).texture, expected, atol=1e-5)
    dark = dataclasses.replace(pictures, images=0 * pictures.images)
    both = baked(ball, [quarter, dataclasses.replace(dark, masks=0.75 * pictures.masks)], BakeConfig(SIZE, outlier=0)).texture
    rows, _ = texel_truth(ball)
    assert (both.reshape(-1, 3)[rows] - 0.25 * expected.reshape(-1, 3)[rows]).abs().mean() < 0.01


def test_unseen_places_continue_what_is_seen_or_take_the_vertex_colours(ball):
    one = truth(sphere(5), cameras(1, 0.0))
    rows, expected = texel_truth(ball)
    texels = bake_texture._texels(ball, SIZE)
    behind = texels.points[:, 2] < -0.1
    plain = baked(ball, [one], BakeConfig(SIZE)).texture.reshape(-1, 3)[rows]
    assert plain[behind].isfinite().all() and plain[behind].std(0).max() < 0.25 and plain[behind].min() > 0.05
    coloured = dataclasses.replace(ball, colors=painted(ball.vertices))
    known = baked(coloured, [one], BakeConfig(SIZE)).texture.reshape(-1, 3)[rows]
    assert (known[behind] - expected[behind]).abs().mean() < 0.03
    nothing = baked(ball, [dataclasses.replace(one, masks=torch.zeros(one.images.shape[:3]))], BakeConfig(SIZE))
    assert (nothing.texture - 0.7).abs().max() < 1e-6


def test_no_texel_is_left_empty(ball, pictures):
    texture = baked(ball, [pictures], BakeConfig(SIZE)).texture
    assert texture.min() > 0.05  # painted() is never black, and the gaps between charts take the nearest colours


def test_triangles_smaller_than_texels_have_a_colour():
    small = joined(sphere(2), moved(Mesh(0.001 * sphere(1).vertices, sphere(1).faces), 1.5, 0, 0))
    mesh = unwrapped(small, UnwrapConfig(64))
    views, _ = raycast(dataclasses.replace(small, colors=painted(small.vertices)), all_round())
    assert baked(mesh, [views], BakeConfig(64)).texture.isfinite().all()


def test_pictures_that_are_made_anew_give_the_same_without_the_cache(ball, pictures, monkeypatch):
    class Source:
        pictures = 14
        made = 0

        def __iter__(self):
            self.made += 1
            for i in range(14):
                yield pictures[[i]]

    kept = Source()
    steps = list(bake(ball, kept, BakeConfig(SIZE)))
    assert kept.made == 1 and {e.stage for e in steps} == {"texture"} and steps[-1].step == steps[-1].total == 14
    expected = baked(ball, [pictures], BakeConfig(SIZE)).texture
    monkeypatch.setattr(bake_texture, "CACHE", 1000)
    again = Source()
    assert torch.equal(baked(ball, again, BakeConfig(SIZE)).texture, expected) and again.made == 2
    assert torch.equal(baked(ball, iter(again), BakeConfig(SIZE)).texture, expected)


def test_photos_take_the_splats_light_and_keep_their_detail():
    x = torch.linspace(0, 1, 120)
    light = (0.3 + 0.4 * x)[None, None, :, None].expand(2, 80, 120, 3)
    detail = 0.1 * torch.sign(torch.sin(2 * torch.pi * x * 30))[None, None, :, None]
    renders = Views(light, ("a", "b"))
    dark = Views((0.6 * (light + detail) + torch.tensor([0.1, 0.0, -0.05])).clamp(0, 1), ("a", "b"))
    out = levelled(dark, renders)
    assert (out.images - (light + 0.6 * detail)).abs().mean() < 0.01
    assert out.masks.min() > 0.6
    moved_thing = dark.images.clone()
    moved_thing[1, 30:50, 40:60] = torch.tensor([1.0, 0.0, 1.0])
    trust = levelled(dataclasses.replace(dark, images=moved_thing), renders).masks
    assert trust[1, 35:45, 42:58].max() < 0.7 * trust[0, 35:45, 42:58].min()


def test_what_cannot_be_baked_is_one_sentence(ball, pictures):
    with pytest.raises(InputError, match="unwrap it first"):
        baked(sphere(1), [pictures])
    with pytest.raises(InputError, match="without cameras"):
        baked(ball, [dataclasses.replace(pictures, cameras=None)])
    with pytest.raises(InputError, match="16 to 4096"):
        baked(ball, [pictures], BakeConfig(100_000))
