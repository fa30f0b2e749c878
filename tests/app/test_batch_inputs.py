"""Which files a batch takes, and what their result folders are called."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batch_inputs import MAX_NAME_BYTES, find_files, folder_names, safe_name
from splat.errors import InputError

SUFFIXES = (".png", ".jpg")


def touched(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_folders_files_and_patterns(tmp_path):
    touched(tmp_path, "f/a10.png", "f/a2.JPG", "f/notes.txt", "f/.hidden.png", "f/sub/deep.png", "g/x.png", "g/y.md", "odd.dat")
    found = find_files([tmp_path / "f", tmp_path / "g" / "*", tmp_path / "odd.dat"], SUFFIXES)
    assert [file.name for file in found.files] == ["a2.JPG", "a10.png", "odd.dat", "x.png"]
    assert sorted(found.ignored) == ["notes.txt", "y.md"]
    deep = find_files([tmp_path / "**" / "*.png"], SUFFIXES)
    assert [file.name for file in deep.files] == ["a10.png", "deep.png", "x.png"]


def test_a_file_that_came_twice_counts_once(tmp_path):
    (a,) = touched(tmp_path, "f/a.png")
    (tmp_path / "link.png").symlink_to(a)
    assert find_files([a, tmp_path / "f", tmp_path / "f" / "*.png", tmp_path / "link.png"], SUFFIXES).files == (a,)


def test_a_name_that_looks_like_a_pattern_is_a_file(tmp_path):
    touched(tmp_path, "a[1].png", "a1.png")
    assert [file.name for file in find_files([tmp_path / "a[1].png"], SUFFIXES).files] == ["a[1].png"]


def test_what_cannot_be_a_batch(tmp_path):
    touched(tmp_path, "f/notes.txt")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    for inputs, sentence in (
        ([], "No input was given"),
        ([tmp_path / "f"], "holds no png or jpg file"),
        ([tmp_path / "none.png"], "does not exist"),
        ([tmp_path / "f" / "*"], "matches no png or jpg file"),
        ([tmp_path / "dangling.png"], "no regular file"),
    ):
        with pytest.raises(InputError, match=sentence):
            find_files(inputs, SUFFIXES)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(InputError, match="no regular file"):
            find_files([tmp_path / "pipe.png"], SUFFIXES)


def test_names_stay_where_they_can_and_get_longer_where_they_collide():
    files = [
        Path("s/Chair 01 (front).png"),
        Path("s/a.png"),
        Path("s/a.jpg"),
        Path("s/b.png"),
        Path("t/b.png"),
        Path("s/A-png.bmp"),
    ]
    names = folder_names(files)
    assert [names[file] for file in files] == ["Chair 01 (front)", "s-a-png", "a-jpg", "s-b-png", "t-b-png", "A-png-bmp"]
    assert folder_names(files[::-1]) == names
    again = folder_names([Path("p/s/b.png"), Path("q/s/b.png")])
    assert len(set(again.values())) == 2 and all(name.startswith("b-png-") for name in again.values())


def test_a_later_neighbour_never_takes_over_a_name():
    """OUT/a made from a.png must not be taken for the result of an a.jpg that came later."""
    alone, later = folder_names([Path("f/a.png")]), folder_names([Path("f/a.png"), Path("f/a.jpg")])
    assert alone[Path("f/a.png")] not in later.values()


def test_capitals_and_composed_letters_collide_as_on_every_file_system():
    names = folder_names([Path("a/Chair.png"), Path("b/chair.png"), Path("a/caf\u00e9.png"), Path("b/cafe\u0301.png")])
    assert len({name.casefold() for name in names.values()}) == 4 and all("-png" in name for name in names.values())


@pytest.mark.parametrize(
    "stem", ["index.html", "batch.json", "LOCK", "a.partial", "con", ".x", "a.", "a ", "", "a/b", "\udcff", "x\ny"]
)
def test_names_that_no_folder_can_have(stem):
    name = safe_name(stem)
    assert name != stem and (stem == "" or name.startswith(("index", "batch", "LOCK", "a", "con", "_", "x")))
    assert len(name.rsplit("-", 1)[-1]) == 8


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=8, unique=True))
def test_any_names_make_usable_folders(stems):
    files = [Path("f") / f"{safe}.png" for stem in stems if (safe := stem.replace("/", "").replace("\0", ""))]
    names = list(folder_names(files).values())
    for name in names:
        assert name not in ("", ".", "..") and not set(name) & set('/\\\0\n<>:"|?*')
        assert len(name.encode()) <= MAX_NAME_BYTES + 9 and name[0] != "."
    assert len({name.casefold() for name in names}) == len(dict.fromkeys(files))
