"""Folders of weights: networks in diffusers' form and tables, with a `weights.json` that names every file and its SHA-256.

The JSON is written last, so a folder that has it is whole. Nothing that it does not name is read, and nothing is unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from splat.errors import InputError
from splat.io.atomic import atomically

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

ABOUT = "weights.json"
FROM_DISK = {"use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}  # the last, or diffusers warns
# what files raise that somebody wrote or cut; a lack of GPU memory is none of these
BROKEN = (
    OSError, KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError, SafetensorError,
)  # fmt: skip


def shipped(name: str, what: str) -> Path:
    """The folder `name` of the weights in the package. Raises InputError, which says `what`, when there is none."""
    for assets in (Path(str(files("app"))) / "assets", Path(__file__).parents[1] / "assets"):
        if (assets / "weights" / name).is_dir():
            return assets / "weights" / name
    raise InputError(f"The weights of {what} are not installed; install splatsmith again, or give a folder with --weights.")


def claim(folder: Path, format: str) -> None:
    """Make `folder` ready for weights of this format, not whole until `write_about`.

    Raises InputError when it holds weights of another: a folder is for one kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        found = format
    if found != format:
        raise InputError(f"{folder} holds weights of another kind ({found!r}, not {format!r}); train in another work folder.")
    (folder / ABOUT).unlink(missing_ok=True)


def save_network(network: ModelMixin, folder: Path) -> None:
    """In half precision, as diffusers lays it out, without the path that it was loaded from. `network` stays as it is."""
    copy.deepcopy(network).half().save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_about(folder: Path, format: str, facts: dict[str, Any]) -> None:
    """weights.json for what lies in `folder`; `facts` is anything that JSON holds."""
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".safetensors", ".json"))
    about = {"format": format, "files": {p: _sha256(folder / p) for p in paths if p != ABOUT}, **facts}
    with atomically(folder / ABOUT) as temporary:
        Path(temporary).write_text(json.dumps(about, indent=1))


def read_about(folder: Path, format: str, needed: Iterable[str], what: str) -> dict[str, Any]:
    """weights.json, once every file it names is there and unaltered. Raises InputError, which says `what`."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != format:
            raise ValueError(f"its format is {about['format']!r}, not {format!r}")
        missing = set(needed) - set(about["files"])
        if missing:
            raise ValueError(f"it does not list {', '.join(sorted(missing))}")
        for name, digest in about["files"].items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name!r} leads out of the folder")
            if _sha256(path) != digest:
                raise ValueError(f"{name} is not the file that was written")
    except BROKEN as error:
        raise damaged(folder, what, error) from error
    return about


def damaged(folder: Path, what: str, error: Exception) -> InputError:
    """The sentence for a folder of weights that does not load."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{folder} holds no whole weights of {what} ({reason}); install splatsmith again, or give another --weights."
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
