"""Guidance in a model's own features (h-space): a classifier of the middle layer is climbed where it is cheap."""

from __future__ import annotations

from torch import Tensor

from ..denoisers import Denoiser, expand, scaling
from ..errors import InputError
from ..nets.classifier import Classifier, chosen
from ..nets.unet import UNet
from ..types import Cond, Denoise, Run
from .core import ALWAYS, Interval, Scale, guidance, scale_at
from .gradient import gradient


@guidance
def feature_guidance(
    denoise: Denoiser, classifier: Classifier, scale: Scale = 1.0, interval: Interval = ALWAYS, *, run: Run
) -> Denoise:
    """Classifier guidance by the model's own middle: the way down serves both, the way up needs no gradient.

    ``guidance.classifier`` of a model that is not told its labels, with ``classifier.log_prob``, at a smaller price.

    Args:
        denoise: A bare denoiser with a U-Net. Labels only guide it.
        classifier: ``Classifier.reading(denoise, classes)``, trained. Raises InputError for a reader of another model.
        scale: As for ``guidance.classifier``; 0 is off.
        interval: Guide only where low < sigma <= high.
    """
    net = denoise.net
    if not isinstance(net, UNet) or denoise.self_condition or not classifier.shares_trunk(denoise):
        raise InputError("This classifier does not read the middle of this model. Train one: train_classifier(model=).")

    def guided(x: Tensor, sigma: Tensor, cond: Cond | None = None) -> Tensor:
        uncond, now = cond.null() if cond is not None else None, scale_at(scale, run, interval, off=0.0)
        if now == 0:
            return denoise(x, sigma, uncond)
        c = scaling(denoise.parameterization, expand(sigma, x), denoise.sigma_data)

        def forward(at: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor], Tensor]]:
            h, skips, emb = net.encode(c.c_in * at, c.c_noise.flatten(), uncond)
            return chosen(classifier.head(h, emb), cond), (h, skips, emb)

        push, (h, skips, emb) = gradient(forward, x)
        x0 = c.c_skip * x + c.c_out * net.decode(h, skips, emb, c.c_in * x, uncond)
        return x0 + now * expand(sigma, x).square() * push

    return guided
