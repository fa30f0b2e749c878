"""The game preset on the bundled example: its pictures are those of the splats."""

import sys
from pathlib import Path

import pytest
import torch

from app import __main__ as entry
from app.machine import pick_place
from app.scenes import load_scene
from app.textured_mesh import GAME_FACES, GAME_TEXTURE, textured_mesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "R"
    assert entry.main(["demo", "--out", str(out), "--quiet", "--device", "cpu", "--threads", "1"]) == 0
    return out


def test_a_textured_mesh_of_10000_triangles_looks_as_the_splats_do(demo, monkeypatch):
    """At least 24 dB where the mesh is, mean over 16 views: the capture's own and others between them."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    import textured_mesh as benchmark

    mesh, _ = benchmark.drained(textured_mesh(demo, GAME_FACES, GAME_TEXTURE, pick_place("cpu", 1)))
    cameras = benchmark.test_cameras(demo, 480)
    assert len(cameras) == benchmark.VIEWS and len(mesh.faces) <= GAME_FACES
    with torch.no_grad():
        row, _ = benchmark.compared(mesh, load_scene(demo), cameras)
    assert row["covered"] >= 24, row
