"""The commands and their options; the field comments are the command-line help and the tooltips. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from app.presets import PresetName

TrainStep = Literal[
    "text-volumes", "text-bank", "text-shape", "text-detail", "text-attributes", "text-pack",
    "text-dense-field", "text-dense-attributes", "text-dense-pack",
    "image-views", "image-autoencoder", "image-denoiser", "image-pack",
    "repair-pairs", "repair-network", "repair-pack",
    "pointmap-views", "pointmap-network", "pointmap-pack",
]  # fmt: skip

# The keys of recon.priors.learned.LEARNED_PRIORS.
PriorName = Literal[
    "depth-anything", "marigold-depth", "marigold-normals", "depth-anything-3", "map-anything", "vggt", "dust3r", "mast3r",
    "pointmap",
]  # fmt: skip
FitPart = Literal["depth", "normals", "poses", "rates"]  # splat.few_photos.PARTS, which comes with torch


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a command talks."""

    quiet: bool = False
    """Print nothing but errors."""
    json: bool = False
    """Print events as JSON, one a line."""


@dataclass(frozen=True, kw_only=True)
class Machine(Output):
    """Where a command computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes an NVIDIA GPU when there is one."""
    threads: int | None = None
    """CPU threads; by default all cores."""


@dataclass(frozen=True, kw_only=True)
class Job(Machine):
    """Options of every command that makes a scene."""

    out: Path
    """Result folder; work in progress lives beside it in OUT.partial."""
    preset: PresetName = "standard"
    """Time against quality."""
    seed: int = 0
    """Seed of everything random."""
    memory_budget: str = "4GB"
    """Memory to stay within, such as 4GB or 900MB."""
    background: str = "white"
    """Behind transparent photos and in renders: white, black, or R,G,B in 0-255."""
    resume: bool = False
    """Continue OUT.partial; a complete OUT is left as it is, unless --overwrite is given too."""
    overwrite: bool = False
    """Replace a complete result at OUT, once the new one is complete."""
    compact: bool = False
    """Drop state/ from the result: smaller, but it cannot be fitted further."""


@dataclass(frozen=True, kw_only=True)
class Photos(Job):
    """Photos or a video of a scene in, splats, a mesh, a turntable and a report out."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR|FILES|VIDEO")]
    """A folder of photos, photo files, or one video."""
    poses: str = "auto"
    """auto solves camera poses; or a transforms.json, or a COLMAP model folder; prior takes those of the network of --prior."""
    prior: tuple[PriorName, ...] = ()
    """Networks that guess what stereo leaves open, with weights that are on this machine: depth, normals, or cameras too, which
    are used where solving them stops."""
    prior_weights: tuple[str, ...] = ()
    """For each --prior a folder, or the name of a repository in the Hugging Face cache; by default what that cache holds of
    the published ones. Nothing is downloaded."""
    holdout: int = 0
    """Keep every n-th photo out of the fit, to measure quality on it; 0 fits all."""
    intrinsics: Literal["shared", "per-photo"] = "shared"
    """shared: one lens for all photos of a size; per-photo: the zoom changed between photos."""
    masks: str | None = None
    """Folder of masks named like the photos (white is subject), or auto to cut the subject out."""
    max_side: int | None = None
    """Long side in px of the photos fitted to; the preset decides by default."""
    steps: int | None = None
    """Steps of the fit; the preset decides by default."""
    regularise: Literal["auto", "full", "none"] = "auto"
    """How to keep the fit from explaining each photo on its own: full moves Gaussians faster, lets solved cameras move on
    and, where all photos are masked, leans on depth from stereo; none is a plain fit; auto is full for up to 12 photos."""
    without: tuple[FitPart, ...] = ()
    """Parts of the full fit to leave out."""
    repair: bool = False
    """Mend views that nobody took with a small network and fit to them too, where that makes photos better that the fit has not
    seen; more than doubles the time."""
    real_size: float | None = None
    """Longest side of the subject in metres; gives the result metric scale, as exact as what the photos show of that side."""
    colmap_out: bool = False
    """Also write the cameras and points as a COLMAP model, with undistorted photos, to OUT/colmap."""


@dataclass(frozen=True, kw_only=True)
class Text(Job):
    """Sentences in, an object for each out: splats, a mesh, a turntable and a report."""

    sentences: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPTS")] = ()
    """What to make, each in quotes: "a red armchair" "a wooden table"."""
    out: Path
    """Folder of the results, which are OUT/PROMPT-SEED; work in progress lives beside them in OUT/PROMPT-SEED.partial."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """More prompts from a UTF-8 text file, one a line; blank lines and lines that begin with # are skipped."""
    variations: int = 1
    """Objects for each prompt; their seeds are --seed, --seed + 1 and so on."""
    candidates: int | None = None
    """Tries for each object, of which the one that agrees best with the words and is cleanest is kept; the preset decides
    by default."""
    steps: int | None = None
    """Network calls of the diffusion; the preset decides by default."""
    guidance: float | None = None
    """How closely to follow the words: 1 is plain, more is closer and less varied; by default what suits the weights."""
    weights: Path | None = None
    """Folder of a trained text-to-3D model; by default the one that comes with splatsmith."""
    resume: bool = False
    """Leave complete results as they are and continue the rest, unless --overwrite is given too."""
    overwrite: bool = False
    """Replace complete results, each once its new one is complete."""
    compact: bool = False
    """Drop state/ from the results, which holds the generated volume."""


@dataclass(frozen=True, kw_only=True)
class Image(Job):
    """Pictures of objects in, an object for each out: splats, a mesh, a turntable and a report."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILES|DIRS")]
    """Pictures, folders of pictures, or patterns such as "chairs/*.png"."""
    out: Path
    """Folder of the results, which are OUT/NAME for each picture; work in progress lies beside them in OUT/NAME.partial."""
    views: bool = False
    """All FILES show one object from several sides, the first from its front."""
    azimuths: tuple[float, ...] = ()
    """With --views, where each picture was taken from: degrees walked round the object to the right, from the first, which
    is 0; by default evenly all round, in the order given."""
    mask: Path | None = None
    """What belongs to the subject (white) in the picture, or a folder of such masks named like the pictures; by default the
    subject is found."""
    matting: Path | None = None
    """A U2-Net or IS-Net model file (.onnx) that finds the subject; by default one that rembg left on this machine, where
    the background is not plain."""
    elevation: float | None = None
    """How far the camera looked down on the subject, in degrees: 0 is level, 90 from above; by default 20."""
    elevations: tuple[float, ...] = ()
    """With --views, the elevation of each picture; by default --elevation holds for all."""
    fov: float | None = None
    """Angle of view across the width of the picture, in degrees; by default what its EXIF data say, or what the network was
    trained on."""
    text: str = ""
    """What the picture shows, such as "a red chair", for --weights that also take text; the shipped ones do not."""
    steps: int | None = None
    """Network calls of the diffusion; the preset decides by default."""
    guidance: float | None = None
    """How closely to follow the picture: 1 is plain, any other weight doubles the time; by default 1."""
    temperature: float | None = None
    """How varied the sides are that the picture does not show: 0 is the same for every seed, 1 the most varied; by default
    0.35."""
    refine: int | None = None
    """Steps of the fit that makes the front view the picture itself; 0 leaves it out; the preset decides by default."""
    weights: Path | None = None
    """Folder of a trained image-to-3D model; by default the one that comes with splatsmith."""
    jobs: int | None = None
    """Worker processes, which make an object each at the same time and share --threads and --memory-budget; by default 1, on
    a cluster as many as it has room for."""
    item_seconds: float | None = None
    """Longest time for one object of several: one that takes longer has failed, and the others go on; by default no limit."""
    cluster: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Work on a Ray cluster, at HOST:6379, ray://HOST:10001 or auto, with --threads CPUs for each worker, by default 1;
    local starts one on this machine."""
    resume: bool = False
    """Leave complete results as they are and continue the rest, unless --overwrite is given too."""
    overwrite: bool = False
    """Replace complete results, each once its new one is complete."""
    compact: bool = False
    """Drop state/ from the results, which holds the generated Gaussians."""


@dataclass(frozen=True, kw_only=True)
class Refine(Machine):
    """A finished result made better, as a result of its own; where that does not help, it keeps the splats that were there."""

    result: Positional[Path]
    """Result folder, of photos or of one picture, with its state/."""
    way: Annotated[Literal["steps", "repair", "multiview", "volume"], arg(name="with")] = "steps"
    """steps: fit longer to the same photos. repair: mend views that nobody took, and fit to them too. multiview, volume: a
    generator makes the sides of an object that no photo shows."""
    strength: float | None = None
    """With multiview or volume, the noise put on what there is: 0 changes nothing, 1 forgets it; each has its own default."""
    prompt: str = ""
    """With volume or a --repairer that reads text, what there is to see, such as "a red armchair"; by default the model is not
    told."""
    repairer: str = "small"
    """With repair, what mends: small is the network that comes with splatsmith; or a folder of other weights of it, or of a
    Stable Diffusion pipeline with ControlNet in diffusers' form."""
    lora_steps: int = 0
    """With such a pipeline and held-out photos, steps that it first learns this scene in, about 600; 0 takes it as it is."""
    out: Path
    """Result folder; work in progress lives beside it in OUT.partial."""
    preset: PresetName = "standard"
    """Time against quality: the most Gaussians, the further steps, and the size of the turntable."""
    steps: int | None = None
    """Further steps of the fit; the preset decides by default."""
    seed: int = 0
    """Seed of everything random."""
    memory_budget: str = "4GB"
    """Memory to stay within, such as 4GB or 900MB."""
    resume: bool = False
    """Continue OUT.partial; a complete OUT is left as it is, unless --overwrite is given too."""
    overwrite: bool = False
    """Replace a complete result at OUT, once the new one is complete."""
    compact: bool = False
    """Drop state/ from the result: smaller, but it cannot be refined further."""


@dataclass(frozen=True, kw_only=True)
class Demo(Job):
    """The main job on the bundled example photos."""

    out: Path = Path("splatsmith-demo")
    """Result folder; work in progress lives beside it in OUT.partial."""
    holdout: int = 8
    """Keep every n-th photo out of the fit, to measure quality on it; 0 fits all."""


@dataclass(frozen=True, kw_only=True)
class Export(Machine):
    """A result or scene as .ply .spz .splat .compressed.ply .gltf .gs.glb, its mesh as .glb .obj .stl .usdz .mesh.ply, or a
    page that shows it, .html."""

    scene: Positional[Path]
    """Result folder, or a scene file."""
    to: Path
    """File to write; its suffix chooses the format."""
    convention: Literal["splatsmith", "3dgs"] = "splatsmith"
    """splatsmith is +Y up; 3dgs is the y-down world that many viewers of .ply and .splat assume. SPZ and glTF need none."""
    sh_degree: int | None = None
    """Keep view-dependent colour of the splats up to this degree, 0 to 3, for smaller files; by default all there is."""
    faces: int | None = None
    """Most triangles of the mesh; by default all that the result has, and 50,000 with --texture."""
    texture: int | None = None
    """Side in px of a texture for .glb, .obj or .usdz, baked from the photos and pictures of the splats, such as 1024; by
    default a mesh has its colours at the vertices."""
    jpeg: bool = False
    """Store the texture as JPEG: smaller than PNG, with small errors."""
    purpose: Annotated[Literal["game", "print"] | None, arg(name="for")] = None
    """game: at most 10,000 triangles and a texture of 1024 px. print: a closed .stl in millimetres, +Z up as printers have it,
    of the size that --real-size says."""
    real_size: float | None = None
    """Longest side of the mesh in metres; by default the size that it has in the result."""
    memory_budget: str = "4GB"
    """Memory that a texture or a solid may take, such as 4GB or 900MB."""


@dataclass(frozen=True, kw_only=True)
class Render(Machine):
    """Pictures of a result or scene: a turntable .mp4, or .png stills."""

    scene: Positional[Path]
    """Result folder, or a scene file."""
    to: Path
    """.mp4 for a video; .png for a still (with several cameras, NAME_000.png and so on)."""
    cameras: Path | None = None
    """A cameras.json (transforms.json form) to render from; by default an orbit that suits the scene."""
    side: int = 640
    """Long side of the picture in px, for the orbit."""
    frames: int = 90
    """Frames of the orbit, for .mp4."""
    background: str = "white"
    """Behind the splats: white, black, or R,G,B in 0-255."""
    enhance: bool = False
    """Repair every frame of an .mp4 and make what that adds steady; for the video alone, the splats stay as they are."""
    repairer: str | None = None
    """With --enhance, what repairs the frames: small is ours; or a folder with Stable Diffusion and a ControlNet, or with a
    video network."""
    prompt: str = ""
    """With --enhance and such a folder, what the scene shows."""


@dataclass(frozen=True, kw_only=True)
class Check(Output):
    """The input doctor: what will work with these photos, what will not, and from where to take the next one."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR|FILES|VIDEO")]
    """A folder of photos, photo files, or one video."""
    memory_budget: str = "4GB"
    """Memory to stay within, such as 4GB or 900MB."""
    out: Path | None = None
    """Also write verdict.json and a thumbnail of each photo to this new folder."""
    quick: bool = False
    """Only look at the photos, which takes seconds: up to 12 that fit together are else placed and fitted roughly, which tells
    from where one more photo would help most."""
    picture: Path | None = None
    """Also draw what that photo would show, and where to stand, to this .png, .jpg or .webp file."""


@dataclass(frozen=True, kw_only=True)
class Eval(Machine):
    """PSNR and SSIM of a result against posed photos it has not seen; where its poses were solved, how wrong they are."""

    result: Positional[Path]
    """Result folder."""
    against: Path
    """transforms.json of the photos, in the world of the poses that the result was made from; where these were solved, in
    any world, with at least 3 of the result's photos in it."""
    background: str = "white"
    """Behind transparent photos and the splats: white, black, or R,G,B in 0-255."""


@dataclass(frozen=True, kw_only=True)
class Train(Machine):
    """Rebuild the weights of text or image to 3-D, of repair or of depth, from a folder of objects, step by step; each can be
    cut and run again."""

    step: Annotated[Positional[TrainStep], arg(metavar="STEP")]
    """text-volumes, text-bank, text-shape, text-detail, text-attributes, text-pack, or image-views, image-autoencoder
    (only for --space latent), image-denoiser, image-pack, in this order. For GVGEN's own networks: text-volumes, text-bank,
    text-dense-field, text-dense-attributes, text-dense-pack. For the repair of renders: repair-pairs, repair-network,
    repair-pack. For depth from two photos (photos --prior pointmap): pointmap-views, pointmap-network, pointmap-pack."""
    work: Positional[Path]
    """Folder of everything that training makes; the weights come to WORK/weights, of text-dense-pack to WORK/dense-weights."""
    objects: Path | None = None
    """Objects, for text-volumes, text-bank, image-views, repair-pairs and pointmap-views: a folder of .glb, .obj or .ply files,
    Objaverse's own folder with the categories of LVIS, or a packed set."""
    minutes: float = 0
    """End a network's sitting after so many minutes, and save; 0 trains to the end."""
    steps: int | None = None
    """Optimiser steps of a network, over all sittings; each network has its own default."""
    lr: float | None = None
    """Learning rate of a network; each network has its own default."""
    accumulate: int | None = None
    """Batches to an optimiser step of a network, 1 to 64: as a larger batch, in the memory of one; by default 1."""
    batch: int | None = None
    """Examples to a batch of a network; each network has its own default."""
    size: Literal["small", "gvgen"] = "small"
    """Of the networks of text-dense-field and text-dense-attributes: for any machine, or as published, for a GPU; the same for
    text-dense-pack."""
    workers: int = 1
    """Objects at a time, in the steps that read objects."""
    space: Literal["pixel", "latent"] = "pixel"
    """What image-denoiser denoises: small pictures, or latents of the autoencoder trained before."""
    own: float = 0
    """Share of image-denoiser's noisy examples that are denoised from its own first answer, as a sampler does: for the last
    steps of a long run."""
    text: bool = False
    """The network of image-denoiser also takes a sentence about the object; it learns from their nouns."""
    clip: Path | None = None
    """Folder of a CLIP text model in transformers' form, to read the captions in place of MiniLM; the same in every step."""
    presumed_licences: bool = False
    """Learn also from objects whose licence is missing or only presumed."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True, kw_only=True)
class Info(Output):
    """Device, renderers, weights with their licences, versions."""


@dataclass(frozen=True, kw_only=True)
class Ui(Machine):
    """The web page, on this machine only unless --host says otherwise."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7860
    """Port to listen on."""
    root: Path | None = None
    """Folder of the jobs and their results; by default splatsmith in the user's data folder."""
    workers: int = 1
    """Jobs at a time, if they fit in the memory together."""
    memory_budget: str = "4GB"
    """Memory of all jobs together, such as 4GB or 900MB."""
    quota: str = "10GB"
    """Disk space of one visitor's jobs."""
    expire_days: float = 30.0
    """Days after which a finished job is deleted; 0 keeps it."""
    max_upload: str = "2GB"
    """Most that can be uploaded for one job."""
    max_files: int = 300
    """Most files that can be uploaded for one job."""
    max_queued: int = 100
    """Most jobs that may wait, of all visitors together."""
    per_minute: int = 30
    """Most jobs that one visitor may ask for in a minute."""
    auth: Annotated[str | None, arg(metavar="USER:PASSWORD")] = None
    """Who may enter. Other users of this machine can read it here; SPLATSMITH_AUTH or --auth-file keep it to yourself."""
    auth_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """File that holds USER:PASSWORD."""
    server_name: tuple[str, ...] = ()
    """Names that a proxy in front of the page passes on as the host; without --auth other names than localhost are refused."""


Command = (
    Annotated[Photos, subcommand("photos", prefix_name=False)]
    | Annotated[Image, subcommand("image", prefix_name=False)]
    | Annotated[Text, subcommand("text", prefix_name=False)]
    | Annotated[Demo, subcommand("demo", prefix_name=False)]
    | Annotated[Refine, subcommand("refine", prefix_name=False)]
    | Annotated[Export, subcommand("export", prefix_name=False)]
    | Annotated[Render, subcommand("render", prefix_name=False)]
    | Annotated[Check, subcommand("check", prefix_name=False)]
    | Annotated[Eval, subcommand("eval", prefix_name=False)]
    | Annotated[Train, subcommand("train", prefix_name=False)]
    | Annotated[Info, subcommand("info", prefix_name=False)]
    | Annotated[Ui, subcommand("ui", prefix_name=False)]
)
