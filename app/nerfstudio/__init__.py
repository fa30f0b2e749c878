"""Plug-ins for nerfstudio: a data parser, a method and a command for CPU builds of torch. They need the extra `nerfstudio`.

`prepare` makes nerfstudio's data from photos or from one of our results; `dataparser` and `method` are found by nerfstudio's
entry points; `cpu_torch` starts nerfstudio's commands. Nothing else in this project imports this package, and of it only
`prepare` runs without nerfstudio.
"""
