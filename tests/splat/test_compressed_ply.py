"""Compressed PLY against bytes written by hand."""

import struct

import numpy as np
import pytest
import torch
from format_samples import differences, random_splats

from splat.errors import InputError
from splat.io import load
from splat.io.compressed_ply import load_compressed_ply, morton_order, save_compressed_ply

RANGES = [
    "min_x", "min_y", "min_z", "max_x", "max_y", "max_z",
    "min_scale_x", "min_scale_y", "min_scale_z", "max_scale_x", "max_scale_y", "max_scale_z",
]  # fmt: skip
COLOURS = ["min_r", "min_g", "min_b", "max_r", "max_g", "max_b"]
PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
CHUNK = [-1, 0, 2, 1, 4, 3, -6, -5, -4, -2, -1, 0]
CHUNK_COLOURS = [0, 0.2, 0.4, 1, 0.6, 0.5]
# The low corner: w largest, then x, y, z. The high corner: z largest, then w, x, y.
LOW = [0, 0 << 30 | 512 << 20 | 100 << 10 | 600, 0, 51]
HIGH = [0xFFFFFFFF, 3 << 30 | 512 << 20 | 900 << 10 | 300, 0xFFFFFFFF, 255 << 24 | 255 << 16 | 255 << 8 | 204]
REST = [[0, 128, 255, 1, 127, 254, 64, 192, 200], [128] * 9]


def compressed(chunk=RANGES + COLOURS, rest=9, count=2, packed=PACKED, chunks=1, kind="uint", form="binary_little_endian"):
    lines = ["ply", f"format {form} 1.0", f"element chunk {chunks}", *(f"property float {p}" for p in chunk)]
    lines += [f"element vertex {count}", *(f"property {kind} {p}" for p in packed)]
    if rest:
        lines += [f"element sh {count}", *(f"property uchar f_rest_{i}" for i in range(rest))]
    return ("\n".join([*lines, "end_header"]) + "\n").encode()


BODY = struct.pack("<18f8I", *CHUNK, *CHUNK_COLOURS, *LOW, *HIGH)
HAND = compressed() + BODY + bytes(REST[0] + REST[1])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scene.compressed.ply"


def loaded(path, data):
    path.write_bytes(data)
    return load(path)


def test_hand_written_bytes_are_read(path):
    splats = loaded(path, HAND)
    torch.testing.assert_close(splats.means, torch.tensor([[-1.0, 0, 2], [1, 4, 3]]), rtol=0, atol=0)
    torch.testing.assert_close(splats.log_scales, torch.tensor([[-6.0, -5, -4], [-2, -1, 0]]), rtol=0, atol=0)
    torch.testing.assert_close(splats.opacities, torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(splats.rgb, torch.tensor([[0, 0.2, 0.4], [1, 0.6, 0.5]]))
    low, high = ([(code / 1023 - 0.5) * 2**0.5 for code in codes] for codes in ((512, 100, 600), (512, 900, 300)))
    expected = [[(1 - sum(q * q for q in low)) ** 0.5, *low], [*high, (1 - sum(q * q for q in high)) ** 0.5]]
    torch.testing.assert_close(splats.quats, torch.tensor(expected), rtol=0, atol=2e-6)
    # All red, then green, then blue; 0 and 255 are the ends, the rest the middles of steps of 1/32.
    middle = lambda code: (code + 0.5) / 32 - 4  # noqa: E731
    red, green, blue = [-4, middle(128), 4], [middle(c) for c in (1, 127, 254)], [middle(c) for c in (64, 192, 200)]
    torch.testing.assert_close(splats.sh[0, 1:], torch.tensor([red, green, blue]).T, rtol=0, atol=0)


def test_colours_without_ranges_run_from_0_to_1(path):
    body = struct.pack("<12f8I", *CHUNK, *LOW, *HIGH)
    splats = loaded(path, compressed(chunk=RANGES, rest=0) + body)
    torch.testing.assert_close(splats.rgb, torch.tensor([[0.0, 0, 0], [1, 1, 1]]))
    assert splats.sh_degree == 0


def test_properties_may_come_in_any_order(path):
    body = struct.pack("<18f8I", *CHUNK, *CHUNK_COLOURS, *LOW[::-1], *HIGH[::-1])
    assert differences(loaded(path, compressed(packed=PACKED[::-1], rest=0) + body), loaded(path, HAND))["position"] == 0


def test_written_bytes_are_those_written_by_hand(path):
    splats = loaded(path, HAND)
    save_compressed_ply(splats, path)
    head, body = path.read_bytes().split(b"end_header\n")
    assert head.replace(b"comment splatsmith\n", b"") + b"end_header\n" == compressed()
    np.testing.assert_allclose(np.frombuffer(body[:72], "<f4"), [*CHUNK, *CHUNK_COLOURS], rtol=0, atol=1e-6)
    assert body[72:] == HAND[len(compressed()) + 72 :]


def test_the_last_chunk_may_be_partial_and_chunks_have_ranges_of_their_own(path):
    splats = random_splats(600)
    save_compressed_ply(splats, path)
    assert b"element chunk 3\n" in path.read_bytes()
    back, ours = load_compressed_ply(path), splats[morton_order(splats.means.numpy())]
    error = differences(ours, back)
    assert error["position"] < 0.004 and error["sh"] <= 1 / 64 + 1e-6 and error["log_scale"] < 0.004


def test_morton_order_interleaves_the_bits():
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)  # x slowest
    assert morton_order(corners).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]  # x fastest
    points = np.random.default_rng(0).random((500, 3)).astype(np.float32)
    cells = ((points - points.min(0)) / np.ptp(points, axis=0).max() * (2**21 - 1)).astype(int)
    keys = [sum((int(c[a]) >> b & 1) << (3 * b + a) for b in range(21) for a in range(3)) for c in cells]
    assert morton_order(points).tolist() == np.argsort(keys, kind="stable").tolist()


def test_a_single_point_and_equal_values(path):
    splats = random_splats(1)
    save_compressed_ply(splats, path)
    assert differences(splats, load(path))["position"] == 0
    same = splats[torch.zeros(300, dtype=torch.long)]
    save_compressed_ply(same, path)
    assert (load(path).means == splats.means).all()


HOSTILE = {
    "cut": (HAND[:-1], "2 rows of 'sh' but has only 17"),
    "cut in the chunks": (HAND[: len(compressed()) + 40], "1 rows of 'chunk' but has only 40"),
    "more": (HAND + b"1", "more bytes than its header"),
    "count": (compressed(count=2**40, rest=0) + BODY, "1,099,511,627,776 rows of 'vertex'"),
    "none": (compressed(count=0, chunks=0, rest=0), "0 Gaussians"),
    "chunks": (compressed(chunks=2, rest=0) + struct.pack("<18f", *CHUNK, *CHUNK_COLOURS) + BODY, "2 chunks where 1 belong"),
    "no scale": (compressed(packed=PACKED[:2] + PACKED[3:], rest=0) + BODY[:96], "lacks 1 properties .*packed_scale"),
    "float codes": (compressed(kind="float", rest=0) + BODY, "lacks 4 properties"),
    "SH of no degree": (compressed(rest=10) + BODY + bytes(20), "10 properties of SH"),
    "text": (compressed(form="ascii", rest=0), "written as text"),
    "NaN": (compressed(rest=0) + struct.pack("<f", float("nan")) + BODY[4:], "NaN, infinite or too large"),
    "infinite range": (compressed(rest=0) + BODY[:12] + struct.pack("<f", float("inf")) + BODY[16:], "NaN, infinite"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_one_sentence_says_what_is_wrong(path, case):
    data, message = HOSTILE[case]
    with pytest.raises(InputError, match=message) as caught:
        loaded(path, data)
    assert "scene.compressed.ply" in str(caught.value) and "\n" not in str(caught.value)
