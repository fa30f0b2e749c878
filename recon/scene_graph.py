"""Which pairs of photos to ask a pair prior about: all of few photos, of many those that seem to show the same things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

SIDE = 640  # px; enough to see whether photos overlap


@dataclass(frozen=True)
class SceneGraphConfig:
    """How many pairs."""

    all_up_to: int = 8  # photos of which every pair is taken
    neighbours: int = 4  # most alike partners of each photo above that


def scene_graph(images: Sequence[Tensor], config: SceneGraphConfig | None = None) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, in order, of pictures [H, W, 3]: their number grows with that of the photos, not with its square.

    A maximum spanning tree of how much pairs share, so that all photos hang together, each photo's best partners, and the
    next photo in order, for pairs that descriptors do not know again. 0.1 s a photo and 0.01 s a pair to look at.
    """
    config = config or SceneGraphConfig()
    count = len(images)
    if count <= config.all_up_to:
        return list(combinations(range(count), 2))
    return chosen_pairs(shared_features(images), config.neighbours)


def shared_features(images: Sequence[Tensor]) -> Tensor:
    """[C, C] symmetric, how many features two pictures share; 0 on the diagonal."""
    from recon.features import FeatureConfig, count_mutual, extract

    features = [extract(image, FeatureConfig(max_side=SIDE, max_keypoints=768)) for image in images]
    out = torch.zeros(len(images), len(images), dtype=torch.int64)
    for i, j in combinations(range(len(images)), 2):
        out[i, j] = out[j, i] = count_mutual(features[i], features[j])
    return out


def chosen_pairs(shared: Tensor, neighbours: int) -> list[tuple[int, int]]:
    """See `scene_graph`; `shared` [C, C]."""
    count = len(shared)
    pairs = {(i, i + 1) for i in range(count - 1)}
    group = list(range(count))
    order = sorted(combinations(range(count), 2), key=lambda ij: (-int(shared[ij]), ij))
    for i, j in order:
        if group[i] != group[j]:
            a, b = group[i], group[j]
            group = [a if g == b else g for g in group]
            pairs.add((i, j))
    for i in range(count):
        best = sorted((j for j in range(count) if j != i), key=lambda j: (-int(shared[i, j]), j))[:neighbours]
        pairs |= {(min(i, j), max(i, j)) for j in best if shared[i, j] > 0}
    return sorted(pairs)
