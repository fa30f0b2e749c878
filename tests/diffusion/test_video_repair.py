"""A video network repairs the frames of a path together: a small random one of the real class."""

import dataclasses
import shutil

import pytest
import torch
from tiny_stable_diffusion import save_tiny_stable_diffusion, save_tiny_video_network

from diffusion.video_repair import VideoRepairConfig, load_video_repairer
from splat.errors import InputError
from splat.repair_request import RepairRequest

PLAIN = VideoRepairConfig(least_side=8, keep_px=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_video_network(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def repairer(checkpoint):
    return load_video_repairer(checkpoint, PLAIN)


def request(count=3, h=19, w=26, trust=0.0, seed=0):
    images = torch.rand(count, h, w, 3, generator=torch.Generator().manual_seed(1))
    rows = torch.zeros(count, 0, h, w)
    alpha = torch.ones(count, h, w)
    return RepairRequest(images, alpha, trust * alpha, torch.zeros(count, 0, h, w, 3), rows, seed)


def test_frames_come_back_in_their_own_size_the_same_way_every_time(repairer):
    asked = request()
    made = repairer(asked)
    assert made.shape == asked.images.shape and float(made.min()) >= 0 and float(made.max()) <= 1
    assert torch.equal(made, repairer(asked)) and not torch.equal(made, asked.images)
    assert not torch.equal(made, repairer(dataclasses.replace(asked, seed=1)))
    assert repairer.licences[0].endswith("CC BY-NC 4.0")


def test_frames_see_each_other(repairer):
    asked = request()
    others = asked.images.clone()
    others[2] = 1 - others[2]
    made, other = repairer(asked), repairer(dataclasses.replace(asked, images=others))
    assert not torch.allclose(made[0], other[0], atol=1e-5)


def test_without_noise_nothing_changes(repairer):
    asked = request()
    for strength in (0.0, 0.0005):
        still = dataclasses.replace(repairer, config=dataclasses.replace(PLAIN, strength=strength))
        assert torch.equal(still(asked), asked.images)


def test_calls_are_counted(repairer):
    heard = []
    hook = repairer.pipeline.unet.register_forward_hook(lambda *_: heard.append(1))
    repairer(request(2))
    hook.remove()
    assert len(heard) == PLAIN.calls


def test_other_folders_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="not UNet3DConditionModel"):
        load_video_repairer(save_tiny_stable_diffusion(tmp_path / "sd"), PLAIN)
    folder = shutil.copytree(checkpoint, tmp_path / "video")
    shutil.rmtree(folder / "vae")
    with pytest.raises(InputError, match="lacks vae"):
        load_video_repairer(folder, PLAIN)
