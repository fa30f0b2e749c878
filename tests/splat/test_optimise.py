"""`fit`: it improves, it repeats itself, it resumes to the same bits, and it keeps to its limits."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import orbit, random_splats

from splat import optimise
from splat.densify import ClassicDensify, ErrorDensify, MCMCDensify, NoDensify
from splat.errors import InputError, StoppedLate
from splat.gaussians import Splats
from splat.optimise import BYTES_PER_GAUSSIAN, FitConfig, fit, gaussian_cap, scene_extent
from splat.pose_gauge import similarity_motions, without_similarity
from splat.render import RenderOptions, native, render
from splat.render.native.step import FusedSteps
from splat.rotations import se3_exp
from splat.similarity import Similarity
from splat.views import Views

WHITE = torch.ones(3)
FROZEN = dict.fromkeys(
    ("lr_means", "lr_means_final", "lr_quats", "lr_log_scales", "lr_opacity_logits", "lr_sh0", "lr_sh_rest"), 1e-12
)
FROZEN |= {"opacity_regulariser": 0.0, "scale_regulariser": 0.0, "densify": NoDensify()}


def truth(n=40):
    """Large, mostly opaque Gaussians: a picture that a few dozen can explain."""
    splats = random_splats(n, degree=1, seed=7)
    return Splats(splats.means, splats.quats, splats.log_scales + 0.5, splats.opacity_logits + 1, splats.sh)


def views(count=3, width=40, height=32, masks=False, scene=None):
    cameras = orbit(count, width, height)
    with torch.no_grad():
        drawn = render(truth() if scene is None else scene, cameras, RenderOptions(background=WHITE), "reference")
    return Views(drawn.rgb.clamp(0, 1), tuple(f"{i}.png" for i in range(count)), cameras, drawn.alpha if masks else None)


def disturbed(seed=0):
    g = torch.Generator().manual_seed(seed)
    return truth().map(lambda x: x + 0.15 * torch.randn(x.shape, generator=g))


def run(views_, initial, config, state=None, stop_after=None):
    """(result or None, events); with `stop_after`, the job is closed after that many events, as Ctrl-C does."""
    job, events = fit(views_, initial, config, state), []
    while True:
        try:
            events.append(next(job))
        except StopIteration as done:
            return done.value, events
        if stop_after is not None and len(events) >= stop_after:
            job.close()
            return None, events


def config(**changes):
    quick = FitConfig(
        steps=60, max_gaussians=60, checkpoint_every=5, report_every=5, sh_degree=1, random_background="masked", max_scale=9.0
    )
    return replace(quick, **changes)


@pytest.fixture(params=["fused", "autograd"])
def steps_taken(request, monkeypatch):
    """Fills with (cam_from_world [4, 4], K, SH degree, truth [H, W, 3]) of every step, on either way through `fit`."""
    taken = []
    if request.param == "fused":
        if not native.available():
            pytest.skip("no C++ compiler")
        real = FusedSteps.__call__

        def steps(self, splats, turns):
            taken.extend((turn.cam_from_world, turn.K, turn.sh_degree, turn.truth().clone()) for turn in turns)
            return real(self, splats, turns)

        monkeypatch.setattr(FusedSteps, "__call__", steps)
        return taken
    monkeypatch.setattr(optimise, "_fused_steps", lambda *_: None)
    draw, compare, last = optimise.render, optimise.photometric, []

    def spy(splats, cameras, options, backend):
        last[:] = [cameras.cam_from_world[0], cameras.K[0], options.sh_degree]
        return draw(splats, cameras, options, backend)

    def photometric(image, truth_, weight):
        taken.append((*last, truth_[0].clone()))
        return compare(image, truth_, weight)

    monkeypatch.setattr(optimise, "render", spy)
    monkeypatch.setattr(optimise, "photometric", photometric)
    return taken


def assert_same(a, b):
    for field in dataclasses.fields(Splats):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


QUICK_MCMC = MCMCDensify(start=0.1, stop=0.9, every=10)
QUICK_ERROR = ErrorDensify(edits=8, error_views=2, first=1.0)
QUICK_CLASSIC = ClassicDensify(start=0.1, stop=0.9, every=10, reset_at=(0.5,))


def test_many_photos_have_defaults_of_their_own():
    assert FitConfig.for_photos(8, steps=7) == FitConfig(steps=7)
    many = FitConfig.for_photos(optimise.MANY_PHOTOS, steps=7, sh_every=0.3)
    assert isinstance(many.densify, ErrorDensify) and many.coarse and (many.steps, many.sh_every) == (7, 0.3)


class TestFit:
    def test_improves_the_picture_and_reports_it(self):
        result, events = run([views()], disturbed(), config(steps=150, densify=NoDensify()))
        assert events[0].stage == "fit" and events[0].total == 150 and events[-1].step == 150
        assert [e.step for e in events] == list(range(5, 151, 5))
        before, _ = run([views()], disturbed(), config(steps=0))
        assert result.train_psnr > before.train_psnr + 5
        assert events[-1].values["psnr"] > events[0].values["psnr"] + 3
        assert events[-1].values.keys() >= {"psnr", "loss", "gaussians"}
        preview = events[-1].preview
        assert preview.shape == (32, 40, 3) and 0 <= preview.min() and preview.max() <= 1 and not preview.requires_grad

    def test_the_result_is_detached_and_complete(self):
        result, _ = run([views()], disturbed(), config(steps=5))
        assert not any(getattr(result.splats, f.name).requires_grad for f in dataclasses.fields(Splats))
        assert result.splats.sh_degree == 1 and result.steps == 5
        assert len(result.cameras) == 1 and torch.equal(result.cameras[0].cam_from_world, views().cameras.cam_from_world)
        torch.testing.assert_close(result.exposures, torch.tensor([[1.0] * 3, [0.0] * 3]).repeat(3, 1, 1))

    def test_photos_of_several_sizes(self):
        both = [views(2), views(3, width=24, height=40)]
        result, _ = run(both, disturbed(), config(steps=20))
        assert len(result.cameras) == 2 and result.exposures.shape == (5, 2, 3)

    def test_every_photo_is_visited_once_an_epoch(self, steps_taken):
        run([views(4)], disturbed(), config(steps=12, densify=NoDensify()))
        seen = [float(pose[0, 0]) for pose, *_ in steps_taken]
        epochs = [tuple(seen[i : i + 4]) for i in (0, 4, 8)]
        assert all(len(set(e)) == 4 for e in epochs) and len(set(epochs)) > 1  # each photo once, in changing order

    def test_sh_bands_unlock_one_after_the_other(self, steps_taken):
        run([views()], disturbed(), config(steps=20, sh_degree=3, sh_every=0.25, densify=NoDensify()))
        assert [degree for _, _, degree, _ in steps_taken] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5

    def test_photos_are_drawn_small_first(self, steps_taken):
        large = views(2, width=160, height=96)
        run([large], disturbed(), config(steps=10, densify=NoDensify(), coarse=((0.2, 0.25), (0.5, 0.5))))
        sizes = [(truth_.shape[1], truth_.shape[0]) for *_, truth_ in steps_taken]
        assert sizes == [(64, 38)] * 2 + [(80, 48)] * 3 + [(160, 96)] * 5  # never below 64 pixels
        for (width, height), (_, K, *_) in zip(sizes, steps_taken):
            assert K[:2, 2].tolist() == pytest.approx([width / 2, height / 2])

    def test_locked_bands_do_not_move(self):
        result, _ = run([views()], disturbed(), config(steps=10, sh_every=1.0, densify=NoDensify()))
        assert torch.equal(result.splats.sh[:, 1:], disturbed().sh[:, 1:])
        assert not torch.equal(result.splats.sh[:, :1], disturbed().sh[:, :1])

    def test_nothing_to_start_from(self):
        with pytest.raises(StoppedLate, match="no Gaussian"):
            run([views()], disturbed()[:0], config())

    def test_a_loss_that_is_not_a_number_stops(self):
        broken = views()
        broken.images[1] = float("nan")
        with pytest.raises(StoppedLate, match=r"diverged at step [012] of 60"):
            run([broken], disturbed(), config())

    @pytest.mark.parametrize("backend", ["auto", "reference"])
    def test_a_gradient_that_is_not_a_number_stops(self, monkeypatch, backend):
        """A finite loss with a broken gradient: the next picture cannot be drawn."""
        real = optimise.photometric

        def photometric(image, truth_, weight):
            image.register_hook(lambda g: g * float("nan"))
            return real(image, truth_, weight)

        monkeypatch.setattr(optimise, "photometric", photometric)
        monkeypatch.setattr(optimise, "_fused_steps", lambda *_: None)
        with pytest.raises(StoppedLate, match="diverged at step 1 of 60"):
            run([views()], disturbed(), config(backend=backend))

    @pytest.mark.skipif(not native.available(), reason="no C++ compiler")
    def test_a_fused_step_to_what_is_not_a_number_stops(self, monkeypatch):
        real = FusedSteps.__call__

        def steps(self, splats, turns):
            turns = [replace(t, lr_means=float("nan")) if t.key == 7 else t for t in turns]
            return real(self, splats, turns)

        monkeypatch.setattr(FusedSteps, "__call__", steps)
        with pytest.raises(StoppedLate, match="diverged at step 8 of 60"):
            run([views()], disturbed(), config())

    def test_extent_is_the_spread_of_all_cameras_and_never_zero(self):
        v = views(2)  # two cameras 3 units from the origin, opposite in azimuth, 15 degrees up
        expected = 1.1 * 3 * torch.tensor(15.0).deg2rad().cos()
        assert scene_extent([v]) == pytest.approx(float(expected), rel=1e-5)
        assert scene_extent([v[[0]], v[[1]]]) == pytest.approx(float(expected), rel=1e-5)
        assert scene_extent([v[[0]]]) > 0


class TestRepeatability:
    @pytest.mark.parametrize("densify", [QUICK_MCMC, QUICK_CLASSIC, QUICK_ERROR], ids=["mcmc", "classic", "error"])
    @pytest.mark.parametrize("masks", [False, True], ids=["plain", "masks"])
    def test_same_seed_same_bits(self, densify, masks):
        c = config(steps=40, densify=densify, exposure=True)
        one, two = (run([views(masks=masks)], disturbed(), c)[0] for _ in range(2))
        assert_same(one.splats, two.splats)
        assert torch.equal(one.exposures, two.exposures) and one.train_psnr == two.train_psnr
        other, _ = run([views(masks=masks)], disturbed(), replace(c, seed=1))
        assert other.splats.means.shape != one.splats.means.shape or not torch.equal(other.splats.means, one.splats.means)

    @pytest.mark.parametrize(
        "changes",
        [
            {"densify": QUICK_MCMC},
            {"densify": QUICK_MCMC, "exposure": True},
            {"densify": QUICK_CLASSIC, "exposure": True},
            {"densify": QUICK_ERROR, "exposure": True, "coarse": ((0.6, 0.5),)},
            {"densify": QUICK_MCMC, "exposure": True, "refine_poses": True, "backend": "reference"},
        ],
        ids=["mcmc", "mcmc and exposure", "classic and exposure", "error, small first", "mcmc, exposure, poses, reference"],
    )
    def test_stopped_anywhere_and_resumed_gives_the_same_bits(self, tmp_path, monkeypatch, changes):
        monkeypatch.setattr(optimise, "COARSEST", 16)
        c = config(steps=40, **changes)
        undisturbed, _ = run([views(masks=True)], disturbed(), c)
        state = tmp_path / "fit.safetensors"
        for stop_after in (1, 2, 3):  # of 8 events; rows were edited at every second
            run([views(masks=True)], disturbed(), c, state, stop_after=stop_after)
        resumed, events = run([views(masks=True)], disturbed(), c, state)
        assert [e.step for e in events] == [35, 40]  # it did continue
        assert_same(resumed.splats, undisturbed.splats)
        assert torch.equal(resumed.exposures, undisturbed.exposures) and resumed.train_psnr == undisturbed.train_psnr
        assert torch.equal(resumed.cameras[0].cam_from_world, undisturbed.cameras[0].cam_from_world)

    def test_bits_depend_neither_on_reports_nor_on_how_many_steps_one_call_takes(self, monkeypatch):
        c = config(steps=40, densify=QUICK_MCMC, exposure=True)
        expected, _ = run([views(masks=True)], disturbed(), c)
        for together, report_every in ((1, 5), (optimise.TOGETHER, 7), (40, 40)):
            monkeypatch.setattr(optimise, "TOGETHER", together)
            found, _ = run([views(masks=True)], disturbed(), replace(c, report_every=report_every))
            assert_same(found.splats, expected.splats)
            assert torch.equal(found.exposures, expected.exposures)

    def test_a_finished_state_gives_the_result_at_once(self, tmp_path):
        state = tmp_path / "fit.safetensors"
        done, _ = run([views()], disturbed(), config(), state)
        again, events = run([views()], disturbed(), config(), state)
        assert events == []
        assert_same(again.splats, done.splats)

    def test_a_state_of_other_inputs_is_refused(self, tmp_path):
        state = tmp_path / "fit.safetensors"
        run([views()], disturbed(), config(), state, stop_after=2)
        for other in (
            ([views(2)], disturbed(), config()),
            ([views(masks=True)], disturbed(), config()),
            ([views()], disturbed(1), config()),
            ([views()], disturbed(), config(lr_quats=1e-4)),
            ([views()], disturbed(), config(seed=1)),
        ):
            with pytest.raises(InputError, match=r"fit\.safetensors belongs to other photos or settings"):
                run(*other, state)

    def test_disk_full_stops_and_keeps_the_last_state(self, tmp_path, monkeypatch):
        state = tmp_path / "fit.safetensors"
        run([views()], disturbed(), config(), state, stop_after=2)
        before = state.read_bytes()

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(StoppedLate, match=r"step 15.*No space left on device"):
            run([views()], disturbed(), config(), state)
        assert state.read_bytes() == before


class TestLimits:
    @pytest.mark.parametrize("densify", [QUICK_MCMC, QUICK_CLASSIC, QUICK_ERROR], ids=["mcmc", "classic", "error"])
    def test_the_cap_is_reached_and_never_passed(self, densify):
        if isinstance(densify, ClassicDensify):
            densify = replace(densify, gradient=1e-7, reset_at=())
        _, events = run([views()], disturbed(), config(max_gaussians=47, densify=densify))
        counts = [e.values["gaussians"] for e in events]
        assert max(counts) == 47 and counts[0] == 40

    def test_more_to_start_with_than_the_cap(self):
        result, events = run([views()], disturbed(), config(steps=20, max_gaussians=25, densify=QUICK_MCMC))
        assert len(result.splats) == 25 and {e.values["gaussians"] for e in events} == {25}

    def test_error_densification_starts_with_a_share_of_the_cap(self):
        densify = ErrorDensify(first=0.5, edits=4, error_views=2)
        _, events = run([views()], disturbed(), config(steps=40, max_gaussians=40, densify=densify, report_every=1))
        counts = [e.values["gaussians"] for e in events]
        assert counts[0] == 20 and counts[-1] > 25 and max(counts) <= 40

    def test_memory_budget_lowers_the_cap(self):
        v = [views()]
        assert gaussian_cap(FitConfig(max_gaussians=5000), v) == 5000
        budget = 3000 * BYTES_PER_GAUSSIAN
        cap, twice = (gaussian_cap(FitConfig(max_gaussians=50_000, memory_budget=b), v) for b in (budget, 2 * budget))
        assert 1000 < cap < 3000 and twice == pytest.approx(cap + 3000, abs=1)
        assert gaussian_cap(FitConfig(max_gaussians=1200, memory_budget=budget), v) == 1200

    def test_memory_budget_too_small_for_the_photos(self):
        with pytest.raises(InputError, match=r"memory budget of 0\.00 GB .* give a larger --memory-budget"):
            run([views()], disturbed(), config(memory_budget=1_000_000))


class TestMasks:
    def outside_alpha(self, random_background):
        """Mean alpha outside the mask after a fit that starts with a white fog, which a white background cannot tell."""
        small = truth().transformed(Similarity(torch.eye(3), torch.zeros(3), 0.4))
        v = views(masks=True, scene=small)
        g = torch.Generator().manual_seed(0)
        fog = Splats(
            means=torch.rand(60, 3, generator=g) * 3 - 1.5,
            quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(60, 1),
            log_scales=torch.full((60, 3), -1.2),
            opacity_logits=torch.zeros(60),
            sh=torch.full((60, 4, 3), 0.5 / 0.28209479) * torch.tensor([1.0, 0, 0, 0])[:, None],
        )
        c = config(
            steps=150, max_gaussians=100, random_background=random_background, opacity_regulariser=0.0, densify=NoDensify()
        )  # fmt: skip
        result, _ = run([v], Splats.cat([small, fog]), c)
        with torch.no_grad():
            alpha = render(result.splats, v.cameras).alpha
        outside = v.masks < 0.01
        assert outside.float().mean() > 0.1
        return float(alpha[outside].mean())

    def test_random_background_clears_what_the_mask_excludes(self):
        cleared, kept = self.outside_alpha("masked"), self.outside_alpha("never")
        assert cleared < 0.15 and kept > 2 * cleared

    def test_of_an_unmasked_photo_every_pixel_stays_true(self, steps_taken):
        """The random colour goes behind the splats; it enters the truth outside a mask only."""
        v = views(1)
        run([v], disturbed(), config(steps=5, random_background="always"))
        assert len(steps_taken) == 5 and all(torch.equal(t, v.images[0]) for *_, t in steps_taken)
        steps_taken.clear()
        v = views(1, masks=True)
        run([v], disturbed(), config(steps=5, random_background="masked"))
        (*_, first), (*_, second) = steps_taken[:2]
        assert not torch.equal(first, second)
        inside = v.masks[0] > 0.999
        assert inside.any()
        torch.testing.assert_close(first[inside], v.images[0][inside], atol=2e-3, rtol=0)


class TestExposure:
    GAINS = torch.tensor([0.8, 1.0, 1.2])

    def test_recovers_known_gains(self):
        """The splats are right and frozen; each photo was brightened by its own gain."""
        cameras = orbit(3, 40, 32)
        with torch.no_grad():
            drawn = render(truth(), cameras, backend_name="reference")
        images = drawn.rgb * self.GAINS[:, None, None, None] + (1 - drawn.alpha[..., None])
        v = Views(images, ("a", "b", "c"), cameras)
        result, _ = run(
            [v], truth(), config(steps=400, exposure=True, lr_exposure=5e-3, sh_every=0.0, ssim_weight=0.0, **FROZEN)
        )
        torch.testing.assert_close(result.exposures[:, 0], self.GAINS[:, None].expand(3, 3), atol=0.02, rtol=0)
        assert result.exposures[:, 1].abs().max() < 0.02
        without, _ = run([v], truth(), config(steps=0, **FROZEN))
        assert result.train_psnr > without.train_psnr + 4

    def test_the_average_photo_keeps_its_own(self):
        result, _ = run([views()], disturbed(), config(steps=20, exposure=True))
        torch.testing.assert_close(result.exposures.mean(0), torch.tensor([[1.0] * 3, [0.0] * 3]), atol=1e-6, rtol=0)


class TestPoses:
    def test_refinement_finds_the_cameras(self):
        """Frozen true splats; cameras that are wrong by up to 2 degrees and 0.07 units come back."""
        v = views()
        units = torch.tensor([scene_extent([v])] * 3 + [1.0] * 3)
        tangents = 0.02 * torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
        tangents = without_similarity(tangents, similarity_motions(v.cameras.cam_from_world, units))
        wrong = se3_exp(tangents * units) @ v.cameras.cam_from_world
        moved = replace(v, cameras=replace(v.cameras, cam_from_world=wrong))
        result, _ = run([moved], truth(), config(steps=250, refine_poses=True, lr_poses=1e-3, sh_every=0.0, **FROZEN))
        error = (result.cameras[0].cam_from_world - v.cameras.cam_from_world).norm()
        before = (wrong - v.cameras.cam_from_world).norm()
        assert before > 0.04 and error < 0.25 * before
        rotation = result.cameras[0].cam_from_world[:, :3, :3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)

    def test_the_world_stays(self):
        """Whatever the cameras do, they do not move, turn or grow together."""
        v = views()
        result, _ = run([v], disturbed(), config(steps=60, refine_poses=True, lr_poses=1e-3))
        moved, still = (c.cam_from_world.double() for c in (result.cameras[0], v.cameras))
        motion = moved @ torch.linalg.inv(still)
        skew = (motion[:, :3, :3] - motion[:, :3, :3].mT) / 2
        tangents = torch.cat([motion[:, :3, 3], torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)], -1)
        units = torch.tensor([scene_extent([v])] * 3 + [1.0] * 3)
        left = without_similarity(tangents / units, similarity_motions(v.cameras.cam_from_world, units))
        assert tangents.norm() > 1e-3
        assert (tangents / units - left).norm() < 0.05 * (tangents / units).norm()


KILLED_FIT = """
import sys
sys.path.insert(0, {tests!r})
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_optimise import config, disturbed, run, views, QUICK_MCMC
c = config(steps=400, checkpoint_every=5, densify=QUICK_MCMC, exposure=True)
print("ready", flush=True)
run([views(masks=True)], disturbed(), c, Path({state!r}))
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_resumes_to_the_same_bits(tmp_path):
    """SIGKILL at 10 moments of the fit, then an undisturbed end."""
    state = tmp_path / "fit.safetensors"
    code = textwrap.dedent(KILLED_FIT).format(
        tests=str(Path(__file__).parents[1]), here=str(Path(__file__).parent), state=str(state)
    )
    moments = torch.rand(10, generator=torch.Generator().manual_seed(0)) * 2
    for moment in moments.tolist():
        job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert job.stdout.readline() == "ready\n"
        try:
            job.wait(moment)
        except subprocess.TimeoutExpired:
            os.kill(job.pid, signal.SIGKILL)
            job.wait()
        job.stdout.close()
    c = config(steps=400, checkpoint_every=5, densify=QUICK_MCMC, exposure=True)
    resumed, _ = run([views(masks=True)], disturbed(), c, state)
    undisturbed, _ = run([views(masks=True)], disturbed(), c)
    assert_same(resumed.splats, undisturbed.splats)


def test_no_gaussian_is_wider_than_its_share_of_the_distance():
    v = views()
    result, _ = run([v], disturbed(), config(max_scale=0.01, min_visibility=0.0, densify=NoDensify()))
    distance = torch.cdist(result.splats.means, v.cameras.centers).amin(1)
    assert bool((result.splats.scales <= 0.0101 * distance[:, None]).all())
    wide, _ = run([v], disturbed(), config(min_visibility=0.0, densify=NoDensify()))
    assert bool((wide.splats.scales > 0.0101 * distance[:, None]).any())
