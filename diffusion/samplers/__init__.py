"""Few-step samplers for any diffusion or flow network, as one exponential integrator driven by a plan.

`scheduler.EIScheduler` is the drop-in diffusers scheduler, `plan.PRESETS` the named plans, `sampling.sample` the plain loop.
Modules here are imported by name, because diffusers is slow to import. Depends on `splat.errors`, torch, numpy, diffusers.
"""
