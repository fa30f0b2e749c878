"""Tiny networks of the real classes with random numbers, and answers in the documented formats made from a known scene."""

import json

import torch

from recon.priors.learned import PriorWeights
from splat.cameras import Cameras, intrinsics

CENTRE = torch.tensor([0.3, -0.2, 0.5])


def weights(prior, folder, licence="Apache-2.0"):
    return PriorWeights(prior, folder, "a/tiny-one", licence)


def finished(job):
    """What a generator returns, and what it yielded."""
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return end.value, events


def tiny_depth_anything(folder, kind="relative"):
    """Depth Anything V2 on a DINOv2 of two layers, as `save_pretrained` writes it."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=56, patch_size=14,
        out_features=["stage1", "stage2"], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=4, depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )  # fmt: skip
    network = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        network.head.conv3.bias += 1.0  # or the last ReLU may leave nothing
    network.save_pretrained(folder, safe_serialization=True)
    processor = {"size": {"height": 70, "width": 70}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return network.eval()


def tiny_marigold(folder, what="depth", **settings):
    """A Marigold pipeline with networks of a few channels."""
    from diffusers import AutoencoderKL, DDIMScheduler, MarigoldDepthPipeline, MarigoldNormalsPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    parts = {
        "unet": UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=8, out_channels=4, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8, attention_head_dim=4,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=4, sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "scheduler": DDIMScheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=4, projection_dim=8,
                bos_token_id=0, eos_token_id=1, max_position_embeddings=8,
            )
        ),
        "tokenizer": CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8),
    }  # fmt: skip
    settings = {"prediction_type": what, "default_denoising_steps": 1, "default_processing_resolution": 32} | settings
    kind = MarigoldNormalsPipeline if what == "normals" else MarigoldDepthPipeline
    kind(**parts, **settings).save_pretrained(folder, safe_serialization=True)


def orbit(count=4, width=98, height=70):
    """Cameras on an arc, 14 degrees apart, round a ball of radius 0.8 at CENTRE; turned so that no axis is special."""
    cameras = Cameras.cat([Cameras.orbit(1, 3.0, 20.0, 50.0, width, height, azimuth_deg=10.0 + 14 * i) for i in range(count)])
    K = intrinsics(float(cameras.K[0, 0, 0]), width, height).expand(count, 3, 3)
    eyes = cameras.centers[:, [1, 2, 0]] + CENTRE
    return Cameras.look_at(eyes, CENTRE, torch.tensor([0.1, 0.9, 0.2]), K, width, height)


def as_vggt(cameras, depth, conf):
    """The dictionary that VGGT returns: translation, quaternion xyzw, fov_h, fov_w of camera-from-world."""
    from scipy.spatial.transform import Rotation

    pose = cameras.cam_from_world
    quats = torch.from_numpy(Rotation.from_matrix(pose[:, :3, :3].double().numpy()).as_quat()).float()  # x, y, z, w
    fov = [2 * torch.atan(0.5 * n / cameras.K[:, a, a]) for n, a in ((cameras.height, 1), (cameras.width, 0))]
    code = torch.cat([pose[:, :3, 3], quats, torch.stack(fov, dim=1)], dim=1)
    return {"pose_enc": code[None], "depth": depth[None, ..., None], "depth_conf": conf[None]}


def as_map_anything(cameras, depth, conf):
    """The list that MapAnything returns: one dictionary a photo, poses world-from-camera."""
    pose = torch.linalg.inv(cameras.cam_from_world.double()).float()
    return [
        {
            "camera_poses": pose[i : i + 1],
            "intrinsics": cameras.K[i : i + 1],
            "depth_z": depth[i : i + 1, ..., None],
            "conf": conf[i : i + 1],
            "mask": (depth[i : i + 1, ..., None] > 0),
            "metric_scaling_factor": torch.ones(1),
        }
        for i in range(len(cameras))
    ]


class AsDepthAnything3:
    """The fields of its `Prediction`: numpy, extrinsics 3 x 4."""

    def __init__(self, cameras, depth, conf):
        self.depth, self.conf = depth.numpy(), conf.numpy()
        self.extrinsics, self.intrinsics = cameras.cam_from_world[:, :3].numpy(), cameras.K.numpy()
        self.sky, self.is_metric = None, 0


def as_dust3r(cameras, i, j, depth, conf):
    """The two dictionaries of one pair: both pointmaps in the first camera's frame."""
    world = [cameras[k].unproject(cameras.pixel_centers, depth[k]) for k in (i, j)]
    pose = cameras.cam_from_world[i]
    first, second = (points @ pose[:3, :3].T + pose[:3, 3] for points in world)
    return {"pts3d": first[None], "conf": conf[i][None]}, {"pts3d_in_other_view": second[None], "conf": conf[j][None]}
