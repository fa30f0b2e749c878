"""Diffusion models whose samples are Gaussians: schedules, samplers and small networks. Depends on `splat` only."""
