"""Compiling the kernels: once per source, flags and compiler, into the user's cache.

`python splat/render/native/build.py FOLDER` compiles every variant of this machine's architecture into FOLDER, with the
standard library alone; put into a wheel as `prebuilt/` beside this file, they make a compiler unnecessary.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
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
    from splat.errors import BackendUnavailable  # not at the top: a wheel is built where torch is not installed

    return BackendUnavailable(reason)


def find_compiler() -> str:
    """Path of a C++ compiler. Raises `BackendUnavailable` with the remedy."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = name and shutil.which(name)
        if path:
            return path
    raise _unavailable(
        "no C++ compiler found, so the fast CPU renderer cannot be built; install g++ or clang++ "
        "(Debian/Ubuntu: apt install g++, macOS: xcode-select --install) or point CXX at one."
    )


def library_path(variant: str, extra_flags: tuple[str, ...] = ()) -> Path:
    """The shared object of `variant`: from the wheel, from the cache, or compiled now.

    Safe when several processes ask at once: one compiles, under a lock, and the result appears whole. Raises
    `BackendUnavailable` when there is no compiler or it fails.
    """
    flags = (*FLAGS, *VARIANTS[variant], *extra_flags)
    name = library_name(variant, flags)
    if (PREBUILT / name).is_file():
        return PREBUILT / name
    compiler = find_compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    stamp = hashlib.sha256(compiler.encode() + version).hexdigest()[:8]
    folder = cache_folder()
    target = folder / name.replace(".so", f"-{stamp}.so")
    if target.is_file():
        return target
    with open(folder / f"{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            compile_to(target, compiler, flags)
    return target


def compile_to(target: Path, compiler: str, flags: tuple[str, ...]) -> None:
    """Compile the sources to `target`, which appears only when it is complete."""
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        command = [compiler, *flags, *(str(s) for s in sources() if s.suffix == ".cpp"), "-o", temporary]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise _unavailable(f"{compiler} could not build the fast CPU renderer: {' '.join(errors[:1])}")
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for variant, machine_flags in VARIANTS.items():
        if machine_flags and platform.machine() not in ("x86_64", "AMD64"):
            continue
        flags = (*FLAGS, *machine_flags)
        compile_to(folder / library_name(variant, flags), find_compiler(), flags)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
