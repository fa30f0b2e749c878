"""What a folder of weights says about its licence, read from the files that hubs put beside them."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = "licence unknown: its folder names none, so read it where the files came from"


def licence_of(folder: Path) -> str:
    """The licence named in the head of README.md, else the first line of a LICENSE file, else `UNKNOWN`.

    A model card begins with fields between two lines of `---`; `license_name` is the better one where `license` is "other".
    """
    fields = _head(folder / "README.md")
    named = fields.get("license", "")
    if named in ("", "other"):
        named = fields.get("license_name") or named
    if named:
        return named
    for file in sorted(p for p in folder.glob("*") if p.is_file() and p.name.upper().startswith(("LICENSE", "LICENCE"))):
        lines = (line.strip(" #*\t") for line in _text(file).splitlines())
        first = next((line for line in lines if line), "")
        if first:
            return first[:100]
    return UNKNOWN


def _head(card: Path) -> dict[str, str]:
    """The plain `key: value` lines of a model card's head."""
    lines = _text(card).splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            return fields
        key, colon, value = line.partition(":")
        if colon and not key.startswith((" ", "-", "\t")):
            fields[key.strip()] = value.strip().strip("\"'")[:100]
    return {}


def _text(file: Path) -> str:
    """At most its first 64 kB; "" where it cannot be read."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(1 << 16)
    except OSError:
        return ""
