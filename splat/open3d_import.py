"""The one place that imports open3d, which needs libusb loaded before it."""

from __future__ import annotations

import ctypes
import functools
from types import ModuleType

from splat.errors import BackendUnavailable


@functools.cache
def open3d() -> ModuleType:
    """The open3d module. Raises `BackendUnavailable` when it or libusb is missing.

    open3d's library links to libusb, which small systems lack: the wheel of libusb-package brings it, and its symbols
    must be global before open3d's own library is opened.
    """
    try:
        import libusb_package

        ctypes.CDLL(str(libusb_package.get_library_path()), ctypes.RTLD_GLOBAL)
        import open3d
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"open3d does not load ({error}); run: pip install open3d libusb-package") from error
    return open3d
