"""Whether a prompt names something the generator was trained on, and if not, an honest sentence with the nearest words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffusion.data.captions import SHAPES, SPELLINGS, STYLES, with_article
from diffusion.data.colours import COLOUR_WORDS
from diffusion.data.words import MATERIALS, SIZES
from diffusion.text_encoder import TextEncoder

# Of the thing's words to the nearest known name. Measured with the 1,623 names of the packed set: of 21 words for known things
# 3 are warned of ("evergreen", "cottage", "jug"); of 21 for unknown things 14, the rest being near kin (submarine: boat).
KNOWN_COSINE = 0.6
_FILLER = frozenset(
    "a an the one some this is in with and of on made make please 3d model rendering picture style parts details accents "
    "white background colored coloured dark light bright pale".split()
)
_SPOKEN_OF = (
    _FILLER | set(COLOUR_WORDS) | {"gray", "golden"} | SIZES | set(MATERIALS)
    | {word for table in (STYLES, SHAPES, SPELLINGS) for options in table.values() for o in options for word in o.split()}
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Names of what was trained on, with the directions a text encoder gives them."""

    names: tuple[str, ...]
    directions: Tensor  # [N, D] unit length

    def nearest(self, encoder: TextEncoder, prompt: str, count: int = 3) -> list[tuple[str, float]]:
        """The `count` known names closest to the thing that `prompt` names, with the cosine between them; best first."""
        closeness = self.directions @ encoder.encode([thing_in(prompt)]).pooled[0].cpu()
        best = closeness.topk(min(count, len(self.names)))
        return [(self.names[i], float(c)) for c, i in zip(best.values, best.indices.tolist(), strict=True)]


def learn_vocabulary(encoder: TextEncoder, names: Sequence[str]) -> Vocabulary:
    """Of the names and nouns of the training objects, each once, in alphabetical order."""
    unique = tuple(sorted(set(names)))
    return Vocabulary(unique, encoder.encode(unique).pooled.cpu())


def unknown_warning(prompt: str, vocabulary: Vocabulary, encoder: TextEncoder) -> str | None:
    """One sentence when nothing like `prompt` was trained on, or when it is longer than is read; else None."""
    if not thing_in(prompt).strip():
        return "The prompt names no thing, so anything may come out; try a colour and a noun, such as a red armchair."
    read, counted = encoder.config.max_tokens, encoder.token_counts([prompt])[0]
    if counted > read:
        return f"The prompt has {counted} tokens and only the first {read} are read; shorten it."
    near = vocabulary.nearest(encoder, prompt)
    if near[0][1] >= KNOWN_COSINE:
        return None
    names = ", ".join(name for name, _ in near)
    shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
    return (
        f'The generator was not trained on anything like "{shown}" (nearest known: {names}; similarity {near[0][1]:.2f} of 1), '
        f"so the result may be one of those or no clear thing; try {with_article(near[0][0])}."
    )


def thing_in(prompt: str) -> str:
    """`prompt` without colours, materials, styles, sizes and filler: "a tall red low-poly chair" -> "chair".

    The whole prompt where only such words are left: "gold" may be the thing itself. Empty without any letter or digit.
    """
    words = "".join(c if c.isalnum() or c in "-' " else " " for c in prompt.lower()).split()
    left = [w for w in words if w not in _SPOKEN_OF]
    return " ".join(left or words)
