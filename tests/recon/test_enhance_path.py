"""Frames of a path, repaired one by one and made steady: ray-cast scenes, whose every surface is known."""

import dataclasses

import pytest
import torch

from recon.enhance_path import EnhanceConfig, Frame, enhance_path, flicker_of, steadied_change
from recon.initialise import initial_splats
from recon.rendered_scenes import SceneConfig, furnished
from recon.repair.request import repair_request, seen_photos
from splat.cameras import Cameras
from splat.mesh import Mesh
from splat.metrics import psnr
from splat.points import PointCloud
from splat.raycast import raycast
from splat.views import Views

COUNT, SIZE = 9, (96, 72)
WHITE = torch.ones(3)


def pyramid():
    corners = torch.tensor([[-0.4, 0, -0.4], [0.4, 0, -0.4], [0.4, 0, 0.4], [-0.4, 0, 0.4], [0, 0.8, 0.0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [1, 0, 4], [2, 1, 4], [3, 2, 4], [0, 3, 4]])
    return Mesh(corners, faces, torch.rand(5, 3, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def path():
    """(truth [T, H, W, 3], depth, cameras): an eleventh of a turntable round two pyramids, 4 degrees a frame."""
    mesh = furnished([pyramid(), pyramid()], 7, SceneConfig(detail=0.05))
    cameras = Cameras.orbit(90, 2.2, 25.0, 50.0, *SIZE, target=torch.tensor([0.0, 0.3, 0.0]))[list(range(COUNT))]
    views, depth = raycast(mesh, cameras, threads=1)
    return views.images, depth, cameras


def blotches(count, height, width, seed=0):
    """Every frame its own smooth mistakes, as of a network that knows of no other frame."""
    coarse = torch.randn(count, 3, height // 6, width // 6, generator=torch.Generator().manual_seed(seed))
    return 0.08 * torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").permute(0, 2, 3, 1)


def frames_of(path, noise):
    truth, depth, cameras = path
    render = 0.5 * truth + 0.2  # damaged alike in every frame
    return [
        Frame(cameras[i], render[i], torch.ones_like(depth[i]), depth[i], truth[i] - render[i] + noise[i])
        for i in range(len(truth))
    ]


def test_the_average_along_surfaces_flickers_less_and_is_nearer_to_the_truth(path):
    truth, config = path[0], EnhanceConfig()
    frames = frames_of(path, blotches(COUNT, SIZE[1], SIZE[0]))
    shown = {"repaired": [], "steadied": []}
    for i, frame in enumerate(frames):
        shown["repaired"].append(frame.render + frame.change)
        around = [f for k, f in enumerate(frames) if 0 < abs(k - i) <= config.reach]
        shown["steadied"].append(frame.render + steadied_change(frame, around, config))
    flicker = {
        name: sum(flicker_of(a, b, x, y) for a, b, x, y in zip(frames, frames[1:], made, made[1:]))
        for name, made in shown.items()
    }
    quality = {name: float(psnr(torch.stack(made[3:-3]), truth[3:-3]).mean()) for name, made in shown.items()}
    assert flicker["steadied"] < 0.6 * flicker["repaired"], flicker
    assert quality["steadied"] > quality["repaired"] + 3, quality


def test_what_all_frames_agree_on_stays(path):
    """A change that sits on the surfaces is carried to itself, up to sampling; one frame's own is not."""
    truth = path[0]
    frames = frames_of(path, torch.zeros(COUNT, *truth.shape[1:]))
    middle = steadied_change(frames[4], frames[2:4] + frames[5:7], EnhanceConfig())
    assert float((middle - frames[4].change).abs().mean()) < 0.02
    assert torch.equal(steadied_change(frames[4], [], EnhanceConfig()), frames[4].change)


def test_what_stood_behind_something_takes_nothing_from_it(path):
    """One frame paints all that is near; where another frame sees the far wall, nothing of the paint arrives."""
    frames = frames_of(path, torch.zeros(COUNT, *path[0].shape[1:]))

    def height_and_reach(frame):
        xyz = frame.camera.unproject(frame.camera.pixel_centers, frame.depth)
        return xyz[..., 1], xyz[..., [0, 2]].norm(dim=-1)

    height, reach = height_and_reach(frames[1])
    near = ((height > 0.15) & (reach < 0.6))[..., None]
    painted = dataclasses.replace(frames[1], change=torch.where(near, torch.tensor([5.0, 5, 5]), torch.zeros(3)))
    still = dataclasses.replace(frames[7], change=torch.zeros(SIZE[1], SIZE[0], 3))
    made = steadied_change(still, [painted], EnhanceConfig(likeness=10.0))
    height, reach = height_and_reach(frames[7])
    behind = (height < 0.02) | (reach > 1.5)
    assert behind.float().mean() > 0.5 and float(made[behind].abs().max()) == 0
    assert float(made[(height > 0.2) & (reach < 0.5)].mean()) > 0.5


@pytest.fixture(scope="module")
def splats(path):
    """Little discs on all surfaces that the path shows: a damaged scene, whose depth is right."""
    truth, depth, cameras = path
    points = [cameras[i].unproject(cameras[i].pixel_centers, depth[i])[::2, ::2].reshape(-1, 3) for i in range(0, COUNT, 4)]
    colours = [truth[i, ::2, ::2].reshape(-1, 3) for i in range(0, COUNT, 4)]
    xyz = torch.cat(points)
    radius = torch.full((len(xyz),), 0.022)
    made = initial_splats(PointCloud(xyz, torch.cat(colours), torch.ones(len(xyz)), radius))
    return dataclasses.replace(made, opacity_logits=torch.full_like(made.opacity_logits, 3.0))


def enhanced(splats, path, repairer, photos=(), **settings):
    frames, events = [], []
    job = enhance_path(splats, path[2], photos, WHITE, repairer, EnhanceConfig(**settings), frames.append)
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return torch.stack(frames), end.value, events


class PerFrame:
    """Gives truth with the frame's own mistakes, and remembers what it was asked."""

    def __init__(self, made):
        self.made, self.asked, self.at = made, [], 0

    def __call__(self, request):
        self.asked.append(request)
        count = len(request.images)
        self.at += count
        return self.made[self.at - count : self.at]


def test_a_path_comes_out_steadier_and_no_worse(path, splats):
    truth = path[0]
    repaired = (truth + blotches(COUNT, SIZE[1], SIZE[0], 1)).clamp(0, 1)
    frames, steadiness, events = enhanced(splats, path, PerFrame(repaired), chunk=4)
    assert frames.shape == truth.shape and float(frames.min()) >= 0 and float(frames.max()) <= 1
    assert steadiness.steadied < 0.7 * steadiness.repaired, steadiness
    assert float(psnr(frames, truth).mean()) > float(psnr(repaired, truth).mean()) + 1
    assert [e.step for e in events] == list(range(COUNT + 1)) and events[-1].preview.shape == (SIZE[1], SIZE[0], 3)
    raw, _, _ = enhanced(splats, path, PerFrame(repaired), chunk=4, reach=0)
    assert torch.allclose(raw, repaired, atol=1e-6)


def test_a_repairer_that_changes_nothing_leaves_the_renders(path, splats):
    frames, steadiness, _ = enhanced(splats, path, lambda request: request.images, chunk=5)
    asked = PerFrame(torch.zeros_like(path[0]))
    enhanced(splats, path, asked, chunk=COUNT, reach=0)
    assert torch.allclose(frames, asked.asked[0].images, atol=1e-6)
    assert steadiness.steadied == pytest.approx(steadiness.rendered, abs=1e-6)


def test_without_photos_solid_renders_are_trusted_and_with_them_what_they_saw(path, splats):
    asked = PerFrame(path[0])
    enhanced(splats, path, asked, chunk=COUNT)
    request = asked.asked[0]
    assert float(request.trust.min()) == 1 and not request.known.any() and request.warped.shape[1] == 2
    photos = [Views(path[0][::4], tuple("abc"), path[2][list(range(0, COUNT, 4))])]
    asked = PerFrame(path[0])
    enhanced(splats, path, asked, photos, chunk=COUNT)
    assert float(asked.asked[0].known.mean()) > 0.5 and asked.asked[0].seed == 0


def test_the_depth_of_photos_is_drawn_once(path, splats, monkeypatch):
    photos, drawn = [Views(path[0][::4], tuple("abc"), path[2][list(range(0, COUNT, 4))])], []
    monkeypatch.setattr("recon.enhance_path.seen_photos", lambda *a: drawn.append(a) or seen_photos(*a))
    again = "drawn again"
    monkeypatch.setattr("recon.repair.request.seen_photos", lambda *a: pytest.fail(again))
    asked = PerFrame(path[0])
    enhanced(splats, path, asked, photos, chunk=4)
    assert len(drawn) == 1 and len(asked.asked) == 3
    monkeypatch.undo()
    last = path[2][[COUNT - 1]]
    assert torch.equal(asked.asked[-1].warped, repair_request(splats, photos, last, WHITE).warped)


def test_chunks_that_overlap_fade_into_each_other(path, splats):
    """The second chunk is brighter; the frames given twice lie between, nearer and nearer to the second."""
    levels = iter((0.2, 0.6, 0.6))
    frames, _, _ = enhanced(splats, path, lambda r: torch.full_like(r.images, next(levels)), chunk=6, overlap=3, reach=0)
    means = frames.mean((1, 2, 3))
    assert torch.allclose(means, torch.tensor([0.2, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6]), atol=1e-5)


@pytest.mark.parametrize("count, chunk, overlap, reach", [(1, 4, 0, 3), (2, 1, 0, 1), (5, 5, 4, 2), (7, 3, 2, 5), (3, 8, 5, 0)])
def test_every_frame_comes_once_and_in_order(path, splats, count, chunk, overlap, reach):
    part = path[0][:count], path[1][:count], path[2][list(range(count))]
    frames, _, _ = enhanced(splats, part, lambda r: r.images, chunk=chunk, overlap=overlap, reach=reach)
    whole, _, _ = enhanced(splats, part, lambda r: r.images, chunk=count, reach=0)
    assert torch.allclose(frames, whole, atol=1e-6)
