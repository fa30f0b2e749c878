"""Learned priors through `reconstruct`: what they fill, how it is checked, and cameras by a network."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learned_stand_ins import CENTRE, as_dust3r, as_vggt, finished, orbit, tiny_depth_anything, tiny_marigold, weights
from stereo_scenes import photographed, sphere

from recon.fill_depths import FillConfig, fill_depths, nearest_points
from recon.photos import Photo
from recon.poses import PoseConfig, solve_poses
from recon.poses.from_file import write_transforms
from recon.poses.from_prior import pairs_of
from recon.priors import DepthMap
from recon.priors.depth_guess import DepthGuess
from recon.reconstruct import ReconstructConfig, reconstruct
from splat.cameras import Cameras
from splat.errors import StoppedLate
from splat.points import PointCloud
from splat.similarity import fit_similarity

CAMERAS = orbit(4, 98, 70)
NAMES = [f"{i}.png" for i in range(4)]


def floor_and_ball(origin, directions):
    """A ball on a big plane: everything that the photos see has a depth."""
    ball = sphere(CENTRE.tolist(), 0.8)(origin, directions)
    up = torch.tensor([0.1, 0.9, 0.2])
    below = -((origin - CENTRE) @ up + 0.8) / (directions @ up)
    return torch.minimum(ball, torch.where(below > 0, below, torch.inf))


VIEWS, DEPTH = photographed(floor_and_ball, CAMERAS)
VIEWS = replace(VIEWS, names=tuple(NAMES))
DEPTH = torch.where(DEPTH.isfinite() & (DEPTH < 8), DEPTH, 0.0)


def photos():
    return tuple(Photo(n, Path(n), "", image, None, None, (98, 70)) for n, image in zip(NAMES, VIEWS.images))


def half(x):
    return torch.nn.functional.interpolate(x[None, None], (35, 49), mode="nearest-exact")[0, 0]


def sweep(share=0.5):
    """What stereo may know: the left part of every photo, at half size."""
    maps = []
    for i, name in enumerate(NAMES):
        depth = half(DEPTH[i])
        depth[:, int(share * depth.shape[1]) :] = 0
        maps.append(DepthMap(name, depth, torch.where(depth > 0, 0.8, 0.0)))
    return maps


def inverse_guesses(depth=DEPTH):
    """What a perfect relative network would say: inverse depth in a unit and with an offset of each photo's own."""
    values = torch.where(depth > 0, 1 / depth.clamp_min(1e-6), torch.nan)
    return [DepthGuess(n, (i + 2) * v + 0.1 * i, "inverse") for i, (n, v) in enumerate(zip(NAMES, values))]


# --- filling ------------------------------------------------------------------------------------------------------------


def test_a_right_guess_fills_what_stereo_left_open_with_less_confidence():
    before = sweep()
    after, refused = fill_depths([VIEWS], before, inverse_guesses(), None)
    assert refused == []
    for i, (old, new) in enumerate(zip(before, after)):
        known = old.depth > 0
        assert torch.equal(new.depth[known], old.depth[known]) and torch.equal(new.confidence[known], old.confidence[known])
        fresh = (new.depth > 0) & ~known
        truth = half(DEPTH[i])
        assert float(fresh.sum()) > 0.8 * float(((truth > 0) & ~known).sum())
        assert float((new.depth[fresh] / truth[fresh] - 1).abs().max()) < 1e-3
        assert 0 < float(new.confidence[fresh].max()) <= FillConfig.confidence + 1e-6 < float(new.confidence[known].min())


def test_a_guess_of_something_else_is_refused_and_nothing_changes():
    noise = [
        DepthGuess(n, torch.rand(70, 98, generator=torch.Generator().manual_seed(i)), "inverse") for i, n in enumerate(NAMES)
    ]
    after, refused = fill_depths([VIEWS], sweep(), noise, None)
    assert len(refused) == 4 and all(f"depth of {n} is left out" in r for n, r in zip(NAMES, refused))
    assert all(torch.equal(a.depth, b.depth) for a, b in zip(after, sweep()))


def test_what_stands_in_front_of_what_another_photo_sees_is_dropped():
    """One photo's network sees a bubble half-way to the camera; the others look through it."""
    bubble = DEPTH.clone()
    bubble[0, 20:50, 60:90] *= 0.6
    maps = [sweep()[0], *sweep(share=1.0)[1:]]
    after, _ = fill_depths([VIEWS], maps, inverse_guesses(bubble), None)
    straight, _ = fill_depths([VIEWS], maps, inverse_guesses(), None)
    inside = torch.zeros(35, 49, dtype=torch.bool)
    inside[10:25, 30:45] = True
    share = [float((m[0].depth[inside] > 0).float().mean()) for m in (after, straight)]
    assert share[1] > 0.9 and share[0] < 0.4, share


def test_masks_bound_what_is_filled():
    masked = replace(VIEWS, masks=(torch.arange(98) < 70).float().expand(4, 70, 98).clone())
    after, _ = fill_depths([masked], sweep(), inverse_guesses(), None)
    assert all(float(m.depth[:, 36:].abs().max()) == 0 for m in after)
    assert any(float(m.depth[:, 26:34].abs().max()) > 0 for m in after)


def test_sparse_points_serve_where_stereo_found_nothing():
    nothing = [DepthMap(m.name, torch.zeros_like(m.depth), torch.zeros_like(m.depth)) for m in sweep()]
    points = torch.cat([CAMERAS[i].unproject(CAMERAS.pixel_centers, DEPTH[i])[DEPTH[i] > 0][::7] for i in range(4)])
    cloud = PointCloud(points, torch.zeros_like(points), torch.ones(len(points)))
    after, refused = fill_depths([VIEWS], nothing, inverse_guesses(), cloud)
    assert refused == [] and all((m.depth > 0).float().mean() > 0.5 for m in after)
    _, refused = fill_depths([VIEWS], nothing, inverse_guesses(), None)
    assert len(refused) == 4 and "only 0 of its pixels" in refused[0]


def test_the_nearest_point_of_a_pixel_counts():
    camera = CAMERAS[0]
    at = camera.pixel_centers[30, 40][None].expand(3, 2)
    points = camera.unproject(at, torch.tensor([3.0, 2.0, 4.0]))[0]
    cloud = PointCloud(points, torch.zeros(3, 3), torch.tensor([0.1, 0.2, 0.3]))
    depth, confidence = nearest_points(camera, cloud)
    assert float(depth[30, 40]) == pytest.approx(2, rel=1e-4) and float(confidence[30, 40]) == pytest.approx(0.2)
    assert int((depth > 0).sum()) == 1


# --- through reconstruct ------------------------------------------------------------------------------------------------


def posed(tmp_path, **options):
    write_transforms(tmp_path / "transforms.json", [CAMERAS], NAMES)
    return ReconstructConfig(poses_from=tmp_path / "transforms.json", fit_side=98, priors=True, **options)


def test_tiny_networks_of_the_real_classes_run_end_to_end(tmp_path):
    tiny_depth_anything(tmp_path / "da")
    tiny_marigold(tmp_path / "n", "normals", use_full_z_range=True)
    learned = (weights("depth-anything", tmp_path / "da"), weights("marigold-normals", tmp_path / "n"))
    result, events = finished(reconstruct(photos(), posed(tmp_path, learned=learned)))
    told = [e.note for e in events if e.stage == "prior"]
    assert [n for n in told if n.startswith("Depth Anything V2: ")] == [f"Depth Anything V2: {n}" for n in NAMES]
    assert [n for n in told if n.startswith("Marigold normals: ")] == [f"Marigold normals: {n}" for n in NAMES]
    # Random weights know nothing of the scene, and the fit to it finds that out.
    assert sum("The network's depth of" in w for w in result.warnings) == 4
    normals = result.priors.normals[0]
    assert normals.shape == (4, 70, 98, 3) and len(result.initial) > 500
    length = normals.norm(dim=-1)
    torch.testing.assert_close(length[length > 0], torch.ones(int((length > 0).sum())), atol=1e-4, rtol=0)


def test_a_right_network_fills_holes_of_the_priors_and_of_the_points(tmp_path, monkeypatch):
    """The true depth, as a relative network would say it, in place of the network."""

    def told(views, weights, device, seed):
        yield from ()
        return inverse_guesses()

    monkeypatch.setattr("recon.priors.depth_anything.guess_depths", told)
    plain, _ = finished(reconstruct(photos(), posed(tmp_path)))
    filled, _ = finished(reconstruct(photos(), posed(tmp_path, learned=(weights("depth-anything", tmp_path),))))
    known = [float((r.priors.depths[0] > 0).float().mean()) for r in (plain, filled)]
    assert known[1] > known[0] + 0.05 and known[1] > 0.9 * float((DEPTH > 0).float().mean()), known
    truth = DEPTH * filled.result_from_input.scale
    fresh = (filled.priors.depths[0] > 0) & (plain.priors.depths[0] == 0) & (truth > 0)
    error = (filled.priors.depths[0][fresh] / truth[fresh] - 1).abs()
    assert float(error.median()) < 0.02 and float(error.quantile(0.9)) < 0.1
    assert len(filled.dense) > len(plain.dense)


# --- cameras by a network -----------------------------------------------------------------------------------------------


@pytest.fixture
def vggt_package(monkeypatch):
    """A package of that name whose network knows the scene, in a world of its own."""
    box = {"answer": as_vggt(CAMERAS, DEPTH, torch.where(DEPTH > 0, 6.0, 1.0))}

    class Known:
        def to(self, device):
            return self

        def __call__(self, images):
            assert images.shape == (1, 4, 3, 70, 98) and 0 <= float(images.min()) and float(images.max()) <= 1
            return box["answer"]

    module = types.ModuleType("vggt.models.vggt")
    module.VGGT = object
    for name in ("vggt", "vggt.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "vggt.models.vggt", module)
    monkeypatch.setattr("recon.priors.vggt.load_mixin", lambda kind, folder: Known())
    monkeypatch.setattr("recon.priors.vggt.SIDE", 98)
    return box


def test_a_network_places_all_photos_and_its_depth_is_used(vggt_package, tmp_path):
    config = ReconstructConfig(
        poses=PoseConfig(method="prior", prior=weights("vggt", tmp_path)), fit_side=98, priors=True, holdout=4,
        learned=(weights("vggt", tmp_path),),
    )  # fmt: skip
    result, _ = finished(reconstruct(photos(), config))
    assert [n for v in result.train for n in v.names] == NAMES[1:] and not result.heldout_posed
    assert [n for v in result.heldout for n in v.names] == NAMES[:1]
    expected = CAMERAS.transformed(result.result_from_input)
    torch.testing.assert_close(result.train[0].cameras.cam_from_world, expected.cam_from_world[1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(result.train[0].cameras.K, CAMERAS.K[1:], atol=1e-2, rtol=0)
    known = result.priors.depths[0] > 0
    truth = DEPTH[1:] * result.result_from_input.scale
    assert float((known & (truth > 0)).sum()) > 0.8 * float((truth > 0).sum())
    both = known & (truth > 0)
    assert float((result.priors.depths[0][both] / truth[both] - 1).abs().median()) < 0.02
    assert result.facts["prior_agreement"] > 0.5


def test_given_poses_stay_and_the_networks_depth_is_scaled_to_them(vggt_package, tmp_path):
    other = {k: v.clone() for k, v in vggt_package["answer"].items()}
    other["pose_enc"][..., :3] *= 0.37  # its world is smaller than the given one
    other["depth"] *= 0.37
    vggt_package["answer"] = other
    result, _ = finished(reconstruct(photos(), posed(tmp_path, learned=(weights("vggt", tmp_path),))))
    truth = DEPTH * result.result_from_input.scale
    both = (result.priors.depths[0] > 0) & (truth > 0)
    assert float(both.sum()) > 0.9 * float((truth > 0).sum())
    assert float((result.priors.depths[0][both] / truth[both] - 1).abs().median()) < 0.02


def test_photos_that_cannot_be_solved_are_placed_by_the_network_if_there_is_one(vggt_package, tmp_path, monkeypatch, caplog):
    def stops(photos, config):
        yield from ()
        raise StoppedLate("Only 1 of 4 photos could be placed; take more.")

    monkeypatch.setattr("recon.poses.colmap.solve", stops)
    with pytest.raises(StoppedLate, match="Only 1 of 4"):
        finished(reconstruct(photos(), ReconstructConfig(fit_side=98)))
    result, _ = finished(reconstruct(photos(), ReconstructConfig(fit_side=98, learned=(weights("vggt", tmp_path),))))
    assert [n for v in result.train for n in v.names] == NAMES
    assert "The cameras are those of VGGT, because solving them from the photos stopped: Only 1 of 4" in caplog.text


def test_depths_that_contradict_each_other_are_told(vggt_package, tmp_path):
    other = {k: v.clone() for k, v in vggt_package["answer"].items()}
    other["depth"] *= torch.tensor([1.0, 1.4, 0.7, 1.9])[None, :, None, None, None]
    vggt_package["answer"] = other
    poses, _ = finished(solve_poses(photos(), PoseConfig(method="prior", prior=weights("vggt", tmp_path))))
    assert poses.facts["prior_agreement"] < 0.2 and "its cameras may be wrong" in poses.warnings[0]


def test_pairs_are_asked_in_both_orders():
    pairs = pairs_of([torch.zeros(8, 8, 3)] * 5)
    assert len(pairs) == len(set(pairs)) == 20 and {(j, i) for i, j in pairs} == set(pairs)


def test_pairs_of_a_pointmap_network_become_cameras_and_depth(tmp_path, monkeypatch):
    """A package named dust3r whose network knows the scene, each pair in a unit of its own."""
    seen = []

    class Known:
        def to(self, device):
            return self

        def __call__(self, first, second):
            i, j = first["idx"], second["idx"]
            assert first["img"].shape == (1, 3, 70, 98) and first["true_shape"].tolist() == [[70, 98]]
            assert -1 <= float(first["img"].min()) < 0 < float(first["img"].max()) <= 1
            seen.append((i, j))
            one, two = as_dust3r(CAMERAS, i, j, DEPTH, torch.where(DEPTH > 0, 8.0, 1.0))
            unit = 1 + 0.3 * i + 0.1 * j
            return one | {"pts3d": unit * one["pts3d"]}, two | {"pts3d_in_other_view": unit * two["pts3d_in_other_view"]}

    module = types.ModuleType("dust3r.model")
    module.AsymmetricCroCo3DStereo = object
    monkeypatch.setitem(sys.modules, "dust3r", types.ModuleType("dust3r"))
    monkeypatch.setitem(sys.modules, "dust3r.model", module)
    monkeypatch.setattr("recon.priors.dust3r.load_mixin", lambda kind, folder: Known())
    monkeypatch.setattr("recon.priors.dust3r.SIDE", 98)
    monkeypatch.setattr("recon.priors.dust3r.MULTIPLE", 14)
    poses, _ = finished(solve_poses(photos(), PoseConfig(method="prior", prior=weights("dust3r", tmp_path))))
    assert sorted(seen) == sorted((i, j) for i in range(4) for j in range(4) if i != j) and poses.placed == (0, 1, 2, 3)
    centers = torch.cat([c.centers for c in poses.cameras])
    world = fit_similarity(centers, CAMERAS.centers)
    found = Cameras.cat(poses.cameras).transformed(world)
    torch.testing.assert_close(found.centers, CAMERAS.centers, atol=0.02, rtol=0)
    turned = found.cam_from_world[:, :3, :3] @ CAMERAS.cam_from_world[:, :3, :3].mT
    assert float((turned.diagonal(dim1=1, dim2=2).sum(-1)).min()) > 3 - 1e-3  # within 2 degrees
    assert float((found.K[:, 0, 0] / CAMERAS.K[:, 0, 0] - 1).abs().max()) < 0.02
    for depth, truth in zip(poses.depths, DEPTH):
        both = (depth.depth > 0) & (truth > 0)
        assert float(both.float().mean()) > 0.5
        assert float((depth.depth[both] * world.scale / truth[both] - 1).abs().median()) < 0.02
    assert poses.facts["prior_agreement"] > 0.5
