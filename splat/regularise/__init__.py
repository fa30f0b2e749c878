"""What keeps a fit to few photos from explaining each of them on its own, every term with its own switch.

`RegulariserConfig` holds the weights, `Priors` what is known of the photos' geometry, `Regulariser` the terms ready for the
steps of `splat.optimise.fit`. One term, one file: depth, normals, virtual_views, drop, smoothing. Depends on splat alone; depth
maps and normals come as plain tensors, from whatever stereo or depth network there is.
"""

from splat.regularise.config import Priors, RegulariserConfig, VirtualView
from splat.regularise.terms import Regulariser

__all__ = ["Priors", "Regulariser", "RegulariserConfig", "VirtualView"]
