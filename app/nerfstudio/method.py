"""nerfstudio's method `splatsmith`: splatfacto's training with our first Gaussians and our renderer, on a CPU or a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from gsplat.strategy import DefaultStrategy
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from nerfstudio.utils.colors import get_color
from pytorch_msssim import SSIM
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio

from app.nerfstudio.dataparser import SplatsmithDataParserConfig
from splat.cameras import Cameras
from splat.gaussians import Splats
from splat.io import load
from splat.render import RenderOptions, render


@dataclass
class SplatsmithModelConfig(SplatfactoModelConfig):
    """Splatfacto's settings; what differs suits few photos, whose first Gaussians are dense already."""

    _target: type = field(default_factory=lambda: SplatsmithModel)
    sh_degree: int = 2
    """Highest degree of view-dependent colour."""
    num_downscales: int = 0
    """Halvings of the pictures at the start; they are small already."""
    background_color: str = "white"
    """Behind the splats: random, black or white."""
    use_absgrad: bool = True
    """Densify by the sum of absolute gradients over a Gaussian's pixels."""
    cull_alpha_thresh: float = 0.005
    """Fainter Gaussians are removed."""
    densify: bool = True
    """Split and remove Gaussians as splatfacto does."""


class SplatsmithModel(SplatfactoModel):
    """Starts from the Gaussians that the data parser found, and draws with `splat.render`."""

    config: SplatsmithModelConfig

    def populate_modules(self) -> None:
        # Splatfacto's own needs CUDA, and downloads the weights of its LPIPS.
        config, initial = self.config, self._initial()
        initial = initial.with_sh_degree(config.sh_degree)
        self.all_bands = bool((initial.sh[:, 1:] != 0).any())  # a fitted scene goes on with its view-dependent colour
        parameters = {
            "means": initial.means,
            "scales": initial.log_scales,
            "quats": initial.quats,
            "features_dc": initial.sh[:, 0],
            "features_rest": initial.sh[:, 1:],
            "opacities": initial.opacity_logits[:, None],
        }
        self.gauss_params = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(value.clone().contiguous()) for name, value in parameters.items()}
        )
        self.camera_optimizer = config.camera_optimizer.setup(num_cameras=self.num_train_data, device="cpu")
        self.psnr, self.ssim = PeakSignalNoiseRatio(data_range=1.0), SSIM(data_range=1.0, size_average=True, channel=3)
        self.step, self.crop_box = 0, None
        self.background_color = get_color("white" if config.background_color == "random" else config.background_color)
        self.strategy = DefaultStrategy(
            prune_opa=config.cull_alpha_thresh,
            grow_grad2d=config.densify_grad_thresh,
            grow_scale3d=config.densify_size_thresh,
            grow_scale2d=config.split_screen_size,
            prune_scale3d=config.cull_scale_thresh,
            prune_scale2d=config.cull_screen_size,
            refine_scale2d_stop_iter=config.stop_screen_size_at,
            refine_start_iter=config.warmup_length,
            refine_stop_iter=config.stop_split_at,
            reset_every=config.reset_alpha_every * config.refine_every,
            refine_every=config.refine_every,
            pause_refine_after_reset=self.num_train_data + config.refine_every,
            absgrad=config.use_absgrad,
        )
        self.strategy_state = self.strategy.initialize_state(scene_scale=1.0)

    def _initial(self) -> Splats:
        path = (self.kwargs.get("metadata") or {}).get("splatsmith_initial")
        if path is not None:
            return load(path)
        from recon.initialise import initial_splats
        from splat.points import PointCloud

        if self.seed_points is None:
            raise ValueError("The method splatsmith starts from points; use its data parser: splatsmith-data --data PHOTOS.")
        xyz, rgb = self.seed_points  # of another data parser
        return initial_splats(PointCloud(xyz.float(), rgb.float() / 255))

    def splats(self) -> Splats:
        """The Gaussians as they are; gradients flow to the parameters."""
        sh = torch.cat([self.features_dc[:, None], self.features_rest], dim=1)
        return Splats(self.means, self.quats, self.scales, self.opacities[:, 0], sh)

    def get_outputs(self, camera: NerfstudioCameras) -> dict[str, Tensor]:
        """rgb [H, W, 3], depth and accumulation [H, W, 1], background; one camera at a time."""
        assert camera.shape[0] == 1, "one camera at a time"
        pose = self.camera_optimizer.apply_to_camera(camera) if self.training else camera.camera_to_worlds
        scale = self._get_downscale_factor()
        camera.rescale_output_resolution(1 / scale)
        K, width, height = camera.get_intrinsics_matrices().to(self.device), int(camera.width.item()), int(camera.height.item())
        camera.rescale_output_resolution(scale)
        ours = Cameras(_cam_from_world(pose.to(self.device)), K, width, height)

        splats, background = self.splats(), self._get_background_color()
        if self.crop_box is not None and not self.training:
            splats = splats[self.crop_box.within(self.means).squeeze()]
            if len(splats) == 0:
                return self.get_empty_outputs(width, height, background)
        bands = min(self.step // self.config.sh_degree_interval, self.config.sh_degree)
        bands = None if self.all_bands or not self.training else bands
        densifies = self.training and self.config.densify
        drawn = render(splats, ours, RenderOptions(background=background, sh_degree=bands, track_means2d=densifies))
        if densifies:
            self.info = {
                "means2d": drawn.means2d_probe, "radii": drawn.radii, "width": width, "height": height, "n_cameras": 1,
                "gaussian_ids": None,
            }  # fmt: skip
            self.strategy.step_pre_backward(self.gauss_params, self.optimizers, self.strategy_state, self.step, self.info)
        depth = drawn.expected_depth[0][..., None]
        return {
            "rgb": drawn.rgb[0].clamp(0, 1),
            "depth": depth.where(drawn.alpha[0][..., None] > 0, depth.detach().max()),
            "accumulation": drawn.alpha[0][..., None],
            "background": background if self.training else background.expand(height, width, 3),
        }

    def step_post_backward(self, step: int) -> None:
        if self.config.densify and step > 0:  # gsplat 1.4 makes all Gaussians faint in step 0, also those of a fitted scene
            super().step_post_backward(step)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR and SSIM; LPIPS would download its weights."""
        truth = self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])
        a, b = (x.permute(2, 0, 1)[None] for x in (truth, outputs["rgb"]))
        return {"psnr": float(self.psnr(a, b)), "ssim": float(self.ssim(a, b))}, {
            "img": torch.cat([truth, outputs["rgb"]], dim=1)
        }


def _cam_from_world(world_from_cam: Tensor) -> Tensor:
    """nerfstudio's poses [C, 3, 4], OpenGL axes -> ours [C, 4, 4], OpenCV axes; differentiable."""
    rotation = (world_from_cam[:, :, :3] * world_from_cam.new_tensor([1.0, -1, -1])).mT
    top = torch.cat([rotation, -rotation @ world_from_cam[:, :, 3:]], dim=2)
    bottom = world_from_cam.new_tensor([0.0, 0, 0, 1]).expand(len(top), 1, 4)
    return torch.cat([top, bottom], dim=1)


STEPS = 3000


def _adam(rate: float, last: float | None = None) -> dict:
    """Splatfacto's optimiser of one group; the rate falls to `last` by the end."""
    scheduler = None if last is None else ExponentialDecaySchedulerConfig(lr_final=last, max_steps=STEPS)
    return {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": scheduler}


# Written out, as nerfstudio loads this module in the middle of loading its own configs.
_trainer = TrainerConfig(
    method_name="splatsmith",
    steps_per_save=1000,
    steps_per_eval_batch=0,
    steps_per_eval_image=500,
    steps_per_eval_all_images=1000,
    max_num_iterations=STEPS,
    mixed_precision=False,
    machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
    pipeline=VanillaPipelineConfig(
        datamanager=FullImageDatamanagerConfig(dataparser=SplatsmithDataParserConfig(), cache_images_type="uint8"),
        model=SplatsmithModelConfig(),
    ),
    optimizers={
        "means": _adam(1.6e-4, 1.6e-6),
        "features_dc": _adam(0.0025),
        "features_rest": _adam(0.0025 / 20),
        "opacities": _adam(0.05),
        "scales": _adam(0.005),
        "quats": _adam(0.001),
        "camera_opt": _adam(1e-4, 5e-7),
    },
    viewer=ViewerConfig(num_rays_per_chunk=1 << 15, websocket_host="127.0.0.1"),  # its own default is all addresses
    vis="viewer",
)

splatsmith = MethodSpecification(
    config=_trainer, description="Splats from few photos, also without a GPU: splatsmith's first Gaussians and renderer."
)
