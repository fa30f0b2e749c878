"""Packages of the wheel, and the compiled kernels in it; everything else is in pyproject.toml.

The folder `assets/` travels inside the package `app`. Where a C++ compiler is found, the wheel carries the CPU renderer's
kernels and is tied to the platform; elsewhere it carries their sources alone, which compile on first use.
"""

import importlib.util
import warnings
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("splat", "render", "native")


def kernels():
    """The module that compiles the kernels, without importing its package: torch is not installed where wheels are built."""
    spec = importlib.util.spec_from_file_location("build_kernels", Path(__file__).resolve().parent / NATIVE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # compiled on first use, again after every change of the sources
            return
        if kernels().compiler() is None:
            warnings.warn("no C++ compiler: the wheel carries the CPU renderer's sources alone", stacklevel=1)
            return
        kernels().compile_all(
            Path(self.build_lib) / NATIVE / "prebuilt"
        )  # an error here ends the build: the wheel's tag is set


class WithKernels(Distribution):
    def has_ext_modules(self):  # what is built belongs to one platform
        return kernels().compiler() is not None


class PlatformWheel(bdist_wheel):
    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform  # the kernels know nothing of Python


setup(
    packages=[*find_packages(include=["app*", "recon*", "splat*", "diffusion*"]), "app.assets"],
    package_dir={"app.assets": "assets"},
    distclass=WithKernels,
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
)
