"""What all formats of splats share: suffixes, round trips, pictures before and after, damage, refusals, whole files."""

import errno

import pytest
import torch
from format_samples import differences, paired, random_splats
from hypothesis import given, settings
from hypothesis import strategies as st

from splat.cameras import Cameras
from splat.errors import InputError, StoppedLate
from splat.io import FORMATS, load, save
from splat.metrics import psnr
from splat.render import RenderOptions, render

# The largest errors of a scene of about unit size; docs/frame-and-formats.md has them for larger ones.
TOLERANCE = {
    ".compressed.ply": {
        "position": 4e-3, "angle_deg": 0.3, "log_scale": 4e-3, "opacity": 1 / 509, "rgb": 2.5e-3, "sh": 1 / 63,
    },
    ".spz": {"position": 1e-5, "angle_deg": 0.3, "log_scale": 1 / 31, "opacity": 1 / 509, "rgb": 4e-3, "sh": 1 / 31},
    ".splat": {"position": 0, "angle_deg": 1.0, "log_scale": 1e-5, "opacity": 1 / 509, "rgb": 1 / 509, "sh": 0},
    ".glb": {"position": 0, "angle_deg": 1e-4, "log_scale": 1e-5, "opacity": 1e-6, "rgb": 0, "sh": 0},
    ".gltf": {"position": 0, "angle_deg": 1e-4, "log_scale": 1e-5, "opacity": 1e-6, "rgb": 0, "sh": 0},
    ".ply": {"position": 0, "angle_deg": 1e-4, "log_scale": 0, "opacity": 0, "rgb": 0, "sh": 0},
}  # fmt: skip
LOSSY = [s for s in FORMATS if s != ".ply"]


def test_every_format_has_a_tolerance():
    assert TOLERANCE.keys() == FORMATS.keys()


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(0, 3), st.integers(0, 2**31))
def test_round_trip_within_the_quantisation(tmp_path_factory, suffix, n, degree, seed):
    splats = random_splats(n, degree, seed)
    path = tmp_path_factory.getbasetemp() / f"trip{suffix}"
    save(splats, path)
    back = load(path)
    assert len(back) == n and back.sh_degree == (0 if suffix == ".splat" else degree)
    error = differences(paired(splats, back), back)
    assert all(error[kind] <= most for kind, most in TOLERANCE[suffix].items()), error


@pytest.mark.parametrize("suffix", LOSSY)
def test_a_second_trip_changes_nothing_more(tmp_path, suffix):
    path = tmp_path / f"s{suffix}"
    save(random_splats(50), path)
    first = load(path)
    save(first, path)
    error = differences(paired(first, load(path)), load(path))
    assert all(error[kind] <= 0.1 * most + 1e-5 for kind, most in TOLERANCE[suffix].items() if kind != "angle_deg"), error


@pytest.mark.parametrize("suffix, least", [(".compressed.ply", 44), (".spz", 40), (".splat", 44), (".glb", 90), (".gltf", 90)])
def test_pictures_before_and_after_look_alike(tmp_path, suffix, least):
    splats = random_splats(300, 0 if suffix == ".splat" else 3, spread=0.4)
    cameras = Cameras.orbit(3, 3.0, 20.0, 45.0, 64, 64)
    save(splats, tmp_path / f"s{suffix}")
    white = RenderOptions(background=torch.ones(3), threads=1)
    before, after = (render(s, cameras, white).rgb.clamp(0, 1) for s in (splats, load(tmp_path / f"s{suffix}")))
    assert psnr(after, before).min() > least, psnr(after, before)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_other_convention_turns_the_world_both_ways(tmp_path, suffix):
    splats = random_splats(6)
    path = tmp_path / f"S{suffix.upper()}"  # suffixes may be in capitals
    save(splats, path, convention="3dgs")
    plain, turned = load(path), load(path, convention="3dgs")
    torch.testing.assert_close(plain.means, turned.means * torch.tensor([1.0, -1, -1]))
    near = paired(splats, turned)
    assert (near.means - turned.means).abs().max() < 5e-3


@pytest.mark.parametrize("suffix", FORMATS)
def test_same_splats_same_bytes(tmp_path, suffix):
    for name in "ab":
        save(random_splats(), tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", LOSSY)
class TestRefusals:
    def test_nan_and_nothing_are_not_written(self, tmp_path, suffix):
        path = tmp_path / f"s{suffix}"
        with pytest.raises(StoppedLate, match="5 of 5 Gaussians hold NaN"):
            save(random_splats(5).map(lambda x: x * float("nan")), path)
        with pytest.raises(InputError, match="0 Gaussians"):
            save(random_splats(5)[:0], path)
        with pytest.raises(InputError, match="does not exist"):
            save(random_splats(5), tmp_path / "none" / path.name)
        assert not list(tmp_path.iterdir())

    def test_a_full_disk_leaves_the_old_file(self, tmp_path, suffix, monkeypatch):
        path = tmp_path / f"s{suffix}"
        path.write_bytes(b"old")

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises(StoppedLate, match="No space left"):
            save(random_splats(5), path)
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1

    def test_missing_files_and_folders_are_not_read(self, tmp_path, suffix):
        with pytest.raises(InputError, match="No such file"):
            load(tmp_path / f"none{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(InputError, match="directory"):
            load(tmp_path / f"folder{suffix}")

    @settings(max_examples=60)
    @given(st.data())
    def test_damage_anywhere_is_loaded_or_refused(self, tmp_path_factory, suffix, data):
        """Bytes changed, dropped or doubled: never another exception, never bad numbers."""
        path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
        save(random_splats(3, 1), path)
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(raw) - 1))
            raw[start : start + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=9))
        path.write_bytes(bytes(raw))
        try:
            splats = load(path)
        except InputError as error:
            assert "\n" not in str(error)
            return
        for field in (splats.means, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh):
            assert field.isfinite().all()


def test_an_unknown_suffix_is_told_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"suffix '\.ksplat'; splat scenes end in \.ply, \.compressed\.ply, \.spz"):
        save(random_splats(1), tmp_path / "s.ksplat")
