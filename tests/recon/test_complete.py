"""Filling what stereo could not see."""

import torch

from recon.complete import complete
from recon.priors import DepthMap
from splat.cameras import Cameras
from splat.points import PointCloud
from splat.views import Views


def floor_scene(masks=None):
    """Two cameras over the floor y = 0, and points on the middle of it only."""
    eyes = torch.tensor([[0.0, 1.0, 2.0], [0.5, 1.0, 2.0]])
    K = torch.tensor([[160.0, 0, 80], [0, 160, 60], [0, 0, 1]])
    cameras = Cameras.look_at(eyes, torch.zeros(3), torch.tensor([0.0, 1, 0]), K, 160, 120)
    images = torch.full((2, 120, 160, 3), 0.5)
    images[..., 0] = 0.25
    grid = torch.linspace(-0.7, 0.7, 100)
    x, z = torch.meshgrid(grid, grid, indexing="ij")
    xyz = torch.stack([x.flatten(), torch.zeros(10_000), z.flatten()], -1)
    cloud = PointCloud(xyz, torch.rand(10_000, 3), torch.ones(10_000), torch.full((10_000,), 0.01))
    views = [Views(images, ("a", "b"), cameras, masks)]
    return views, cloud, maps_of(views, cloud)


def maps_of(views, cloud):
    """Depth maps that know the cloud's points and nothing else."""
    maps = []
    for c in range(2):
        depth = torch.full((60 * 80,), torch.inf)
        camera = views[0].cameras[c].resized(80, 60)
        pixels, z = camera.project(cloud.xyz)
        at = pixels[0].floor().long()
        inside = (z[0] > 0) & (at >= 0).all(-1) & (at[:, 0] < 80) & (at[:, 1] < 60)
        depth.scatter_reduce_(0, (at[:, 1] * 80 + at[:, 0])[inside], z[0][inside], "amin")
        depth = torch.where(depth.isfinite(), depth, 0.0).view(60, 80)
        maps.append(DepthMap(views[0].names[c], depth, (depth > 0).float()))
    return maps


def test_holes_continue_the_floor():
    views, cloud, maps = floor_scene()
    added = complete(views, cloud, maps)
    assert len(added) > 200
    below_horizon = added.xyz.norm(dim=1) < 2  # far guesses are damped on purpose
    height = added.xyz[below_horizon, 1].abs()
    assert float(height.median()) < 0.04
    assert torch.allclose(added.rgb, torch.tensor([0.25, 0.5, 0.5]), atol=1e-3)
    assert float(added.confidence.max()) <= 0.051
    assert added.radius is not None and bool((added.radius > 0).all())
    pixels, depth = views[0].cameras.project(torch.cat([cloud.xyz, added.xyz]))
    covered = torch.zeros(2, 15, 20, dtype=torch.bool)
    for c in range(2):
        at = (pixels[c] / 8).floor().long()
        inside = (depth[c] > 0) & (at >= 0).all(-1) & (at[:, 0] < 20) & (at[:, 1] < 15)
        covered[c, at[inside, 1], at[inside, 0]] = True
    assert float(covered.float().mean()) > 0.95


def test_masked_views_and_complete_clouds_need_nothing():
    views, cloud, maps = floor_scene(masks=torch.ones(2, 120, 160))
    assert len(complete(views, cloud, maps)) == 0


def test_a_guess_never_hides_what_another_photo_sees():
    views, cloud, _ = floor_scene()
    # The second photo knows a wall far behind everything in its upper half: guesses must not stand before it.
    camera = views[0].cameras[1]
    x, y = torch.meshgrid(torch.arange(0, 160, 2) + 0.5, torch.arange(0, 60, 2) + 0.5, indexing="ij")
    ray = torch.stack([(x.flatten() - 80) / 160, (y.flatten() - 60) / 160, torch.ones(x.numel())], -1) * 30
    back = camera.world_from_cam[0]
    wall = ray @ back[:3, :3].T + back[:3, 3]
    far = PointCloud(wall, torch.rand(len(wall), 3), torch.ones(len(wall)), torch.full((len(wall),), 0.2))
    cloud = PointCloud.cat([cloud, far])
    added = complete(views, cloud, maps_of(views, cloud))
    pixels, depth = camera.project(added.xyz)
    before_wall = (
        (pixels[0, :, 1] < 56) & (pixels[0, :, 1] > 0) & (pixels[0, :, 0] > 0) & (pixels[0, :, 0] < 160) & (depth[0] > 0)
    )
    assert not bool((depth[0][before_wall] < 0.9 * 29).any())
