"""COLMAP in a process of its own: `python mapper.py FOLDER verify|incremental|cautious|global THREADS`.

Reads `problem.npz` of FOLDER, keeps `database.db` there and writes `STEP.npz`. A crash in native code, or a solver that does
not end, costs this process alone. Imports no part of the project and no torch. Random numbers have a fixed seed, the mappers
one thread and the limit is in CPU-seconds, so the same problem gives the same cameras bit for bit, on a busy machine too.
Standard input is a pipe that the parent holds open; when it closes, this process ends.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import zlib  # noqa: F401  must be loaded before pycolmap, whose own copy corrupts the heap otherwise
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap


def main(folder: Path, step: str, threads: int) -> None:
    pycolmap.logging.minloglevel = 3
    problem = np.load(folder / "problem.npz")
    pycolmap.set_random_seed(int(problem["seed"]))
    limit_cpu(float(problem["max_cpu_seconds"]))
    steps = {
        "verify": partial(verify, threads=threads),
        "incremental": partial(map_incrementally, weakest=15),
        "cautious": partial(map_incrementally, weakest=40),
        "global": partial(map_globally, weakest=30),
    }
    np.savez(folder / f"{step}.npz", **steps[step](folder, problem))


def limit_cpu(seconds: float) -> None:
    """The system ends this process after so many CPU-seconds, with SIGXCPU."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows: the parent's patience is the only limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    soft = max(1, round(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (soft if most == resource.RLIM_INFINITY else min(soft, most), most))


def end_with_parent() -> None:
    """Returns never: a parent that dies, by SIGKILL too, closes the pipe, and this process must not outlive it."""
    os.read(0, 1)  # not sys.stdin: a thread inside its lock makes the interpreter abort at exit
    os._exit(1)


def cameras_of(problem: np.lib.npyio.NpzFile) -> list[pycolmap.Camera]:
    """SIMPLE_RADIAL with the principal point in the middle; rows of `cameras` are width, height, focal, focal is known."""
    cameras = []
    for number, (width, height, focal, known) in enumerate(problem["cameras"]):
        camera = pycolmap.Camera(
            model="SIMPLE_RADIAL",
            width=round(width),
            height=round(height),
            params=[focal, width / 2, height / 2, 0.0],
            camera_id=number + 1,
        )
        camera.has_prior_focal_length = bool(known)
        cameras.append(camera)
    return cameras


def verify(folder: Path, problem: np.lib.npyio.NpzFile, threads: int) -> dict[str, np.ndarray]:
    """Two-view geometry of every matched pair; the database the mappers read. Rows follow `problem["pairs"]`."""
    cameras, of_photo = cameras_of(problem), problem["camera_of_photo"]
    keypoints = np.split(problem["keypoints"].astype(np.float64), problem["keypoint_splits"])
    matches = np.split(problem["matches"].astype(np.uint32), problem["match_splits"])
    (folder / "database.db").unlink(missing_ok=True)
    database = pycolmap.Database.open(folder / "database.db")
    for camera in cameras:
        database.write_camera(camera, use_camera_id=True)
        rig = pycolmap.Rig(rig_id=camera.camera_id)
        rig.add_ref_sensor(camera.sensor_id)
        database.write_rig(rig, use_rig_id=True)
    for number, points in enumerate(keypoints):
        image = pycolmap.Image(f"{number:05d}", camera_id=cameras[of_photo[number]].camera_id, image_id=number + 1)
        database.write_image(image, use_image_id=True)
        frame = pycolmap.Frame(frame_id=number + 1, rig_id=image.camera_id)
        frame.add_data_id(image.data_id)
        database.write_frame(frame, use_frame_id=True)
        database.write_keypoints(image.image_id, points.astype(np.float32))
    options = pycolmap.TwoViewGeometryOptions(compute_relative_pose=True, detect_watermark=False)
    options.ransac.random_seed = int(problem["seed"])
    options.ransac.max_num_trials = 3000  # a third of the usual: hopeless pairs take nearly all the time

    def verified(number: int) -> tuple[pycolmap.TwoViewGeometry, np.ndarray]:
        i, j = problem["pairs"][number]
        ends = (cameras[of_photo[i]], keypoints[i], cameras[of_photo[j]], keypoints[j])
        geometry = pycolmap.estimate_two_view_geometry(*ends, matches[number], options)
        return geometry, second_geometry(matches[number], geometry, ends, options) if problem["exact"] else matches[number][:0]

    # Every pair seeds its own random numbers, so threads change nothing in what comes out.
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(verified, range(len(matches))))
    for (i, j), rows, (geometry, _) in zip(problem["pairs"], matches, found):
        database.write_matches(int(i) + 1, int(j) + 1, rows)
        database.write_two_view_geometry(int(i) + 1, int(j) + 1, geometry)
    database.close()
    inliers = [np.asarray(geometry.inlier_matches).reshape(-1, 2) for geometry, _ in found]
    relative = [geometry.cam2_from_cam1 for geometry, _ in found]
    return {
        "config": np.array([pycolmap.TwoViewGeometryConfiguration(geometry.config).name for geometry, _ in found]),
        "inliers": np.concatenate([*inliers, np.zeros((0, 2))]).astype(np.int64),
        "inliers_splits": np.cumsum([len(x) for x in inliers])[:-1],
        "pose": np.array([np.eye(3, 4) if p is None else p.matrix() for p in relative]),  # [P, 3, 4] second camera from first
        "angle": np.array([geometry.tri_angle for geometry, _ in found]),  # radians, median between the two rays
        "second": np.concatenate([*(rest for _, rest in found), np.zeros((0, 2))]).astype(np.int64),
        "second_splits": np.cumsum([len(rest) for _, rest in found])[:-1],
    }


def second_geometry(rows: np.ndarray, geometry: pycolmap.TwoViewGeometry, ends: tuple, options) -> np.ndarray:
    """[M, 2] matches left over by the first geometry that agree on another one: many where a photo's content repeats itself."""
    inliers = np.asarray(geometry.inlier_matches).reshape(-1, 2)
    width = int(rows.max(initial=0)) + 1
    code = rows[:, 0].astype(np.int64) * width + rows[:, 1]
    rest = rows[~np.isin(code, inliers[:, 0].astype(np.int64) * width + inliers[:, 1])]
    if len(inliers) < 40 or len(rest) < 20:
        return rest[:0]
    return np.asarray(pycolmap.estimate_two_view_geometry(*ends, rest, options).inlier_matches).reshape(-1, 2)


def map_incrementally(folder: Path, problem: np.lib.npyio.NpzFile, weakest: int) -> dict[str, np.ndarray]:
    """Strict thresholds first, then looser ones, until every photo is placed; the best by photos placed, then error.

    Pairs with fewer than `weakest` verified matches are not used, nor those that the parent left out.
    """
    count = len(problem["camera_of_photo"])
    database, output = own_database(folder, f"incremental-{weakest}"), own_output(folder, f"incremental-{weakest}")
    best = None
    for inliers, angle, seen in ((100, 16.0, 30), (50, 8.0, 15), (25, 3.0, 10)):
        options = pycolmap.IncrementalPipelineOptions(
            min_num_matches=weakest,
            min_model_size=2,
            max_num_models=5,
            min_focal_length_ratio=0.2,
            num_threads=1,
            random_seed=int(problem["seed"]),
            extract_colors=False,
            ba_refine_focal_length=bool(problem["refine_focal"]),
            ba_refine_extra_params=bool(problem["refine_distortion"]),
        )
        options.mapper.init_min_num_inliers = inliers
        options.mapper.init_min_tri_angle = angle
        options.mapper.abs_pose_min_num_inliers = seen
        options.mapper.abs_pose_refine_focal_length = options.ba_refine_focal_length
        options.mapper.abs_pose_refine_extra_params = options.ba_refine_extra_params
        options.triangulation.ignore_two_view_tracks = False  # few photos have few longer ones
        best = better_of(best, largest(pycolmap.incremental_mapping(database, folder, output, options)))
        if best is not None and best.num_reg_images() == count:
            break
    return as_arrays(best)


def map_globally(folder: Path, problem: np.lib.npyio.NpzFile, weakest: int) -> dict[str, np.ndarray]:
    """GLOMAP (Pan et al., "Global structure-from-motion revisited", ECCV 2024)."""
    options = pycolmap.GlobalPipelineOptions(min_num_matches=weakest, num_threads=1, random_seed=int(problem["seed"]))
    options.mapper.bundle_adjustment.refine_focal_length = bool(problem["refine_focal"])
    options.mapper.bundle_adjustment.refine_extra_params = bool(problem["refine_distortion"])
    database, output = own_database(folder, "global"), own_output(folder, "global")
    return as_arrays(largest(pycolmap.global_mapping(database, folder, output, options)))


def own_database(folder: Path, step: str) -> Path:
    """A copy for one step, without the pairs of `dropped.npy`.

    Two mappers that open one SQLite file at the same moment can lock each other out.
    """
    copy = Path(shutil.copyfile(folder / "database.db", folder / f"database-{step}.db"))
    if (folder / "dropped.npy").exists():
        database = pycolmap.Database.open(copy)
        for i, j in np.load(folder / "dropped.npy"):
            database.delete_two_view_geometry(int(i) + 1, int(j) + 1)
        database.close()
    return copy


def own_output(folder: Path, step: str) -> Path:
    """Where one step writes its models: two that make the folder of model 0 at the same moment end each other."""
    output = folder / f"models-{step}"
    output.mkdir(exist_ok=True)
    return output


def largest(models: dict[int, pycolmap.Reconstruction]) -> pycolmap.Reconstruction | None:
    best = None
    for _, model in sorted(models.items()):
        best = better_of(best, model)
    return best


def better_of(first: pycolmap.Reconstruction | None, second: pycolmap.Reconstruction | None) -> pycolmap.Reconstruction | None:
    if first is None or second is None:
        return first or second
    a = (first.num_reg_images(), -first.compute_mean_reprojection_error())
    b = (second.num_reg_images(), -second.compute_mean_reprojection_error())
    return second if b > a else first


def as_arrays(model: pycolmap.Reconstruction | None) -> dict[str, np.ndarray]:
    """Registered photos [R], their poses [R, 3, 4], camera rows, points [N, 3] and who saw them; R = 0: nothing was found."""
    if model is None or model.num_reg_images() == 0:
        return {"photos": np.zeros(0, np.int64)}
    images = [model.image(i) for i in sorted(model.reg_image_ids())]
    points = [p for _, p in sorted(model.points3D.items())]
    seen = [(row, e.image_id - 1, e.point2D_idx) for row, p in enumerate(points) for e in p.track.elements]
    return {
        "photos": np.array([image.image_id - 1 for image in images]),
        "pose": np.array([image.cam_from_world().matrix() for image in images]),
        "camera": np.array([model.camera(image.camera_id).params for image in images]),  # [R, 4] focal, cx, cy, k1
        "points": np.array([p.xyz for p in points]).reshape(-1, 3),
        "error": np.array([p.error for p in points]),  # pixels, mean over the track
        "seen": np.array(seen, np.int64).reshape(-1, 3),  # point, photo, keypoint
    }


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
