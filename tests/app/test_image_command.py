"""The image command around a stand-in network: what it writes, refuses, repeats, continues and says."""

import io
import json
import math
import pickle
import struct
import zlib
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from image_stand_in import StandIn
from PIL import Image

from app import __main__ as entry
from app import commands, image_pipeline
from app.image_input import read_picture
from app.image_pipeline import image_to_scene, picture_to_scene, plan_images
from app.presets import IMAGE_PRESETS, ImagePreset
from app.report import read_report
from app.scenes import load_scene, read_cameras
from splat.errors import InputError
from splat.io.images import read_image, save_image
from splat.metrics import psnr
from splat.progress import Progress
from splat.render import RenderOptions, render

TINY = ImagePreset(
    steps=2,
    refine_steps=100,
    refine_side=64,
    max_gaussians=4000,
    mesh_resolution=24,
    mesh_faces=1000,
    turntable_side=32,
    turntable_frames=3,
)
FILES = {
    "scene.ply", "mesh.glb", "turntable.mp4", "preview.png", "cameras.json", "report.json", "config.json", "input.png", "state",
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(IMAGE_PRESETS, "draft", TINY)
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "none"))


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    generator = StandIn()
    monkeypatch.setattr(image_pipeline, "load_generator", lambda folder, device: generator)
    return generator


def picture(path: Path, colour=(0.8, 0.3, 0.1), width: int = 90, height: int = 60, alpha: bool = True) -> Path:
    """An upright ellipse with a dark band, left of the middle of a wide picture; on white, or transparent."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    inside = ((columns - 0.35 * width) / (0.15 * width)) ** 2 + ((rows - 0.5 * height) / (0.35 * height)) ** 2 < 1
    image = torch.tensor(colour).expand(height, width, 3).clone()
    image[int(0.4 * height) : int(0.5 * height)] *= 0.3
    if alpha:
        save_image(path, torch.cat([image, inside.float()[..., None]], dim=-1))
    else:
        save_image(path, torch.where(inside[..., None], image, torch.ones(3)))
    return path


def splatsmith(*words: object) -> int:
    return entry.main(["image", *map(str, words), "--preset", "draft", "--threads", "1"])


def options(*inputs: Path, **more) -> commands.Image:
    return commands.Image(inputs=inputs, preset="draft", threads=1, **more)


def finished(job, until: str = ""):
    """Run `job` to its end, or to the first event of the stage `until`, and close it there; returns its result."""
    try:
        while True:
            if next(job).stage == until:
                job.close()
                return None
    except StopIteration as end:
        return end.value


@pytest.fixture
def no_mesh(monkeypatch):
    """Meshes take most of the time of a tiny object."""

    def none(splats, preset):
        yield Progress("mesh", 1, 1)
        return None, ()

    monkeypatch.setattr(image_pipeline, "closed_mesh", none)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, StandIn, list[dict]]:
    """Two pictures, each made once: the folder, the generator and the events of the first."""
    folder, generator, heard = tmp_path_factory.mktemp("image"), StandIn(), io.StringIO()
    pictures = [picture(folder / "cup.png"), picture(folder / "vase.jpg", (0.1, 0.4, 0.7), 50, 80, alpha=False)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(heard):
        patch.setitem(IMAGE_PRESETS, "draft", TINY)
        patch.setattr(image_pipeline, "load_generator", lambda folder, device: generator)
        for file in pictures:
            assert splatsmith(file, "--out", folder / "R", "--json", "--elevation", 10) == 0
    lines = [json.loads(line) for line in heard.getvalue().splitlines()]
    return folder, generator, lines[: 1 + [line["event"] for line in lines].index("done")]


def test_a_result_folder_for_each_picture_and_nothing_else(made):
    folder, generator, _ = made
    assert {p.name for p in (folder / "R").iterdir()} == {"cup", "vase"}
    for name, way in (("cup", "alpha"), ("vase", "plain background")):
        result = folder / "R" / name
        assert {p.name for p in result.iterdir()} == FILES
        report = read_report(result)
        assert report["command"] == "image" and report["seed"] == 0 and report["warnings"] == []
        (told,) = report["image"]["pictures"]
        assert told["way"] == way and told["elevation_deg"] == 10 and told["elevation_given"] and told["pieces"] == 1
        assert report["licences"] == [{"name": "Stand-in", "licence": "CC0-1.0"}]
        assert report["gaussians"] == len(load_scene(result)) <= TINY.max_gaussians
        assert {"model", "picture", "views", "fit", "mesh", "turntable", "files"} - {"model"} <= {
            s["name"] for s in report["stages"]
        }
        config = json.loads((result / "config.json").read_text())
        assert config["image"]["elevations"] == [10] and config["refine"]["steps"] == 100
    assert [s.side for subjects, _ in generator.made for s in subjects] == [48, 48]


def test_the_front_view_is_the_photo_in_its_own_framing(made):
    """Rendered from camera 0, the object lies over the picture, whose subject is off its middle."""
    folder, _, _ = made
    for name, file in (("cup", "cup.png"), ("vase", "vase.jpg")):
        cameras = read_cameras(folder / "R" / name / "cameras.json", None)
        image, alpha, _ = read_image(folder / file)
        photo = image if alpha is None else image * alpha[..., None] + 1 - alpha[..., None]
        assert (cameras[0].width, cameras[0].height) == (photo.shape[1], photo.shape[0])
        drawn = render(load_scene(folder / "R" / name), cameras[0][0], RenderOptions(background=torch.ones(3), threads=1)).rgb[
            0
        ]
        assert float(psnr(drawn.clamp(0, 1), photo)) > 18
        shown, truth = (x.mean(-1) < 0.7 for x in (drawn, photo))
        assert float((shown & truth).sum() / (shown | truth).sum()) > 0.8


def test_refining_brings_the_front_nearer_to_the_picture(made):
    folder, _, _ = made
    for name in ("cup", "vase"):
        report = read_report(folder / "R" / name)
        refined = report["image"]["refined"]
        assert refined["steps"] == 100 and refined["psnr_after"] > refined["psnr_before"] + 1
        assert report["metrics"]["train"]["psnr"] == pytest.approx(refined["psnr_after"], abs=0.05)


def test_the_front_is_towards_z(made):
    folder, _, _ = made
    camera = read_cameras(folder / "R" / "cup" / "cameras.json", None)[0]
    x, y, z = camera.centers[0].tolist()
    assert abs(x) < 1e-4 and z > 1.8 and y == pytest.approx(1.9 * 0.17365, abs=1e-3)


def test_input_png_is_the_cut_out_subject(made):
    folder, _, _ = made
    image, alpha, _ = read_image(folder / "R" / "vase" / "input.png")
    assert image.shape == (64, 64, 3) and 0.05 < float((alpha > 0.5).float().mean()) < 0.2
    assert float(image[alpha > 0.9][:, 2].median()) > 0.6  # its blue


def test_the_events_tell_the_estimate_first_and_every_stage(made):
    _, _, events = made
    progress = [e for e in events if e["event"] == "progress"]
    assert progress[0]["stage"] == "estimate" and "1 object" in progress[0]["note"] and progress[0]["values"]["memory"] > 0
    stages = list(dict.fromkeys(e["stage"] for e in progress))
    assert stages == ["estimate", "model", "picture", "views", "fit", "mesh", "turntable", "files"]
    assert events[-1]["event"] == "done" and events[-1]["out"] == str(made[0] / "R" / "cup")


def test_same_picture_and_seed_same_bytes(made, stand_in, no_mesh):
    folder, _, _ = made
    assert splatsmith(folder / "vase.jpg", "--out", folder / "S", "--elevation", 10) == 0
    assert (folder / "S/vase/scene.ply").read_bytes() == (folder / "R/vase/scene.ply").read_bytes()


@pytest.mark.parametrize("stage", ["views", "fit", "turntable"])
def test_stopped_at_any_stage_and_continued_gives_the_same_bytes(made, stand_in, no_mesh, tmp_path, stage):
    folder, out = made[0], tmp_path / "R"
    finished(picture_to_scene(options(folder / "cup.png", out=out, elevation=10.0)), until=stage)
    assert {p.name for p in out.iterdir()} == {"cup.partial"}
    before = len(stand_in.made)
    finished(picture_to_scene(options(folder / "cup.png", out=out, elevation=10.0, resume=True)))
    assert (len(stand_in.made) == before) == (stage != "views")  # what was generated was kept
    assert (out / "cup/scene.ply").read_bytes() == (folder / "R/cup/scene.ply").read_bytes()


def test_continuing_another_job_is_refused(made, stand_in, tmp_path):
    cup = made[0] / "cup.png"
    finished(picture_to_scene(options(cup, out=tmp_path / "R")), until="fit")
    for change in ({"elevation": 3.0}, {"seed": 1}, {"refine": 5}):
        with pytest.raises(InputError, match="other"):
            finished(picture_to_scene(options(cup, out=tmp_path / "R", resume=True, **change)))


def test_a_complete_result_is_refused_skipped_or_replaced(made, stand_in, no_mesh, tmp_path, capsys):
    cup, out = made[0] / "cup.png", tmp_path / "R"
    words = [cup, "--out", out, "--refine", 0]
    assert splatsmith(*words) == 0
    assert read_report(out / "cup")["image"]["refined"] is None
    assert splatsmith(*words) == 2 and "--overwrite" in capsys.readouterr().err
    assert splatsmith(*words, "--resume") == 0 and len(stand_in.made) == 1
    assert "1 result of 1 complete already" in capsys.readouterr().err
    assert splatsmith(*words, "--overwrite", "--compact", "--seed", 3) == 0
    assert not (out / "cup/state").exists() and read_report(out / "cup")["seed"] == 3 and stand_in.made[-1][1] == 3


def test_options_reach_the_generator(made, stand_in, no_mesh, tmp_path):
    words = ["--steps", 3, "--guidance", 2, "--temperature", 0.5, "--seed", 9, "--refine", 0, "--weights", "some/folder"]
    assert splatsmith(made[0] / "cup.png", "--out", tmp_path / "R", *words) == 0
    (config,) = stand_in.configs
    assert (config.steps, config.guidance, config.temperature, config.threads) == (3, 2.0, 0.5, 1)
    assert stand_in.made[0][1] == 9


def test_several_pictures_of_one_object(stand_in, no_mesh, tmp_path):
    files = [picture(tmp_path / name) for name in ("front.png", "back.png", "left.png")]
    assert splatsmith(*files, "--views", "--out", tmp_path / "R", "--azimuths", 0, 180, -90) == 0
    assert {p.name for p in (tmp_path / "R").iterdir()} == {"front"}
    ((subjects, _),) = stand_in.made
    assert [s.azimuth_deg for s in subjects] == [0, 180, -90]
    report = read_report(tmp_path / "R" / "front")
    assert [i["name"] for i in report["inputs"]] == ["front.png", "back.png", "left.png"]
    assert report["metrics"]["train"]["n"] == 3
    assert plan_images(options(*files, views=True, out=tmp_path / "S")).items[0].azimuths_deg == (0, 120, 240)


def test_no_more_pictures_of_one_object_than_the_network_takes(tmp_path):
    from diffusion.image_to_3d import MAX_VIEWS

    assert MAX_VIEWS == image_pipeline.MOST_VIEWS
    files = [picture(tmp_path / f"{i}.png") for i in range(MAX_VIEWS + 1)]
    assert len(plan_images(options(*files[:-1], views=True, out=tmp_path / "R")).items[0].pictures) == MAX_VIEWS
    with pytest.raises(InputError, match="9 pictures of one object"):
        plan_images(options(*files, views=True, out=tmp_path / "R"))


def test_a_mask_overrides(stand_in, no_mesh, tmp_path):
    cup = picture(tmp_path / "cup.png")
    (tmp_path / "masks").mkdir()
    mask = torch.zeros(120, 180)
    mask[30:90, 20:60] = 1
    save_image(tmp_path / "masks" / "cup.png", mask)
    for given in (tmp_path / "masks", tmp_path / "masks" / "cup.png"):
        assert splatsmith(cup, "--out", tmp_path / "R", "--mask", given, "--overwrite", "--refine", 0) == 0
        (told,) = read_report(tmp_path / "R" / "cup")["image"]["pictures"]
        assert told["way"] == "mask" and told["covers"] == pytest.approx(60 * 40 / (120 * 180), abs=0.005)


def test_doubts_about_a_cut_out_are_warnings(stand_in, no_mesh, tmp_path, capsys):
    whole = picture(tmp_path / "large.png", width=40, height=40)
    mask = torch.ones(40, 40)
    mask[:1, :1] = 0
    save_image(tmp_path / "mask.png", mask)
    assert splatsmith(whole, "--mask", tmp_path / "mask.png", "--out", tmp_path / "R", "--refine", 0) == 0
    (warning,) = read_report(tmp_path / "R" / "large")["warnings"]
    assert "covers 100 %" in warning and "--mask" in warning and warning in capsys.readouterr().err


def test_items_and_plans_travel_to_other_processes(made, stand_in, no_mesh, tmp_path):
    plan = plan_images(options(made[0] / "cup.png", made[0] / "vase.jpg", out=tmp_path / "R", refine=0))
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan and [item.out.name for item in copy.todo] == ["cup", "vase"]
    outcome = finished(image_to_scene(copy, copy.items[0], stand_in))
    assert outcome.out == tmp_path / "R" / "cup" and outcome.report["status"] == "done"


@pytest.mark.parametrize(("colour", "words"), [((0, 1, 0), "ran out of memory"), ((1, 0, 1), "Nothing that can be seen")])
def test_an_error_after_the_start_keeps_the_state(stand_in, tmp_path, capsys, colour, words):
    image = torch.tensor(colour).float().expand(40, 40, 3)
    save_image(tmp_path / "thing.png", torch.cat([image, torch.ones(40, 40).triu()[..., None]], dim=-1))
    assert splatsmith(tmp_path / "thing.png", "--out", tmp_path / "R") == 4
    assert words in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "R").iterdir()} == {"thing.partial"}


def png_of(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 5000)) + chunk(b"IEND", b"")
    )
    return path


def bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    good = picture(folder / "good.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("This is no picture.")
    (folder / "cut.png").write_bytes(good.read_bytes()[:60])
    (folder / "folder").mkdir()
    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "dot.png")
    Image.new("RGB", (30000, 40), (9, 9, 9)).save(folder / "wide.png")
    Image.new("RGBA", (50, 50), (9, 9, 9, 0)).save(folder / "clear.png")
    Image.new("RGB", (50, 50), (200, 10, 10)).save(folder / "even.png")
    Image.new("F", (50, 50), float("nan")).save(folder / "nan.tif")
    return {
        "empty": (folder / "empty.png", "0 bytes"),
        "text": (folder / "text.png", "is not a JPEG"),
        "truncated": (folder / "cut.png", "damaged or incomplete"),
        "folder": (folder / "folder", "holds no"),
        "missing": (folder / "nowhere.png", "does not exist"),
        "1x1": (folder / "dot.png", "1 x 1 pixels"),
        "wide": (folder / "wide.png", "30000 x 40 pixels"),
        "bomb": (png_of(folder / "bomb.png", 60000, 50000), "60000 x 50000 pixels"),
        "transparent": (folder / "clear.png", "transparent all over"),
        "even": (folder / "even.png", "one even colour"),
        "nan": (folder / "nan.tif", "damaged"),
    }


def test_bad_pictures_are_one_sentence_and_nothing_is_written(stand_in, tmp_path, capsys):
    for name, (path, words) in bad_inputs(tmp_path).items():
        assert splatsmith(path, "--out", tmp_path / "out" / "R", "--quiet") == 2, name
        error = capsys.readouterr().err.strip()
        assert words in error and path.name in error, (name, error)
        assert len(error.splitlines()) == 1 and error.endswith(".") and len(error) < 400, error
        assert not (tmp_path / "out").exists(), name
    assert stand_in.made == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--elevation", "95"], "--elevation 95"),
        (["--elevation", "nan"], "--elevation nan"),
        (["--steps", "0"], "--steps 0"),
        (["--refine", "-1"], "--refine -1"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--temperature", "3"], "--temperature 3"),
        (["--seed", "-1"], "--seed -1"),
        (["--azimuths", "0", "90"], "--views"),
        (["--elevations", "10"], "--views"),
        (["--views", "--elevations", "10", "20"], "2 angles for 1 pictures"),
        (["--views", "--elevations", "100"], "--elevations 100"),
        (["--fov", "1"], "--fov 1"),
        (["--text", "a cup"], "take no text"),
        (["--fov", "nan"], "--fov nan"),
        (["--views", "--fov", "40"], "--fov is for one picture"),
        (["--views", "--azimuths", "0", "90"], "2 angles for 1 pictures"),
        (["--views", "--azimuths", "30"], "begin with 0"),
        (["--matting", "nowhere.onnx"], "nowhere.onnx"),
        (["--mask", "nowhere.png"], "nowhere.png"),
    ],
)
def test_bad_options(stand_in, tmp_path, capsys, words, told):
    cup = picture(tmp_path / "cup.png")
    assert splatsmith(cup, "--out", tmp_path / "R", *words) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "R").exists() and stand_in.made == []


def test_masks_that_do_not_fit(stand_in, tmp_path, capsys):
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png")]
    save_image(tmp_path / "mask.png", torch.ones(50, 50))
    (tmp_path / "masks").mkdir()
    for words, told in (
        ([files[0], "--mask", tmp_path / "mask.png"], "another shape"),
        ([*files, "--mask", tmp_path / "mask.png"], "one mask for 2 pictures"),
        ([files[0], "--mask", tmp_path / "masks"], "no file a.*"),
    ):
        assert splatsmith(*words, "--out", tmp_path / "R") == 2
        assert told in capsys.readouterr().err and not (tmp_path / "R").exists()


def read(path: Path):
    return read_picture(path, None, 0.0, None, None, side=32, max_pixels=10**7)


def test_the_lens_is_the_one_given_or_that_of_the_exif_data_or_the_networks(tmp_path):
    plain = picture(tmp_path / "plain.png", alpha=False)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 36  # focal length as of a film of 36 x 24 mm
    Image.open(plain).save(tmp_path / "told.jpg", quality=95, exif=exif)
    more = {"side": 32, "max_pixels": 10**7}
    assumed, told, both, several = (
        read_picture(path, None, 0.0, None, None, **more, **own)
        for path, own in (
            (plain, {}),
            (tmp_path / "told.jpg", {}),
            (tmp_path / "told.jpg", {"fov_deg": 20.0}),
            (tmp_path / "told.jpg", {"alone": False}),
        )
    )
    assert [p.facts["fov_from"] for p in (assumed, told, both, several)] == ["assumed", "exif", "given", "assumed"]
    assert told.facts["fov_deg"] == pytest.approx(2 * math.degrees(math.atan(0.5)), abs=0.1)  # 3 : 2, so 36 mm across
    assert both.facts["fov_deg"] == pytest.approx(20, abs=0.1)
    assert both.subject.distance > told.subject.distance and several.subject.distance == assumed.subject.distance
    assert float(told.camera.K[0, 0, 0]) == pytest.approx(told.image.shape[1], rel=0.01)


def test_unusual_pictures_are_read(tmp_path):
    plain = picture(tmp_path / "plain.png", alpha=False)
    rgb = Image.open(plain)
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    usual = read(plain)
    for name in ("cmyk.jpg", "deep.png", "moving.gif", "pages.tiff", "turned.png"):
        found = read(tmp_path / name)
        assert (found.framing.width, found.framing.height) == (90, 60), name
        assert found.framing.left == pytest.approx(usual.framing.left, abs=1.5), name
        overlap = (found.subject.alpha > 0.5) & (usual.subject.alpha > 0.5)
        assert float(overlap.sum() / (usual.subject.alpha > 0.5).sum()) > 0.95, name
        told = {
            "moving.gif": ("moving.gif is animated; the first picture is used.",),
            "pages.tiff": ("pages.tiff has several pages; the first picture is used.",),
        }
        assert found.warnings == told.get(name, ()), name


def test_the_estimate_grows_with_the_work(made, tmp_path):
    cup, vase = made[0] / "cup.png", made[0] / "vase.jpg"

    def estimate(*files, **more):
        return plan_images(commands.Image(inputs=files, out=tmp_path / "R", threads=1, **more)).estimate

    one = estimate(cup)
    assert estimate(cup, vase).seconds > 1.3 * one.seconds and estimate(cup, vase).memory == one.memory
    assert estimate(cup, refine=0).seconds < one.seconds < estimate(cup, preset="quality").seconds


def test_lgm_without_a_multiview_pipeline_wants_four_pictures(tmp_path, capsys):
    """Told before anything is read: the names of its tensors say whose weights they are."""
    from safetensors.torch import save_file

    names = ("unet.conv_in.weight", "unet.mid_block.nets.0.conv1.weight", "conv.weight")
    (tmp_path / "lgm").mkdir()
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "lgm" / "model.safetensors")
    cup = picture(tmp_path / "cup.png")
    assert splatsmith(cup, "--out", tmp_path / "R", "--weights", tmp_path / "lgm") == 2
    assert "four pictures" in capsys.readouterr().err and not (tmp_path / "R").exists()
