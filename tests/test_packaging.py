"""The project's own files agree with each other: pins, packages, entry points, bundled files."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a pin has the form name==version, without +label"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_pinned_to_a_version_it_allows():
    extras = [r for name in ("test", "dev", "cuda", "cluster", "usd") for r in PROJECT["optional-dependencies"][name]]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), requirement


def test_torchvision_stays_out():
    assert "torchvision" not in pins()
    assert not any("torchvision" in r for r in PROJECT["dependencies"])


def test_every_package_folder_is_found_by_the_build():
    """A folder of modules without `__init__.py` would be missing from the wheel and present in a checkout."""
    found = set(find_packages(str(ROOT), include=["app*", "recon*", "splat*", "diffusion*"]))
    for package in ("app", "recon", "splat", "diffusion"):
        for module in (ROOT / package).rglob("*.py"):
            assert ".".join(module.parent.relative_to(ROOT).parts) in found, module


def test_files_that_modules_need_are_package_data():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    suffixes = {pattern.removeprefix("*") for pattern in patterns}
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "app", "recon", "splat", "diffusion"], capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for file in listed.stdout.splitlines():
        assert Path(file).suffix in suffixes | {".py"}, file


def test_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000
    assert PROJECT["license"] == "Apache-2.0"


def test_ci_script_is_executable_and_parses():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_make_uses_no_absolute_paths():
    """So that a checkout in a folder with spaces, or moved later, works."""
    text = (ROOT / "Makefile").read_text()
    assert "$(CURDIR)" not in text and "$(shell pwd)" not in text and "$(abspath" not in text
