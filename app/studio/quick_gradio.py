"""`gr`: gradio, imported in about half its usual time.

Each time that gradio is imported it reads the source of all its components, to write stub files for editors beside them. It
leaves those out for a component whose source file is unknown, which is what all of them are made to be here. Its own command
line, of which a page needs nothing, is left out too; whoever imports `gradio.cli` afterwards gets it.
"""

from __future__ import annotations

import inspect
import os
import sys
from types import ModuleType
from typing import Any
from unittest import mock

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

_getfile = inspect.getfile


def _unknown(thing: Any) -> str:
    if isinstance(thing, type) and thing.__module__.startswith("gradio."):
        raise OSError("not wanted")
    return _getfile(thing)


_no_commands = ModuleType("gradio.cli")
_no_commands.deploy = None  # type: ignore[attr-defined]
_is_first = "gradio.cli" not in sys.modules
if _is_first:
    sys.modules["gradio.cli"] = _no_commands
try:
    with mock.patch("inspect.getfile", _unknown):
        import gradio as gr
finally:
    if _is_first:
        del sys.modules["gradio.cli"]

__all__ = ["gr"]
