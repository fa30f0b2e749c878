"""Gradients of the native renderer on scenes at the edge of what can be drawn, against the reference in float64."""

import pytest
import torch
from test_native import outputs_and_gradients, random_splats

from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.render import RenderOptions, native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
INF = float("inf")

# Every second Gaussian of a scene, in the camera's frame: name -> changes by index; the others are ordinary.
LOG_SCALES = {
    "point": [-INF, -60.0, -15.0, -9.0],
    "huge": [0.5, 1.0, 2.0, 3.0],
    "enormous": [3.5, 4.0, 5.0, 6.0],
    "needle": [(-1.0, -12.0, -12.0), (0.0, -12.0, -12.0), (-12.0, 1.0, -12.0), (-12.0, -12.0, 0.5)],
    "disc": [(-1.0, -1.0, -30.0), (-30.0, 0.0, -1.0)],
}
LOGITS = {"clear": [-INF, -200.0, -5.6, -5.53], "solid": [INF, 200.0, 9.0, 6.9]}
PLACES = {
    "behind": [(0.1, 0.1, 0.0), (0.1, 0.1, -0.5), (0.1, 0.1, -3.0)],
    "near": [(0.001, 0.002, 0.011), (0.001, 0.002, 0.03), (0.01, 0.02, 0.05)],
    "at the near plane": [(0.001, 0.002, 0.0099), (0.001, 0.002, 0.0101), (0.001, 0.002, 0.0105)],
    "far": [(1.0, 2.0, 50.0), (1.0, 2.0, 1e4), (1.0, 2.0, 1e9)],
    "beside": [(2.5, 0.3, 1.0), (-2.0, 1.5, 1.0), (0.5, -2.5, 1.0)],
    "one depth": [(0.3, 0.1, 3.0), (-0.2, 0.2, 3.0), (0.1, -0.3, 3.0), (0.0, 0.0, 3.0)],
    "one place": [(0.1, 0.0, 3.0)],
}
QUATS = {"quats of any length": [1e-8, 1e8, 1e-4, 1e4]}
KINDS = [*LOG_SCALES, *LOGITS, *PLACES, *QUATS]


def scene(kind: str, width: int, height: int) -> tuple[Splats, Cameras]:
    # The camera is the world's frame, so that equal depths are equal in float32 and in float64.
    s = random_splats(16, 1, KINDS.index(kind), -3.0)
    means = s.means + torch.tensor([0.0, 0.0, 3.0])
    quats, log_scales, logits = s.quats.clone(), s.log_scales.clone(), s.opacity_logits.clone()
    for k, i in enumerate(range(0, 16, 2)):
        for table, target in ((LOG_SCALES, log_scales), (LOGITS, logits), (PLACES, means)):
            if kind in table:
                target[i] = torch.tensor(table[kind][k % len(table[kind])])
        if kind in QUATS:
            quats[i] *= QUATS[kind][k % 4]
    K = torch.tensor([[[1.1 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1]]])
    return Splats(means, quats, log_scales, logits, s.sh), Cameras(torch.eye(4)[None], K, width, height)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("size", [(24, 17), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_like_the_reference(kind, size, antialiased):
    """Relative error, in L2 over each group of parameters, up to 2e-4; one pixel alone, where sums cancel less, up to 1e-3.

    float32 keeps a pixel's remaining light to 6e-8, hence the absolute term.
    """
    splats, cameras = scene(kind, *size)
    options = RenderOptions(antialiased=antialiased)
    expected, truth = outputs_and_gradients("reference", splats, cameras, options, torch.float64)
    out, gradients = outputs_and_gradients("native", splats, cameras, options)
    relative, absolute = (1e-3 if size == (1, 1) else 2e-4), 2e-7
    for name in ("rgb", "alpha", "depth"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name).float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(out.radii > 0, expected.radii > 0)
    for name, value in truth.items():
        assert value.isfinite().all() and gradients[name].isfinite().all(), name
        error = (gradients[name] - value).norm()
        assert error <= relative * value.norm() + absolute, (name, float(error / value.norm()), float(value.norm()))
