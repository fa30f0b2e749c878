"""Prompts as people give them, on the command line or in a file: cleaned, refused where they cannot be meant, and named."""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from splat.errors import InputError

MAX_CHARACTERS = 20_000  # of a prompt; the text encoder reads the first 77 tokens, and a warning says so
MAX_FILE_BYTES = 1_000_000
MAX_PROMPTS = 1000
SLUG_CHARACTERS = 48  # readable part of a folder's name


def read_prompts(sentences: Sequence[str], file: Path | None = None) -> tuple[str, ...]:
    """All prompts in order, those of `file` last. Raises `InputError` with the prompt or line that cannot be used.

    Cleaned: spaces, tabs and line ends are single spaces, letters composed (NFC).
    """
    numbered = [(f"Prompt {i}" if len(sentences) > 1 else "The prompt", text) for i, text in enumerate(sentences, 1)]
    if file is not None:
        numbered += _lines(file)
    if not numbered:
        raise InputError('There is no prompt; give one in quotes, such as "a red armchair", or a file with --prompts.')
    if len(numbered) > MAX_PROMPTS:
        raise InputError(f"There are {len(numbered)} prompts, and at most {MAX_PROMPTS} are made in one run; give fewer.")
    return tuple(_clean(text, where) for where, text in numbered)


def slug(prompt: str) -> str:
    """A folder name for `prompt`: ASCII letters, digits and hyphens, safe on every system, the same on every run.

    Different prompts have different names (those that differ in capitals alone count as one: the text encoders read them
    alike). A prompt that is more than plain words, or long, ends in eight digits of its SHA-256.
    """
    lower = prompt.lower()
    plain = unicodedata.normalize("NFKD", lower).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", plain)
    name = "-".join(words)
    if lower == " ".join(words) and len(name) <= SLUG_CHARACTERS:
        return name
    digest = hashlib.sha256(lower.encode()).hexdigest()[:8]
    return f"{name[:SLUG_CHARACTERS].rstrip('-') or 'prompt'}-{digest}"


def _lines(file: Path) -> list[tuple[str, str]]:
    """("FILE line 3", prompt) of every line that holds one: UTF-8, # begins a comment line, blank lines do not count."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"--prompts {file} cannot be read ({error.strerror or error}); give a text file.") from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(
            f"--prompts {file} is larger than {MAX_FILE_BYTES / 1e6:.0f} MB, so it is no list of prompts; give a shorter file."
        )
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"--prompts {file} is in UTF-16; save it as UTF-8.")
    if b"\0" in data:
        raise InputError(f"--prompts {file} is not text (it holds zero bytes); give a UTF-8 text file, a prompt a line.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"--prompts {file} is not UTF-8 in line {line}; save it as UTF-8.") from error
    found = [(f"{file.name} line {i}", line) for i, line in enumerate(text.splitlines(), 1)]
    found = [(where, line) for where, line in found if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise InputError(f"--prompts {file} holds no prompt; write one a line (lines that begin with # are comments).")
    return found


def _clean(text: str, where: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{where} has {len(text):,} characters, more than the {MAX_CHARACTERS:,} allowed; shorten it.")
    for position, character in enumerate(text, 1):
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise InputError(f"{where} is not valid text at character {position}; write it in UTF-8.")
        if kind == "Cc" and not character.isspace():
            raise InputError(f"{where} holds the control character U+{ord(character):04X} at character {position}; remove it.")
    cleaned = unicodedata.normalize("NFC", " ".join(text.split()))
    if not cleaned:
        raise InputError(f"{where} is empty; say what to make, such as a red armchair.")
    return cleaned
