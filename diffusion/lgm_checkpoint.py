"""Released LGM weights from disk: which file, whether it is one, its size, and safetensors out of an older pickle.

Nothing is downloaded. Weights and code of LGM are published under the MIT licence (docs/public-checkpoints.md).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffusion.models.lgm import LGM, LgmShape, shape_of
from splat.errors import InputError
from splat.io.atomic import atomically

LICENCE = "LGM (Tang et al. 2024, 3DTopia/LGM): MIT"
# Trained while the code normalised the quaternions over all Gaussians instead of each by itself, and its rasteriser did not
# normalise them again: rotations of a hundredth of a degree, so every Gaussian was drawn along the axes. Weights trained
# after the correction bear "fixrot" in their name.
UNTURNED = "model_fp16.safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SHOWN = 3  # names in a message

log = logging.getLogger(__name__)


def load_lgm(path: Path, device: torch.device | str = "cpu", turned: bool | None = None) -> LGM:
    """The network of a safetensors file, or of a folder that holds one, in float32; its size is read from the tensors.

    `turned` says whether the weights were trained with rotations in force; None: by the published name of the file (`UNTURNED`
    were not). Raises InputError, with the remedy, for anything but an LGM checkpoint that fits name by name.
    """
    from safetensors import SafetensorError, safe_open

    path = find_lgm(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
            shape = _checked(path, found)
            tensors = {name: file.get_tensor(name).float().to(device) for name in found}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no whole safetensors file ({_first_line(error)}); fetch it again.") from error
    _check_numbers(path, tensors)
    if turned is None and (turned := path.name != UNTURNED) is False:
        log.info("%s: weights from before the correction of rotations; Gaussians are drawn along the axes", path.name)
    with torch.device("meta"):
        network = LGM(shape, turned)
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False).eval()


def find_lgm(path: Path) -> Path:
    """The file to load: `path` itself, or in the folder `path` the only safetensors file or the only one named "fixrot".

    Raises InputError when there is none, or no telling which.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        corrected = [f for f in files if "fixrot" in f.name]
        if len(files) == 1 or len(corrected) == 1:
            return corrected[0] if corrected else files[0]
        if files:
            names = ", ".join(f.name for f in files)
            raise InputError(f"{path} holds {len(files)} safetensors files ({names}); give the one to load.")
        pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLES)
        if pickles:
            raise _pickled(path / pickles[0])
        raise InputError(f"{path} holds no safetensors file; put LGM's model_fp16_fixrot.safetensors there.")
    if path.suffix in PICKLES:
        raise _pickled(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{path} is no safetensors file; give LGM's model_fp16_fixrot.safetensors or the folder it is in.")
    return path


def holds_lgm(folder: Path) -> bool:
    """Whether `load_lgm(folder)` would find names of LGM's network there. Reads headers only and never raises."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(find_lgm(folder), framework="pt") as file:
            return {"unet.conv_in.weight", "unet.mid_block.nets.0.conv1.weight", "conv.weight"} <= set(file.keys())
    except (InputError, SafetensorError, OSError):
        return False


def convert_pickle(source: Path, target: Path) -> None:
    """LGM weights in a torch file -> half-precision safetensors at `target`. Runs no code that the file may bring.

    Raises InputError when the file holds anything but tensors, or tensors of another network.
    """
    from safetensors.torch import save_file

    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises anything
        raise InputError(f"{source} does not load as plain tensors ({_first_line(error)}); it is left unread.") from error
    for wrapping in ("state_dict", "model"):
        content = content[wrapping] if isinstance(content, dict) and isinstance(content.get(wrapping), dict) else content
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{source} holds no table of tensors; it is no LGM checkpoint.")
    kept = {k.removeprefix("module."): v for k, v in content.items() if "lpips_loss." not in k}  # the loss is no part of it
    _checked(source, {k: tuple(v.shape) for k, v in kept.items()})
    with atomically(target) as temporary:
        save_file({k: v.half().contiguous() for k, v in kept.items()}, str(temporary))


def _checked(path: Path, found: Mapping[str, tuple[int, ...]]) -> LgmShape:
    """The shape of the network, once every name and every tensor's shape is the network's own."""
    try:
        network_shape = shape_of(found)
        with torch.device("meta"):
            expected = {name: tuple(x.shape) for name, x in LGM(network_shape).state_dict().items()}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        name = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else _first_line(error)
        raise InputError(f"{path} is no LGM checkpoint: {name}; give LGM's model_fp16_fixrot.safetensors.") from error
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    other = [f"{name} {found[name]} instead of {shape}" for name, shape in expected.items() if found.get(name, shape) != shape]
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
        if names
    ]
    if faults:
        raise InputError(
            f"{path} does not fit LGM's network of {len(expected)} tensors: {'; '.join(faults)}; fetch the released file again."
        )
    return network_shape


def _check_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, x in tensors.items() if not bool(x.isfinite().all())]
    if bad:
        raise InputError(f"{path} holds numbers that are none in {len(bad)} tensors ({bad[0]}); fetch it again.")


def _pickled(path: Path) -> InputError:
    return InputError(
        f"{path} is a pickle, which can run code when opened; make safetensors of it first: "
        f"python -c \"from diffusion.lgm_checkpoint import convert_pickle; convert_pickle('{path.name}', 'model.safetensors')\""
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
