"""What may truthfully be said of an object, ready to be put in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffusion.data.colours import COLOUR_WORDS, Palette, palette
from diffusion.data.object_set import ObjectFacts
from diffusion.data.surface import surface_samples
from splat.mesh import Mesh

# Every object fills the same box, so the sizes in a source's names say nothing.
SIZES = frozenset("small large big tiny huge little giant".split())
# Adjective of a name -> what the thing is made of.
MATERIALS = {
    "wooden": "wood", "wood": "wood", "bamboo": "bamboo", "stone": "stone", "marble": "marble", "brick": "brick",
    "metal": "metal", "iron": "iron", "steel": "steel", "tin": "tin", "golden": "gold", "gold": "gold", "silver": "silver",
    "copper": "copper", "bronze": "bronze", "brass": "brass", "glass": "glass", "cardboard": "cardboard", "paper": "paper",
    "plastic": "plastic", "leather": "leather", "clay": "clay", "ceramic": "clay", "concrete": "concrete",
}  # fmt: skip
# Words that promise a colour without naming it; untrue once the object is recoloured.
IMPLY_A_COLOUR = frozenset(
    "golden gold silver copper bronze brass autumn snowy mossy grassy burnt burning rusty ripe raw cooked dead rainbow".split()
)
SEPARATORS = ("with", "of", "in", "on", "holding", "and")


@dataclass(frozen=True)
class Words:
    """All the words that hold for one object as it is now."""

    name: str  # "windmill with blue roof": sizes and the colours of the whole removed
    noun: str  # "windmill"
    palette: Palette  # measured on the surface
    style: str = ""  # "low poly", "voxel", "realistic"
    material: str = ""  # adjective, "wooden"; also in `name`
    shape: str = ""  # "tall", "wide", ..., only where an augmentation made it so

    def recoloured(self, new: Palette, replaced: dict[str, str]) -> Words:
        """The words once the surface has palette `new`; `replaced` says which colour word became which.

        A colour in the name follows `replaced`, stays where its share hardly changed, and takes its phrase with it else.
        """
        if new == self.palette:
            return self
        name = self.name
        if IMPLY_A_COLOUR & set(name.split()):
            name = self.noun
        before, after = (dict(zip(p.words, p.shares, strict=True)) for p in (self.palette, new))
        kept = []
        for token in name.split():
            if token in COLOUR_WORDS and token not in self.noun.split():
                stays = token not in replaced and abs(after.get(token, 0) - before.get(token, 0)) <= 0.1 * before.get(token, 0)
                if not stays and replaced.get(token, token) == token:
                    kept = kept[: max((i for i, t in enumerate(kept) if t in SEPARATORS), default=0)]
                    break
                token = replaced.get(token, token)
            kept.append(token)
        material = "" if self.material in IMPLY_A_COLOUR else self.material
        return replace(self, name=" ".join(kept) or self.noun, palette=new, material=material)

    def mirrored(self) -> Words:
        """Left and right change places."""
        swap = {"left": "right", "right": "left"}
        return replace(self, name=" ".join(swap.get(t, t) for t in self.name.split()))


def describe(facts: ObjectFacts, mesh: Mesh, samples: int = 2048) -> Words:
    """The words of an object as its source has it; colours are measured on `samples` points of its surface."""
    name, material = plain_name(facts.name, facts.noun)
    return Words(name, singular(facts.noun), measured(mesh, samples), facts.style, material)


def measured(mesh: Mesh, samples: int = 2048) -> Palette:
    """Colour words of `mesh` by area. Deterministic."""
    return palette(surface_samples(mesh, samples).colors)


def plain_name(name: str, noun: str) -> tuple[str, str]:
    """A source's name without sizes and without the colours that stand before its head; and the material it names, or ""."""
    tokens = [t for t in name.split() if t not in SIZES] or name.split()
    head = next((i for i, t in enumerate(tokens) if t in SEPARATORS), len(tokens))  # the head noun is the word before
    before = [t for t in tokens[: head - 1] if t not in COLOUR_WORDS or t in noun.split()]
    before = [t for t in before if t not in ("dark", "light") or len(before) == 0 or "light" in noun.split()]
    material = next((t for t in before if t in MATERIALS and t not in noun.split()), "")
    return " ".join(before + tokens[max(head - 1, 0) :]), material


def singular(noun: str) -> str:
    """Some sources cut the s off words in -oes and -ies: "tomatoe", "cherrie"."""
    if noun.endswith("ie") and noun not in ("pie", "cookie", "necktie", "brownie"):
        return noun[:-2] + "y"
    return noun[:-1] if noun.endswith(("tomatoe", "potatoe", "boxe", "clothe")) else noun
