from itertools import pairwise

from fastdiffusion.samplers import trace


def midpoint(D, noise, x, sigmas):
    """A paper's formula, with one function evaluation at each end and one between."""
    for s, t in pairwise(sigmas):
        half = (s + t) / 2
        middle = x + (half - s) / s * (x - D(x, s))
        x = x + (t - s) / half * (middle - D(middle, half)) if t else D(x, s)
    return x


print(trace(midpoint, [10.0, 3.0, 1.0, 0.0]))
