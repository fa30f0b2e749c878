"""`splatsmith` and `python -m app`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and return the exit status: 0 done, 2 bad input, 3 partial batch, 4 stopped late, 130 cancelled."""
    import tyro

    from app.commands import Command

    # torch stays unimported until the arguments are known to be good, so that --help answers at once.
    command = tyro.cli(
        Command,
        prog="splatsmith",
        description="Photos or a sentence in, Gaussian splats and a mesh out, on any machine.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    # Waiting threads sleep instead of spinning: on a machine that does anything else, spinning makes torch many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads its OpenMP library
    from app.cli import run

    return run(command)


if __name__ == "__main__":
    sys.exit(main())
