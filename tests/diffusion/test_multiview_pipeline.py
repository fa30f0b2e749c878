"""Views from one picture by a diffusers pipeline on disk, and LGM behind it: tiny random networks, and wrong folders."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.image_config import ImageSampleConfig
from diffusion.lgm_to_3d import LgmTo3D, quarter_views
from diffusion.models.lgm import LGM, LgmShape
from diffusion.multiview_pipeline import MultiviewPipeline, ViewsDescription, load_multiview_pipeline
from diffusion.subject import Subject
from splat.cameras import Cameras
from splat.errors import InputError
from splat.views import Views

DESCRIPTION = {
    "licence": "MIT",
    "rows": 2,
    "columns": 2,
    "azimuths_deg": [0, 90, 180, 270],
    "elevations_deg": [None, None, None, None],
    "input_side": 32,
    "arguments": {"num_inference_steps": 1},
}


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """A pipeline of diffusers' own that takes a picture and gives a larger one: random weights."""
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=6, out_channels=3, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vqvae = VQModel(
        in_channels=3, out_channels=3, latent_channels=3, block_out_channels=(32, 32), norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipeline")
    LDMSuperResolutionPipeline(vqvae, unet, DDIMScheduler()).save_pretrained(folder)
    (folder / "views.json").write_text(json.dumps(DESCRIPTION))
    return folder


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy to spoil."""
    import shutil

    return shutil.copytree(tiny_pipeline, tmp_path / "pipeline")


def described(folder, **changes):
    values = {k: v for k, v in (DESCRIPTION | changes).items() if v is not ...}
    (folder / "views.json").write_text(json.dumps(values))
    return folder


def subject(azimuth_deg=0.0, elevation_deg=10.0, grey=0.5, side=32):
    alpha = torch.zeros(side, side)
    alpha[side // 4 : -side // 4, side // 4 : -side // 4] = 1
    return Subject(torch.full((side, side, 3), grey), alpha, azimuth_deg, elevation_deg)


def test_a_pipeline_on_disk_gives_posed_views(tiny_pipeline):
    pipeline = load_multiview_pipeline(tiny_pipeline)
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    views = pipeline(picture, seed=3, elevation_deg=12)
    assert len(views) == 4 and views.size == (32, 32)
    expected = Cameras.orbit(4, 1.9, 12, 49.1, 32, 32)
    assert torch.allclose(views.cameras.cam_from_world, expected.cam_from_world, atol=1e-6)
    assert torch.equal(views.images, pipeline(picture, seed=3).images)
    assert not torch.equal(views.images, pipeline(picture, seed=4).images)
    assert not torch.equal(views.images, pipeline(1 - picture, seed=3).images)


def fake(pictures, **changes):
    description = ViewsDescription(
        licence="x", **({"azimuths_deg": (0.0, 90.0, 180.0, 270.0), "elevations_deg": (None,) * 4, "input_side": 16} | changes)
    )
    return MultiviewPipeline(lambda **_: SimpleNamespace(images=pictures), description)


def test_tiles_are_read_row_by_row():
    picture = np.zeros((1, 4, 6, 3), np.float32)  # tiles of 2 x 2: two rows of three
    for tile in range(6):
        row, column = divmod(tile, 3)
        picture[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = tile / 10
    azimuths = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
    elevations = (20.0, -10.0) * 3
    views = fake(picture, rows=2, columns=3, azimuths_deg=azimuths, elevations_deg=elevations, distance=2.5)(
        torch.rand(8, 8, 3)
    )
    assert torch.allclose(views.images.mean((1, 2, 3)), torch.arange(6) / 10, atol=1e-6)
    x, y, z = views.cameras.centers.unbind(1)
    assert torch.allclose(torch.rad2deg(torch.atan2(x, z)) % 360, torch.tensor(azimuths), atol=1e-3)
    assert torch.allclose(torch.rad2deg(torch.asin(y / 2.5)), torch.tensor(elevations), atol=1e-3)


def test_pictures_without_tiles_are_views_themselves():
    views = fake(np.stack([np.full((4, 4, 3), i / 4, np.float32) for i in range(4)]))(torch.rand(8, 8, 3))
    assert torch.allclose(views.images.mean((1, 2, 3)), torch.arange(4) / 4)


@pytest.mark.parametrize(
    "pictures, changes, words",
    [
        (np.zeros((1, 4, 4, 3)), {}, "speaks of 4 views"),
        (np.zeros((1, 5, 4, 3)), {"rows": 2, "columns": 2}, "do not part into 2 x 2 tiles"),
        (np.full((4, 2, 2, 3), np.nan), {}, "do not part"),
        (np.zeros((4, 2, 2, 4)), {}, "correct views.json"),
    ],
)
def test_other_pictures_than_described(pictures, changes, words):
    with pytest.raises(InputError, match=words):
        fake(pictures, **changes)(torch.rand(8, 8, 3))


def test_the_documented_description_is_one(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "public-checkpoints.md"
    example = page.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    (tmp_path / "views.json").write_text(example)
    description = ViewsDescription.read(tmp_path / "views.json")
    assert description.azimuths_deg == (0, 90, 180, 270) and description.arguments["num_inference_steps"] == 30


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"licence": ...}, "does not describe"),
        ({"licence": ""}, "names no licence"),
        ({"azimuths_deg": [0, 90]}, "give one of each per view"),
        ({"azimuths_deg": [0, 90, 180, "behind"]}, "does not describe"),
        ({"rows": 3}, "do not fill pictures of 3 x 2 tiles"),
        ({"rows": 0}, "do not fill"),
        ({"fov_deg": 0}, "no camera's"),
        ({"input_side": 1e9}, "input_side"),
        ({"colour": "red"}, "unknown colour"),
        ({"arguments": {"output_type": "pil"}}, "may not set output_type"),
        ({"arguments": {"num_steps": 3}}, "knows no num_steps"),
        ({"arguments": 3}, "does not describe"),
    ],
)
def test_wrong_descriptions(folder, changes, words):
    with pytest.raises(InputError, match=words):
        load_multiview_pipeline(described(folder, **changes))


@pytest.mark.parametrize("text", [None, "", "[1, 2]", "{"])
def test_descriptions_that_are_none(folder, text):
    (folder / "views.json").unlink() if text is None else (folder / "views.json").write_text(text)
    with pytest.raises(InputError, match=r"views.json"):
        load_multiview_pipeline(folder)


def index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_of_its_own_is_not_run(folder):
    (folder / "pipeline.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match=r"own code \(pipeline.py\)"):
        load_multiview_pipeline(folder)
    (folder / "pipeline.py").unlink()
    (folder / "unet" / "config.json").write_text('{"auto_map": {"AutoModel": "somebody/code--file.Class"}}')
    with pytest.raises(InputError, match=r"own code \(unet/config.json\)"):
        load_multiview_pipeline(folder)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"_class_name": "MVDreamPipeline"}, "wants the pipeline MVDreamPipeline"),
        ({"_class_name": ["pipeline", "Zero123PlusPipeline"]}, "does not have itself"),
        ({"_class_name": "UNet2DModel"}, "does not have itself"),
        ({"_class_name": "DDPMPipeline"}, "takes no image"),
        ({"unet": ["mv_unet", "MultiViewUNetModel"]}, "wants parts from mv_unet"),
    ],
)
def test_pipelines_that_diffusers_does_not_have(folder, changes, words):
    index(folder, **changes)
    with pytest.raises(InputError, match=words):
        load_multiview_pipeline(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="is a pickle"):
        load_multiview_pipeline(folder)


def test_a_part_that_is_missing_or_cut(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="LDMSuperResolutionPipeline that loads"):
        load_multiview_pipeline(folder)
    path.unlink()
    with pytest.raises(InputError, match="LDMSuperResolutionPipeline that loads"):
        load_multiview_pipeline(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(InputError, match=r"no model_index.json"):
        load_multiview_pipeline(folder)


# LGM behind it ------------------------------------------------------------------------------------------------------------

FLAT = LgmShape((32, 32, 32, 32), (False,) * 4, (32,), (False,), layers=1)  # attention in the middle alone


@pytest.fixture
def weights(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = LGM(FLAT)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.15 if p.ndim > 1 else 0.5)
    folder = tmp_path / "lgm"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model_fp16_fixrot.safetensors")
    return folder


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr("diffusion.lgm.SIDE", 32)
    monkeypatch.setattr("diffusion.lgm_to_3d.SIDE", 32)


def finished(job):
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return events, end.value


def test_four_pictures_need_no_pipeline(weights):
    maker = LgmTo3D.load(weights)
    assert maker.side == 32  # patched; 256 otherwise
    assert maker.licences == ("LGM (Tang et al. 2024, 3DTopia/LGM): MIT",)
    pictures = [subject(a, grey=g) for a, g in ((0, 0.1), (90, 0.3), (180, 0.6), (270, 0.9))]
    events, made = finished(maker.generate(pictures, 0, ImageSampleConfig(threads=1)))
    assert [e.stage for e in events] == ["splats"] and events[0].preview.shape == (32, 32, 3)
    assert len(made.splats) > 10 and len(made.views) == 4 and made.views.masks is not None
    assert torch.allclose(made.views.cameras.centers[0], subject().cameras().centers[0], atol=1e-5)
    _, shuffled = finished(maker.generate([pictures[i] for i in (2, 0, 3, 1)], 0, ImageSampleConfig(threads=1)))
    assert torch.equal(shuffled.splats.means, made.splats.means)


@pytest.mark.parametrize("azimuths", [(), (0,), (0, 90, 180), (0, 90, 180, 210), (0, 45, 90, 135, 180)])
def test_other_pictures_are_refused(weights, azimuths):
    with pytest.raises(InputError, match="LGM wants 4 pictures"):
        finished(LgmTo3D.load(weights).generate([subject(a) for a in azimuths], 0, ImageSampleConfig()))


def test_one_picture_goes_through_the_pipeline(weights, tiny_pipeline):
    import shutil

    shutil.copytree(tiny_pipeline, weights / "multiview")
    maker = LgmTo3D.load(weights)
    assert maker.licences[1] == "multiview pipeline multiview: MIT"
    events, made = finished(maker.generate([subject(side=64)], 0, ImageSampleConfig(threads=1)))
    assert [e.stage for e in events] == ["views", "splats"]
    _, again = finished(maker.generate([subject(side=64)], 0, ImageSampleConfig(threads=1)))
    _, other = finished(maker.generate([subject(side=64)], 1, ImageSampleConfig(threads=1)))
    assert torch.equal(made.splats.means, again.splats.means)
    assert made.splats.means.shape != other.splats.means.shape or not torch.equal(made.splats.means, other.splats.means)


def test_no_weights_ship(tmp_path):
    with pytest.raises(InputError, match="No LGM weights ship"):
        LgmTo3D.load(None)
    with pytest.raises(InputError, match="holds no safetensors file"):
        LgmTo3D.load(tmp_path)


def test_the_picture_itself_fills_a_quarter_that_the_pipeline_lacks():
    made = Views(torch.zeros(3, 32, 32, 3), tuple("abc"), Cameras.orbit(4, 1.9, 10, 49.1, 32, 32)[[3, 1, 2]])
    own = Views(torch.ones(1, 32, 32, 3), ("own",), subject().cameras(32))
    views = quarter_views(made, own)
    assert views.names == ("own", "b", "c", "a")
    azimuths = [math.degrees(math.atan2(float(c[0]), float(c[2]))) % 360 for c in views.cameras.centers]
    assert azimuths == pytest.approx([0, 90, 180, 270], abs=1e-3)
    with pytest.raises(InputError, match="near 180"):
        quarter_views(made[[0, 1]], own)
