"""Features of many sentences in one safetensors file, so that training needs no text encoder."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diffusion.text_encoder import TextEncoder, TextFeatures
from splat.errors import InputError
from splat.io.atomic import atomically
from splat.progress import Progress


@dataclass(frozen=True)
class StoredText:
    """N sentences; the tokens of all lie one after another in half precision."""

    tokens: Tensor  # [sum of lengths, D] float16
    starts: Tensor  # [N + 1] int64
    pooled: Tensor  # [N, D'] float32 unit length
    sentences: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.sentences)

    def features(self, rows: Sequence[int] | Tensor) -> TextFeatures:
        """Of the sentences `rows`, in that order, padded to the longest of them; float32."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.starts[rows + 1] - self.starts[rows]
        place = torch.arange(int(lengths.max()))
        mask = place < lengths[:, None]
        flat = (self.starts[rows, None] + place).clamp(max=len(self.tokens) - 1)
        tokens = self.tokens[flat].float() * mask[..., None]
        return TextFeatures(tokens, mask, self.pooled[rows])

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {sentence: row for row, sentence in enumerate(self.sentences)}


def precompute(
    encoder: TextEncoder, sentences: Sequence[str], path: Path, batch_size: int = 256
) -> Generator[Progress, None, StoredText]:
    """Encode every different sentence once and write them to `path`; returns what `load_text` would."""
    unique = tuple(dict.fromkeys(sentences))
    by_length = sorted(range(len(unique)), key=lambda i: len(unique[i]))  # little padding in a batch
    rows: list[Tensor] = [torch.empty(0)] * len(unique)
    pooled: list[Tensor] = [torch.empty(0)] * len(unique)
    for i in range(0, len(unique), batch_size):
        chosen = by_length[i : i + batch_size]
        features = encoder.encode([unique[c] for c in chosen]).to("cpu")
        for j, row in enumerate(chosen):
            rows[row] = features.tokens[j, features.mask[j]].half()
            pooled[row] = features.pooled[j]
        yield Progress("text", i + len(chosen), len(unique))
    if not unique:
        raise InputError("There is no sentence to encode; give at least one.")
    starts = torch.tensor([0, *(len(r) for r in rows)]).cumsum(0)
    stored = StoredText(torch.cat(rows), starts, torch.stack(pooled), unique)
    save_text(stored, path)
    return stored


def save_text(stored: StoredText, path: Path) -> None:
    """Whole or not at all."""
    from safetensors.torch import save_file

    text = torch.frombuffer(bytearray(json.dumps(stored.sentences).encode()), dtype=torch.uint8)
    with atomically(path) as temporary:
        save_file(
            {"tokens": stored.tokens, "starts": stored.starts, "pooled": stored.pooled.contiguous(), "sentences": text},
            temporary,
        )


def load_text(path: Path) -> StoredText:
    """Raises `InputError` when the file is missing, damaged or holds something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        arrays = load_file(path)
        sentences = json.loads(arrays["sentences"].numpy().tobytes())
        stored = StoredText(arrays["tokens"], arrays["starts"], arrays["pooled"], tuple(sentences))
        starts = stored.starts
        fits = len(starts) == len(sentences) + 1 == len(stored.pooled) + 1 and int(starts[-1]) == len(stored.tokens)
        if (
            not fits
            or int(starts[0]) != 0
            or not bool((starts.diff() > 0).all())
            or not all(isinstance(s, str) for s in sentences)
        ):
            raise ValueError("its tables do not fit each other")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path} holds no text features ({error}); compute them again.") from error
    return stored
