"""What the files that hubs put beside weights say about their licence. Only reads; anything unreadable says nothing."""

from __future__ import annotations

from pathlib import Path

UNNAMED = ("", "other", "unknown")  # of `license`: `license_name` is the better one
LONGEST = 100  # characters of what is passed on


def card_licence(folder: Path) -> str | None:
    """The licence that the head of README.md names, a model card's fields between two lines of `---`; None without one."""
    fields = _head(folder / "README.md")
    named = fields.get("license", "")
    if named in UNNAMED:
        named = fields.get("license_name") or named
    return named or None


def licence_file(folder: Path) -> str | None:
    """The first line of a LICENSE file; None without one."""
    for file in sorted(p for p in folder.glob("*") if p.is_file() and p.name.upper().startswith(("LICENSE", "LICENCE"))):
        lines = (line.strip(" #*\t") for line in _text(file).splitlines())
        first = next((line for line in lines if line), "")
        if first:
            return first[:LONGEST]
    return None


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
            fields[key.strip()] = value.strip().strip("\"'")[:LONGEST]
    return {}


def _text(file: Path) -> str:
    """At most its first 64 kB; "" where it cannot be read."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(1 << 16)
    except OSError:
        return ""
