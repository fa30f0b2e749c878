"""How wrong the solved cameras of a result are, where true ones are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePath

from torch import Tensor

from app.report import read_report
from app.scenes import poses_were_solved


@dataclass(frozen=True)
class PoseQuality:
    """Share of the area under the recall of pairwise errors up to 5, 10 and 20 degrees; photos without a camera are lost."""

    auc5: float
    auc10: float
    auc20: float
    median_deg: float  # over pairs
    photos: int  # of the result whose truth is known
    placed: int  # of these


def pose_quality(result: Path, against: Path) -> PoseQuality | None:
    """Of the photos that poses were solved for: held-out ones do not count. None where fewer than two have a known truth, and
    where the poses were given.

    `against` is a transforms.json in any world, whose frames are known by their file names without suffix.
    """
    from recon.pose_error import LIMITS_DEG, pose_auc, relative_errors

    if not poses_were_solved(result):
        return None
    given, truth = read_report(result).get("inputs", []), _poses_by_name(against)
    found = _poses_by_name(result / "cameras.json")
    names = [stem for photo in given if not photo.get("holdout") and (stem := PurePath(photo["name"]).stem) in truth]
    if len(names) < 2:
        return None
    errors = relative_errors([found.get(name) for name in names], [truth[name] for name in names])
    aucs = (pose_auc(errors, limit) for limit in LIMITS_DEG)
    return PoseQuality(*aucs, float(errors.median()), len(names), sum(name in found for name in names))


def _poses_by_name(path: Path) -> dict[str, Tensor]:
    from recon.poses.from_file import read_transforms

    frames = read_transforms(path)
    count = Counter(frame.file.stem for frame in frames)
    return {f.file.stem: f.cam_from_world for f in frames if count[f.file.stem] == 1}
