"""Plug-ins for nerfstudio: found, trained for a few steps on a CPU, exported as what we draw. Run with make test-nerfstudio."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.nerfstudio import cpu_torch
from app.nerfstudio.prepare import HELDOUT, INITIAL, TRAIN, PrepareConfig, prepared
from splat.errors import InputError
from splat.io import load
from splat.io.images import read_image

ROOT = Path(__file__).parents[2]


class TestWithoutNerfstudio:
    def test_its_own_constraints_pin_the_extra_and_the_core(self):
        lines = [line for line in (ROOT / "constraints-nerfstudio.txt").read_text().splitlines() if not line.startswith("#")]
        pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for requirement in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["nerfstudio"]]):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement

    def test_nothing_else_imports_it(self):
        files = [f for package in ("app", "recon", "splat", "diffusion") for f in (ROOT / package).rglob("*.py")]
        others = [f for f in files if "nerfstudio" not in f.relative_to(ROOT).parts]
        assert not [f for f in others if "import nerfstudio" in (t := f.read_text()) or "app.nerfstudio" in t]

    @pytest.mark.parametrize("words", [[], ["fly"], ["open", "one"]])
    def test_words_that_name_no_command_are_told_so(self, words, capsys):
        assert cpu_torch.main(words) == 2 and "Give one of train, eval" in capsys.readouterr().err

    @pytest.mark.parametrize("words", [["train"], ["open", "result", "out"]])
    def test_without_it_every_command_says_what_to_install(self, words, monkeypatch, capsys):
        monkeypatch.setattr(cpu_torch, "declare_operators", lambda: None)
        for name in ("app.nerfstudio.method", cpu_torch.COMMANDS["train"]):
            monkeypatch.setitem(sys.modules, name, None)
        assert cpu_torch.main(words) == 2 and "install splatsmith[nerfstudio]" in capsys.readouterr().err

    def test_a_result_becomes_nerfstudios_data_in_its_own_frame(self, result, tmp_path):
        folder = prepared(result, tmp_path / "cache", PrepareConfig())
        assert torch.equal(load(folder / INITIAL).means, load(result / "scene.ply").means)
        train, heldout = (json.loads((folder / name).read_text())["frames"] for name in (TRAIN, HELDOUT))
        ours = json.loads((result / "cameras.json").read_text())["frames"]
        assert [f["transform_matrix"] for f in train] == [f["transform_matrix"] for f in ours] and len(heldout) == 2
        for frame in (*train, *heldout):
            image, _, _ = read_image(folder / frame["file_path"], max_pixels=10**8)
            assert image.shape == (frame["h"], frame["w"], 3)
        stamp = (folder / TRAIN).stat().st_mtime_ns
        assert prepared(result, tmp_path / "cache", PrepareConfig()) == folder and (folder / TRAIN).stat().st_mtime_ns == stamp

    def test_a_folder_of_neither_is_refused(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="empty"):
            prepared(tmp_path / "empty", tmp_path / "cache", PrepareConfig())
        assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def plugin():
    """nerfstudio, importable beside a CPU build of torch."""
    pytest.importorskip("nerfstudio", reason="make test-nerfstudio")
    cpu_torch.declare_operators()
    from app.nerfstudio import method

    return method


@pytest.fixture(scope="module")
def trained(plugin, result, tmp_path_factory):
    """The trainer after 40 steps on the tiny capture, with the mean loss over all photos before and after."""
    out = tmp_path_factory.mktemp("nerfstudio")
    config = copy.deepcopy(plugin.splatsmith.config)
    config.output_dir, config.experiment_name, config.timestamp, config.vis = out, "tiny", "now", "tensorboard"
    config.pipeline.datamanager.data = result
    config.pipeline.datamanager.dataparser.data = result
    config.pipeline.datamanager.dataparser.cache = out / "data"
    config.max_num_iterations, config.machine.device_type = 40, "cpu"
    config.pipeline.model.refine_every, config.pipeline.model.warmup_length = 10, 5
    config.optimizers["features_dc"]["optimizer"].lr = 0.05
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    with torch.no_grad():  # the result is fitted already: put its colours out, so that there is something to learn
        trainer.pipeline.model.gauss_params["features_dc"] *= 0.5
    before = loss_of(trainer)
    trainer.pipeline.train()
    for step in range(40):
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, location=before_step())
        trainer.train_iteration(step)
        for callback in trainer.callbacks:
            callback.run_callback_at_location(step, location=after_step())
    trainer.save_checkpoint(40)
    return trainer, before, loss_of(trainer)


def before_step():
    from nerfstudio.engine.callbacks import TrainingCallbackLocation

    return TrainingCallbackLocation.BEFORE_TRAIN_ITERATION


def after_step():
    from nerfstudio.engine.callbacks import TrainingCallbackLocation

    return TrainingCallbackLocation.AFTER_TRAIN_ITERATION


def loss_of(trainer) -> float:
    pipeline, losses = trainer.pipeline, []
    pipeline.eval()
    with torch.no_grad():
        for camera, batch in pipeline.datamanager.fixed_indices_eval_dataloader:
            outputs = pipeline.model.get_outputs_for_camera(camera)
            losses.append(float(pipeline.model.get_loss_dict(outputs, batch)["main_loss"]))
    return sum(losses) / len(losses)


@pytest.mark.nerfstudio
@pytest.mark.filterwarnings("ignore")  # of nerfstudio and what it brings
class TestWithNerfstudio:
    def test_nerfstudio_finds_the_method_and_the_data_parser(self, plugin):
        from nerfstudio.configs.dataparser_configs import all_dataparsers
        from nerfstudio.configs.method_configs import all_methods

        assert "splatsmith" in all_methods and "splatsmith-data" in all_dataparsers

    def test_its_renders_are_ours(self, plugin, trained):
        from splat.render import RenderOptions, render

        trainer, _, _ = trained
        model = trainer.pipeline.model.eval()
        camera, _ = next(iter(trainer.pipeline.datamanager.fixed_indices_eval_dataloader))
        theirs = model.get_outputs_for_camera(camera)
        folder = Path(trainer.pipeline.datamanager.dataparser.config.cache)
        from app.scenes import read_cameras

        (heldout,) = (read_cameras(f, 64) for f in folder.glob(f"*/{HELDOUT}"))
        index = int(camera.metadata["cam_idx"]) if camera.metadata and "cam_idx" in camera.metadata else 0
        with torch.no_grad():
            ours = render(model.splats(), heldout[0][index], RenderOptions(background=torch.ones(3)))
        assert torch.allclose(theirs["rgb"], ours.rgb[0].clamp(0, 1), atol=2e-3)
        assert torch.allclose(theirs["accumulation"][..., 0], ours.alpha[0], atol=2e-3)

    def test_the_loss_falls_and_gaussians_are_split(self, trained):
        trainer, before, after = trained
        assert after < 0.8 * before, (before, after)
        state = trainer.pipeline.model.strategy_state
        assert state["grad2d"] is None or state["grad2d"].shape[0] == trainer.pipeline.model.num_points

    def test_what_is_exported_is_what_was_trained(self, trained, tmp_path):
        trainer, _, _ = trained
        config = trainer.config.get_base_dir() / "config.yml"
        words = ["export", "gaussian-splat", "--load-config", str(config), "--output-dir", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, "-m", "app.nerfstudio.cpu_torch", *words], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (file,) = tmp_path.glob("*.ply")
        exported, ours = load(file), trainer.pipeline.model.splats().detach()
        ours = ours[ours.opacity_logits > -5.5373]  # the exporter leaves out what nobody sees
        assert len(exported) == len(ours) and exported.sh_degree == ours.sh_degree
        for name in ("means", "log_scales", "opacity_logits", "sh"):
            assert torch.allclose(getattr(exported, name), getattr(ours, name), atol=1e-5), name

    def test_a_result_opens_as_a_run_of_nerfstudio(self, result, tmp_path):
        words = [sys.executable, "-m", "app.nerfstudio.cpu_torch", "open", str(result), str(tmp_path)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        config = Path(done.stdout.strip().splitlines()[-1].split("--load-config ")[1])
        from nerfstudio.utils.eval_utils import eval_setup

        _, pipeline, _, _ = eval_setup(config)  # what ns-viewer begins with
        scene = load(result / "scene.ply")
        assert torch.equal(pipeline.model.means.detach(), scene.means)
        assert pipeline.model.num_points == len(scene)
