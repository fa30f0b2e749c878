"""From photos with given poses to first Gaussians: which photos take part, and how large the result is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stereo_scenes import photographed, sphere

from recon.photos import Photo
from recon.poses.from_file import write_transforms
from recon.reconstruct import RECONSTRUCTION_TYPES, ReconstructConfig, Reconstruction, held_out, reconstruct
from splat.cameras import Cameras
from splat.checkpoint import load_state, save_state

CAMERAS = Cameras.cat(
    [Cameras.orbit(1, 3.0, 15.0, 45.0, 96, 96, torch.tensor([0.0, 0, 5]), 12.0 * i) for i in range(5)]
)  # round a ball of radius 0.8 whose middle is nowhere near the origin


@pytest.fixture(scope="module")
def photos() -> tuple[Photo, ...]:
    views, _ = photographed(sphere([0.0, 0, 5], 0.8), CAMERAS, masked=True)
    names = [f"{i}.png" for i in range(5)]
    return tuple(
        Photo(name, Path(name), "", image, mask, None, (96, 96), on_white=True)
        for name, image, mask in zip(names, views.images, views.masks)
    )


def reconstructed(photos: tuple[Photo, ...], folder: Path, **options) -> Reconstruction:
    write_transforms(folder / "transforms.json", [CAMERAS], [f"{i}.png" for i in range(5)])
    job = reconstruct(photos, ReconstructConfig(poses_from=folder / "transforms.json", fit_side=96, **options))
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def placed(result: Reconstruction) -> list[str]:
    return [name for views in result.train for name in views.names]


def test_a_real_size_makes_the_scene_metric_and_moves_everything_alike(photos, tmp_path):
    result = reconstructed(photos, tmp_path, real_size=0.32)
    assert result.scale == "metric" and placed(result) == [photo.name for photo in photos]
    assert 0.32 / 1.6 < result.result_from_input.scale < 1.25 * 0.32 / 1.6  # the ball is 1.6 across; its rim has no depth
    expected = CAMERAS.transformed(result.result_from_input)
    torch.testing.assert_close(result.train[0].cameras.cam_from_world, expected.cam_from_world, atol=1e-4, rtol=0)
    middle = result.result_from_input(torch.tensor([[0.0, 0, 5]]))
    reach = (result.dense.xyz - middle).norm(dim=1)  # on the ball, as large as said
    assert float(reach.median()) == pytest.approx(0.8 * result.result_from_input.scale, rel=0.03)
    assert not any("--masks" in warning for warning in result.warnings)


def test_depth_maps_are_kept_in_the_results_own_world_where_they_are_wanted(photos, tmp_path):
    assert reconstructed(photos, tmp_path).priors is None
    result = reconstructed(photos, tmp_path, priors=True, real_size=0.32)
    assert result.priors.fits(result.train)
    depth, camera = result.priors.depths[0][2], result.train[0].cameras[2]
    known = depth > 0
    assert float(known.float().mean()) > 0.1
    xyz = camera.unproject(camera.pixel_centers[known], depth[known])[0]
    middle = result.result_from_input(torch.tensor([[0.0, 0, 5]]))
    reach = (xyz - middle).norm(dim=1) / result.result_from_input.scale
    assert float(reach.median()) == pytest.approx(0.8, rel=0.03), "on the ball, after the scene was made metric"


def test_a_stored_reconstruction_comes_back_with_its_priors_and_one_without_them_too(photos, tmp_path):
    from app.saved_stages import load_stage, save_stage

    result = reconstructed(photos, tmp_path, priors=True)
    save_stage(tmp_path / "s.safetensors", result)
    back = load_stage(tmp_path / "s.safetensors", RECONSTRUCTION_TYPES)
    assert torch.equal(back.priors.depths[0], result.priors.depths[0])
    tensors, facts = load_state(tmp_path / "s.safetensors")
    del facts["tree"]["fields"]["priors"]  # as the version before them wrote it
    save_state(tmp_path / "old.safetensors", tensors, facts)
    assert load_stage(tmp_path / "old.safetensors", RECONSTRUCTION_TYPES).priors is None


def test_a_photo_without_mask_among_masked_ones_is_left_out_with_a_reason(photos, tmp_path):
    whole = replace(photos[2], mask=None, on_white=False)
    result = reconstructed((*photos[:2], whole, *photos[3:]), tmp_path)
    assert placed(result) == ["0.png", "1.png", "3.png", "4.png"]
    assert result.reasons == {"2.png": "it has no mask and the others have"}
    assert any("1 of 5 photos have no mask" in warning for warning in result.warnings)


def test_photos_are_held_out_only_where_two_are_left_to_fit(photos, tmp_path):
    result = reconstructed(photos, tmp_path, holdout=2)
    assert placed(result) == ["1.png", "3.png"] and result.heldout_posed
    assert [name for views in result.heldout for name in views.names] == ["0.png", "2.png", "4.png"]
    result = reconstructed(photos[:2], tmp_path, holdout=2)
    assert placed(result) == ["0.png", "1.png"] and result.heldout == []
    assert any("No photo is held out" in warning for warning in result.warnings)


def test_which_photos_are_held_out():
    assert held_out(9, 4) == [0, 4, 8] and held_out(3, 2) == [] and held_out(5, 0) == []
