"""A work folder remembers what its data were made with."""

import pytest

from splat.errors import InputError
from splat.made_with import MADE_WITH, check_made_with, digest_of


def test_the_same_goes_on_and_anything_else_is_refused(tmp_path):
    made = {"seed": 1, "range": (3, 8), "threads": None}
    assert check_made_with(tmp_path, made, "*.npz") is None
    (tmp_path / "a.npz").touch()
    assert check_made_with(tmp_path, made, "*.npz") is None
    for other in (made | {"seed": 2}, made | {"range": (3, 9)}, made | {"more": 1}, {"seed": 1}):
        with pytest.raises(InputError, match=r"was made with another .*; use another work folder\.$"):
            check_made_with(tmp_path, other, "*.npz")


def test_data_without_a_record_are_kept_with_a_notice(tmp_path):
    (tmp_path / "a.npz").touch()
    assert "1 files and no record" in check_made_with(tmp_path, {"seed": 1}, "*.npz")
    with pytest.raises(InputError, match="another seed"):
        check_made_with(tmp_path, {"seed": 2}, "*.npz")


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\0"])
def test_a_damaged_record_is_a_sentence(tmp_path, text):
    (tmp_path / MADE_WITH).write_text(text)
    with pytest.raises(InputError, match="does not say what"):
        check_made_with(tmp_path, {"seed": 1}, "*.npz")


def test_names_and_their_order_count():
    assert digest_of(["a", "b"]) == digest_of(iter(["a", "b"])) != digest_of(["b", "a"]) != digest_of(["b"])
