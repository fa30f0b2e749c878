"""Compiling the kernels: once per source, flags and compiler, into the user's cache.

`python splat/render/native/build.py FOLDER` compiles every variant of this machine's architecture into FOLDER, with the
standard library alone. setup.py puts them into the wheel as `prebuilt/` beside this file; then no compiler is needed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREBUILT = HERE / "prebuilt"

# No -ffast-math: it would fold away the rounding tricks of simd.h. No contraction: see simd.h.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=off")
FLAGS += ("-fno-math-errno", "-fno-trapping-math")
VARIANTS = {  # name -> compiler flags; best last
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mbmi2"),
    "avx512": ("-mavx2", "-mfma", "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
CPU_FLAGS = {"portable": set(), "avx2": {"avx2", "fma", "bmi2"}}
CPU_FLAGS["avx512"] = CPU_FLAGS["avx2"] | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


def sources() -> list[Path]:
    """The files that the library is made of, in a fixed order."""
    return sorted(p for p in HERE.iterdir() if p.suffix in (".cpp", ".h"))


@functools.cache
def cpu_variants() -> tuple[str, ...]:
    """The variants that this processor can run, best last."""
    flags: set[str] = set()
    if platform.machine() in ("x86_64", "AMD64"):
        if sys.platform == "linux":
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("flags"):
                    flags = set(line.split(":", 1)[1].split())
                    break
        elif sys.platform == "darwin":
            names = "machdep.cpu.features machdep.cpu.leaf7_features".split()
            listed = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False).stdout
            flags = {f.lower().replace(".", "_") for f in listed.split()}
    return tuple(name for name in VARIANTS if CPU_FLAGS[name] <= flags)


def cache_folder() -> Path:
    """Where compiled kernels live; made on first use."""
    named = os.environ.get("SPLATSMITH_CACHE_DIR")
    if named:
        folder = Path(named)
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches" / "splatsmith"
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splatsmith"
    folder = folder / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return private_folder()


@functools.cache
def private_folder() -> Path:
    """For this process alone, where the cache cannot be written: a shared place could be filled by somebody else."""
    return Path(tempfile.mkdtemp(prefix="splatsmith-kernels-"))


def source_key(flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def library_name(variant: str, flags: tuple[str, ...]) -> str:
    return f"kernels-{variant}-{platform.machine()}-{source_key(flags)}.so"


def _unavailable(reason: str) -> Exception:
    try:
        from splat.errors import BackendUnavailable
    except ImportError:  # a wheel is built where torch, which the package imports, is not installed
        return RuntimeError(reason)
    return BackendUnavailable(reason)


def compiler() -> str | None:
    """Path of a C++ compiler: what CXX names, else the first of the usual ones."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def find_compiler() -> str:
    """Path of a C++ compiler. Raises `BackendUnavailable` with the remedy."""
    path = compiler()
    if path is None:
        raise _unavailable(
            "no C++ compiler found, so the fast CPU renderer cannot be built; install g++ or clang++ "
            "(Debian/Ubuntu: apt install g++, macOS: xcode-select --install) or point CXX at one."
        )
    return path


def library_path(variant: str, extra_flags: tuple[str, ...] = ()) -> Path:
    """The shared object of `variant`: from the wheel, from the cache, or compiled now.

    Safe when several processes ask at once: one compiles, under a lock, and the result appears whole. Raises
    `BackendUnavailable` when there is no compiler or it fails.
    """
    flags = (*FLAGS, *VARIANTS[variant], *extra_flags)
    name = library_name(variant, flags)
    if (PREBUILT / name).is_file():
        return PREBUILT / name
    program = find_compiler()
    version = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
    stamp = hashlib.sha256(program.encode() + version).hexdigest()[:8]
    folder = cache_folder()
    target = folder / name.replace(".so", f"-{stamp}.so")
    if target.is_file():
        return target
    with locked(folder / f"{target.name}.lock"):
        if not target.is_file():
            compile_to(target, program, flags)
    return target


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes; the system lets go of it when this process dies."""
    with open(path, "a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            while True:
                with contextlib.suppress(OSError):  # it tries for ten seconds, then raises
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file unlocks


def compile_to(target: Path, program: str, flags: tuple[str, ...]) -> None:
    """Compile the sources to `target`, which appears only when it is complete."""
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        command = [program, *flags, *(str(s) for s in sources() if s.suffix == ".cpp"), "-o", temporary]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise _unavailable(f"{program} could not build the fast CPU renderer: {' '.join(errors[:1])}")
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def compile_all(folder: Path) -> None:
    """Every variant of this architecture into `folder`, for a wheel: not tied to this machine's C++ runtime library."""
    folder.mkdir(parents=True, exist_ok=True)
    program = find_compiler()
    runtime_inside = ("-static-libstdc++", "-static-libgcc") if sys.platform == "linux" else ()
    for variant, machine_flags in VARIANTS.items():
        if machine_flags and platform.machine() not in ("x86_64", "AMD64"):
            continue
        flags = (*FLAGS, *machine_flags)
        compile_to(folder / library_name(variant, flags), program, (*flags, *runtime_inside))


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]))
