"""The script in the viewer page is what its sources and the pinned packages make."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

VIEWER = Path(__file__).parents[2] / "app" / "viewer"
INSTALLED = Path(__file__).parents[2] / "build" / "viewer" / "node_modules"


def test_the_bundle_names_the_pinned_versions_and_their_licence():
    package = json.loads((VIEWER / "package.json").read_text())
    pinned = package["dependencies"] | package["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values()), pinned
    locked = json.loads((VIEWER / "package-lock.json").read_text())["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in pinned} == pinned
    head = (VIEWER / "viewer.min.js").read_text(encoding="ascii").split("*/", 1)[0]
    assert f"esbuild {pinned['esbuild']}" in head and f"playcanvas {pinned['playcanvas']}" in head
    assert "Permission is hereby granted, free of charge" in head and "PlayCanvas Ltd" in head


def test_the_bundle_is_small_runs_no_text_and_cannot_end_its_element():
    script = (VIEWER / "viewer.min.js").read_text(encoding="ascii")
    assert 500_000 < len(script) < 2_000_000
    assert "</script" not in script and "<!--" not in script
    assert not re.search(r"\beval\(|new Function\(|https?://", script)


@pytest.mark.node
def test_the_bundle_is_what_its_sources_make(tmp_path):
    if not INSTALLED.is_dir():
        pytest.skip("no build/viewer/node_modules; run: make test-node")
    for file in (*VIEWER.glob("*.js"), *VIEWER.glob("*.json")):
        if file.name != "viewer.min.js":
            shutil.copy(file, tmp_path)
    (tmp_path / "node_modules").symlink_to(INSTALLED.resolve())
    done = subprocess.run(["node", "build.js", "made.js"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made.js").read_bytes() == (VIEWER / "viewer.min.js").read_bytes(), "run: make viewer"
