"""What networks are trained on: `paths` between noise and data, `losses` on predictions, and `average` of the weights.

`losses.denoising_loss` is the common loss, `losses.rendered_loss` the one through a renderer, `losses.ambient_loss` the one for
noisy data, `bridges` joins two data distributions. Depends on torch and numpy.
"""
