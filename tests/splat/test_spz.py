"""SPZ against bytes written by hand, in every version, and against the coordinate systems that it can name."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from format_samples import random_splats

from splat import sh as harmonics
from splat.errors import BackendUnavailable, InputError
from splat.gaussians import Splats
from splat.io import spz_streams
from splat.io.spz import load_spz, save_spz

ROOT_HALF = 0.5**0.5

# Two Gaussians of SH degree 1, block by block. Positions (1, -2, 0.5) and (0, 0, -0.25) with 12 fractional bits.
POSITIONS = bytes.fromhex("001000 00e0ff 000800  000000 000000 00fcff")
OPACITIES = bytes([51, 204])  # 0.2, 0.8
COLOURS = bytes([255, 0, 51, 204, 102, 153])
SCALES = bytes([160, 80, 240, 0, 144, 161])  # logs 0, -5, 5 and -10, -1, 0.0625
SH = bytes([64, 128, 192, 0, 16, 32, 248, 96, 160, *[128] * 9])
# Largest w (3), then sign and magnitude of x, y, z; and largest y (1), then x, z, w.
ROTATIONS = struct.pack("<II", 3 << 30 | 100 << 20 | (512 | 200) << 10 | 300, 1 << 30 | 0 << 20 | 0 << 10 | (512 | 511))
ROTATIONS_3 = bytes([255, 127, 127, 0, 127, 127])  # x = 1 and x = -1, nearly
HALVES = np.array([1, -2, 0.5, 0, 0, -0.25], "<f2").tobytes()
BLOCKS = {1: [HALVES], 2: [POSITIONS], 3: [POSITIONS], 4: [POSITIONS]}


def header(version=3, count=2, degree=1, bits=12, flags=0, last=0, magic=b"NGSP"):
    return struct.pack("<4sIIBBBB", magic, version, count, degree, bits, flags, last)


def blocks(version):
    rotations = ROTATIONS if version >= 3 else ROTATIONS_3
    return [HALVES if version == 1 else POSITIONS, OPACITIES, COLOURS, SCALES, rotations, SH]


def gzipped(version=3, **facts):
    return gzip.compress(header(version, **facts) + b"".join(blocks(version)))


def streamed(extensions=b"", **facts):
    packed = [zstandard.compress(block) for block in blocks(4)]
    table = b"".join(struct.pack("<QQ", len(p), len(b)) for p, b in zip(packed, blocks(4), strict=True))
    start = header(4, flags=2 if extensions else 0, last=6, **facts) + struct.pack("<I12x", 32 + len(extensions))
    return b"".join([start, extensions, table, *packed])


HAND = {1: gzipped(1), 2: gzipped(2), 3: gzipped(3), 4: streamed()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scene.spz"


def loaded(path, data):
    path.write_bytes(data)
    return load_spz(path)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_hand_written_bytes_are_read(path, version):
    splats = loaded(path, HAND[version])
    torch.testing.assert_close(splats.means, torch.tensor([[1, -2, 0.5], [0, 0, -0.25]]), rtol=0, atol=0)
    torch.testing.assert_close(splats.opacities, torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(splats.log_scales, torch.tensor([[0, -5.0, 5], [-10, -1, 0.0625]]), rtol=0, atol=0)
    dc = (torch.tensor([[1, 0, 0.2], [0.8, 0.4, 0.6]]) - 0.5) / 0.15
    torch.testing.assert_close(splats.sh[:, 0], dc)
    first = torch.tensor([[-0.5, 0, 0.5], [-1, -0.875, -0.75], [0.9375, -0.25, 0.25]])
    torch.testing.assert_close(splats.sh[0, 1:], first, rtol=0, atol=0)
    assert (splats.sh[1, 1:] == 0).all()
    if version >= 3:
        x, y, z = (ROOT_HALF * m / 511 for m in (100, -200, 300))
        w = (1 - x * x - y * y - z * z) ** 0.5
        expected = [[w, x, y, z], [-ROOT_HALF, 0, ROOT_HALF, 0]]
    else:
        expected = [[0, 1, -1 / 255, -1 / 255], [0, -1, -1 / 255, -1 / 255]]
    torch.testing.assert_close(splats.quats, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_written_bytes_are_those_written_by_hand(path, version):
    splats = loaded(path, HAND[version])
    save_spz(splats, path, version)
    data = path.read_bytes()
    if version == 4:
        assert data[:16] == header(4, bits=16, last=6) and data[16:32] == struct.pack("<I12x", 32)
        sizes = [struct.unpack_from("<QQ", data, 32 + 16 * i) for i in range(6)]
        start, written = 32 + 96, []
        for packed, size in sizes:
            written.append(zstandard.ZstdDecompressor().decompress(data[start : start + packed], size))
            start += packed
        assert start == len(data)
    else:
        raw = gzip.decompress(data)
        assert raw[:16] == header(version, bits=16)
        written = np.split(np.frombuffer(raw[16:], np.uint8), np.cumsum([len(b) for b in blocks(version)])[:-1])
        written = [block.tobytes() for block in written]
    # As many fractional bits as the farthest position leaves, at most 16: sixteen times the values of 12 bits.
    assert written[0] == bytes.fromhex("000001 0000fe 008000  000000 000000 00c0ff")
    assert written[1:] == blocks(version)[1:]


def test_same_splats_same_bytes(tmp_path):
    for name in "ab":
        save_spz(random_splats(), tmp_path / f"{name}.spz")
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


def test_far_positions_take_bits_from_the_fraction(path, caplog):
    splats = random_splats(spread=1.0)
    far = Splats(splats.means * 1e5, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh)
    save_spz(far, path)
    assert (load_spz(path).means - far.means).abs().max() <= float(far.means.abs().max()) * 2.0**-23
    assert "positions are rounded to" in caplog.text
    with pytest.raises(InputError, match="8,388,607 units"):
        save_spz(far.map(lambda x: x * 1e5), path)


def test_degree_4_keeps_the_bands_up_to_3(path, caplog):
    data = header(degree=4) + b"".join(blocks(3)[:5]) + bytes(range(128, 200)) * 2
    splats = loaded(path, gzip.compress(data))
    assert splats.sh_degree == 3 and "SH degree 4" in caplog.text
    torch.testing.assert_close(splats.sh[1, 15], torch.tensor([42.0, 43, 44]) / 128, rtol=0, atol=0)


@pytest.mark.parametrize("number, axes", [(0, "RUB"), *enumerate(spz_streams.AXES, 1)])
def test_named_axes_are_turned_to_ours(path, number, axes):
    """Centres, covariances and colours as seen are those of the stored scene, moved as a whole."""
    plain = loaded(path, streamed())
    other = struct.pack("<III", 0xADBE0002, 4, 7)
    moved = loaded(path, streamed(extensions=other + struct.pack("<III", 0xADBE0003, 4, number)))
    to_ours = torch.tensor([spz_streams.DIRECTIONS[letter] for letter in axes]).T.float()  # as the letters say
    torch.testing.assert_close(moved.means, plain.means @ to_ours.T)
    torch.testing.assert_close(moved.covariances(), to_ours @ plain.covariances() @ to_ours.T, rtol=1e-4, atol=1e-4)
    look = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.8], [0.9, 0.2, -0.1]]), dim=1)
    seen = harmonics.colours(moved.sh, look @ to_ours.T)
    torch.testing.assert_close(seen, harmonics.colours(plain.sh, look), rtol=0, atol=1e-5)


HOSTILE = {
    "no magic": (b"PK\3\4" + bytes(40), "begins with neither"),
    "empty": (b"", "begins with neither"),
    "gzip of something else": (gzip.compress(b"hello" * 9), "does not begin with 'NGSP'"),
    "version 0": (gzipped(3, magic=b"NGSP")[:0] + gzip.compress(header(0) + bytes(99)), "version 0"),
    "version 5": (header(5) + bytes(99), "version 5; versions 1 to 4"),
    "version 3 bare": (header(3) + bytes(99), "without its gzip"),
    "no Gaussians": (gzip.compress(header(count=0)), "holds 0 Gaussians"),
    "too many": (gzip.compress(header(count=2**32 - 1)), "more than the limit"),
    "bomb": (gzip.compress(header(count=20_000_000, degree=3) + bytes(10**6)), "made to exhaust memory"),
    "degree 9": (gzip.compress(header(degree=9)), "SH degree 9"),
    "fractional bits": (gzip.compress(header(bits=200)), "200 fractional bits"),
    "short": (gzip.compress(header() + POSITIONS + b"12"), "ends within their colours"),
    "long": (gzip.compress(header() + b"".join(blocks(3)) + b"12"), "more bytes than its header announces"),
    "NaN": (gzip.compress(header(1) + b"\0\x7e" + b"".join(blocks(1))[2:]), "NaN, infinite or too large"),
    "version 4, too many": (header(4, count=2**31, last=6) + bytes(99), "more than the limit"),
    "version 4, no table": (header(4, last=6) + bytes(16), "0 streams|damaged|cut off"),
    "version 4, streams": (streamed()[:15] + b"\5" + streamed()[16:], "5 streams where 6 belong"),
    "version 4, spare bytes": (streamed() + b"1", "bytes to spare"),
    "unknown axes": (streamed(extensions=struct.pack("<III", 0xADBE0003, 4, 17)), "coordinate system 17"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_one_sentence_says_what_is_wrong(path, case):
    data, message = HOSTILE[case]
    with pytest.raises(InputError, match=message) as caught:
        loaded(path, data)
    assert "scene.spz" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_every_cut_is_refused(path, version):
    for end in range(len(HAND[version])):
        with pytest.raises(InputError):
            loaded(path, HAND[version][:end])


def test_a_bomb_takes_no_memory(path):
    """The header is believed only as far as the file's size allows, and a stream is expanded only as far as the header says."""
    zeros = gzip.compress(header(count=1000, degree=3) + bytes(10**8))
    wide = bytearray(streamed())
    tracemalloc.start()
    for data in (zeros, bytes(wide)[:32] + struct.pack("<QQ", 10, 2**60) + bytes(wide)[48:]):
        with pytest.raises(InputError):
            loaded(path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6, peak


def test_version_4_names_the_package_that_it_needs(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(BackendUnavailable, match="pip install zstandard"):
        save_spz(random_splats(), path, version=4)
    save_spz(random_splats(), path, version=3)
