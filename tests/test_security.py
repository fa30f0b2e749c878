"""What docs/security.md says about all of the code, held against it: nothing runs what a file holds, nothing calls out."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNPICKLING = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLING_OUT = {"requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib", "urllib.request", "http.client", "urllib3"}


@dataclass
class Source:
    """What a module imports and calls: dotted names as written, and where."""

    file: str
    imports: set[str] = field(default_factory=set)
    calls: list[tuple[str, ast.Call]] = field(default_factory=list)


def read(file: Path) -> Source:
    source = Source(str(file.relative_to(ROOT)))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            source.calls.append((dotted(node.func), node))
        elif isinstance(node, ast.Import):
            source.imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            source.imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return source


def dotted(node: ast.AST) -> str:
    """a.b.c; what stands before a call or an index is left out."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def given(call: ast.Call, name: str | None) -> str | None:
    """The keyword `name` as written; that after ** for None."""
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return [read(file) for package in ("app", "recon", "splat", "diffusion") for file in sorted((ROOT / package).rglob("*.py"))]


def test_no_file_is_unpickled(sources):
    for source in sources:
        assert not {name.split(".")[0] for name in source.imports} & UNPICKLING, source.file
        for name, call in source.calls:
            where = f"{source.file}:{call.lineno}"
            assert name != "torch.load" or given(call, "weights_only") == "True", where
            assert name not in ("np.load", "numpy.load") or given(call, "allow_pickle") in (None, "False"), where
            assert name not in ("yaml.load", "yaml.unsafe_load"), where


def test_no_text_is_run_and_no_shell_asked(sources):
    for source in sources:
        for name, call in source.calls:
            where = f"{source.file}:{call.lineno}"
            assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"), where
            assert given(call, "shell") in (None, "False"), where


def test_nothing_calls_out_and_weights_come_from_the_disk(sources):
    for source in sources:
        assert not source.imports & CALLING_OUT, source.file
        for name, call in source.calls:
            where = f"{source.file}:{call.lineno}"
            if name.endswith("from_pretrained"):
                assert given(call, "local_files_only") == "True" or given(call, None) == "FROM_DISK", where
            assert not name.endswith(("hf_hub_download", "snapshot_download", "load_state_dict_from_url")), where


def test_the_sources_are_read(sources):
    names = {name for source in sources for name, _ in source.calls}
    assert {"torch.load", "np.load", "subprocess.run"} <= names and any(n.endswith("from_pretrained") for n in names)


def test_the_page_listens_on_this_machine_alone_unless_told():
    from app.commands import Ui

    assert Ui().host == "127.0.0.1" and Ui().auth is None
