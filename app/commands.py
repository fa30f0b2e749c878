"""The commands and their options; the field comments are the command-line help and the tooltips. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from app.presets import PresetName


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a command talks."""

    quiet: bool = False
    """Print nothing but errors."""
    json: bool = False
    """Print events as JSON, one a line."""


@dataclass(frozen=True, kw_only=True)
class Machine(Output):
    """Where a command computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes an NVIDIA GPU when there is one."""
    threads: int | None = None
    """CPU threads; by default all cores."""


@dataclass(frozen=True, kw_only=True)
class Job(Machine):
    """Options of every command that makes a scene."""

    out: Path
    """Result folder; work in progress lives beside it in OUT.partial."""
    preset: PresetName = "standard"
    """Time against quality."""
    seed: int = 0
    """Seed of everything random."""
    memory_budget: str = "4GB"
    """Memory to stay within, such as 4GB or 900MB."""
    background: str = "white"
    """Behind transparent photos and in renders: white, black, or R,G,B in 0-255."""
    resume: bool = False
    """Continue OUT.partial; a complete OUT is left as it is, unless --overwrite is given too."""
    overwrite: bool = False
    """Replace a complete result at OUT, once the new one is complete."""
    compact: bool = False
    """Drop state/ from the result: smaller, but it cannot be fitted further."""


@dataclass(frozen=True, kw_only=True)
class Photos(Job):
    """Photos or a video of a scene in, splats, a mesh, a turntable and a report out."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR|FILES|VIDEO")]
    """A folder of photos, photo files, or one video."""
    poses: str = "auto"
    """auto solves camera poses; or a transforms.json, or a COLMAP model folder."""
    holdout: int = 0
    """Keep every n-th photo out of the fit, to measure quality on it; 0 fits all."""
    intrinsics: Literal["shared", "per-photo"] = "shared"
    """shared: one lens for all photos of a size; per-photo: the zoom changed between photos."""
    masks: str | None = None
    """Folder of masks named like the photos (white is subject), or auto to cut the subject out."""
    max_side: int | None = None
    """Long side in px of the photos fitted to; the preset decides by default."""
    steps: int | None = None
    """Steps of the fit; the preset decides by default."""
    real_size: float | None = None
    """Longest side of the subject in metres; gives the result metric scale, as exact as what the photos show of that side."""
    colmap_out: bool = False
    """Also write the cameras and points as a COLMAP model, with undistorted photos, to OUT/colmap."""


@dataclass(frozen=True, kw_only=True)
class Demo(Job):
    """The main job on the bundled example photos."""

    out: Path = Path("splatsmith-demo")
    """Result folder; work in progress lives beside it in OUT.partial."""
    holdout: int = 8
    """Keep every n-th photo out of the fit, to measure quality on it; 0 fits all."""


@dataclass(frozen=True, kw_only=True)
class Export(Output):
    """A result or scene in another format: .ply, or the mesh as .glb, .obj or .stl."""

    scene: Positional[Path]
    """Result folder, or a scene file."""
    to: Path
    """File to write; its suffix chooses the format."""
    convention: Literal["splatsmith", "3dgs"] = "splatsmith"
    """splatsmith is +Y up; 3dgs is the y-down world that many splat viewers assume."""


@dataclass(frozen=True, kw_only=True)
class Render(Machine):
    """Pictures of a result or scene: a turntable .mp4, or .png stills."""

    scene: Positional[Path]
    """Result folder, or a scene file."""
    to: Path
    """.mp4 for a video; .png for a still (with several cameras, NAME_000.png and so on)."""
    cameras: Path | None = None
    """A cameras.json (transforms.json form) to render from; by default an orbit that suits the scene."""
    side: int = 640
    """Long side of the picture in px, for the orbit."""
    frames: int = 90
    """Frames of the orbit, for .mp4."""
    background: str = "white"
    """Behind the splats: white, black, or R,G,B in 0-255."""


@dataclass(frozen=True, kw_only=True)
class Check(Output):
    """The input doctor: what will work with these photos, what will not, and what to photograph next."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR|FILES|VIDEO")]
    """A folder of photos, photo files, or one video."""
    memory_budget: str = "4GB"
    """Memory to stay within, such as 4GB or 900MB."""


@dataclass(frozen=True, kw_only=True)
class Eval(Machine):
    """PSNR and SSIM of a result against posed photos it has not seen."""

    result: Positional[Path]
    """Result folder."""
    against: Path
    """transforms.json of the photos, in the world of the poses that the result was made from; where these were solved, in
    any world, with at least 3 of the result's photos in it."""
    background: str = "white"
    """Behind transparent photos and the splats: white, black, or R,G,B in 0-255."""


@dataclass(frozen=True, kw_only=True)
class Info(Output):
    """Device, renderers, weights with their licences, versions."""


@dataclass(frozen=True, kw_only=True)
class Ui(Machine):
    """The web page, on this machine only unless --host says otherwise."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7860
    """Port to listen on."""


Command = (
    Annotated[Photos, subcommand("photos", prefix_name=False)]
    | Annotated[Demo, subcommand("demo", prefix_name=False)]
    | Annotated[Export, subcommand("export", prefix_name=False)]
    | Annotated[Render, subcommand("render", prefix_name=False)]
    | Annotated[Check, subcommand("check", prefix_name=False)]
    | Annotated[Eval, subcommand("eval", prefix_name=False)]
    | Annotated[Info, subcommand("info", prefix_name=False)]
    | Annotated[Ui, subcommand("ui", prefix_name=False)]
)
