"""report.json: what a run used, did and reached. The schema beside this file is published; every report is checked first."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from app.result_folder import write_atomic
from app.stopwatch import StageCost
from splat.errors import InputError
from splat.similarity import Similarity

FRAME = "right-handed, +Y up, front towards +Z"
VERSIONS_OF = (
    "splatsmith",
    "torch",
    "numpy",
    "pycolmap",
    "open3d",
    "gsplat",
    "kornia",
    "opencv-python-headless",
    "transformers",
)


@dataclass(frozen=True)
class InputFile:
    name: str
    sha256: str | None  # None for a file that was not used
    placed: bool
    reason: str | None  # why it was not placed or not used, or None
    holdout: bool = False


@dataclass(frozen=True)
class Quality:
    """Means over n views, sRGB in [0, 1]."""

    psnr: float  # dB
    ssim: float
    lpips: float | None  # None where the package is not installed
    n: int


@dataclass(frozen=True)
class Licence:
    """Of a weights file or data that the run used."""

    name: str
    licence: str


@dataclass(frozen=True)
class Report:
    command: str
    inputs: list[InputFile]
    scale: str  # "arbitrary" or "metric" (world units are metres)
    result_from_input: Similarity  # from the given poses' world (or the solver's) to the result's
    seed: int
    device: str
    backend: str
    gaussians: int
    stages: list[StageCost]
    train: Quality | None
    holdout: Quality | None
    warnings: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    licences: list[Licence] = field(default_factory=list)
    mesh_faces: int = 0
    facts: dict[str, float] = field(default_factory=dict)  # the pose solver's own figures
    repair: dict[str, Any] | None = None  # of photos --repair: what it did to photos that were not fitted to, and what is kept
    next_photo: dict[str, Any] | None = None  # of a photos job of few photos: where one more would help most
    text: dict[str, Any] | None = None  # of the text job: the prompt and what was measured on its candidates
    image: dict[str, Any] | None = None  # of the image job: how each picture was cut out and framed, and what refining did

    refine: dict[str, Any] | None = None  # of the refine job: what it tried, how that compares, and which splats are here

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self) | {
            "status": "done",
            "frame": FRAME,
            "result_from_input": self.result_from_input.matrix().tolist(),
            "versions": versions(),
            "metrics": {
                name: None if quality is None else asdict(quality)
                for name, quality in (("train", self.train), ("holdout", self.holdout))
            },
        }
        del plain["train"], plain["holdout"]
        for name in ("text", "image", "refine", "repair", "next_photo"):
            if plain[name] is None:
                del plain[name]
        return plain


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a result; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def schema() -> dict[str, Any]:
    return json.loads(resources.files("app").joinpath("report.schema.json").read_text())


def write_report(report: Report, path: Path) -> dict[str, Any]:
    """Check against the schema, write, and return what was written."""
    import jsonschema

    plain = report.to_json()
    jsonschema.validate(plain, schema())
    write_atomic(path, json.dumps(plain, indent=1, allow_nan=False).encode())
    return plain


def read_report(result: Path) -> dict[str, Any]:
    """The report of the result folder `result`. Raises `InputError` when there is none or it does not fit the schema."""
    import jsonschema

    try:
        report = json.loads((result / "report.json").read_text())
        jsonschema.validate(report, schema())
    except OSError as error:
        raise InputError(f"{result} is not a result folder: it has no readable report.json.") from error
    except (ValueError, jsonschema.ValidationError) as error:
        reason = error.message if isinstance(error, jsonschema.ValidationError) else str(error)
        raise InputError(f"{result / 'report.json'} is damaged: {reason[:200]}.") from error
    return report
