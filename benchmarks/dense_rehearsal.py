"""The commands that train GVGEN's networks at full size, run at toy size: to see them work before a GPU is rented for them.

    python benchmarks/dense_rehearsal.py --json rows.json            one core, some minutes
    python benchmarks/dense_rehearsal.py --device cuda --size gvgen --steps 10 --batch 16      the published size

Two boxes and two poles are laid out as Objaverse-LVIS is, a CLIP text model of random weights reads their captions, and
`splatsmith train` and `splatsmith text` run as they would on the real thing. Nothing that comes out is worth looking at; the
table says what a step costs. `--objects` and `--clip` take real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch

import kernels  # beside this file

OBJECTS = 4  # that are made where none are given


def main() -> None:
    args = arguments()
    facts = kernels.machine()
    print("  ".join(f"{k} {v}" for k, v in facts.items()))
    with tempfile.TemporaryDirectory() as scratch:
        place = args.work or Path(scratch)
        objects = args.objects or toy_objects(place / "objects")
        clip = args.clip or toy_clip(place / "clip")
        rows = rehearsed(args, objects, clip, place / "work")
    print(f"{'command':24} {'seconds':>8} {'CPU s':>8} {'peak MB':>8}")
    for row in rows:
        print(f"{row['command']:24} {row['seconds']:8.1f} {row['cpu_seconds']:8.1f} {row['peak_mb']:8.0f}")
    if args.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        args.json.write_text(json.dumps({"machine": facts, "settings": settings, "rows": rows}, indent=1))


def rehearsed(args: argparse.Namespace, objects: Path, clip: Path, work: Path) -> list[dict]:
    """One row for every command, in the order in which they are run."""
    common = ["--device", args.device, "--clip", str(clip)]
    network = [*common, "--size", args.size, "--steps", str(args.steps), "--batch", str(args.batch)]
    rows = [
        timed("train", "text-volumes", str(work), "--objects", str(objects), "--workers", str(args.workers)),
        timed("train", "text-bank", str(work), "--objects", str(objects), "--workers", str(args.workers), *common),
        timed("train", "text-dense-field", str(work), *network),
        timed("train", "text-dense-attributes", str(work), *network),
        timed("train", "text-dense-pack", str(work), "--size", args.size, *common),
    ]
    weights = work / "dense-weights"
    if not (weights / "clip").exists():
        (weights / "clip").symlink_to(clip.resolve())
    made = work.parent / "made"
    rows.append(
        timed("text", "a red box", "--out", str(made), "--weights", str(weights), "--device", args.device,
              "--preset", "draft", "--candidates", "1", "--overwrite", name="text")
    )  # fmt: skip
    return rows


def timed(*words: str, name: str = "") -> dict:
    """Run `splatsmith` with these words in a process of its own; fails as it fails."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "app", *words, "--quiet"], check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"splatsmith {' '.join(words)} ended with status {done.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss / 1024  # of the largest child so far
    return {"command": name or words[1], "seconds": time.monotonic() - started, "cpu_seconds": cpu, "peak_mb": peak}


def toy_objects(folder: Path) -> Path:
    """Boxes and poles, as Objaverse's own tool would put them on disk."""
    import torch

    from splat.io.meshes import save_mesh
    from splat.mesh import Mesh

    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    faces = torch.tensor([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                          [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip
    colours = ((200, 30, 30), (30, 60, 200), (40, 160, 60), (240, 200, 40))
    categories, licences = {"box": [], "pole": []}, {}
    (folder / "glbs" / "000-000").mkdir(parents=True)
    for i in range(OBJECTS):
        uid, kind = f"{i:032x}", ("box", "pole")[i % 2]
        size = torch.tensor([1.0, 0.7, 0.5] if kind == "box" else [0.2, 1.0, 0.2])
        rgb = torch.tensor(colours[i // 2], dtype=torch.float32) / 255
        save_mesh(Mesh(corners * size, faces, rgb.expand(8, 3).contiguous()), folder / "glbs" / "000-000" / f"{uid}.glb")
        categories[kind].append(uid)
        licences[uid] = {"license": "cc0"}
    (folder / "lvis-annotations.json").write_text(json.dumps(categories))
    (folder / "metadata").mkdir()
    (folder / "metadata" / "000-000.json").write_text(json.dumps(licences))
    return folder


def toy_clip(folder: Path) -> Path:
    """A CLIP text model of random weights, as wide as ViT-L/14's, with a tokenizer of single letters."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=768, intermediate_size=768, num_hidden_layers=1, num_attention_heads=12,
        bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    return folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, help="in Objaverse's layout, or any that training takes; default: four toys")
    parser.add_argument("--clip", type=Path, help="folder of a CLIP text model; default: random weights")
    parser.add_argument("--work", type=Path, help="an empty folder to keep what is made; default: none of it is kept")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", default="small", choices=("small", "gvgen"))
    parser.add_argument("--steps", type=int, default=3, help="of each network")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="objects at a time")
    parser.add_argument("--json", type=Path, help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
