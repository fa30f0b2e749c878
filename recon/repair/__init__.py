"""Repair of reconstructions from few photos: damaged renders are mended by a network, and the splats are fitted to them too.

`request` says what photos know of a view that nobody took, `rounds` mends and fits in turns (LM-Gaussian, Yu et al. 2024, stage
4), `pairs` makes what a repair network learns from. The network itself comes as a `splat.repair_request.Repairer`.
"""
