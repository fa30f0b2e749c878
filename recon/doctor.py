"""The input doctor: what will work with these photos, what will not, why, and what to photograph next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

import torch

from recon import overlap, photo_quality
from recon.overlap import Pair
from recon.photos import Photo, PhotoSet
from splat.errors import InputError

BLURRED = 0.55  # blur effect; the sets measured have 0.2-0.45, a 3-pixel Gaussian brings them to 0.6
STOPS_APART = 1.5  # from the set's median; exposure compensation in the fit handles less without loss
STILL = 0.006  # of the diagonal; a smaller median shift of the matches shows no depth
MIN_TEXTURE = 0.02  # share of textured cells; a wall or a sky has less

Verdict = Literal["good", "fair", "poor", "impossible"]


@dataclass(frozen=True)
class PhotoFinding:
    """What was found out about one photo."""

    name: str
    blur: float  # 0 crisp to 1 blurred
    stops: float  # brightness against the set's median, in stops
    crushed: float  # share of pixels without detail in the shadows
    burnt: float  # share of pixels without detail in the lights
    texture: float  # share of cells with structure
    links: int  # photos that see the same things
    coverage: float  # share of the picture (in 4 x 4 cells) that another photo sees too
    group: int  # 0 is the largest group of linked photos
    notes: tuple[str, ...] = ()  # short reasons for concern


@dataclass(frozen=True)
class Diagnosis:
    """The doctor's report on a set."""

    photos: tuple[PhotoFinding, ...]
    links: tuple[tuple[int, int, int], ...]  # (photo, photo, shared features), linked pairs only
    groups: tuple[tuple[int, ...], ...]  # connected photos, the largest group first
    expected_placed: int  # photos that the pose solver will probably place
    verdict: Verdict
    problems: tuple[str, ...]  # sentences, the worst first
    next_photo: str  # one sentence: what to photograph next


def examine(photo_set: PhotoSet, matches: Mapping[tuple[int, int], int] | None = None) -> Diagnosis:
    """Look at every photo and every pair.

    `matches` gives verified matches per pair (i < j) where the full matching has been done; the quick comparison counts for the
    others. Raises `InputError` for fewer than two photos. A few seconds for 40 photos.
    """
    photos = photo_set.photos
    if len(photos) < 2:
        raise InputError(
            f"{len(photos)} photo shows no depth, at least 2 are needed; add photos from different places around the subject."
        )
    features, pairs = overlap.compare_all(photos)
    shared = {(pair.first, pair.second): pair.shared for pair in pairs} | dict(matches or {})
    links = tuple((i, j, n) for (i, j), n in sorted(shared.items()) if n >= overlap.LINKED)
    groups = overlap.groups(len(photos), [(i, j) for i, j, _ in links])
    findings = _findings(photos, [len(f) for f in features], pairs, links, groups)
    still = _still_pairs(photos, pairs)
    hopeless = _hopeless(photos, findings, pairs, still, groups)
    expected = 0 if hopeless else len(groups[0])
    problems = hopeless + _problems(photos, findings, groups, links, still)
    return Diagnosis(
        findings,
        links,
        tuple(map(tuple, groups)),
        expected,
        _verdict(bool(hopeless), len(photos), expected, findings),
        tuple(problems),
        _next_photo(photos, findings, groups, shared, bool(hopeless)),
    )


def require_hope(diagnosis: Diagnosis) -> None:
    """Raise `InputError` with the worst problem when the set cannot work at all."""
    if diagnosis.verdict == "impossible":
        raise InputError(diagnosis.problems[0])


def check_hope(photo_set: PhotoSet) -> None:
    """Raise `InputError` with the reason when nothing can come of the set: too few photos, no texture, no depth.

    Cheap for a good set: the first neighbours in name order that show depth end the check, a fifth of a second a pair. Photos
    with texture that seem to have nothing in common pass: the pose solver has finer means to find it.
    """
    photos = photo_set.photos
    if any(overlap.show_depth(first, second) for first, second in pairwise(photos)):
        return
    diagnosis = examine(photo_set)
    textured = sum("almost no texture" not in finding.notes for finding in diagnosis.photos)
    if textured < 2 or len(diagnosis.groups[0]) >= 2:
        require_hope(diagnosis)


# --- one photo -------------------------------------------------------------------------------------------------------


def _findings(
    photos: Sequence[Photo],
    keypoints: Sequence[int],
    pairs: Sequence[Pair],
    links: Sequence[tuple[int, int, int]],
    groups: Sequence[Sequence[int]],
) -> tuple[PhotoFinding, ...]:
    exposures = [photo_quality.exposure(photo.image, photo.mask) for photo in photos]
    usual = median(stops for stops, _, _ in exposures)
    out = []
    for i, photo in enumerate(photos):
        stops, crushed, burnt = exposures[i]
        degree = sum(i in (a, b) for a, b, _ in links)
        blur, texture = photo_quality.blur(photo.image), photo_quality.texture(photo.image)
        finding = PhotoFinding(
            name=photo.name,
            blur=round(blur, 3),
            stops=round(stops - usual, 2),
            crushed=round(crushed, 3),
            burnt=round(burnt, 3),
            texture=round(texture, 3),
            links=degree,
            coverage=_coverage(i, pairs),
            group=next(g for g, members in enumerate(groups) if i in members),
            notes=tuple(_notes(blur, stops - usual, crushed, burnt, texture, keypoints[i], degree, photo)),
        )
        out.append(finding)
    return tuple(out)


def _notes(
    blur: float, stops: float, crushed: float, burnt: float, texture: float, keypoints: int, degree: int, photo: Photo
) -> list[str]:  # fmt: skip
    notes = []
    if texture < MIN_TEXTURE or keypoints < 50:
        notes.append("almost no texture")
    elif blur > BLURRED:
        notes.append("blurred")
    if abs(stops) > STOPS_APART:
        notes.append(f"{abs(stops):.1f} stops {'brighter' if stops > 0 else 'darker'} than the others")
    if burnt > 0.25 and not photo.on_white:
        notes.append(f"{100 * burnt:.0f} % burnt out")
    if crushed > 0.5:
        notes.append(f"{100 * crushed:.0f} % black")
    if degree == 0:
        notes.append("shares nothing with another photo")
    return notes


def _coverage(photo: int, pairs: Sequence[Pair]) -> float:
    """Share of 4 x 4 cells of the picture in which a linked photo shows the same."""
    cells: set[tuple[int, int]] = set()
    for pair in pairs:
        if pair.linked and photo in (pair.first, pair.second):
            points = pair.points[:, :2] if photo == pair.first else pair.points[:, 2:]
            cells.update(map(tuple, (points * 4).long().clamp(0, 3).tolist()))
    return len(cells) / 16


# --- the set ---------------------------------------------------------------------------------------------------------


def _still_pairs(photos: Sequence[Photo], pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Pairs taken from the same place in the same direction."""
    thumbnails = [torch.nn.functional.interpolate(p.image.permute(2, 0, 1)[None], (24, 24), mode="area") for p in photos]
    out = []
    for pair in pairs:
        alike = float((thumbnails[pair.first] - thumbnails[pair.second]).abs().mean()) < 0.008
        if (pair.linked and pair.motion < STILL) or (alike and pair.motion < STILL):
            out.append((pair.first, pair.second))
    return out


def _hopeless(
    photos: Sequence[Photo],
    findings: Sequence[PhotoFinding],
    pairs: Sequence[Pair],
    still: Sequence[tuple[int, int]],
    groups: Sequence[Sequence[int]],
) -> list[str]:
    """The sentence why nothing can come of this set, or nothing."""
    count = len(photos)
    bare = sum("almost no texture" in f.notes for f in findings)
    if count - bare < 2:
        return [
            f"{bare} of {count} photos show almost no texture, so their cameras cannot be found; photograph something with "
            "pattern, or put a patterned cloth or newspaper under the subject."
        ]
    if len(overlap.groups(count, still)) == 1:
        return [
            f"all {count} photos show the same view, which holds no depth; walk around the subject and take one photo every 15 "
            "degrees."
        ]
    sizes = [overlap.small_size(photo) for photo in photos]
    focals = [None if photo.focal_px is None else photo.focal_px / max(photo.size) for photo in photos]
    if overlap.only_turned(pairs, sizes, focals):
        return [
            f"the camera only turned on the spot between the {count} photos, which shows no depth; step sideways between "
            "photos instead of turning."
        ]
    if len(groups[0]) < 2:
        return [
            f"no two of the {count} photos show enough of the same things ({overlap.LINKED} shared features are needed); take "
            "photos closer together, at most 20 degrees apart."
        ]
    return []


def _problems(
    photos: Sequence[Photo],
    findings: Sequence[PhotoFinding],
    groups: Sequence[Sequence[int]],
    links: Sequence[tuple[int, int, int]],
    still: Sequence[tuple[int, int]],
) -> list[str]:
    count = len(photos)
    problems = []
    if 1 < len(groups) and len(groups[0]) > 1:
        rest = [photos[i].name for group in groups[1:] for i in group]
        problems.append(f"{len(rest)} of {count} photos do not connect to the others ({_some(rest)}).")
    for note, sentence in (
        ("blurred", "are blurred"),
        ("almost no texture", "show almost no texture"),
        ("stops", f"differ in exposure by more than {STOPS_APART} stops"),
        ("burnt", "are burnt out over a quarter of the picture"),
        ("black", "are black over half of the picture"),
    ):
        names = [f.name for f in findings if any(note in n for n in f.notes)]
        if names:
            problems.append(f"{len(names)} of {count} photos {sentence} ({_some(names)}).")
    if still:
        names = [f"{photos[i].name} and {photos[j].name}" for i, j in still]
        problems.append(f"{len(still)} of the pairs of photos are the same view twice and add nothing ({_some(names)}).")
    weak = [photos[i].name for i in groups[0] if findings[i].links == 1]
    if weak and len(groups[0]) > 2:
        problems.append(f"{len(weak)} of {count} photos connect to a single other photo and may be lost ({_some(weak)}).")
    if count < 6:
        problems.append(f"{count} photos reconstruct only what they see; 12 to 30 all round the subject give a whole object.")
    return problems


def _verdict(hopeless: bool, count: int, expected: int, findings: Sequence[PhotoFinding]) -> Verdict:
    if hopeless:
        return "impossible"
    troubled = sum(bool(f.notes) for f in findings) / count
    if expected < max(2, 0.6 * count) or troubled > 0.5:
        return "poor"
    well_linked = median(f.links for f in findings) >= min(3, count - 1)
    return "good" if expected == count and troubled <= 0.1 and well_linked and count >= 6 else "fair"


def _next_photo(
    photos: Sequence[Photo],
    findings: Sequence[PhotoFinding],
    groups: Sequence[Sequence[int]],
    shared: Mapping[tuple[int, int], int],
    hopeless: bool,
) -> str:
    """One sentence: the photo that helps most."""
    if hopeless:
        return "Walk around the subject in steps of about 15 degrees and keep it whole in every photo."
    if len(groups) > 1:
        i, j = _nearest_across(groups[0], groups[1], shared)
        return f"Take one or two photos from between {photos[i].name} and {photos[j].name}: nothing connects those sides yet."
    bridge = _weakest_bridge(len(photos), shared)
    if bridge is not None and bridge[2] < 2 * overlap.LINKED:
        i, j, count = bridge
        return f"Take a photo from between {photos[i].name} and {photos[j].name}: they share only {count} features."
    blurred = [f.name for f in findings if "blurred" in f.notes]
    if blurred:
        return f"Take {_some(blurred)} again with a steady hand or more light."
    if len(photos) < 6:
        return f"Continue around the subject beyond {photos[-1].name} in steps of about 15 degrees."
    gap = _widest_gap(len(photos), shared)
    if gap is not None:
        i, j = gap
        return (
            f"The widest gap is between {photos[i].name} and {photos[j].name}: add a photo there, and a "
            "second round from higher up."
        )
    return "Nothing is missing; a second round from higher up would add detail on top."


def _nearest_across(a: Sequence[int], b: Sequence[int], shared: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """The pair from both groups that shares most; of equals the closest in name order."""
    crossing = [(min(i, j), max(i, j)) for i in a for j in b]
    return max(crossing, key=lambda ij: (shared.get(ij, 0), ij[0] - ij[1]))


def _weakest_bridge(count: int, shared: Mapping[tuple[int, int], int]) -> tuple[int, int, int] | None:
    """The weakest link of the maximum spanning tree."""
    tree: list[tuple[int, int, int]] = []
    for (i, j), n in sorted(shared.items(), key=lambda item: -item[1]):
        if (
            n >= overlap.LINKED
            and len(overlap.groups(count, [(a, b) for a, b, _ in [*tree, (i, j, n)]])) == count - len(tree) - 1
        ):
            tree.append((i, j, n))
    return tree[-1] if tree else None


def _widest_gap(count: int, shared: Mapping[tuple[int, int], int]) -> tuple[int, int] | None:
    """Neighbours in name order that share least, if much less than usual."""
    steps = {(i, i + 1): shared.get((i, i + 1), 0) for i in range(count - 1)}
    worst = min(steps, key=lambda ij: steps[ij])
    return worst if steps[worst] < 0.4 * median(steps.values()) else None


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
