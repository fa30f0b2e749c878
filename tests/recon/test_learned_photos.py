"""Priors of single photos, with tiny networks of the real classes: they load strictly, run, and answer in our frames."""

import json
import shutil

import pytest
import torch
from learned_stand_ins import finished, tiny_depth_anything, tiny_marigold, weights
from safetensors.torch import load_file, save_file

from recon.priors import depth_anything, marigold
from splat.cameras import Cameras, intrinsics
from splat.errors import InputError, StoppedLate
from splat.views import Views


def views(count=2, width=60, height=40):
    g = torch.Generator().manual_seed(3)
    cameras = Cameras(torch.eye(4).repeat(count, 1, 1), intrinsics(50.0, width, height).repeat(count, 1, 1), width, height)
    return [Views(torch.rand(count, height, width, 3, generator=g), tuple("abcdef"[:count]), cameras)]


@pytest.fixture(scope="module")
def da(tmp_path_factory):
    folder = tmp_path_factory.mktemp("da")
    return folder, tiny_depth_anything(folder)


@pytest.fixture(scope="module")
def marigold_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marigold") / "depth"
    tiny_marigold(folder)
    return folder


# --- Depth Anything -----------------------------------------------------------------------------------------------------


def test_depth_anything_answers_on_the_photos_pixels_what_the_network_itself_says(da):
    folder, network = da
    scene = views()
    found, events = finished(depth_anything.guess_depths(scene, weights("depth-anything", folder)))
    assert [g.name for g in found] == ["a", "b"] and [g.kind for g in found] == ["inverse"] * 2
    assert [g.values.shape for g in found] == [(40, 60)] * 2 and [e.stage for e in events] == ["prior"] * 2
    image = scene[0].images[0]
    small = torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], (42, 70), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(x)[:, None, None] for x in (depth_anything.MEAN, depth_anything.STD))
    with torch.no_grad():
        told = network(pixel_values=(small - mean) / std).predicted_depth
    told = torch.nn.functional.interpolate(told[None], (40, 60), mode="bilinear")[0, 0]
    torch.testing.assert_close(found[0].values, told, atol=1e-4, rtol=1e-4)
    assert float(told.std()) > 0


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (300, 200), (200, 310), (20, 90)])
def test_photos_are_resized_as_the_networks_own_processor_does(size):
    from PIL import Image
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    width, height = size
    processor = DPTImageProcessorPil(
        size={"height": 70, "width": 70}, keep_aspect_ratio=True, ensure_multiple_of=14, do_normalize=False, resample=3
    )
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([u, v, 0.5 * (u + v)], dim=-1)
    theirs = processor(Image.fromarray((255 * image).round().byte().numpy()), return_tensors="pt")["pixel_values"][0]
    ours = depth_anything.resized(image, 70).permute(2, 0, 1)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 0.02


def test_the_metric_variant_is_believed_up_to_scale_alone(tmp_path):
    tiny_depth_anything(tmp_path, "metric")
    found, _ = finished(depth_anything.guess_depths(views(1), weights("depth-anything", tmp_path)))
    assert found[0].kind == "scaled" and 0 < float(found[0].values.min()) <= float(found[0].values.max()) <= 20


def copied(folder, to):
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_class(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["DPTForDepthEstimation"]}))


def lose_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("head.conv3.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def grow_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["head.conv3.bias"] = torch.zeros(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (truncate, "no whole DepthAnythingForDepthEstimation"),
        (pickle_only, "pytorch_model.bin and no .safetensors; pickles can run code.*save_pretrained"),
        (other_class, "holds a DPTForDepthEstimation"),
        (lose_a_tensor, "1 missing, such as head.conv3.weight"),
        (grow_a_tensor, "1 mismatched, such as head.conv3.bias|no whole"),
        (lambda folder: (folder / "config.json").write_text("{"), "no readable config.json"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "no readable config.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"size": {"height": -3}}'), "makes no sense"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"image_mean": [NaN, 0, 0]}'), "makes no sense"),
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
    ],
    ids=lambda x: getattr(x, "__name__", "")[:20],
)
def test_damaged_weights_are_refused_with_a_remedy(da, tmp_path, damage, word):
    folder = copied(da[0], tmp_path / "weights")
    damage(folder)
    with pytest.raises(InputError, match=word) as error:
        finished(depth_anything.guess_depths(views(1), weights("depth-anything", folder)))
    assert "\n" not in str(error.value)


def test_a_network_that_answers_with_nan_stops_the_job(da, tmp_path):
    folder = copied(da[0], tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    tensors["head.conv3.bias"] = tensors["head.conv3.bias"] * torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoppedLate, match=r"Depth Anything V2 .a/tiny-one. gave 2400 of 2400 values for a that are not finite"):
        finished(depth_anything.guess_depths(views(1), weights("depth-anything", folder)))


# --- Marigold -----------------------------------------------------------------------------------------------------------


def test_marigold_depth_is_affine_and_the_same_for_the_same_seed(marigold_folder):
    run = [finished(marigold.guess_depths(views(1), weights("marigold-depth", marigold_folder), seed=s))[0] for s in (1, 1, 2)]
    first, again, other = (r[0].values for r in run)
    assert run[0][0].kind == "affine" and first.shape == (40, 60)
    assert float(first.min()) >= 0 and float(first.max()) <= 1 and float(first.std()) > 0
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"prediction_type": "disparity"}, "inverse"), ({"shift_invariant": False}, "scaled")],
)
def test_what_marigolds_depth_means_is_read_from_its_index(marigold_folder, tmp_path, settings, kind):
    folder = copied(marigold_folder, tmp_path / "weights")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | settings))
    found, _ = finished(marigold.guess_depths(views(1), weights("marigold-depth", folder)))
    assert found[0].kind == kind


def test_marigold_normals_are_unit_and_face_the_camera_or_are_unknown(tmp_path):
    tiny_marigold(tmp_path / "n", "normals", use_full_z_range=True)
    scene = views()
    (found,), _ = finished(marigold.guess_normals(scene, weights("marigold-normals", tmp_path / "n")))
    assert found.shape == (2, 40, 60, 3)
    length = found.norm(dim=-1)
    known = length > 0.5
    assert 0.05 < float(known.float().mean()) < 1  # of random numbers about half face away
    torch.testing.assert_close(length[known], torch.ones(int(known.sum())))
    assert float(length[~known].max()) == 0


def test_marigolds_frame_by_closed_form():
    """Its x is right, y up, z towards the viewer: a floor's normal is +y there and -y for us, and a wall we face +z and -z."""
    camera = views(1)[0].cameras
    wall, floor, left = (torch.tensor(n).float()[:, None, None].expand(3, 40, 60) for n in ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    assert marigold.opencv_normals(wall, camera).reshape(-1, 3).unique(dim=0).tolist() == [[0, 0, -1]]
    seen = marigold.opencv_normals(floor, camera)
    assert seen[30, 30].tolist() == [0, -1, 0]  # below the horizon: a floor
    assert seen[10, 30].tolist() == [0, 0, 0]  # above it nobody sees a floor from above
    seen = marigold.opencv_normals(left, camera)  # a wall on the left faces right
    assert seen[20, 5].tolist() == [1, 0, 0] and seen[20, 55].tolist() == [0, 0, 0]


def test_normals_of_a_known_ball_agree_with_those_of_its_depth():
    from learned_stand_ins import CENTRE, orbit
    from stereo_scenes import photographed, sphere

    from splat.regularise.normals import normals_from_depth

    camera = orbit(1, 120, 120)
    _, depth = photographed(sphere(CENTRE.tolist(), 0.8), camera)
    hit = depth[0].isfinite()
    points = camera.unproject(camera.pixel_centers, torch.where(hit, depth[0], 0.0))
    in_camera = torch.nn.functional.normalize(points - CENTRE, dim=-1) @ camera.cam_from_world[0, :3, :3].T
    as_marigold = (in_camera * torch.tensor([1.0, -1, -1])).permute(2, 0, 1)
    ours = marigold.opencv_normals(as_marigold, camera)
    theirs, sure = normals_from_depth(torch.where(hit, depth[0], 0.0), camera)
    assert float((ours * theirs).sum(-1)[sure & hit].min()) > 0.98


def test_marigold_of_the_other_kind_or_with_a_damaged_part_is_refused(marigold_folder, tmp_path):
    with pytest.raises(InputError, match="holds a MarigoldDepthPipeline, not MarigoldNormalsPipeline"):
        finished(marigold.guess_normals(views(1), weights("marigold-normals", marigold_folder)))
    folder = copied(marigold_folder, tmp_path / "weights")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"unet has diffusion_pytorch_model.bin and no .safetensors"):
        finished(marigold.guess_depths(views(1), weights("marigold-depth", folder)))
    with pytest.raises(InputError, match=r"model_index\.json"):
        finished(marigold.guess_depths(views(1), weights("marigold-depth", tmp_path)))
