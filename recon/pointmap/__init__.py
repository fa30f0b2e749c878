"""Our own two-view pointmap network: two photos in, where their pixels lie out, with nothing known beforehand.

DUSt3R's idea (Wang et al., CVPR 2024) in small: a shared encoder, two cross-attending decoders, pointmaps with confidence.
`rooms.random_room` and `pair_bank.build_pair_bank` make the pictures it learns from, `network.PointmapNetwork` is the
network, `objective.pointmap_loss` what it learns by; `recon/priors/pointmap.py` uses it. Training is wired in
`app/train_pointmap.py`, which brings objects and the training loop. Depends on splat, torch and numpy, and when used on
OpenCV and on XFeat through `recon.features`.
"""
