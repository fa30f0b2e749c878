"""Densification: rows, Adam's moments and the picture stay in step; what is grown, split, pruned and moved."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import identity_camera, one_splat, random_splats

from splat.densify import (
    DEAD,
    ClassicDensify,
    Edit,
    ErrorDensify,
    MCMCDensify,
    NoDensify,
    Observations,
    apply_edit,
    error_shares,
    relocated,
    split_along_the_longest_axis,
)
from splat.gaussians import Splats
from splat.render import RenderOptions, render

FIELDS = ("means", "quats", "log_scales", "opacity_logits", "sh")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def adam(n, seed=0, steps=3):
    """Parameters of n rows and an Adam that has seen a few different gradients on every row."""
    g = generator(seed)
    parameters = {
        "means": torch.randn(n, 3, generator=g).requires_grad_(),
        "logit": torch.randn(n, generator=g).requires_grad_(),
    }
    other = torch.zeros(2, requires_grad=True)
    groups = [{"params": [p], "lr": 0.1, "name": name} for name, p in parameters.items()]
    optimiser = torch.optim.Adam([*groups, {"params": [other], "lr": 0.1, "name": "other"}], fused=True)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = sum((p * torch.randn(p.shape, generator=g)).sum() for p in parameters.values()) + other.sum()
        loss.backward()
        optimiser.step()
    return parameters, optimiser


def state_of(optimiser, parameter):
    return {key: value.clone() for key, value in optimiser.state[parameter].items()}


class TestApplyEdit:
    @given(st.data())
    def test_every_row_keeps_its_value_and_moments(self, data):
        n = data.draw(st.integers(1, 8))
        source = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12)))
        fresh = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(source), max_size=len(source))))
        rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, len(source) - 1)))), dtype=torch.long)
        values = torch.full((len(rows), 3), 7.0)
        parameters, optimiser = adam(n)
        before = {name: (p.detach().clone(), state_of(optimiser, p)) for name, p in parameters.items()}
        apply_edit(Edit(source, fresh, {"means": (rows, values)}), parameters, optimiser)
        for name, (old, state) in before.items():
            expected = old[source].clone()
            if name == "means":
                expected[rows] = 7.0
            assert torch.equal(parameters[name].detach(), expected) and parameters[name].requires_grad
            new_state = optimiser.state[parameters[name]]
            for key in ("exp_avg", "exp_avg_sq"):
                moment = state[key][source].clone()
                moment[fresh] = 0
                assert torch.equal(new_state[key], moment)
            assert torch.equal(new_state["step"], state["step"])

    def test_the_optimiser_moves_the_new_tensors_and_forgets_the_old(self):
        parameters, optimiser = adam(4)
        old = dict(parameters)
        apply_edit(Edit(torch.tensor([0, 0, 3]), torch.zeros(3, dtype=torch.bool)), parameters, optimiser)
        held = {id(p) for group in optimiser.param_groups for p in group["params"]}
        assert all(id(p) in held for p in parameters.values()) and not any(id(p) in held for p in old.values())
        assert len(optimiser.state) == 3 and not any(p in optimiser.state for p in old.values())
        before = parameters["means"].detach().clone()
        optimiser.zero_grad()
        parameters["means"].sum().backward()
        optimiser.step()
        assert not torch.equal(parameters["means"].detach(), before)

    def test_permuting_rows_and_stepping_is_stepping_and_permuting(self):
        """Would fail if values and moments were reordered differently."""
        order = torch.tensor([3, 1, 4, 0, 2])
        results = []
        for edit_first in (True, False):
            parameters, optimiser = adam(5)
            edit = Edit(order, torch.zeros(5, dtype=torch.bool))
            if edit_first:
                apply_edit(edit, parameters, optimiser)
            target = torch.arange(15.0).view(5, 3)
            optimiser.zero_grad()
            ((parameters["means"] - (target[order] if edit_first else target)) ** 2).sum().backward()
            optimiser.step()
            results.append(parameters["means"].detach() if edit_first else parameters["means"].detach()[order])
        assert torch.equal(*results)

    def test_before_the_first_step_there_are_no_moments(self):
        parameters, optimiser = adam(3, steps=0)
        apply_edit(Edit(torch.tensor([2, 2]), torch.ones(2, dtype=torch.bool)), parameters, optimiser)
        assert parameters["means"].shape == (2, 3) and not optimiser.state


def scene(opacity, size):
    """One row per entry: opacities and isotropic standard deviations as given."""
    base = random_splats(len(opacity), degree=0)
    log_scales = torch.tensor(size).log()[:, None].expand(-1, 3).contiguous()
    return Splats(base.means, base.quats, log_scales, torch.tensor(opacity).logit(), base.sh)


def edited(splats, edit):
    """`splats` after `edit`, as `apply_edit` would leave them."""
    values = {}
    for name in FIELDS:
        x = getattr(splats, name)[edit.source].clone()
        if name in edit.values:
            rows, new = edit.values[name]
            x[rows] = new
        values[name] = x
    return Splats(**values)


class TestError:
    def propose(self, splats, errors, step=500, cap=1000, **options):
        seen = Observations(torch.tensor(errors), torch.ones(len(splats)))
        return ErrorDensify(start=0, stop=1, edits=1000, **options).propose(step, 1000, splats, seen, 1.0, cap, generator())

    def test_splits_where_the_error_is_and_drops_what_is_faint(self):
        splats = scene([0.5, 0.01, 0.5, 0.5], [0.1] * 4)
        edit = self.propose(splats, [1.0, 9.0, 0.0, 0.0], max_growth=1.0)
        assert sorted(edit.source.tolist()) == [0, 0, 2, 3]
        halves = edit.source == 0
        assert edit.fresh.equal(halves)
        after = edited(splats, edit)
        assert not torch.equal(*after.means[halves])
        torch.testing.assert_close(after.means[halves].mean(0), splats.means[0])
        assert torch.equal(after.opacity_logits[halves], splats.opacity_logits[[0, 0]])

    def test_the_same_factor_at_every_edit_reaches_the_cap(self):
        splats, counts = scene([0.5] * 50, [0.1] * 50), [50]
        for step in range(1, 12):
            seen = Observations(torch.ones(len(splats)), torch.ones(len(splats)))
            edit = ErrorDensify(start=0, full=0.5, stop=1, edits=20).propose(step, 20, splats, seen, 1.0, 100, generator(step))
            splats = splats if edit is None else edited(splats, edit)
            counts.append(len(splats))
        growth = [b / a for a, b in itertools.pairwise(counts)]
        assert counts[10] == counts[11] == 100 and min(growth[:10]) > 1.05 and max(growth[:10]) < 1.1

    @pytest.mark.parametrize("opacities, errors", [([0.001] * 3, [1.0] * 3), ([0.5] * 3, [0.0] * 3)])
    def test_nothing_alive_or_nothing_wrong_changes_nothing(self, opacities, errors):
        assert self.propose(scene(opacities, [0.1] * 3), errors) is None

    def test_never_beyond_the_cap(self):
        assert self.propose(scene([0.5] * 5, [0.1] * 5), [1.0] * 5, cap=5) is None
        assert len(self.propose(scene([0.5] * 5, [0.1] * 5), [1.0] * 5, step=500, cap=6, max_growth=1.0).source) == 6

    def test_halves_together_have_the_old_mean_and_covariance(self):
        splats = random_splats(30, seed=3).to(torch.float64)
        means, log_scales = split_along_the_longest_axis(splats)
        halves = Splats.cat([splats, splats])
        halves = Splats(means, halves.quats, log_scales, halves.opacity_logits, halves.sh)
        offsets = means - splats.means.repeat(2, 1)
        spread = (halves.covariances() + offsets[:, :, None] * offsets[:, None, :]).unflatten(0, (2, 30)).mean(0)
        torch.testing.assert_close(means.unflatten(0, (2, 30)).mean(0), splats.means)
        torch.testing.assert_close(spread, splats.covariances())

    def test_error_shares_are_the_error_under_each_gaussians_weights(self):
        """By hand: the weights are how the picture answers to one Gaussian's red."""
        splats = random_splats(6, degree=0, seed=1)
        truth = torch.rand(1, 33, 33, 3, generator=generator())

        def draw(splats, _photo):
            return render(splats, identity_camera(), RenderOptions(), "reference").rgb, truth

        image, _ = draw(splats, 0)
        expected = []
        for k in range(6):
            redder = splats.sh.clone()
            redder[k, 0, 0] += 1 / 0.28209479
            weights = (draw(Splats(*[getattr(splats, f) for f in FIELDS[:4]], redder), 0)[0] - image)[0, ..., 0]
            expected.append((weights * (image - truth)[0].abs().mean(-1)).sum())
        shares = error_shares(splats, draw, [0, 0])
        torch.testing.assert_close(shares, 2 * torch.stack(expected), rtol=1e-3, atol=1e-4)
        assert shares.max() > 0.1


class TestClassic:
    SMALL, LARGE, HUGE = 0.005, 0.02, 0.5  # of an extent of 1

    def propose(self, splats, gradient, cap=1000, **options):
        seen = Observations(torch.tensor(gradient) * 4, torch.full((len(splats),), 4.0))
        strategy = ClassicDensify(**options)
        return strategy.propose(300, 1000, splats, seen, 1.0, cap, generator())

    def test_clones_small_splits_large_prunes_faint_and_huge(self):
        splats = scene([0.5, 0.5, 0.5, 0.001, 0.5], [self.SMALL, self.LARGE, self.SMALL, self.SMALL, self.HUGE])
        edit = self.propose(splats, [1e-3, 1e-3, 1e-5, 1e-3, 1e-5])
        assert sorted(edit.source.tolist()) == [0, 0, 1, 1, 2]
        after = edited(splats, edit)
        twins = (edit.source == 1).nonzero().flatten()
        torch.testing.assert_close(after.scales[twins], splats.scales[1].expand(2, 3) / 1.6)
        assert not torch.equal(after.means[twins[0]], after.means[twins[1]])
        assert (after.means[twins] - splats.means[1]).norm(dim=1).max() < 6 * self.LARGE
        clones = (edit.source == 0).nonzero().flatten()
        assert torch.equal(after.means[clones[0]], after.means[clones[1]])
        assert edit.fresh[clones].tolist() == [False, True] and edit.fresh[twins].all()

    def test_the_mean_of_the_gradient_counts_not_the_sum(self):
        splats = scene([0.5, 0.5], [self.SMALL] * 2)
        seen = Observations(torch.tensor([4e-4, 4e-4]), torch.tensor([1.0, 4.0]))
        edit = ClassicDensify().propose(300, 1000, splats, seen, 1.0, 100, generator())
        assert sorted(edit.source.tolist()) == [0, 0, 1]

    @pytest.mark.parametrize("cap", [3, 4, 5])
    def test_cap_lets_the_most_wanted_grow(self, cap):
        splats = scene([0.5] * 3, [self.SMALL, self.LARGE, self.SMALL])
        edit = self.propose(splats, [1e-3, 3e-3, 2e-3], cap=cap)
        if cap == 3:
            assert edit is None
        else:
            assert len(edit.source) == cap
            assert edit.source.tolist().count(1) == 2 and edit.source.tolist().count(2) == (2 if cap == 5 else 1)

    def test_only_between_start_and_stop_and_every_so_often(self):
        splats = scene([0.5], [self.SMALL])
        seen = Observations(torch.ones(1), torch.ones(1))
        strategy = ClassicDensify(start=0.2, stop=0.5, every=50)
        steps = [s for s in range(1, 1001) if strategy.propose(s, 1000, splats, seen, 1.0, 10, generator()) is not None]
        assert steps == [200, 250, 300, 350, 400, 450, 500]

    def test_opacity_reset_keeps_rows_and_only_lowers(self):
        splats = scene([0.5, 0.006], [self.SMALL] * 2)
        edit = ClassicDensify(reset_at=(0.25,)).propose(250, 1000, splats, Observations.empty(2, "cpu"), 1.0, 10, generator())
        assert edit.source.tolist() == [0, 1]
        assert edited(splats, edit).opacities.tolist() == pytest.approx([0.01, 0.006])

    def test_all_dead_keeps_the_scene(self):
        assert self.propose(scene([0.001] * 3, [self.SMALL] * 3), [0.0] * 3) is None

    def test_observe_measures_in_half_images_and_counts_views_that_drew(self):
        """The gradient of the mean of the picture by hand: one Gaussian, one camera, one that misses it."""
        splats = Splats.cat([one_splat((0.1, 0.05, 2), (1.0, 0, 0)), one_splat((0.0, 0, -2), (1.0, 0, 0))])
        splats = splats.map(lambda x: x.requires_grad_())
        drawn = render(splats, identity_camera(), RenderOptions(track_means2d=True), "reference")
        (drawn.rgb * torch.rand(drawn.rgb.shape, generator=generator())).sum().backward()
        seen = ClassicDensify().observe(Observations.empty(2, "cpu"), drawn, 33, 33)
        assert seen.seen.tolist() == [1, 0] and seen.score[1] == 0
        expected = (drawn.means2d_probe.grad[0, 0] * 16.5).norm()
        assert float(seen.score[0]) == pytest.approx(float(expected)) and expected > 0
        again = ClassicDensify().observe(seen, drawn, 33, 33)
        assert again.seen.tolist() == [2, 0] and float(again.score[0]) == pytest.approx(2 * float(expected))


class TestMCMC:
    def propose(self, splats, cap=1000, step=300, seed=0, **options):
        seen = Observations.empty(len(splats), "cpu")
        return MCMCDensify(**options).propose(step, 1000, splats, seen, 1.0, cap, generator(seed))

    def test_dead_rows_move_onto_live_ones_and_none_is_lost(self):
        splats = scene([0.5, 0.001, 0.8, 0.004], [0.1, 0.2, 0.3, 0.4])
        edit = self.propose(splats, cap=4)
        assert len(edit.source) == 4 and edit.source[[0, 2]].tolist() == [0, 2]
        assert set(edit.source[[1, 3]].tolist()) <= {0, 2}
        after = edited(splats, edit)
        assert (after.opacities > DEAD).all()
        for row in range(4):
            assert torch.equal(after.means[row], splats.means[edit.source[row]])
        # Every member of a group has the same opacity and together they absorb as the one did.
        for old in (0, 2):
            members = edit.source == old
            together = 1 - (1 - after.opacities[members]).prod()
            assert float(together) == pytest.approx(float(splats.opacities[old]), abs=1e-5)
            assert bool(edit.fresh[members].all()) == (int(members.sum()) > 1)

    def test_grows_by_the_rate_up_to_the_cap(self):
        splats = scene([0.5] * 100, [0.1] * 100)
        assert len(self.propose(splats, growth=0.05).source) == 105
        assert len(self.propose(splats, growth=0.05, cap=103).source) == 103
        assert self.propose(splats, cap=100) is None
        assert self.propose(splats, cap=50) is None  # nothing is removed

    def test_opaque_gaussians_are_chosen_more_often(self):
        splats = scene([0.9, 0.1, *[0.001] * 2000], [0.1] * 2002)
        chosen = self.propose(splats, cap=2002).source[2:]
        assert float((chosen == 0).float().mean()) == pytest.approx(0.9, abs=0.03)

    def test_all_dead_proposes_nothing(self):
        assert self.propose(scene([0.001] * 3, [0.1] * 3)) is None

    def test_the_same_generator_the_same_edit(self):
        splats = scene([0.5, 0.001] * 10, [0.1] * 20)
        assert torch.equal(self.propose(splats).source, self.propose(splats).source)
        assert not torch.equal(self.propose(splats).source, self.propose(splats, seed=1).source)

    @pytest.mark.parametrize("copies", [2, 3, 10])
    def test_copies_together_look_like_the_one(self, copies):
        """Same opacity at the centre and nearly the same picture, which plain copies are far from."""
        one = one_splat((0.0, 0, 2), (1.0, 1, 1), (0.2,) * 3, 0.7)
        opacity, log_scales = relocated(one.opacities, one.log_scales, torch.tensor([copies]))
        many = Splats.cat([Splats(one.means, one.quats, log_scales, opacity.logit(), one.sh)] * copies)
        naive = Splats.cat([one] * copies)
        before, after, wrong = (render(s, identity_camera(), backend_name="reference").alpha for s in (one, many, naive))
        assert float(after[0, 16, 16]) == pytest.approx(float(before[0, 16, 16]), abs=1e-4)
        assert (after - before).abs().mean() < 0.15 * (wrong - before).abs().mean()
        assert float(after.sum()) == pytest.approx(float(before.sum()), rel=0.1)

    def test_relocation_of_two_by_hand(self):
        """Eq. 8 for N = 2: o' = 1 - sqrt(1 - o), scale by o / (2 o' - o'^2 / sqrt 2)."""
        o = torch.tensor([0.7, 0.2])
        opacity, log_scales = relocated(o, torch.zeros(2, 3), torch.tensor([2, 1]))
        new = 1 - 0.3**0.5
        assert opacity.tolist() == pytest.approx([new, 0.2])
        assert log_scales.exp()[:, 0].tolist() == pytest.approx([0.7 / (2 * new - new**2 / 2**0.5), 1.0])

    def test_many_copies_stay_finite(self):
        opacity, log_scales = relocated(torch.tensor([0.999999, 0.006]), torch.zeros(2, 3), torch.tensor([500, 500]))
        assert opacity.isfinite().all() and log_scales.isfinite().all() and (opacity > 0).all() and (log_scales <= 0).all()

    def test_jitter_moves_faint_gaussians_along_their_shape(self):
        flat = Splats(
            torch.zeros(400, 3), torch.tensor([[1.0, 0, 0, 0]]).repeat(400, 1),
            torch.tensor([[0.1, 0.01, 0.001]]).log().repeat(400, 1), torch.tensor([0.004]).logit().repeat(400),
            torch.zeros(400, 1, 3),
        )  # fmt: skip
        opaque = Splats(flat.means, flat.quats, flat.log_scales, flat.opacity_logits + 8, flat.sh)
        rows, offsets = MCMCDensify(noise=1.0).perturb(Splats.cat([opaque, flat]), 1.0, generator())
        assert rows.tolist() == list(range(400, 800))
        gate = torch.sigmoid(torch.tensor(100 * (0.996 - 0.995)))
        torch.testing.assert_close(offsets.std(0), gate * torch.tensor([1e-2, 1e-4, 1e-6]), rtol=0.1, atol=0)
        assert MCMCDensify(noise=0).perturb(flat, 1.0, generator()) is None
        assert MCMCDensify().perturb(opaque, 1.0, generator()) is None


def test_no_densify_does_nothing():
    splats = random_splats(3)
    strategy = NoDensify()
    assert strategy.propose(100, 1000, splats, Observations.empty(3, "cpu"), 1.0, 10, generator()) is None
    assert strategy.perturb(splats, 1.0, generator()) is None and not strategy.needs_means2d
