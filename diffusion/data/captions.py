"""Sentences from words: templates, synonyms and words left out, so that a network meets what people type."""

from __future__ import annotations

import random
from dataclasses import dataclass

from diffusion.data.words import MATERIALS, Words

STYLES = {
    "low poly": ("low poly", "low-poly", "lowpoly", "stylised"),
    "voxel": ("voxel", "blocky voxel", "pixelated voxel"),
    "realistic": ("realistic", "detailed", "photorealistic"),
}
SHAPES = {"tall": ("tall", "high"), "low": ("low", "flat", "squat"), "wide": ("wide", "broad"),
          "narrow": ("narrow", "slim"), "small": ("small", "tiny", "little")}  # fmt: skip
SPELLINGS = {"grey": ("grey", "gray")}
SIMPLEST = "{thing}"
TEMPLATES = (
    SIMPLEST, "{a_thing}", "{a_thing}", "{a_thing}.", "a 3d model of {a_thing}", "one {thing}",
    "{a_thing} on a white background",
    "a rendering of {a_thing}", "this is {a_thing}", "3d {thing}", "make {a_thing}", "the {thing}",
)  # fmt: skip
# What is measured on them is their clothes: "a woman in brown", never the other way round.
PEOPLE = frozenset(
    "person people man woman boy girl child baby athlete soldier knight worker engineer chef priest nun nurse doctor paramedic "
    "hunter scientist superhero pirate captain mayor goth raver hobo beardo cop officer witch wizard king queen farmer".split()
)
PARTS = ("parts", "details", "accents")


@dataclass(frozen=True)
class CaptionConfig:
    """How often each kind of word is left out."""

    drop_colour: float = 0.25
    drop_second_colour: float = 0.4
    drop_material: float = 0.3
    drop_style: float = 0.6
    short_name: float = 0.35  # probability of the noun alone for "windmill with blue roof"
    least_share: float = 0.2  # of the surface, for a second colour to be named


PLAIN = CaptionConfig(0, 0, 0, 1, 0)  # what `plain_caption` says


def caption(words: Words, rng: random.Random, config: CaptionConfig | None = None) -> str:
    """One sentence that is true of `words`, in lower case. The same `rng` state gives the same sentence."""
    config = config or CaptionConfig()
    thing = _core(words, rng, config)
    template = rng.choice(TEMPLATES)
    if words.style and rng.random() >= config.drop_style:
        style = rng.choice(STYLES.get(words.style, (words.style,)))
        form = rng.choice(("{style} {thing}", "{thing}, {style}", "{thing} in {style} style"))
        thing = form.format(style=style, thing=thing)
    return template.format(thing=thing, a_thing=with_article(thing))


def captions(words: Words, count: int, seed: int, key: str, config: CaptionConfig | None = None) -> tuple[str, ...]:
    """`count` sentences for the object `key`, some perhaps equal; the same on every machine for one `seed`."""
    rng = random.Random(f"{seed}/{key}")
    return tuple(caption(words, rng, config) for _ in range(count))


def plain_caption(words: Words) -> str:
    """The one fixed sentence of an object: "a red and white banner", without its style."""
    return with_article(_core(words, random.Random(0), PLAIN, plain=True))


def with_article(phrase: str) -> str:
    """ "a" or "an" before `phrase`, nothing before a plural."""
    words = phrase.replace(",", " ,").split()
    end = next((i for i, w in enumerate(words) if w in ("with", "of", "in", "on", "made", ",", "holding")), len(words))
    head = words[max(end - 1, 0)] if words else ""
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is", "as"))
    if plural or head in ("", "people", "men", "women"):
        return phrase
    vowel = phrase[:1] in "aeiou" and not phrase.startswith(("one", "uni", "use", "u-"))
    return f"{'an' if vowel else 'a'} {phrase}"


def _core(words: Words, rng: random.Random, config: CaptionConfig, plain: bool = False) -> str:
    """Adjectives and the name: "tall red wooden chair with white parts"."""

    def choose(options):
        return options[0] if plain else rng.choice(options)

    name = words.noun if rng.random() < config.short_name else words.name
    colours = [choose(SPELLINGS.get(w, (w,))) for w in words.palette.dominant(config.least_share)]
    if len(colours) > 1 and rng.random() < config.drop_second_colour:
        colours = colours[:1]
    if rng.random() < config.drop_colour:
        colours = []
    material = words.material
    if material and rng.random() < config.drop_material:
        name, material = _without(name, material), ""
    elif material and material not in name.split():
        if choose(("before", "after")) == "after":
            name, material = f"{name} made of {MATERIALS[material]}", ""
    elif material:
        material = ""  # the name says it
    shape = choose(SHAPES[words.shape]) if words.shape else ""
    end = ""
    form = choose(("before", "before", "in", "with")) if colours else "before"
    if PEOPLE & {*name.split(), *words.noun.split()}:
        form = "in"
        colours = [] if {"in", "with", "made"} & set(name.split()) else colours
    before = " and ".join(colours)
    if colours and form == "in" and not {"in", "with", "made"} & set(name.split()):
        before, end = "", f"in {' and '.join(colours)}"
    elif form == "with" and len(colours) == 2 and not {"with", "made"} & set(name.split()):
        before, end = colours[0], f"with {colours[1]} {choose(PARTS)}"
    if before in name.split():  # "orange orange"
        before = ""
    return " ".join(part for part in (shape, before, material, name, end) if part)


def _without(name: str, material: str) -> str:
    return " ".join(t for t in name.split() if t != material) or name
