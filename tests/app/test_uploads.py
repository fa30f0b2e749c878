"""What visitors send: names, links, sizes, bombs."""

import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from app.uploads import MAX_NAME_BYTES, UploadLimits, admit_files, folder_bytes, safe_name
from splat.errors import InputError


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("photo.jpg", "photo.jpg"),
        ("../../x", "x"),
        ("..\\..\\x.png", "x.png"),
        ("/etc/passwd", "passwd"),
        ("C:\\photos\\a b.png", "a b.png"),
        ("a\x00b\n\x1b[31m.png", "ab[31m.png"),
        ("right\u202egnp.exe.png", "rightgnp.exe.png"),
        ("..", "file"),
        ("", "file"),
        ("///", "file"),
        (".hidden", "file.hidden"),
        ("-rf.png", "rf.png"),
        ("con.png", "con_.png"),
        ('a<b>:"c|d?*.png', "a b c d.png"),
        ("Stühle 椅子.jpeg", "Stühle 椅子.jpeg"),
        ("u\u0308.png", "ü.png"),
        ("\ud800.png", "file.png"),
    ],
)
def test_names_become_harmless(given, safe):
    assert safe_name(given) == safe


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "椅" * 300 + ".jpeg", "x." + "y" * 300, "🪑" * 80])
def test_long_names_are_cut(name):
    short = safe_name(name)
    assert 0 < len(short.encode()) <= MAX_NAME_BYTES and "/" not in short
    assert not name.endswith((".png", ".jpeg")) or short.endswith((".png", ".jpeg"))


def files(folder: Path, **content: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, data in content.items():
        (folder / f"{name}.png").write_bytes(data)
    return sorted(folder.iterdir())


def test_files_are_copied_in_order_under_names_of_their_own(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    files(one, A=b"1", b=b"2")
    files(two, a=b"3")
    given = [two / "a.png", one / "b.png", one / "A.png"]
    admitted = admit_files(given, tmp_path / "in", UploadLimits())
    assert [path.name for path in admitted] == ["a.png", "b.png", "A_2.png"], "case tells no names apart everywhere"
    assert [path.read_bytes() for path in admitted] == [b"3", b"2", b"1"]
    assert all(path.parent == tmp_path / "in" for path in admitted)
    (one / ".DS_Store").write_bytes(b"x")
    (one / "deeper").mkdir()
    assert [path.name for path in admit_files([one], tmp_path / "folder", UploadLimits())] == ["A.png", "b.png"]
    assert folder_bytes(tmp_path / "in") == 3 and folder_bytes(tmp_path / "nowhere") == 0


def test_links_and_other_things_are_refused(tmp_path):
    (secret,) = files(tmp_path / "secret", key=b"secret")
    for target in (secret, tmp_path / "nothing"):
        (tmp_path / "link.png").unlink(missing_ok=True)
        (tmp_path / "link.png").symlink_to(target)
        with pytest.raises(InputError, match=r"link\.png is a link or no regular file"):
            admit_files([tmp_path / "link.png"], tmp_path / "in", UploadLimits())
    (tmp_path / "folder").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="link"):
        admit_files([tmp_path / "folder"], tmp_path / "in", UploadLimits())
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="no regular file"):
        admit_files([tmp_path / "pipe.png"], tmp_path / "in", UploadLimits())
    for gone in (tmp_path / "gone.png", Path("x\x00y")):
        with pytest.raises(InputError, match="did not arrive"):
            admit_files([gone], tmp_path / "in", UploadLimits())
    assert not (tmp_path / "in").exists()


def test_count_and_bytes_are_limited(tmp_path):
    given = files(tmp_path / "given", a=b"x" * 1000, b=b"x" * 1000)
    with pytest.raises(InputError, match="2 files were sent, more than the 1"):
        admit_files(given, tmp_path / "in", UploadLimits(files=1))
    with pytest.raises(InputError, match=r"more than the 0 MB that one job"):
        admit_files(given, tmp_path / "in", UploadLimits(bytes=1500))
    with pytest.raises(InputError, match="delete jobs first"):
        admit_files(given, tmp_path / "in", UploadLimits(), room=1500)
    assert not (tmp_path / "in").exists()
    assert len(admit_files(given, tmp_path / "in", UploadLimits(files=2, bytes=2000), room=2000)) == 2


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((13, body), (0, b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", n) + c + struct.pack(">I", zlib.crc32(c)) for n, c in chunks)


@pytest.mark.parametrize(("width", "height"), [(20_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_that_promises_too_much_is_refused_unread(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    with pytest.raises(InputError, match=r"bomb\.png has .*more than 120 megapixels"):
        admit_files([tmp_path / "bomb.png"], tmp_path / "in", UploadLimits())


def test_pixels_are_counted_in_every_format_whatever_the_suffix(tmp_path):
    for name, kind in (
        ("a.png", "PNG"),
        ("b.jpg", "JPEG"),
        ("c.webp", "WEBP"),
        ("d.tif", "TIFF"),
        ("e.jpg", "PNG"),
        ("f", "BMP"),
    ):
        Image.new("RGB", (40, 30)).save(tmp_path / name, kind)
        with pytest.raises(InputError, match="40 x 30 px"):
            admit_files([tmp_path / name], tmp_path / "in", UploadLimits(pixels=1000))
        assert admit_files([tmp_path / name], tmp_path / f"in-{name}", UploadLimits(pixels=1200))


def test_what_is_no_picture_passes_to_the_job(tmp_path):
    for name, data in (
        ("video.mp4", b"\0\0\0\x18ftypmp42"),
        ("broken.jpg", b"\xff\xd8\xff"),
        ("empty.png", b""),
        ("a.txt", b"hi"),
    ):
        (tmp_path / name).write_bytes(data)
    assert len(admit_files(sorted(tmp_path.iterdir()), tmp_path / "in", UploadLimits())) == 4


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    given = files(tmp_path / "given", a=b"x", b=b"y")

    def full(reader, writer, length):
        if writer.name.endswith("b.png"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.uploads.shutil.copyfileobj", full)
    with pytest.raises(InputError, match="disk is full"):
        admit_files(given, tmp_path / "in", UploadLimits())
    assert not (tmp_path / "in").exists()
