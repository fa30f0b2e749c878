"""nerfstudio's commands on a CPU build of torch: `splatsmith-nerfstudio train|eval|export|viewer|open ...`.

torchvision registers fake kernels for two operators that its CPU-less build does not define, and so fails to import beside a
CPU build of torch. nerfstudio calls neither; declaring them first lets everything import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "train": "nerfstudio.scripts.train",
    "eval": "nerfstudio.scripts.eval",
    "export": "nerfstudio.scripts.exporter",
    "render": "nerfstudio.scripts.render",
    "viewer": "nerfstudio.scripts.viewer.run_viewer",
}
OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = []  # what torch.library declares lives as long as this


def declare_operators() -> None:
    """Declare torchvision's operators, unless torchvision can do it itself. Call before anything imports torchvision."""
    import torch

    if _declared or "torchvision" in sys.modules or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        library.define(name + SIGNATURE)
    _declared.append(library)


def allow_plain_numbers() -> None:
    """Let checkpoints of nerfstudio load: their learning rates are numbers of numpy, which torch 2.6 and later refuse.

    Nothing that could run code is allowed with them.
    """
    import numpy
    import torch

    scalar = numpy.float64(0).__reduce__()[0]  # what makes one of its bytes; its module's name changed with numpy 2
    torch.serialization.add_safe_globals([(scalar, "numpy.core.multiarray.scalar"), numpy.dtype, type(numpy.dtype("float64"))])


def open_result(result: Path, out: Path) -> Path:
    """Lay out a result folder as a nerfstudio run in `out`, for ns-viewer and ns-export; returns its config.yml."""
    from datetime import datetime

    import torch

    from app.nerfstudio.method import splatsmith
    from app.report import read_report

    read_report(result)
    config = splatsmith.config
    config.data = config.pipeline.datamanager.data = result.absolute()
    config.pipeline.datamanager.dataparser.data = result.absolute()
    config.pipeline.datamanager.dataparser.cache = (out / "data").absolute()
    config.output_dir, config.experiment_name = out.absolute(), result.absolute().name
    config.timestamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
    config.pipeline.model.sh_degree = _degree(result)
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    folder = config.get_checkpoint_dir()
    folder.mkdir(parents=True)
    torch.save({"step": 0, "pipeline": pipeline.state_dict()}, folder / "step-000000000.ckpt")
    config.save_config()
    return config.get_base_dir() / "config.yml"


def _degree(result: Path) -> int:
    from splat.io import load

    return load(result / "scene.ply").sh_degree


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of nerfstudio's commands, or `open RESULT OUT`. Exit status 2 for words that name none."""
    words = list(sys.argv[1:] if argv is None else argv)
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command not in (*COMMANDS, "open") or (command == "open" and len(rest) != 2):
        print(f"Give one of {', '.join(COMMANDS)} with nerfstudio's own options, or: open RESULT OUT", file=sys.stderr)
        return 2
    declare_operators()
    allow_plain_numbers()
    if command == "open":
        from splat.errors import SplatsmithError

        try:
            print(f"ns-viewer --load-config {open_result(Path(rest[0]), Path(rest[1]))}")
        except SplatsmithError as error:
            print(error, file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            return _missing(error)
        return 0
    try:
        script = importlib.import_module(COMMANDS[command])
    except ModuleNotFoundError as error:
        return _missing(error)
    sys.argv = [f"ns-{command}", *rest]
    script.entrypoint()
    return 0


def _missing(error: ModuleNotFoundError) -> int:
    print(f"nerfstudio is missing ({error}); install splatsmith[nerfstudio] as docs/nerfstudio.md says.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
