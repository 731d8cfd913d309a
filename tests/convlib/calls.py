"""Arrays for small calls of conv2d, and what the definition says of them."""

import numpy as np

from convlib.kernels import reference
from convlib.problem import make_problem


def integers(*shape, seed=0, dtype=np.float32):
    """Small integers: their float32 sums are exact, so a test may ask for equality."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def defined(x, w, **parameters):
    """The reference's answer, in float64."""
    return reference.conv2d(make_problem(x.shape, w.shape, np.float64, **parameters), x, w)


X, W = integers(2, 6, 9, 8), integers(4, 6, 3, 3, seed=1)
BIAS = integers(4, seed=2)
