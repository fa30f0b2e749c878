"""The gsplat adapter: its argument mapping on any machine, its pictures and gradients where there is a GPU.

Without a GPU, `gsplat.rasterization` itself runs with its kernels replaced by its own plain PyTorch twins, and the
compositing kernel by a few lines here; so the arguments, their meaning and the result's layout are checked everywhere.
"""

import importlib
import inspect
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scenes import orbit, random_splats

from splat.errors import BackendUnavailable
from splat.gaussians import Splats
from splat.optimise import MANY_PHOTOS, FitConfig, fit
from splat.render import RenderOptions, cuda_gsplat, render
from splat.views import Views

F64 = torch.float64
GPU = torch.cuda.is_available()


@pytest.fixture
def twin(monkeypatch):
    """`gsplat.rasterization` with plain PyTorch in place of every CUDA kernel, unpacked."""
    rendering = pytest.importorskip("gsplat.rendering")
    plain = pytest.importorskip("gsplat.cuda._torch_impl")

    def fully_fused_projection(
        means, covars, quats, scales, viewmats, Ks, width, height, *, eps2d, packed, near_plane, far_plane,
        calc_compensations, **rest,
    ):  # fmt: skip
        assert not packed and rest["radius_clip"] == 0 and rest["camera_model"] == "pinhole"
        covars, _ = plain._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
        return plain._fully_fused_projection(
            means, covars, viewmats, Ks, width, height, eps2d, near_plane, far_plane, calc_compensations
        )

    def isect_tiles(means2d, radii, depths, tile_size, tile_width, tile_height, **_):
        return plain._isect_tiles(means2d.detach(), radii, depths.detach(), tile_size, tile_width, tile_height)

    def rasterize_to_pixels(
        means2d, conics, colors, opacities, width, height, tile_size, offsets, flatten_ids, backgrounds, packed, absgrad
    ):
        assert not packed  # absgrad only adds an attribute in the backward pass
        cameras, n = means2d.shape[:2]
        down, across = offsets.shape[1:]
        starts = [*offsets.flatten().tolist(), len(flatten_ids)]
        out = means2d.new_zeros(cameras, down * tile_size, across * tile_size, colors.shape[-1] + 1)
        for t in range(offsets.numel()):
            c, ty, tx = t // (down * across), t // across % down * tile_size, t % across * tile_size
            ids = flatten_ids[starts[t] : starts[t + 1]].long() - c * n
            step = torch.arange(tile_size) + 0.5
            d = torch.stack(torch.meshgrid(tx + step, ty + step, indexing="xy"), -1)[:, :, None] - means2d[c, ids]
            xx, xy, yy = conics[c, ids].unbind(-1)
            alpha = opacities[c, ids] * torch.exp(
                -0.5 * (xx * d[..., 0] ** 2 + yy * d[..., 1] ** 2) - xy * d[..., 0] * d[..., 1]
            )
            alpha = alpha.clamp_max(0.999)
            alpha = torch.where(alpha < 1 / 255, 0, alpha)
            left = torch.cumprod(1 - alpha, -1)
            weight = torch.where(left > 1e-4, alpha * left / (1 - alpha), 0)
            feature = torch.cat([colors[c, ids], torch.ones(len(ids), 1)], -1)
            out[c, ty : ty + tile_size, tx : tx + tile_size] = weight @ feature
        image, alpha = out[:, :height, :width, :-1], out[:, :height, :width, -1:]
        if backgrounds is not None:
            image = image + (1 - alpha) * backgrounds[:, None, None]
        return image, alpha

    def spherical_harmonics(degree, dirs, coeffs, masks):
        assert masks.shape == dirs.shape[:-1]
        return plain._spherical_harmonics(degree, dirs, coeffs)

    monkeypatch.setattr(rendering, "fully_fused_projection", fully_fused_projection)
    monkeypatch.setattr(rendering, "isect_tiles", isect_tiles)
    monkeypatch.setattr(
        rendering,
        "isect_offset_encode",
        lambda ids, n, w, h: plain._isect_offset_encode(ids, n, w, h),
    )
    monkeypatch.setattr(rendering, "rasterize_to_pixels", rasterize_to_pixels)
    monkeypatch.setattr(rendering, "spherical_harmonics", spherical_harmonics)
    return rendering.rasterization


def draw_with(rasterization, splats, cameras, options):
    outputs = rasterization(**cuda_gsplat.rasterization_arguments(splats, cameras, options))
    return cuda_gsplat.rendering_from(*outputs, len(cameras), len(splats), options)


SCENE = random_splats(25, seed=2, dtype=F64)
CAMERAS = orbit(2, 40, 32, dtype=F64)
BACKGROUND = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
OPTIONS = {
    "plain": RenderOptions(),
    "background": RenderOptions(background=BACKGROUND),
    "background of each camera": RenderOptions(
        background=torch.rand(2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    ),
    "antialiased": RenderOptions(antialiased=True),
    "low degree": RenderOptions(sh_degree=1),
    "high degree": RenderOptions(sh_degree=7),
    "near": RenderOptions(near=2.9),
    "low pass": RenderOptions(low_pass=1.0),
    "probe": RenderOptions(track_means2d=True, background=BACKGROUND),
}


class TestMapping:
    def test_every_argument_exists_in_gsplat(self):
        rasterization = pytest.importorskip("gsplat.rendering").rasterization
        arguments = cuda_gsplat.rasterization_arguments(SCENE, CAMERAS, RenderOptions())
        bound = inspect.signature(rasterization).bind(**arguments)  # TypeError for a name gsplat does not know
        assert bound.arguments["render_mode"] == "RGB+D" and bound.arguments["sh_degree"] == 3

    def test_activated_values_are_passed(self):
        arguments = cuda_gsplat.rasterization_arguments(SCENE, CAMERAS, RenderOptions())
        assert torch.equal(arguments["scales"], SCENE.scales) and torch.equal(arguments["opacities"], SCENE.opacities)
        assert torch.equal(arguments["viewmats"], CAMERAS.cam_from_world)

    def test_packed_only_for_many_pairs_and_never_with_the_probe(self, monkeypatch):
        monkeypatch.setattr(cuda_gsplat, "PACKED_FROM", 49)  # 2 cameras x 25 Gaussians
        assert cuda_gsplat.rasterization_arguments(SCENE, CAMERAS, RenderOptions())["packed"]
        assert not cuda_gsplat.rasterization_arguments(SCENE, CAMERAS, RenderOptions(track_means2d=True))["packed"]
        assert not cuda_gsplat.rasterization_arguments(SCENE, CAMERAS[:1], RenderOptions())["packed"]

    @pytest.mark.parametrize("name", OPTIONS)
    def test_gsplats_own_plain_torch_draws_what_the_reference_draws(self, twin, name):
        """Values, float64: the differences left are rounding."""
        theirs = draw_with(twin, SCENE, CAMERAS, OPTIONS[name])
        ours = render(SCENE, CAMERAS, OPTIONS[name], "reference")
        assert ours.alpha.max() > 0.8
        for field in ("rgb", "alpha", "depth"):
            torch.testing.assert_close(getattr(theirs, field), getattr(ours, field), atol=1e-9, rtol=1e-7)
        seen = ours.radii > 0
        assert seen.any() and bool((theirs.radii[seen] > 0).all())
        torch.testing.assert_close(theirs.means2d[seen], ours.means2d[seen])

    @pytest.mark.parametrize("name", ["background", "antialiased", "probe"])
    def test_gradients_agree(self, twin, name):
        options = OPTIONS[name]
        gradients = []
        for draw in (lambda *a: draw_with(twin, *a), lambda *a: render(*a, "reference")):
            splats = SCENE.map(lambda x: x.clone().requires_grad_())
            drawn = draw(splats, CAMERAS, options)
            (drawn.rgb.square().sum() + (drawn.alpha * drawn.depth).sum()).backward()
            found = {field: value.grad for field, value in vars(splats).items()}
            if options.track_means2d:
                found["means2d"] = drawn.means2d_probe.grad
            gradients.append(found)
        for field, theirs in gradients[0].items():
            ours = gradients[1][field]
            assert ours.norm() > 1e-3, field
            torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-5, msg=lambda m, field=field: f"{field}: {m}")

    def test_packed_results_are_unpacked(self):
        """Rows of visible pairs go back to their camera and Gaussian."""
        info = {
            "means2d": torch.tensor([[1.0, 2], [3, 4], [5, 6]]),
            "radii": torch.tensor([[7, 8], [9, 9], [3, 0]], dtype=torch.int32),
            "camera_ids": torch.tensor([0, 1, 1], dtype=torch.int32),
            "gaussian_ids": torch.tensor([2, 0, 3], dtype=torch.int32),
        }
        drawn = cuda_gsplat.rendering_from(torch.rand(2, 5, 6, 4), torch.rand(2, 5, 6, 1), info, 2, 4, RenderOptions())
        assert drawn.rgb.shape == (2, 5, 6, 3) and drawn.alpha.shape == (2, 5, 6) and drawn.depth.shape == (2, 5, 6)
        assert drawn.means2d[0, 2].tolist() == [1, 2] and drawn.means2d[1, 0].tolist() == [3, 4]
        assert drawn.radii.tolist() == [[0, 0, 8, 0], [9, 0, 0, 0]]


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_gsplats_own_trainer_as_the_benchmark_runs_it(twin, strategy, monkeypatch):
    """The loop of benchmarks/gsplat_trainer.py through gsplat's plain PyTorch: it learns, and its strategy changes rows."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    trainer = importlib.import_module("gsplat_trainer")
    plain = importlib.import_module("gsplat.cuda._torch_impl")
    monkeypatch.setattr("gsplat.strategy.ops.quat_scale_to_covar_preci", plain._quat_scale_to_covar_preci)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    quick = {"refine_start_iter": 3, "refine_stop_iter": 9, "reset_every": 100, "refine_every": 4}
    never = {"refine_start_iter": 100, "refine_stop_iter": 1, "refine_every": 1}  # MCMC's relocation is a CUDA kernel
    monkeypatch.setattr(trainer, "SCHEDULES", {"default": quick, "mcmc": never})
    monkeypatch.setattr(trainer, "FULL", 12)
    splats, cameras = random_splats(20, seed=5, dtype=torch.float32), orbit(2, 16, 16)
    white = RenderOptions(background=torch.ones(3))

    def drawn(s):
        with torch.no_grad():
            return render(s, cameras, white, "reference").rgb

    photos = Views(drawn(splats), ("a", "b"), cameras)
    start = splats.map(lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))[:18]
    fitted = trainer.fit(photos, start, 12, strategy, 30, 0, twin)
    assert fitted.sh_degree == 3 and fitted.means.isfinite().all()
    if strategy == "default":
        assert len(fitted) != len(start)
    else:
        assert (drawn(fitted) - photos.images).abs().mean() < 0.97 * (drawn(start) - photos.images).abs().mean()


class TestAvailability:
    @pytest.fixture(autouse=True)
    def fresh(self):
        cuda_gsplat.load_rasterization.cache_clear()
        yield
        cuda_gsplat.load_rasterization.cache_clear()

    @pytest.mark.skipif(GPU, reason="there is a GPU")
    def test_without_a_gpu_the_error_says_so_and_gsplat_is_not_imported(self):
        code = (
            "import sys, torch\n"
            "from scenes import orbit, random_splats\n"
            "from splat.errors import BackendUnavailable\n"
            "from splat.render import render\n"
            "try: render(random_splats(), orbit(), backend_name='gsplat')\n"
            "except BackendUnavailable as error: print(error)\n"
            "assert not [m for m in sys.modules if m.startswith('gsplat')]"
        )
        tests = Path(__file__).parents[1]
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tests)
        assert done.returncode == 0, done.stderr
        assert "needs an NVIDIA GPU" in done.stdout and "--device cpu" in done.stdout

    def test_missing_package(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setitem(sys.modules, "gsplat", None)
        monkeypatch.setattr(cuda_gsplat, "kernels_built", lambda: True)
        with pytest.raises(BackendUnavailable, match=r"pip install 'splatsmith\[cuda\]'"):
            cuda_gsplat.load_rasterization()

    def test_compilation_is_announced_before_and_its_failure_explained(self, monkeypatch, caplog):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda_gsplat, "kernels_built", lambda: False)

        def broken(name):
            assert "compiles its CUDA kernels" in caplog.text
            raise RuntimeError("Error building extension 'gsplat_cuda'\nnvcc: fatal")

        monkeypatch.setattr(cuda_gsplat.importlib, "import_module", broken)
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(BackendUnavailable, match=r"could not be built or loaded \(Error building") as e,
        ):
            cuda_gsplat.load_rasterization()
        assert "\n" not in str(e.value)

    def test_a_long_compilation_goes_on_reporting_until_it_ends(self, monkeypatch, caplog, tmp_path):
        monkeypatch.setattr(cuda_gsplat, "REPORT_EVERY", 0.02)
        monkeypatch.setattr(cuda_gsplat, "build_folder", lambda: tmp_path)
        (tmp_path / "a.o").touch()
        with caplog.at_level(logging.WARNING), cuda_gsplat.compilation_reported():
            deadline = time.monotonic() + 10
            while "1 files compiled" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
        assert "some minutes" in caplog.records[0].message and "1 files compiled" in caplog.text
        assert "ready after" in caplog.records[-1].message
        before = len(caplog.records)
        time.sleep(0.1)
        assert len(caplog.records) == before

    def test_no_kernels(self, monkeypatch):
        pytest.importorskip("gsplat")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda_gsplat, "kernels_built", lambda: True)
        real = cuda_gsplat.importlib.import_module
        empty = type("module", (), {"_C": None})
        monkeypatch.setattr(
            cuda_gsplat.importlib, "import_module", lambda name: empty if name == "gsplat.cuda._backend" else real(name)
        )
        with pytest.raises(BackendUnavailable, match="CUDA toolkit"):
            cuda_gsplat.load_rasterization()


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not GPU, reason="no GPU")])]
)
def test_a_fit_stays_on_its_device_and_improves(device):
    """The same lines on either; the settings are those for many photos, whose splitting measures errors of its own."""
    splats, cameras = random_splats(200, seed=5).to(device), orbit(3, 48, 40).to(device)
    with torch.no_grad():
        photos = Views(render(splats, cameras).rgb.clamp(0, 1), ("a", "b", "c"), cameras)
    start = splats.map(lambda x: (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x))[:120])
    found = []
    for steps in (0, 80):
        config = FitConfig.for_photos(MANY_PHOTOS, steps=steps, max_gaussians=200, sh_degree=1, max_scale=9.0)
        job = fit([photos], start, config)
        while True:
            try:
                next(job)
            except StopIteration as end:
                found.append(end.value)
                break
    assert found[1].splats.means.device.type == device and len(found[1].splats) > 120
    assert found[1].train_psnr > found[0].train_psnr + 2


@pytest.mark.cuda
@pytest.mark.skipif(not GPU, reason="no GPU")
class TestParity:
    """gsplat's kernels against the reference, float32, on a GPU."""

    def scene(self, n=2000):
        splats = random_splats(n, seed=5)
        splats = Splats(splats.means, splats.quats, splats.log_scales - 1, splats.opacity_logits, splats.sh)
        return splats.to("cuda"), orbit(2, 96, 80).to("cuda")

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("antialiased", [False, True])
    def test_values(self, antialiased, packed, monkeypatch):
        monkeypatch.setattr(cuda_gsplat, "PACKED_FROM", 0 if packed else 1 << 40)
        splats, cameras = self.scene()
        options = RenderOptions(background=torch.tensor([0.2, 0.4, 0.6]), antialiased=antialiased)
        ours, theirs = (render(splats, cameras, options, name) for name in ("reference", "gsplat"))
        for field, loose in (("rgb", 1e-2), ("alpha", 1e-2), ("depth", 5e-2)):
            difference = (getattr(ours, field) - getattr(theirs, field)).abs()
            assert difference.mean() < 2e-5 and difference.max() < loose, field  # one threshold flip moves a pixel by 1/255
        seen = (ours.radii > 0) & (theirs.radii > 0)
        assert seen.float().mean() > 0.9
        torch.testing.assert_close(theirs.means2d[seen], ours.means2d[seen], atol=1e-2, rtol=1e-4)

    @pytest.mark.parametrize("antialiased", [False, True])
    def test_gradients(self, antialiased):
        base, cameras = self.scene()
        weight = torch.rand(2, 80, 96, 3, generator=torch.Generator().manual_seed(0)).cuda()
        gradients = []
        for name in ("reference", "gsplat"):
            splats = base.map(lambda x: x.clone().requires_grad_())
            background = torch.full((2, 3), 0.3, device="cuda", requires_grad=True)
            options = RenderOptions(background=background, antialiased=antialiased, track_means2d=True)
            drawn = render(splats, cameras, options, name)
            ((drawn.rgb * weight).sum() + 0.1 * drawn.depth.sum() + drawn.alpha.square().sum()).backward()
            found = {field: value.grad for field, value in vars(splats).items()}
            found |= {"background": background.grad, "means2d": drawn.means2d_probe.grad}
            gradients.append({**found, "absolute means2d": drawn.means2d_probe.absgrad})
        for field, ours in gradients[0].items():
            difference = (gradients[1][field] - ours).norm() / ours.norm()
            assert ours.norm() > 0 and difference < 5e-3, (field, float(difference))

    def test_pose_gradient_along_rigid_motions(self):
        """Off the rigid motions the two renderers may differ; along the six of them they agree."""
        splats, cameras = self.scene()
        found = []
        for name in ("reference", "gsplat"):
            twist = torch.zeros(6, device="cuda", requires_grad=True)
            wx, wy, wz, vx, vy, vz = twist
            zero = torch.zeros_like(wx)
            generator = torch.stack([
                torch.stack([zero, -wz, wy, vx]), torch.stack([wz, zero, -wx, vy]),
                torch.stack([-wy, wx, zero, vz]), torch.stack([zero] * 4),
            ])  # fmt: skip
            moved = type(cameras)(
                torch.matrix_exp(generator) @ cameras.cam_from_world, cameras.K, cameras.width, cameras.height
            )
            render(splats, moved, backend_name=name).rgb.square().sum().backward()
            found.append(twist.grad)
        assert found[0].norm() > 0 and (found[0] - found[1]).norm() / found[0].norm() < 1e-2

    def test_empty_scene_draws_the_background(self):
        splats, cameras = self.scene()
        drawn = render(splats[:0], cameras, RenderOptions(background=torch.tensor([0.2, 0.4, 0.6])), "gsplat")
        torch.testing.assert_close(drawn.rgb[0, 0, 0].cpu(), torch.tensor([0.2, 0.4, 0.6]))
        assert drawn.means2d.shape == (2, 0, 2)
