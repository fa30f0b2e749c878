"""The prompts that text to 3-D is judged on."""

from pathlib import Path

from diffusion.data.colours import COLOUR_WORDS
from diffusion.vocabulary import thing_in

LINES = (Path(__file__).parents[2] / "assets" / "prompts.txt").read_text(encoding="utf-8").splitlines()
PROMPTS = [line for line in LINES if line and not line.startswith("#")]


def test_there_are_enough_and_none_twice():
    assert len(PROMPTS) >= 80 and len(set(PROMPTS)) == len(PROMPTS)
    assert all(p == p.strip() and 0 < len(p) < 60 for p in PROMPTS)


def test_each_names_a_thing_and_the_sheet_has_thin_ones_and_all_colours():
    assert all(thing_in(p) for p in PROMPTS)
    sheet = [set(p.split()) for p in PROMPTS[:64]]
    for word in ("lamp", "sword", "umbrella", "chair", "ladder", "table"):
        assert any(word in words for words in sheet), word
    everything = set(" ".join(PROMPTS).split())
    assert everything >= set(COLOUR_WORDS) - {"beige"}
