"""The seam: which back-end is picked, what options every one gets, what is said when one cannot run."""

import pytest
import torch
from scenes import one_splat, orbit, random_splats

from splat.errors import BackendUnavailable
from splat.render import BACKENDS, RenderOptions, backend, pick_backend, render


def test_every_name_in_the_table_leads_to_a_function():
    for name in BACKENDS:
        assert callable(backend(name))


def test_the_choice_follows_the_device(monkeypatch):
    from splat.render import native

    assert pick_backend("cuda") == "gsplat" and pick_backend(torch.device("cuda", 1)) == "gsplat"
    for built, name in ((True, "native"), (False, "reference")):
        monkeypatch.setattr(native, "available", lambda built=built: built)
        assert pick_backend("cpu") == name


def test_unknown_back_end_lists_the_known_ones():
    with pytest.raises(BackendUnavailable, match="no renderer named vulkan; choose one of reference, native, gsplat"):
        render(random_splats(), orbit(), backend_name="vulkan")


def test_one_background_serves_every_camera(monkeypatch):
    got = []
    monkeypatch.setattr("splat.render.reference.render", lambda splats, cameras, options: got.append(options.background))
    render(random_splats(), orbit(3), RenderOptions(background=torch.tensor([0.1, 0.2, 0.3])), "reference")
    assert got[0].tolist() == [pytest.approx([0.1, 0.2, 0.3])] * 3


def test_options_default_to_black_and_all_bands():
    splats, cameras = random_splats(), orbit()
    plain = render(splats, cameras, backend_name="reference")
    assert torch.equal(plain.rgb, render(splats, cameras, RenderOptions(sh_degree=3), "reference").rgb)
    torch.testing.assert_close(plain.rgb, render(splats, cameras, RenderOptions(background=torch.zeros(3)), "reference").rgb)


def test_expected_depth_of_one_gaussian_is_its_depth():
    drawn = render(one_splat((0.0, 0, 0), (1.0, 1, 1)), orbit(2), backend_name="reference")
    hit = drawn.alpha > 0
    assert hit.any() and not hit.all()
    torch.testing.assert_close(drawn.expected_depth[hit], torch.full_like(drawn.expected_depth[hit], 3.0))
    assert drawn.expected_depth[~hit].abs().max() == 0
