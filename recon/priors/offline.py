"""Code of others that may want to download runs here, and cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError


@contextmanager
def no_downloads() -> Iterator[None]:
    """Inside, the Hugging Face libraries and torch.hub see a machine without network: what is on disk is found, no more.

    Networks are built by packages of their authors, some of which fetch missing parts, such as a backbone's code.
    Not for several threads at once.
    """
    import torch.hub
    from huggingface_hub import constants

    def refused(*args, **options):
        raise URLError("downloads are off; fetch it once yourself")

    changes = [
        (constants, "HF_HUB_OFFLINE", True),
        (torch.hub, "urlopen", refused),
        (torch.hub, "download_url_to_file", refused),
    ]
    before = [getattr(module, name) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(changes, before):
            setattr(module, name, value)
