"""The wheel that is built here installs, and renders, where there is no compiler."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from splat.render.native import build

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
RENDER = """
import sys, torch, splat
from pathlib import Path
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import native, pick_backend, render
assert Path(splat.__file__).is_relative_to(sys.argv[1]), splat.__file__
assert native.available() and pick_backend("cpu") == "native"
g = torch.Generator().manual_seed(0)
n = 50
scene = Splats(torch.randn(n, 3, generator=g), torch.randn(n, 4, generator=g), torch.full((n, 3), -2.0), torch.zeros(n),
               torch.randn(n, 1, 3, generator=g))
fast, plain = (render(scene, Cameras.orbit(1, 5.0, 20, 50, 60, 40), backend_name=name) for name in ("native", "reference"))
assert fast.alpha.max() > 0.3 and (fast.rgb - plain.rgb).abs().mean() < 1e-5
"""


def built_wheel(folder: Path, **environment: str) -> Path:
    """A wheel of the sources as they are, built in a copy."""
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "out", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    environment = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=folder / "source", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / done.stdout.split()[-1]


@pytest.mark.slow
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
def test_the_wheel_renders_without_a_compiler(tmp_path):
    wheel = built_wheel(tmp_path)
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:  # which is what an installer does with it
        archive.extractall(tmp_path / "site")
    carried = sorted(p.name.split("-")[1] for p in (tmp_path / "site" / "splat" / "render" / "native" / "prebuilt").iterdir())
    assert set(carried) >= set(build.cpu_variants())
    environment = {
        "PATH": str(tmp_path / "nothing"),
        "PYTHONPATH": str(tmp_path / "site"),
        "SPLATSMITH_CACHE_DIR": str(tmp_path),
    }
    arguments = [sys.executable, "-c", RENDER, str(tmp_path / "site")]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "kernels").exists()  # nothing was compiled


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_for_any_platform(tmp_path):
    wheel = built_wheel(tmp_path, PATH=str(tmp_path / "nothing"), CXX="")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "splat/render/native/blend.cpp" in names and not any(name.endswith(".so") for name in names)
