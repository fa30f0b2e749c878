"""The nouns by which text to object is judged: those with at least eight objects to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from diffusion.data.object_set import ObjectFacts

LEAST_OBJECTS = 8
# The packed set's, all packs counted; `common_nouns` of its training objects.
PROTOCOL_NOUNS = (
    "alien engineer", "archery range", "armchair", "arrow", "axe", "banner", "barrack", "barrel", "bed", "bench", "bottle",
    "building", "bush", "cactus", "candle", "car", "cardboard box", "carrot", "chair", "chest", "cloud", "coin", "corn",
    "crate", "crystal", "door", "fence", "fish", "flower", "grass", "heart", "hill", "house", "houseplant", "jar", "key",
    "kitchen cabinet", "kitchen counter", "lamp", "lettuce", "man", "mountain", "mushroom", "number", "person",
    "picture frame", "plant", "plate", "pumpkin", "robot", "rock", "saucer", "shelf", "sofa", "soldier", "spaceship",
    "street light", "street sign", "sword", "table", "tomato", "tree", "tree stump", "truck", "wall socket", "wheat",
    "window", "woman",
)  # fmt: skip


def common_nouns(facts: Iterable[ObjectFacts], least: int = LEAST_OBJECTS) -> tuple[str, ...]:
    """Nouns of at least `least` training objects, in alphabetical order."""
    counts = Counter(f.noun for f in facts if f.split == "train")
    return tuple(sorted(noun for noun, count in counts.items() if count >= least))
