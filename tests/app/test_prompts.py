"""Prompts and files of prompts as people may give them, and the folder names made of them."""

import re

import pytest

from app.prompts import MAX_CHARACTERS, MAX_FILE_BYTES, MAX_PROMPTS, read_prompts, slug
from splat.errors import InputError


def refused(data: bytes | None, folder, *sentences: str) -> str:
    file = None
    if data is not None:
        file = folder / "prompts.txt"
        file.write_bytes(data)
    with pytest.raises(InputError) as error:
        read_prompts(sentences, file)
    assert str(error.value).endswith(".") and len(str(error.value)) < 300
    return str(error.value)


def test_a_file_has_a_prompt_a_line_with_comments_and_blank_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(
        "\ufeff# chairs\na red chair\r\n\n  \n   # no\n\ta  blue\u3000table \nun fauteuil bleute\u0301\n🪑\n".encode()
    )
    assert read_prompts(["first"], file) == ("first", "a red chair", "a blue table", "un fauteuil bleuté", "🪑")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "holds no prompt"), (b"# only\n\n", "holds no prompt"), (b"\xef\xbb\xbf", "holds no prompt"),
        (b"a chair\na caf\xe9 table\n", "not UTF-8 in line 2"), ("a chair".encode("utf-16"), "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "zero bytes"), (b"a" * (MAX_FILE_BYTES + 1), "larger than 1 MB"),
        (b"a chair\n" * (MAX_PROMPTS + 1), f"{MAX_PROMPTS + 1} prompts"), (b"good\na \x07 bell\n", "prompts.txt line 2"),
        (b"x" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS + 1:,} characters"),
    ],
)  # fmt: skip
def test_files_that_hold_no_prompts(data, told, tmp_path):
    assert told in refused(data, tmp_path)


def test_files_that_are_none(tmp_path):
    for path in (tmp_path, tmp_path / "missing.txt", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be read"):
            read_prompts([], path)


@pytest.mark.parametrize(
    ("sentences", "told"),
    [
        ([], "no prompt"), ([""], "The prompt is empty"), (["a chair", " \t\n "], "Prompt 2 is empty"),
        (["a \x00 chair"], "U+0000 at character 3"), (["\x1b[31m red"], "U+001B at character 1"),
        (["a \udce9 chair"], "not valid text at character 3"), (["word " * MAX_CHARACTERS], "shorten"),
    ],
)  # fmt: skip
def test_sentences_that_are_none(sentences, told, tmp_path):
    assert told in refused(None, tmp_path, *sentences)


def test_lines_and_tabs_are_spaces():
    assert read_prompts(["a\tred\n\nchair "]) == ("a red chair",)


def test_plain_prompts_give_plain_names():
    assert slug("a red chair") == "a-red-chair" == slug("A red CHAIR")
    assert slug("chair 2") == "chair-2"


STRANGE = [
    "a red chair", "a red-chair", "a red chair.", "a red chair!", "a  red chair", "un café", "un cafe", "🪑", "🪑🪑",
    "红色的椅子", "كرسي أحمر", "../../etc/passwd", "/", "\\", "..", ".", "con", "nul.txt", "a:b", "-rf", "~", "%00",
    "x" * 10_000, "x" * 10_001, "word " * 60, "\u202ea reversed chair", "İstanbul", "ǅ",
]  # fmt: skip


def test_every_name_is_safe_and_its_own():
    names = [slug(prompt) for prompt in STRANGE]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) and len(name) < 60 for name in names)
    assert [slug(prompt) for prompt in STRANGE] == names


def test_a_name_that_was_shortened_or_changed_tells_the_prompt_apart():
    assert re.fullmatch(r"un-cafe-[0-9a-f]{8}", slug("un café")) and slug("un cafe") == "un-cafe"
    assert re.fullmatch(r"prompt-[0-9a-f]{8}", slug("🪑"))
