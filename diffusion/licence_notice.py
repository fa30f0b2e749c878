"""What a folder of weights says about its licence, read from the files that hubs put beside them."""

from __future__ import annotations

from pathlib import Path

from splat.model_card import card_licence, licence_file

UNKNOWN = "licence unknown: its folder names none, so read it where the files came from"


def licence_of(folder: Path) -> str:
    """The licence named in the head of README.md, else the first line of a LICENSE file, else `UNKNOWN`."""
    return card_licence(folder) or licence_file(folder) or UNKNOWN
