"""`gr`: gradio, imported in about half its usual time.

Each time that gradio is imported it reads the source of all its components, to write stub files for editors beside them. It
leaves those out for a component whose source file is unknown, which is what all of them are made to be here.
"""

from __future__ import annotations

import inspect
import os
from typing import Any
from unittest import mock

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

_getfile = inspect.getfile


def _unknown(thing: Any) -> str:
    if isinstance(thing, type) and thing.__module__.startswith("gradio."):
        raise OSError("not wanted")
    return _getfile(thing)


with mock.patch("inspect.getfile", _unknown):
    import gradio as gr

__all__ = ["gr"]
