"""Packages of the wheel; everything else is in pyproject.toml. The folder `assets/` travels inside the package `app`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["app*", "recon*", "splat*", "diffusion*"]), "app.assets"],
    package_dir={"app.assets": "assets"},
)
