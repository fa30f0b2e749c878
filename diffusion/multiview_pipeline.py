"""Several views of an object from one picture, by a pipeline in diffusers' format that somebody has on disk.

The pipeline is one of diffusers' own classes that takes an `image`; what its pictures show is written in `views.json` beside
its `model_index.json` (docs/public-checkpoints.md has an example). Code that comes with a pipeline is not run.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.data.object_views import DISTANCE, FOV_DEG
from splat.cameras import Cameras
from splat.errors import InputError
from splat.views import Views

DESCRIPTION = "views.json"
_OURS = {"image", "generator", "output_type", "return_dict", "callback_on_step_end"}  # arguments that we set


@dataclass(frozen=True)
class ViewsDescription:
    """views.json: what the pictures of a pipeline show, in the order of its tiles, row by row, picture after picture."""

    licence: str  # of the weights; shown to the user
    azimuths_deg: tuple[float, ...]  # relative to the input's, positive towards +X
    elevations_deg: tuple[float | None, ...]  # of the cameras; None: the input's own
    rows: int = 1  # tiles of one picture
    columns: int = 1
    fov_deg: float = FOV_DEG  # of every tile and of the input
    input_side: int = 256  # px of the picture that the pipeline is given
    distance: float = DISTANCE  # of the cameras from the object's centre, world in which its longest side is about 1
    arguments: Mapping[str, object] = field(default_factory=dict)  # further ones of the pipeline's call

    def __post_init__(self) -> None:
        count = len(self.azimuths_deg)
        if not isinstance(self.licence, str) or not self.licence:
            raise ValueError('"licence" names no licence')
        if not count or len(self.elevations_deg) != count:
            raise ValueError(f"{count} azimuths_deg and {len(self.elevations_deg)} elevations_deg; give one of each per view")
        numbers = [*self.azimuths_deg, *(e for e in self.elevations_deg if e is not None)]
        if not np.isfinite(np.array(numbers, dtype=float)).all():
            raise ValueError("azimuths_deg or elevations_deg are not numbers")
        if not all(isinstance(n, int) and 0 < n <= 16 for n in (self.rows, self.columns)) or count % (self.rows * self.columns):
            raise ValueError(f"{count} views do not fill pictures of {self.rows} x {self.columns} tiles")
        if not (isinstance(self.input_side, int) and 16 <= self.input_side <= 4096):
            raise ValueError(f"input_side {self.input_side} is not 16 to 4096 px")
        if not (0 < self.fov_deg < 170 and 0 < self.distance < 100):
            raise ValueError(f"fov_deg {self.fov_deg} and distance {self.distance} are no camera's")
        if _OURS & set(self.arguments):
            raise ValueError(f"arguments may not set {', '.join(sorted(_OURS & set(self.arguments)))}")

    @staticmethod
    def read(path: Path) -> ViewsDescription:
        """Raises InputError for what is not there, no JSON or no such description."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            listed = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            unknown = set(listed) - {f.name for f in dataclasses.fields(ViewsDescription)}
            if unknown:
                raise ValueError(f"unknown {', '.join(sorted(unknown))}")
            return ViewsDescription(**listed)
        except FileNotFoundError as error:
            raise InputError(
                f"{path} is missing; say there what the pipeline's pictures show, as docs/public-checkpoints.md describes."
            ) from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} does not describe a pipeline's pictures ({error}); correct it.") from error


@dataclass(frozen=True)
class MultiviewPipeline:
    """Calling it turns a picture into views."""

    pipeline: object  # diffusers.DiffusionPipeline
    description: ViewsDescription

    @torch.no_grad()
    def __call__(self, image: Tensor, seed: int = 0, elevation_deg: float = 0.0) -> Views:
        """A square picture [S, S, 3] sRGB on white -> views, on white too, with cameras; the input's is at azimuth 0.

        Raises InputError when what comes out is not what the description says.
        """
        from PIL import Image

        picture = Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy())
        out = self.pipeline(
            image=picture.resize((self.description.input_side,) * 2, Image.Resampling.LANCZOS),
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **self.description.arguments,
        )
        tiles = self._tiles(np.asarray(out.images if hasattr(out, "images") else out.frames[0], dtype=np.float32))
        size = tiles.shape[2], tiles.shape[1]
        d = self.description
        cameras = [
            Cameras.orbit(1, d.distance, elevation_deg if e is None else e, d.fov_deg, *size, azimuth_deg=a)
            for a, e in zip(d.azimuths_deg, d.elevations_deg, strict=True)
        ]
        names = tuple(f"view_{i:03d}" for i in range(len(tiles)))
        return Views(torch.from_numpy(tiles).clamp(0, 1), names, Cameras.cat(cameras))

    def _tiles(self, pictures: np.ndarray) -> np.ndarray:
        """[P, H, W, 3] -> [views, h, w, 3]."""
        d = self.description
        views = len(d.azimuths_deg)
        if pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) * d.rows * d.columns != views:
            raise InputError(
                f"The multiview pipeline gave pictures {pictures.shape}, and {DESCRIPTION} speaks of {views} views in tiles of "
                f"{d.rows} x {d.columns}; correct {DESCRIPTION}."
            )
        count, height, width = pictures.shape[:3]
        h, w = height // d.rows, width // d.columns
        if (h * d.rows, w * d.columns) != (height, width) or not h or not w or not np.isfinite(pictures).all():
            raise InputError(
                f"Pictures of {width} x {height} px do not part into {d.columns} x {d.rows} tiles; correct {DESCRIPTION}."
            )
        return np.ascontiguousarray(
            pictures.reshape(count, d.rows, h, d.columns, w, 3).transpose(0, 1, 3, 2, 4, 5).reshape(views, h, w, 3)
        )


def load_multiview_pipeline(folder: Path, device: torch.device | str = "cpu") -> MultiviewPipeline:
    """The pipeline saved in `folder` by diffusers' `save_pretrained`, with its views.json. Safetensors and local files only.

    Raises InputError, with the remedy, for a folder that lacks something, that wants code of its own, or whose pipeline takes
    no image.
    """
    import diffusers

    folder = Path(folder)
    description = ViewsDescription.read(folder / DESCRIPTION)
    kind = _own_class(folder)
    taken = inspect.signature(kind.__call__).parameters
    if "image" not in taken or "generator" not in taken:
        raise InputError(f"{kind.__name__} in {folder} takes no image; give an image-to-image pipeline.")
    unknown = set(description.arguments) - set(taken)
    if unknown:
        raise InputError(f"{kind.__name__} knows no {', '.join(sorted(unknown))}; correct arguments in {folder / DESCRIPTION}.")
    pickled = [p for p in folder.rglob("*") if p.suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl")]
    for path in pickled:
        if not any(path.parent.glob("*.safetensors")):
            raise InputError(
                f"{path} is a pickle, which can run code when opened; save the pipeline again with safe_serialization=True."
            )
    try:
        pipeline = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    except Exception as error:  # files that somebody wrote or cut: anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder} is no {kind.__name__} that loads ({first}); save it again with save_pretrained.") from error
    assert isinstance(pipeline, diffusers.DiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    return MultiviewPipeline(pipeline.to(device), description)


def _own_class(folder: Path) -> type:
    """diffusers' class of the pipeline. Raises InputError where any part is not diffusers' or transformers' own."""
    import diffusers

    remote = (p for p in folder.rglob("*config.json") if '"auto_map"' in p.read_text(encoding="utf-8", errors="replace"))
    code = sorted(p.relative_to(folder).as_posix() for p in (*folder.rglob("*.py"), *remote))
    if code:
        raise InputError(
            f"{folder} brings its own code ({code[0]}), which is not run; give a pipeline of diffusers' own classes."
        )
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        name = index["_class_name"]
        parts = {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, list)}
        libraries = {str(v[0]) for v in parts.values() if v and v[0] is not None}
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no model_index.json; give a folder saved by diffusers' save_pretrained.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'model_index.json'} is no pipeline's ({error}); save the pipeline again.") from error
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (
        isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline) and kind is not diffusers.DiffusionPipeline
    ):
        raise InputError(f"{folder} wants the pipeline {name}, which diffusers {diffusers.__version__} does not have itself.")
    foreign = [x for x in sorted(libraries) if x not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, x)]
    if foreign:
        raise InputError(
            f"{folder} wants parts from {foreign[0]}, which is neither diffusers nor transformers; it is not loaded."
        )
    return kind
