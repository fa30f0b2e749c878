"""Other programs read what we write, and we read what they write, with the same numbers.

gaussforge comes with the `test` extra; gsply is used where it is installed. The tests marked `node` need
`make test-node`, which installs splat-transform (PlayCanvas, with Niantic's own SPZ library) and Khronos' validator.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import differences, paired, random_splats

from splat.gaussians import Splats
from splat.io import load, save
from splat.io.spz import save_spz
from splat.similarity import Similarity

TOOLS = Path(__file__).parents[2] / "build" / "node" / "node_modules"
EXACT = {"position": 1e-6, "angle_deg": 1e-3, "log_scale": 1e-6, "opacity": 1e-6, "rgb": 1e-6, "sh": 1e-6}
QUANTISED = {"position": 4e-3, "angle_deg": 0.3, "log_scale": 1 / 31, "opacity": 2 / 509, "rgb": 4e-3, "sh": 1 / 14}


def assert_within(a, b, tolerance):
    assert len(a) == len(b)
    error = differences(paired(a, b), b)
    assert all(error[kind] <= most for kind, most in tolerance.items()), error


def forged(forge, data, suffix, folder):
    """What gaussforge reads, by way of a plain PLY."""
    result = forge.convert(data, suffix, "ply")
    assert "error" not in result, result["error"]
    (folder / "forged.ply").write_bytes(result["data"])
    return load(folder / "forged.ply")


@pytest.fixture(scope="module")
def forge():
    return pytest.importorskip("gaussforge", reason="pip install gaussforge").GaussForge()


class TestGaussforge:
    @pytest.mark.parametrize("suffix", ["ply", "compressed.ply", "splat", "spz"])
    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_reads_ours_as_we_do(self, forge, tmp_path, suffix, degree):
        path = tmp_path / f"s.{suffix}"
        save(random_splats(300, degree), path)
        assert_within(forged(forge, path.read_bytes(), suffix, tmp_path), load(path), EXACT)

    @pytest.mark.parametrize("version", [2, 4])
    def test_reads_our_other_versions_of_spz(self, forge, tmp_path, version):
        save_spz(random_splats(300), tmp_path / "s.spz", version)
        assert_within(forged(forge, (tmp_path / "s.spz").read_bytes(), "spz", tmp_path), load(tmp_path / "s.spz"), EXACT)

    @pytest.mark.parametrize(
        "suffix, facts",
        [("compressed.ply", {}), ("splat", {}), *(("spz", {"spz_version": v}) for v in (2, 3, 4))],
    )
    def test_we_read_theirs_as_they_do(self, forge, tmp_path, suffix, facts):
        save(random_splats(300), tmp_path / "s.ply")
        theirs = forge.convert((tmp_path / "s.ply").read_bytes(), "ply", suffix, **facts)
        (tmp_path / f"t.{suffix}").write_bytes(theirs["data"])
        assert_within(forged(forge, theirs["data"], suffix, tmp_path), load(tmp_path / f"t.{suffix}"), EXACT)


@pytest.mark.slow  # its kernels are compiled for half a minute
class TestGsply:
    @pytest.mark.parametrize("suffix", [".ply", ".compressed.ply", ".spz"])
    def test_reads_ours_as_we_do(self, tmp_path, suffix):
        gsply = pytest.importorskip("gsply", reason="pip install 'gsply[spz]'")
        path = tmp_path / f"s{suffix}"
        save(random_splats(300), path)
        data = gsply.read_spz(path) if suffix == ".spz" else gsply.plyread(path)
        rest = torch.from_numpy(np.asarray(data.shN)).reshape(300, -1, 3)
        theirs = Splats(
            *(torch.from_numpy(np.asarray(x).copy()) for x in (data.means, data.quats, data.scales)),
            torch.from_numpy(np.asarray(data.opacities).copy()).reshape(-1),
            torch.cat([torch.from_numpy(np.asarray(data.sh0))[:, None], rest], dim=1),
        )
        assert_within(theirs, load(path), EXACT)


def transformed(source, target):
    program = TOOLS / ".bin" / "splat-transform"
    if not program.exists():
        pytest.skip("no splat-transform; run: make test-node")
    done = subprocess.run([program, "-q", "-w", source, target], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return load(target)


@pytest.mark.node
class TestSplatTransform:
    @pytest.mark.parametrize("name", ["s.compressed.ply", "s.splat", "s.spz", "version4.spz"])
    def test_reads_ours_as_we_do(self, tmp_path, name):
        path = tmp_path / name
        save_spz(random_splats(300), path, 4) if name.startswith("version4") else save(random_splats(300), path)
        # It maps the bytes of a rotation in .splat to -1..1 with no code for zero, a step of 1/255 off the first viewer's.
        tolerance = EXACT | ({"angle_deg": 1.0} if name == "s.splat" else {})
        assert_within(transformed(path, tmp_path / "t.ply"), load(path), tolerance)

    @pytest.mark.parametrize("suffix", [".compressed.ply", ".spz"])
    def test_we_read_theirs(self, tmp_path, suffix):
        save(random_splats(300), tmp_path / "s.ply")
        assert_within(load(tmp_path / "s.ply"), transformed(tmp_path / "s.ply", tmp_path / f"t{suffix}"), QUANTISED)

    def test_we_read_their_gltf(self, tmp_path):
        """It takes a PLY for turned by 180 degrees about z, and turns it back."""
        save(random_splats(300), tmp_path / "s.ply")
        half_turn = Similarity(torch.diag(torch.tensor([-1.0, -1, 1])), torch.zeros(3))
        theirs = transformed(tmp_path / "s.ply", tmp_path / "t.glb")
        assert_within(
            random_splats(300).transformed(half_turn), theirs, EXACT | {"log_scale": 1e-5, "opacity": 1e-5, "sh": 1e-5}
        )


@pytest.mark.node
@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
@pytest.mark.parametrize("degree", [0, 3])
def test_the_validator_of_khronos_finds_nothing_but_the_unknown_extension(tmp_path, suffix, degree):
    if not (TOOLS / "gltf-validator").exists():
        pytest.skip("no gltf-validator; run: make test-node")
    path = tmp_path / f"s{suffix}"
    save(random_splats(300, degree), path)
    script = (
        "const v = require(process.argv[1]), fs = require('fs');"
        "v.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2]))).then(r => console.log(JSON.stringify(r)))"
    )
    done = subprocess.run(["node", "-e", script, TOOLS / "gltf-validator", path], capture_output=True, text=True, timeout=60)
    report = json.loads(done.stdout)
    # It does not know the extension yet, whose attribute names carry a colon.
    unknown = ("UNSUPPORTED_EXTENSION", "MESH_PRIMITIVE_INVALID_ATTRIBUTE")
    others = [m for m in report["issues"]["messages"] if m["code"] not in unknown or "POSITION" in m["pointer"]]
    assert not others and not report["issues"]["truncated"], others
    assert report["info"]["extensionsUsed"] == ["KHR_gaussian_splatting"] and report["info"]["totalVertexCount"] == 300
