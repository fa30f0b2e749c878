"""Diffusion and flow models: schedules, few-step samplers, guidance, training objectives, and what is fitted to one network.

`samplers.scheduler.EIScheduler` samples any network in any diffusers pipeline, `objective.losses` trains one, `plan_search`
finds the best plan for one. Depends on `splat`, torch, numpy, and diffusers, which only the modules that need it import.
"""
