"""What ships beside weights about the objects that they learnt from."""

from types import SimpleNamespace

from diffusion.attribution import MANY, attribution


def bank(*rows: tuple[str, str, str, str, str]) -> SimpleNamespace:
    """Rows of source, licence, author, name, split."""
    columns = ("sources", "licences", "authors", "names", "splits")
    return SimpleNamespace(**dict(zip(columns, zip(*rows, strict=True), strict=True)))


def test_titles_are_listed_wherever_a_licence_asks_for_them_however_many():
    many = range(MANY + 1)
    text = attribution(
        bank(
            *(("paid", "CC-BY-3.0", "A. Maker", f"chair {i}", "train") for i in many),
            *(("free", "CC0-1.0", "B. Giver", f"table {i}", "train") for i in many),
            ("free", "CC0-1.0", "", "lamp", "train"),
        )
    )
    assert all(f"chair {i}" in text for i in many)
    assert f"- B. Giver: {MANY + 1} objects" in text and "table" not in text
    assert "- unknown author: lamp" in text
    assert f"{MANY + 1} objects, CC-BY-3.0 (https://creativecommons.org/licenses/by/3.0/)" in text


def test_objects_that_were_not_learnt_from_are_not_named():
    text = attribution(bank(("s", "CC0-1.0", "A", "seen", "train"), ("s", "CC0-1.0", "A", "held out", "val")))
    assert "seen" in text and "held out" not in text and "1 objects" in text
