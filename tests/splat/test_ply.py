"""The PLY reader and writer against bytes written by hand, gsplat's exporter, plyfile, and hostile files."""

import errno
import importlib
import logging
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splat.errors import InputError, StoppedLate
from splat.gaussians import Splats
from splat.io import load, save
from splat.io.ply import load_ply, save_ply
from splat.similarity import Similarity

FIELDS = ("means", "quats", "log_scales", "opacity_logits", "sh")


def random_splats(n=5, degree=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        log_scales=torch.randn(n, 3, generator=g) - 3,
        opacity_logits=torch.randn(n, generator=g),
        sh=torch.randn(n, (degree + 1) ** 2, 3, generator=g),
    )


def assert_same(a, b):
    for field in FIELDS:
        assert torch.equal(getattr(a, field), getattr(b, field)), field


# One Gaussian of SH degree 1, every number different, spelt out by hand.
NAMES = [
    "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2",
    *(f"f_rest_{i}" for i in range(9)), "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
]  # fmt: skip
VALUES = [
    1, 2, 3, 0, 0, 0, 0.5, 0.25, 0.125,
    10, 20, 30, 11, 21, 31, 12, 22, 32,  # red of the three terms, then green, then blue
    -0.5, -1, -2, -3, 4, 5, 6, 7,
]  # fmt: skip
HAND_SPLATS = Splats(
    means=torch.tensor([[1.0, 2, 3]]),
    quats=torch.tensor([[4.0, 5, 6, 7]]),  # w first
    log_scales=torch.tensor([[-1.0, -2, -3]]),
    opacity_logits=torch.tensor([-0.5]),
    sh=torch.tensor([[[0.5, 0.25, 0.125], [10, 11, 12], [20, 21, 22], [30, 31, 32]]]),
)


def header(names=NAMES, count=1, kind="binary_little_endian", type_="float"):
    lines = ["ply", f"format {kind} 1.0", f"element vertex {count}", *(f"property {type_} {n}" for n in names), "end_header"]
    return ("\n".join(lines) + "\n").encode()


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.fixture
def ply(tmp_path):
    return tmp_path / "scene.ply"


class TestBytes:
    HAND = header() + struct.pack("<26f", *VALUES)

    def test_written_bytes_are_those_written_by_hand(self, ply):
        save_ply(HAND_SPLATS, ply)
        assert ply.read_bytes() == self.HAND

    def test_hand_written_bytes_are_read(self, ply):
        assert_same(load_ply(write(ply, self.HAND)), HAND_SPLATS)

    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_plyfile_reads_what_we_write(self, ply, degree):
        from plyfile import PlyData

        splats = random_splats(degree=degree)
        save_ply(splats, ply)
        with ply.open("rb") as file:
            vertex = PlyData.read(file, mmap=False)["vertex"]
        terms = (degree + 1) ** 2
        assert vertex.count == 5 and len(vertex.properties) == 17 + 3 * (terms - 1)
        np.testing.assert_array_equal(vertex["z"], splats.means[:, 2])
        np.testing.assert_array_equal(vertex["rot_0"], splats.quats[:, 0])
        np.testing.assert_array_equal(vertex["scale_2"], splats.log_scales[:, 2])
        np.testing.assert_array_equal(vertex["opacity"], splats.opacity_logits)
        for term in range(1, terms):
            for channel in range(3):
                column = vertex[f"f_rest_{channel * (terms - 1) + term - 1}"]
                np.testing.assert_array_equal(column, splats.sh[:, term, channel])

    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_gsplat_exporter_agrees_both_ways(self, ply, degree):
        export_splats = importlib.import_module("gsplat.exporter").export_splats
        splats = random_splats(degree=degree)
        theirs = export_splats(
            splats.means, splats.log_scales, splats.quats, splats.opacity_logits, splats.sh[:, :1], splats.sh[:, 1:]
        )  # fmt: skip
        assert_same(load_ply(write(ply, theirs)), splats)
        # Our bytes without the normals, which gsplat leaves out, are theirs.
        save_ply(splats, ply)
        head, body = ply.read_bytes().split(b"end_header\n", 1)
        rows = np.frombuffer(body, "<f4").reshape(5, -1)
        head = b"\n".join(line for line in head.split(b"\n") if line.split()[-1:] not in ([b"nx"], [b"ny"], [b"nz"]))
        assert head + b"end_header\n" + np.delete(rows, [3, 4, 5], axis=1).tobytes() == theirs

    def test_same_splats_same_bytes_whatever_the_memory_layout(self, tmp_path):
        splats = random_splats()
        strided = splats.map(lambda x: x.repeat_interleave(2, dim=0))[::2]
        save_ply(splats, tmp_path / "a.ply")
        save_ply(strided, tmp_path / "b.ply")
        assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


class TestTolerance:
    def test_any_order_extra_properties_and_no_normals(self, ply):
        names = [n for n in NAMES if n not in ("nx", "ny", "nz")][::-1]
        lines = [
            "ply",
            "comment by hand",
            "format binary_little_endian 1.0",
            "obj_info x",
            "element vertex 1",
            "property uchar red",
        ]
        lines += [f"property float {n}" for n in names] + ["property double time", "end_header"]
        body = struct.pack("<B23fd", 200, *(VALUES[NAMES.index(n)] for n in names), 9.0)
        assert_same(load_ply(write(ply, "\r\n".join(lines).encode() + b"\r\n" + body)), HAND_SPLATS)

    def test_big_endian_doubles(self, ply):
        data = header(kind="binary_big_endian", type_="double") + struct.pack(">26d", *VALUES)
        assert_same(load_ply(write(ply, data)), HAND_SPLATS)

    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
    def test_text(self, ply, end):
        data = header(kind="ascii") + " ".join(map(str, VALUES)).encode() + end
        assert_same(load_ply(write(ply, data)), HAND_SPLATS)

    @pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
    def test_elements_before_and_after(self, ply, kind):
        head = header(kind=kind).replace(b"element vertex", b"element camera 2\nproperty int id\nelement vertex")
        head = head.replace(b"end_header", b"element face 1\nproperty list uchar int vertex_indices\nend_header")
        if kind == "ascii":
            body = b"1\n2\n" + " ".join(map(str, VALUES)).encode() + b"\n3 0 0 0\n"
        else:
            body = struct.pack("<2i26fB3i", 1, 2, *VALUES, 3, 0, 0, 0)
        assert_same(load_ply(write(ply, head + body)), HAND_SPLATS)

    def test_rotation_of_length_zero_becomes_the_identity_with_a_warning(self, ply, caplog):
        with caplog.at_level(logging.WARNING):
            loaded = load_ply(write(ply, header() + struct.pack("<26f", *VALUES[:-4], 0, 0, 0, 0)))
        assert loaded.quats.tolist() == [[1, 0, 0, 0]] and "1 Gaussians" in caplog.text


def without(*names):
    kept = [n for n in NAMES if n not in names]
    return header(kept) + bytes(4 * len(kept))


def with_value(name, value):
    values = list(VALUES)
    values[NAMES.index(name)] = value
    return header() + struct.pack("<26f", *values)


BODY = struct.pack("<26f", *VALUES)
TEXT_ROW = "  ".join(map(str, VALUES)).encode() + b"\n"
HOSTILE = {
    "empty": (b"", "not a PLY file"),
    "text": (b"Dear viewer,\nthis is a letter.\n", "not a PLY file"),
    "noise": (bytes(range(256)) * 40, "not a PLY file"),
    "only the first line": (b"ply\n", "broken PLY header: line 2"),
    "header cut off": (header()[:100], "broken PLY header"),
    "endless line": (b"ply\n" + b"a" * 100_000, "longer than 1024 bytes"),
    "endless header": (b"ply\n" + b"comment\n" * 5000, "no 'end_header'"),
    "unknown format": (header(kind="binary_middle_endian") + BODY, "broken PLY header: line 2"),
    "no format": (header().replace(b"format binary_little_endian 1.0\n", b"") + BODY, "without a 'format' line"),
    "property before element": (b"ply\nformat ascii 1.0\nproperty float x\nend_header\n", "line 3 reads 'property float x'"),
    "duplicate property": (header([*NAMES, "x"]) + BODY + bytes(4), "line 30 reads 'property float x'"),
    "unknown type": (header(type_="quad") + BODY, "line 4 reads 'property quad x'"),
    "no vertices": (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "no 'vertex' element"),
    "zero Gaussians": (header(count=0), "holds 0 Gaussians"),
    "negative count": (header(count=-1) + BODY, "line 3 reads 'element vertex -1'"),
    "fractional count": (header(count=1.5) + BODY, "line 3 reads 'element vertex 1.5'"),
    "astronomic count": (header(count="9" * 5000) + BODY, "longer than 1024 bytes"),
    "count of 30 digits": (header(count="9" * 30) + BODY, "broken PLY header: line 3"),
    "count of 18 digits": (header(count="9" * 18) + BODY, "more than the limit of 30,000,000"),
    "huge count": (header(count=29_000_000) + BODY, r"29,000,000 rows of 'vertex' \(3,016,000,000 bytes\) but has only 104"),
    "huge count, text": (header(count=29_000_000, kind="ascii") + TEXT_ROW, "29,000,000 rows"),
    "huge count elsewhere": (
        header().replace(b"element vertex", b"element camera 99999999999999999\nproperty int id\nelement vertex") + BODY,
        "99,999,999,999,999,999 rows of 'camera'",
    ),
    "huge count of nothing, text": (
        header(kind="ascii").replace(b"element vertex", b"element camera 99999999999999999\nelement vertex") + TEXT_ROW,
        "99,999,999,999,999,999 rows of 'camera'",
    ),
    "truncated": (header(count=3) + BODY * 2 + BODY[:50], r"3 rows of 'vertex' \(312 bytes\) but has only 258"),
    "count too small": (header(count=2) + BODY * 3, "104 bytes more than its header announces"),
    "truncated, text": (
        header(count=3, kind="ascii") + TEXT_ROW.replace(b"  ", b"    ") * 2,
        "announces 3 rows of 'vertex' but has 2",
    ),
    "count too small, text": (header(count=2, kind="ascii") + TEXT_ROW * 3, "more lines than its header announces"),
    "words, text": (header(kind="ascii") + TEXT_ROW.replace(b"0.25", b"lots"), "damaged"),
    "short row, text": (header(kind="ascii", count=2) + b"1 2 3\n" + TEXT_ROW.replace(b" ", b"   "), "damaged"),
    "short rows, text": (header(kind="ascii") + b"1 2 3 " * 10 + b"\n", "30 numbers a row but announces 26"),
    "blank rows, text": (header(kind="ascii") + b"\n" * 80, "has 0"),
    "no opacity": (without("opacity"), "lacks 1 of the 14 properties of a 3DGS scene .opacity."),
    "mesh": (
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n",
        "lacks 11 of the 14 .* mesh or a point cloud",
    ),
    "compressed": (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty uint packed_position\nend_header\n0000",
        "lacks 15 properties of a compressed PLY",
    ),
    "gap in f_rest": (without("f_rest_4"), "8 f_rest properties"),
    "wrong numbers in f_rest": (header([n.replace("rest_8", "rest_9") for n in NAMES]) + BODY, "numbered from 0"),
    "degree 4": (
        header([*NAMES, *(f"f_rest_{i}" for i in range(9, 72))]) + BODY + bytes(4 * 63),
        "72 f_rest properties; degrees 0 to 3 have 0, 9, 24 or 45",
    ),
    "list property": (
        header().replace(b"end_header", b"property list uchar int neighbours\nend_header") + BODY + b"\0",
        "list properties in its 'vertex' element",
    ),
    "list before": (
        header().replace(b"element vertex", b"element face 1\nproperty list uchar int i\nelement vertex") + b"\0" + BODY,
        "list properties before its 'vertex' element",
    ),
    "NaN": (with_value("y", float("nan")), r"1 of 1 Gaussians have values that are NaN.*y = nan in row 0"),
    "infinite": (with_value("opacity", float("inf")), "opacity = inf in row 0"),
    "minus infinity": (with_value("scale_1", float("-inf")), "scale_1 = -inf"),
    "far away": (with_value("x", 1e30), "too large"),
    "huge": (with_value("scale_2", 80), "scale_2 = 80"),
    "double beyond float": (
        header(type_="double") + struct.pack("<26d", 1e300, *VALUES[1:]),
        "x = inf",
    ),
}


class TestHostile:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_one_sentence_says_what_is_wrong(self, ply, case):
        data, message = HOSTILE[case]
        with pytest.raises(InputError, match=message) as caught:
            load_ply(write(ply, data))
        assert "scene.ply" in str(caught.value) and "\n" not in str(caught.value)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(InputError, match="No such file"):
            load_ply(tmp_path / "none.ply")
        (tmp_path / "folder.ply").mkdir()
        with pytest.raises(InputError, match="Is a directory"):
            load_ply(tmp_path / "folder.ply")

    @settings(max_examples=300)
    @given(st.data())
    def test_damage_anywhere_is_loaded_or_refused(self, tmp_path_factory, data):
        """Bytes changed, dropped or doubled: never another exception, never bad numbers."""
        raw = bytearray(header() + BODY)
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(raw) - 1))
            raw[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=12))
        path = tmp_path_factory.getbasetemp() / "damaged.ply"
        try:
            loaded = load_ply(write(path, bytes(raw)))
        except InputError:
            return
        assert all(getattr(loaded, field).isfinite().all() for field in FIELDS)


class TestSave:
    def test_refuses_nan_and_leaves_the_old_file(self, ply):
        save_ply(HAND_SPLATS, ply)
        before = ply.read_bytes()
        with pytest.raises(StoppedLate, match="1 of 1 Gaussians hold NaN"):
            save_ply(HAND_SPLATS.map(lambda x: x * float("nan")), ply)
        assert ply.read_bytes() == before and [p.name for p in ply.parent.iterdir()] == ["scene.ply"]

    def test_disk_full_leaves_the_old_file(self, ply, monkeypatch):
        save_ply(HAND_SPLATS, ply)
        before = ply.read_bytes()

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises(StoppedLate, match=r"scene\.ply: No space left on device"):
            save_ply(random_splats(), ply)
        assert ply.read_bytes() == before and [p.name for p in ply.parent.iterdir()] == ["scene.ply"]

    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            save_ply(HAND_SPLATS, tmp_path / "none" / "scene.ply")

    def test_file_has_the_usual_permissions(self, ply):
        save_ply(HAND_SPLATS, ply)
        (plain := ply.with_name("plain")).write_bytes(b"")
        assert ply.stat().st_mode == plain.stat().st_mode


class TestRoundTrip:
    @settings(max_examples=60)
    @given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 2**31), st.floats(-6, 6))
    def test_bit_exact(self, tmp_path_factory, n, degree, seed, log10):
        splats = random_splats(n, degree, seed)
        splats = Splats(splats.means * 10**log10, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh)
        path = tmp_path_factory.getbasetemp() / "round_trip.ply"
        save(splats, path)
        assert_same(load(path), splats)

    def test_float64_is_stored_as_float32(self, ply):
        save(random_splats().to(torch.float64), ply)
        assert_same(load(ply), random_splats())


class TestConvention:
    @pytest.mark.parametrize("degree", [0, 3])
    def test_3dgs_turns_half_about_x_and_back(self, ply, degree):
        splats = random_splats(degree=degree)
        save(splats, ply, convention="3dgs")
        raw = load(ply)
        torch.testing.assert_close(raw.means, splats.means * torch.tensor([1.0, -1, -1]))
        half_turn = torch.diag(torch.tensor([1.0, -1, -1]))
        torch.testing.assert_close(raw.covariances(), half_turn @ splats.covariances() @ half_turn)
        again = load(ply, convention="3dgs")
        torch.testing.assert_close(again.means, splats.means)
        torch.testing.assert_close(again.covariances(), splats.covariances())
        torch.testing.assert_close(again.sh, splats.sh)

    def test_3dgs_turns_the_sh_bands(self, ply):
        """The half turn about x flips the sign of the terms odd in y and z together, and of no other."""
        save(random_splats(degree=1), ply, convention="3dgs")
        expected = random_splats(degree=1).sh * torch.tensor([1.0, -1, -1, 1])[:, None]  # 1, y, z, x
        torch.testing.assert_close(load(ply).sh, expected)

    def test_the_default_leaves_axes_alone(self, ply):
        splats = random_splats()
        save(splats, ply)
        torch.testing.assert_close(load(ply).means, splats.transformed(Similarity.identity()).means)

    def test_unknown_suffix(self, tmp_path):
        for call in (load, lambda p: save(HAND_SPLATS, p)):
            with pytest.raises(InputError, match=r"suffix '\.xyz'; splat scenes end in \.ply"):
                call(tmp_path / "scene.xyz")
