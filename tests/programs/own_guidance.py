from fastdiffusion import sample
from fastdiffusion.guidance import guidance


@guidance
def late(denoise, strength, *, run):
    """Brighten, in the second half of a run."""
    return lambda x, sigma, cond=None: denoise(x, sigma, cond) + strength * (2 * run.index > len(run.sigmas))


sample("runs/digits", n=2, steps=4, guidance=lambda denoise: late(denoise, 0.1))
