"""What must not break the native renderer: degenerate scenes, wrong tensors, several callers, no compiler."""

import concurrent.futures
import copy
import logging
import shutil
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from splat.cameras import Cameras
from splat.errors import BackendUnavailable, InputError
from splat.gaussians import Splats
from splat.optimise import FitConfig, fit
from splat.render import RenderOptions, native, render
from splat.render.native import build, library
from splat.views import Views

needs_kernels = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
FIELDS = ("means", "quats", "log_scales", "opacity_logits", "sh")


def splats_of(n: int, seed: int = 0, degree: int = 1) -> Splats:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    return Splats(
        0.6 * normal(n, 3), normal(n, 4), -3 + 0.7 * normal(n, 3), 2 * normal(n), 0.3 * normal(n, (degree + 1) ** 2, 3)
    )


CAMERAS = Cameras.orbit(1, 3.0, 20, 50, 24, 17)


@st.composite
def degenerate_scenes(draw):
    n = draw(st.integers(0, 20))
    splats = splats_of(n, draw(st.integers(0, 1000)))
    cameras = Cameras.orbit(1, 3.0, 20, 50, draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    to_world = cameras.world_from_cam[0]
    means, quats = splats.means.clone(), splats.quats.clone()
    log_scales, logits = splats.log_scales.clone(), splats.opacity_logits.clone()
    for i in range(n):
        kind = draw(
            st.sampled_from(["plain", "point", "huge", "needle", "disc", "clear", "solid", "behind", "near", "far", "quat"])
        )
        if kind == "point":
            log_scales[i] = draw(st.sampled_from([-torch.inf, -60.0, -15.0]))
        elif kind == "huge":
            log_scales[i] = draw(st.floats(0, 6))
        elif kind == "needle":
            log_scales[i] = torch.tensor([draw(st.floats(-1, 1)), -12.0, -12.0])
        elif kind == "disc":
            log_scales[i] = torch.tensor([-1.0, -1.0, -30.0])
        elif kind == "clear":
            logits[i] = draw(st.sampled_from([-torch.inf, -200.0, -5.6]))
        elif kind == "solid":
            logits[i] = draw(st.sampled_from([torch.inf, 200.0, 9.0]))
        elif kind == "behind":
            means[i] = (to_world @ torch.tensor([0.1, 0.1, -draw(st.floats(0, 3)), 1]))[:3]
        elif kind == "near":
            means[i] = (to_world @ torch.tensor([0.001, 0, draw(st.floats(0.009, 0.05)), 1]))[:3]
        elif kind == "far":
            means[i] = (to_world @ torch.tensor([1.0, 2.0, draw(st.sampled_from([50.0, 1e4, 1e9])), 1]))[:3]
        elif kind == "quat":
            quats[i] *= draw(st.sampled_from([1e-8, 1e8]))
    return Splats(means, quats, log_scales, logits, splats.sh), cameras, draw(st.booleans())


@needs_kernels
@given(degenerate_scenes())
@settings(max_examples=60)
def test_degenerate_scenes_like_the_reference(scene):
    splats, cameras, antialiased = scene
    options = RenderOptions(antialiased=antialiased, background=torch.tensor([[0.2, 0.5, 0.9]]))
    leaves = splats.map(lambda x: x.clone().requires_grad_())
    out = render(leaves, cameras, options, "native")
    (out.rgb.sum() + out.alpha.sum() + out.depth.sum()).backward()
    assert all(getattr(leaves, name).grad.isfinite().all() for name in FIELDS)
    with torch.no_grad():
        truth = render(splats.to(torch.float64), cameras.to(torch.float64), options, "reference")
    for name in ("rgb", "alpha", "depth"):
        expected, value = getattr(truth, name), getattr(out, name)
        error = (value - expected).abs() / expected.abs().clamp_min(1)
        # float32 moves a few pixels across the alpha cut-off of 1/255, which changes them by up to that.
        assert error.max() < 0.02, (name, error.max())
        assert error.median() < 1e-4, (name, error.median())


@needs_kernels
@pytest.mark.parametrize("width, height", [(1, 1), (16, 16), (17, 1), (1, 33)])
def test_empty_scene_is_the_background(width, height):
    background = torch.tensor([[0.25, 0.5, 0.75]], requires_grad=True)
    cameras = Cameras.orbit(1, 3.0, 20, 50, width, height)
    out = render(splats_of(0), cameras, RenderOptions(background=background), "native")
    assert torch.equal(out.rgb, background.expand(1, height, width, 3)) and not out.alpha.any() and not out.depth.any()
    out.rgb.sum().backward()
    assert torch.equal(background.grad, torch.full((1, 3), float(width * height)))


@needs_kernels
def test_everything_behind_the_camera_has_zero_gradients():
    splats = splats_of(40).map(lambda x: x.clone().requires_grad_())
    pose = torch.eye(4)[None].clone()
    pose[:, 2, 3] = -10
    out = render(splats, replace(CAMERAS, cam_from_world=pose), RenderOptions(track_means2d=True), "native")
    (out.rgb.sum() + out.alpha.sum()).backward()
    assert not out.radii.any() and not any(getattr(splats, name).grad.any() for name in FIELDS)
    assert not out.means2d_probe.grad.any()


@needs_kernels
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_numbers_are_refused(field, value):
    if field == "opacity_logits" and value == torch.inf:
        pytest.skip("an opacity of 1")
    splats = splats_of(50)
    bad = getattr(splats, field).clone()
    bad.view(-1)[7] = value
    with pytest.raises(InputError, match=field):
        render(replace(splats, **{field: bad}), CAMERAS, RenderOptions(), "native")


@needs_kernels
def test_bad_cameras_and_options_are_refused():
    splats = splats_of(5)
    for bad in (
        replace(CAMERAS, cam_from_world=CAMERAS.cam_from_world * torch.nan),
        replace(CAMERAS, K=CAMERAS.K * torch.inf),
        replace(CAMERAS, width=1 << 20),
    ):
        with pytest.raises((InputError, ValueError)):
            render(splats, bad, RenderOptions(), "native")
    for options in (RenderOptions(near=0), RenderOptions(low_pass=float("nan")), RenderOptions(background=torch.rand(2, 3))):
        with pytest.raises((ValueError, TypeError)):
            render(splats, CAMERAS, options, "native")


@needs_kernels
@given(st.sampled_from(FIELDS), st.sampled_from(["double", "half", "int", "meta", "sparse", "list"]))
@settings(max_examples=30)
def test_wrong_tensors_are_python_errors(field, how):
    splats = splats_of(6)
    x = getattr(splats, field)
    wrong = {
        "double": lambda: x.double(), "half": lambda: x.half(), "int": lambda: x.int(), "meta": lambda: x.to("meta"),
        "sparse": lambda: x.to_sparse(), "list": lambda: x.numpy(),
    }[how]()  # fmt: skip
    with pytest.raises((TypeError, ValueError)):
        render(replace(splats, **{field: wrong}), CAMERAS, RenderOptions(), "native")


@needs_kernels
@pytest.mark.parametrize("how", ["double", "half", "meta", "shape", "column"])
@pytest.mark.parametrize("what", ["cam_from_world", "K", "background"])
def test_wrong_cameras_and_backgrounds_are_python_errors_or_are_mended(what, how):
    background = torch.tensor([[0.2, 0.5, 0.9]])
    x = background if what == "background" else getattr(CAMERAS, what)
    wrong = {
        "double": lambda: x.double(), "half": lambda: x.half(), "meta": lambda: x.to("meta"), "shape": lambda: x[..., :2],
        "column": lambda: torch.stack([x, x], -1)[..., 0],
    }[how]()  # fmt: skip

    def draw(value):
        cameras = copy.copy(CAMERAS)
        if what != "background":
            object.__setattr__(cameras, what, value)  # past the checks of Cameras
        return render(splats_of(6), cameras, RenderOptions(background=value if what == "background" else background), "native")

    if how == "column":  # strided, but right
        assert torch.equal(draw(wrong).rgb, draw(x).rgb)
    else:
        with pytest.raises((TypeError, ValueError)):
            draw(wrong)


@needs_kernels
def test_two_fits_at_once_give_what_each_gives_alone():
    cameras = Cameras.orbit(3, 3.0, 20, 50, 40, 30)
    with torch.no_grad():
        photos = Views(render(splats_of(300, 9), cameras, backend_name="native").rgb.clamp(0, 1), ("a", "b", "c"), cameras)

    def work(seed):
        job = fit([photos], splats_of(200, seed), FitConfig(steps=30, max_gaussians=250, sh_degree=1, seed=seed, threads=2))
        while True:
            try:
                next(job)
            except StopIteration as end:
                return end.value.splats

    alone = [work(seed) for seed in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, range(2)))
    for a, b in zip(alone, together):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@needs_kernels
def test_strided_inputs_and_upstream_gradients_are_the_same_as_contiguous_ones():
    splats = splats_of(40)
    strided = splats.map(lambda x: torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0])
    assert not strided.means.is_contiguous()
    results = []
    for s in (splats, strided):
        s = s.map(lambda x: x.detach().requires_grad_())
        out = render(s, CAMERAS, RenderOptions(), "native")
        out.rgb.permute(0, 3, 1, 2).sum().backward()  # the upstream gradient is an expanded scalar
        results.append((out.rgb.detach(), s.means.grad, s.sh.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@needs_kernels
def test_inputs_changed_before_backward_are_noticed():
    splats = splats_of(20).map(lambda x: x.requires_grad_())
    out = render(splats, CAMERAS, RenderOptions(), "native")
    with torch.no_grad():
        splats.means.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.rgb.sum().backward()


@needs_kernels
def test_backward_twice_and_unused_outputs():
    splats = splats_of(20).map(lambda x: x.requires_grad_())
    out = render(splats, CAMERAS, RenderOptions(), "native")
    first = torch.autograd.grad(out.depth.sum(), splats.means, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out.depth.sum(), splats.means)[0])
    with torch.no_grad():
        assert not render(splats, CAMERAS, RenderOptions(), "native").rgb.requires_grad


@needs_kernels
def test_several_callers_at_once_get_what_each_gets_alone():
    def work(seed):
        splats = splats_of(2000, seed).map(lambda x: x.requires_grad_())
        for _ in range(4):
            out = render(splats, CAMERAS, RenderOptions(threads=1 + seed % 3), "native")
            gradient = torch.autograd.grad(out.rgb.square().sum(), splats.means)[0]
        return out.rgb.detach(), gradient

    alone = [work(seed) for seed in range(6)]
    together = [None] * 6

    def run(seed):
        together[seed] = work(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@needs_kernels
def test_works_after_fork():
    code = (
        "import os, torch\n"
        "from splat.render import render, RenderOptions\n"
        "from test_native_hostile import splats_of, CAMERAS\n"
        "o = RenderOptions(threads=2)\n"
        "a = render(splats_of(3000), CAMERAS, o, 'native').rgb\n"
        "pid = os.fork()\n"
        "b = render(splats_of(3000), CAMERAS, o, 'native').rgb\n"
        "if pid == 0: os._exit(0 if torch.equal(a, b) else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parent)


def sanitizer_supported(flag: str, folder: Path) -> bool:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return False
    (folder / "probe.cpp").write_text("int main() { return 0; }")
    probe = subprocess.run([compiler, flag, "probe.cpp", "-o", "probe"], cwd=folder, capture_output=True, check=False)
    return probe.returncode == 0 and subprocess.run([folder / "probe"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", build.cpu_variants())
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizer, variant, tmp_path):
    run_with_sanitizer(sanitizer, variant, tmp_path, rounds=12)


def test_address_and_undefined_behaviour_sanitizers_find_nothing(tmp_path):
    run_with_sanitizer("address,undefined", build.cpu_variants()[-1], tmp_path, rounds=6)


def run_with_sanitizer(sanitizer, variant, folder, rounds):
    flag = f"-fsanitize={sanitizer}"
    if not sanitizer_supported(flag, folder):
        pytest.skip(f"the compiler has no {flag}")
    flags = ["-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off", "-fno-sanitize-recover=all", flag]
    flags += build.VARIANTS[variant]
    sources = [s for s in build.sources() if s.suffix == ".cpp"]
    driver = Path(__file__).with_name("native_sanitizer.cpp")
    command = [build.find_compiler(), *flags, f"-I{build.HERE}", *sources, driver, "-o", folder / "driver"]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([folder / "driver", str(rounds)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """No compiled kernels, an empty cache; restored afterwards."""
    monkeypatch.setenv("SPLATSMITH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "none")
    library.load.cache_clear()
    library.available.cache_clear()
    yield tmp_path
    library.load.cache_clear()
    library.available.cache_clear()


def test_without_a_compiler_one_warning_names_the_remedy(fresh_library, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(fresh_library))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        assert not native.available() and not native.available()
    assert len(caplog.records) == 1 and "install g++" in caplog.text
    with pytest.raises(BackendUnavailable, match="install g"):
        render(splats_of(3), CAMERAS, RenderOptions(), "native")


def test_a_compiler_that_fails_is_reported(fresh_library, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "false")
    if shutil.which("false") is None:
        pytest.skip("no `false` command")
    assert not native.available()
    assert "could not build" in caplog.text
    assert not list((fresh_library / "cache").rglob("*.so"))


@needs_kernels
def test_binaries_of_a_wheel_need_no_compiler(fresh_library, monkeypatch):
    folder = fresh_library / "prebuilt"
    folder.mkdir()
    monkeypatch.delenv("SPLATSMITH_CACHE_DIR")
    name = build.library_name("portable", (*build.FLAGS, *build.VARIANTS["portable"]))
    shutil.copy(build.library_path("portable"), folder / name)
    monkeypatch.setattr(build, "PREBUILT", folder)
    monkeypatch.setenv("PATH", str(fresh_library))
    monkeypatch.delenv("CXX", raising=False)
    assert build.library_path("portable") == folder / name
    with pytest.raises(BackendUnavailable):
        build.library_path("portable", ("-DANOTHER",))  # other flags are another library


@needs_kernels
def test_processes_that_start_together_compile_once(tmp_path):
    built = build.library_path("portable")
    log = tmp_path / "log"
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && echo fake && exit 0\n'
        f'echo run >> {log}; sleep 0.5; for last; do :; done; cp {built} "$last"\n'
    )
    compiler.chmod(0o755)
    code = "from splat.render.native import build; print(build.library_path('portable'))"
    environment = {"PATH": "/usr/bin:/bin", "CXX": str(compiler), "SPLATSMITH_CACHE_DIR": str(tmp_path / "cache")}
    jobs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    paths = {job.communicate(timeout=120)[0].strip() for job in jobs}
    assert len(paths) == 1 and library.open_library(Path(paths.pop())).splatsmith_lanes() == 4
    assert log.read_text() == "run\n"


def test_the_lock_waits_on_windows_too(monkeypatch, tmp_path):
    """There, a lock that is taken raises after ten seconds; waiting goes on."""
    calls = []

    def locking(_file, mode, count):
        calls.append((mode, count))
        if len(calls) < 3:
            raise OSError("resource deadlock avoided")

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_LOCK=1, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    with build.locked(tmp_path / "lock"):
        assert calls == [(1, 1)] * 3
