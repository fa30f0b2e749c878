"""What the user should know although the job goes on, each sentence once."""

from __future__ import annotations

import logging
from types import TracebackType

LIBRARY = ("splat", "recon", "diffusion")  # their loggers speak at warning level of fallbacks


class Notices(logging.Handler):
    """Collects sentences: those the job adds, and while it is entered, the warnings that the library logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []
        self.logged: list[str] = []  # those of `sentences` that came from the library's loggers
        self._said = 0

    def add(self, *sentences: str) -> None:
        self.sentences += [s for s in dict.fromkeys(sentences) if s not in self.sentences]

    def emit(self, record: logging.LogRecord) -> None:
        sentence = record.getMessage()
        if sentence not in self.sentences:
            self.logged.append(sentence)
        self.add(sentence)

    def unsaid(self) -> list[str]:
        """What was added since the last call."""
        new = self.sentences[self._said :]
        self._said = len(self.sentences)
        return new

    def __enter__(self) -> Notices:
        for name in LIBRARY:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in LIBRARY:
            logging.getLogger(name).removeHandler(self)
