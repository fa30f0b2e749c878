"""Cutting the subject out of a set of photos without a trained model: all of them, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from recon.photos import Photo
from splat.grabcut import Cutout, subject_mask

CLEAR_OUTLINE = 0.88  # subjects on a table have 0.95-1, cuts through a street 0.85


def cut_out(photos: Sequence[Photo], notices: list[str]) -> list[Photo]:
    """The photos with a mask where the subject could be told from the background; adds a notice about the others.

    Photos that have a mask (from alpha) keep it. If a third of the photos fail, or the outlines are vague over the whole set
    (a street, a room), none gets a mask: half-masked sets are worse than unmasked ones.
    """
    results = {photo.name: Cutout(photo.mask) if photo.mask is not None else subject_mask(photo.image) for photo in photos}
    failed = [(name, result.reason) for name, result in results.items() if result.mask is None]
    usual = median(result.outline for result in results.values())
    if 3 * len(failed) < len(photos) and usual < CLEAR_OUTLINE:
        failed = [(name, f"only {100 * result.outline:.0f} % of its outline can be seen") for name, result in results.items()]
    if 3 * len(failed) >= len(photos):
        notices.append(
            f"no subject could be cut out of {len(failed)} of {len(photos)} photos ({failed[0][0]}: {failed[0][1]}), so all "
            "are used whole; give a folder of masks instead."
        )
        return list(photos)
    if failed:
        names = ", ".join(name for name, _ in failed[:3])
        notices.append(f"the subject could not be cut out of {len(failed)} of {len(photos)} photos ({names}).")
    return [replace(photo, mask=results[photo.name].mask) for photo in photos]
