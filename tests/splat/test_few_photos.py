"""What the fit for few photos is made of, and that each part can be left out."""

from splat.few_photos import PARTS, for_few_photos, pose_rates
from splat.optimise import FitConfig


def test_without_its_parts_it_is_the_fit_for_any_number():
    assert for_few_photos(6, poses_given=False, without=PARTS, steps=9) == FitConfig.for_photos(6, steps=9)


def test_every_part_changes_something_and_only_solved_cameras_move():
    full = for_few_photos(6, poses_given=False, masked=True)
    for part in PARTS:
        assert for_few_photos(6, poses_given=False, masked=True, without=(part,)) != full, part
    whole = for_few_photos(6, poses_given=False)
    assert whole == for_few_photos(6, poses_given=False, masked=True, without=("depth", "normals"))
    assert full.refine_poses and not for_few_photos(6, poses_given=True).refine_poses
    assert for_few_photos(6, poses_given=True, lr_means=1e-5).lr_means == 1e-5, "changes have the last word"


def test_cameras_move_faster_the_worse_they_are():
    slow, fast = (for_few_photos(6, poses_given=False, pose_error_rad=error) for error in (0.01, 0.02))
    assert fast.lr_poses == 2 * slow.lr_poses and fast.lr_poses_final < 0.1 * fast.lr_poses
    assert pose_rates(0.0)["lr_poses"] > 0, "a solver that explains all is not trusted without end"


def test_whole_scenes_lean_on_no_depth_and_only_on_the_normals_of_a_network():
    whole = for_few_photos(6, poses_given=True).regularise
    assert (whole.absolute_depth, whole.normals) == (0, 0)
    told = for_few_photos(6, poses_given=True, normals_given=True).regularise
    assert told.absolute_depth == 0 and told.normals > 0
    left = for_few_photos(6, poses_given=True, normals_given=True, without=("normals",))
    assert left == for_few_photos(6, poses_given=True)


def test_cameras_of_three_photos_stay_where_the_solver_put_them():
    assert [for_few_photos(n, poses_given=False).refine_poses for n in (3, 5, 6, 12)] == [False, False, True, True]
