"""Help texts of a command's options, the same that the command line shows."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap


def tooltips(command: type) -> dict[str, str]:
    """Option name -> the text below its field, through all base classes."""
    found: dict[str, str] = {}
    for cls in reversed(command.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = str(text.value.value)
    return found
