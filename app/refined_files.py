"""What every way of refining ends with: the files of the better splats, config.json, report.json, the folder in its place."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from app.jobs import Outcome
from app.notices import Notices
from app.refine import Comparison, RefinePlan, report_of, verdict
from app.repair_splats import PICTURES
from app.report import Licence, write_report
from app.result_folder import WorkFolder, write_atomic
from app.stopwatch import Stopwatch
from splat.progress import Progress

# All that a result may hold beside config.json, report.json and state/, to be copied where nothing got better.
FILES = (
    "scene.ply",
    "mesh.glb",
    "turntable.mp4",
    "preview.png",
    "cameras.json",
    "cameras_holdout.json",
    "input.png",
    "next_photo.png",
)
EARLIER = "earlier"  # folder in that of what was invented: what had been before
NO_MESH = "There is no mesh:"

Written = Generator[Progress, None, tuple[int, int, tuple[str, ...]]]  # Gaussians, triangles, and why there are none


def finished(
    plan: RefinePlan,
    work: WorkFolder,
    watch: Stopwatch,
    notices: Notices,
    compared: Comparison,
    configs: dict[str, Any],
    write: Callable[[], Written],
    scratch: tuple[str, ...],
    licences: Sequence[Licence] = (),
) -> Generator[Progress, None, Outcome]:
    """`write` makes the files of the refined splats in `work.result`, and is asked only where those are kept.

    `configs` go into config.json beside the source's; `scratch` are stages that no further refinement needs; `licences` are of
    the way's own weights.
    """
    warnings = [*plan.report["warnings"], *verdict(compared, plan.options.way)]
    gaussians, faces = plan.report["gaussians"], plan.report["mesh_faces"]
    if compared.kept == "unrefined":
        yield Progress("files", 0, 1)
        copy_files(plan.source, work.result)
        copy_invented(plan.source, work.result / PICTURES)
    else:
        gaussians, faces, no_mesh = yield from write()
        copy_files(plan.source, work.result, ("next_photo.png",))  # what the same photos lack
        own = compared.invented is not None  # pictures of what this refinement made up
        copy_invented(plan.source, work.result / PICTURES / EARLIER if own else work.result / PICTURES)
        warnings = [*(w for w in warnings if not w.startswith(NO_MESH)), *no_mesh]
    warnings = list(dict.fromkeys(warnings))
    configs = plan.config | {"refine": plan.job} | configs
    plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in configs.items()}
    write_atomic(work.result / "config.json", json.dumps(plain, indent=1, default=str).encode())
    watch.split()
    report = report_of(
        plan,
        compared,
        licences,
        gaussians=gaussians,
        mesh_faces=faces,
        stages=list(watch.costs.values()),
        warnings=warnings,
        fallbacks=[sentence for sentence in notices.sentences if sentence not in warnings],
    )
    written = write_report(report, work.result / "report.json")
    for name in scratch:
        (work.state / f"{name}.safetensors").unlink(missing_ok=True)
    work.publish(keep_state=not plan.options.compact)
    yield Progress("files", 1, 1, f"{plan.options.out} is complete")
    return Outcome(Path(plan.options.out), written)


def copy_files(source: Path, result: Path, names: Sequence[str] = FILES) -> None:
    """The unrefined result, byte for byte."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, result / name)


def copy_invented(source: Path, folder: Path) -> None:
    """What repair made up of the splats before: the refined ones began with it."""
    if (source / PICTURES).is_dir():
        shutil.copytree(source / PICTURES, folder, dirs_exist_ok=True)
