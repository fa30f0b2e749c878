"""One reader of model cards: fields of the head alone, the better name, nothing of what cannot be read."""

import pytest

from splat.model_card import card_licence, licence_file


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags:\n- license: no\n---\nlicense: text", "mit"),
        ('---\r\nlicense: "cc-by-nc-4.0"\r\n---\r\n', "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: 'stair'\n---\n", "stair"),
        ("---\nlicense: unknown\nlicense_name: strange-1.0\n---\n", "strange-1.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense:\n- mit\n---\n", None),
        ("---\nlicense: mit\nno end", None),
        ("license: mit\n", None),
        ("", None),
        ("---\nlicense: " + 500 * "x" + "\n---\n", 100 * "x"),
    ],
)
def test_what_a_card_says(tmp_path, card, licence):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert card_licence(tmp_path) == licence


def test_a_licence_file_and_folders_that_say_nothing(tmp_path):
    assert card_licence(tmp_path) is None and licence_file(tmp_path) is None
    assert card_licence(tmp_path / "nowhere") is None and licence_file(tmp_path / "nowhere") is None
    (tmp_path / "README.md").mkdir()
    (tmp_path / "LICENCE").write_text("\n \n# Apache License\nmore")
    assert card_licence(tmp_path) is None and licence_file(tmp_path) == "Apache License"
