"""The Dockerfile fits the project it builds: packages, versions, ports and options. Building it is not tested here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import tyro
from packaging.specifiers import SpecifierSet

from app import commands

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def steps() -> list[tuple[str, str]]:
    """Instruction and its words, in order; lines that go on are joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line.strip()]


def of(kind: str, start: int = 0) -> list[str]:
    return [words for name, words in steps()[start:] if name == kind]


def last_stage() -> int:
    return max(i for i, (name, _) in enumerate(steps()) if name == "FROM")


def test_python_is_the_one_that_the_constraints_were_tested_with():
    tested = re.search(r"CPython (\d+\.\d+)", (ROOT / "constraints.txt").read_text()).group(1)
    for image in of("FROM"):
        (version,) = re.findall(r"python:(\d+\.\d+)-slim", image)
        assert version == tested and SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_all_that_the_wheel_is_made_of_is_copied_and_nothing_else():
    copied = {word for words in of("COPY") if "--from" not in words for word in words.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "setup.py", PROJECT["readme"], *PROJECT["license-files"]} <= copied
    assert {"app", "recon", "splat", "diffusion", "assets", "constraints.txt"} <= copied
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*" and {line[1:] for line in ignored if line.startswith("!")} == copied


def test_it_runs_as_a_user_without_rights_and_without_a_compiler():
    kinds = [name for name, _ in steps()[last_stage() :]]
    assert of("USER", last_stage()) == ["smith"] and kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert kinds.index("USER") > max(i for i, name in enumerate(kinds) if name == "RUN")
    assert not any("g++" in words for words in of("RUN", last_stage()))
    assert not re.search(r"(?i)password|secret|token", " ".join(of("ENV") + of("ARG")))


def test_the_command_is_ours_and_the_port_and_volume_are_those_it_uses():
    (entry,), words = json.loads(of("ENTRYPOINT")[0]), json.loads(of("CMD")[0])
    assert entry in PROJECT["scripts"]
    options = tyro.cli(commands.Command, args=words, config=(tyro.conf.FlagCreatePairsOff,))
    assert isinstance(options, commands.Ui) and [str(options.root)] == of("VOLUME")
    assert of("EXPOSE") == [str(options.port)] and f"127.0.0.1:{options.port}/" in of("HEALTHCHECK")[0]
    told = (ROOT / "Dockerfile").read_text()
    assert f"-p 127.0.0.1:{options.port}:{options.port}" in told and f"-v splatsmith-jobs:{options.root}" in told
