"""app -> recon, diffusion -> splat -> torch, numpy: the direction of imports, and what importing may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "splat": {"splat"},
    "recon": {"recon", "splat"},
    "diffusion": {"diffusion", "splat"},
    "app": {"app", "recon", "diffusion", "splat"},
}
ONLY_IN_APP = {"gradio", "tyro", "rich", "argparse", "fastapi", "uvicorn"}
HEAVY = "cv2 open3d pycolmap gradio kornia gsplat trimesh av transformers diffusers scipy pillow_heif tyro rich".split()

SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]


def imported(tree, path):
    """(top-level package, line) of every import in the file, inside functions and by importlib too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (path.relative_to(ROOT).parts[0] if node.level else node.module.split(".")[0]), node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value).split(".")[0], node.lineno


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_the_walk_sees_every_way_to_import():
    code = (
        "import recon.photos\nfrom app import cli\ndef f():\n    import gradio as g\n"
        "    importlib.import_module('tyro.conf')\nfrom . import x"
    )
    path = ROOT / "splat" / "example.py"
    assert list(imported(ast.parse(code), path)) == [("recon", 1), ("app", 2), ("splat", 6), ("gradio", 4), ("tyro", 5)]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    forbidden = (MAY_IMPORT.keys() | ONLY_IN_APP | {"tests"}) - MAY_IMPORT[package]
    if package == "app":
        forbidden -= ONLY_IN_APP
    wrong = [f"line {line}: {name}" for name, line in imported(parsed(path), path) if name in forbidden]
    assert not wrong, f"{package} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("path", [p for p in SOURCES if "app" not in p.relative_to(ROOT).parts[:1]], ids=lambda p: p.stem)
def test_the_library_does_not_print(path):
    prints = [n.lineno for n in ast.walk(parsed(path)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
    assert not prints, f"print in line {prints}; use logging.getLogger(__name__)"


def test_there_is_no_module_of_odds_and_ends():
    assert not [name for name in NAMES if Path(name).stem in ("utils", "util", "helpers", "misc", "common")]


def python(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_packages_is_cheap():
    """No heavy package, no GPU probe, no global torch flag."""
    loaded = python(
        "import torch\n"
        "flags = lambda: (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), "
        "torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), torch.initial_seed())\n"
        "before = flags()\n"
        "import sys\nheavy = set(sys.modules)\n"
        "import splat, recon, diffusion, app\n"
        "import splat.render, splat.io, splat.cameras, splat.gaussians, splat.mesh, splat.points, splat.views\n"
        "assert flags() == before and not torch.cuda.is_initialized()\n"
        f"print(*sorted((set(sys.modules) - heavy) & set({HEAVY!r})))"
    )
    assert loaded.split() == []


@pytest.mark.parametrize("arguments", [["--help"], ["photos", "--help"], ["image", "--help"], ["text", "--help"]], ids=" ".join)
def test_help_imports_no_torch(arguments):
    loaded = python(
        "import sys\nfrom app.__main__ import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as stop: assert stop.code in (0, None)\n"
        "print('loaded:', *sorted(set(sys.modules) & {'torch', 'numpy', 'gradio', 'cv2', 'open3d', 'pycolmap', 'kornia'}))"
    )
    assert "PROMPTS" in loaded if "text" in arguments else "photos" in loaded  # the help itself
    assert loaded.splitlines()[-1].split()[1:] in ([], ["numpy"])
