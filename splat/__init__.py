"""Gaussian splats: the types every part exchanges, rendering, fitting, meshing and file formats.

Main functions: `splat.render.render` draws `Splats` through `Cameras`, `splat.optimise.fit` improves splats against
`Views`, `splat.io.load` / `splat.io.save` read and write scenes by suffix. Depends on torch and numpy only at import.
"""
