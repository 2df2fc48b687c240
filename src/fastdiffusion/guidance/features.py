"""Guidance by learned features: a classifier on the model's own (h-space), or the similarity to a text (CLIP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..denoisers import Denoiser, expand, scaling
from ..errors import InputError
from ..nets.classifier import Classifier, chosen
from ..nets.clip import Clip, matches
from ..nets.unet import UNet
from ..types import Cond, Denoise, Run
from .core import ALWAYS, Guided, Interval, Scale, guidance, scale_at
from .gradient import classifier as by_classifier
from .gradient import gradient, loss_guidance


@guidance
def feature_guidance(
    denoise: Denoiser, classifier: Classifier, scale: Scale = 1.0, interval: Interval = ALWAYS, *, run: Run
) -> Denoise:
    """Classifier guidance by the model's own middle features: the encoder serves both, the decoder needs no gradient.

    ``guidance.classifier`` of a model without labels, with ``classifier.log_prob``, in less time.

    Args:
        denoise: A bare denoiser with a U-Net; it is evaluated without its label, which only guides it.
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


def clip_guidance(
    denoise: Denoise,
    clip: Clip,
    prompt: str | Sequence[str],
    scale: Scale = 1.0,
    interval: Interval = ALWAYS,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Guided:
    """Guidance towards a text by the image and text encoders of ``clip``; 0 is off.

    An encoder of noisy images reads x (Nichol et al. 2022, GLIDE, arXiv:2112.10741, sec. 4.2), any other the estimate
    of x0.

    Args:
        denoise: Any model of what ``clip`` reads: images, or the latents that ``decode`` turns into images.
        clip: See ``nets.clip``.
        prompt: One for all images, or one for each.
        scale: As for ``guidance.classifier``.
        interval: Guide only where low < sigma <= high.
        decode: From x0 to images, for an encoder of clean images and a model of latents.
    """
    log_prob = matches(clip, [prompt] if isinstance(prompt, str) else prompt)
    if clip.noisy:
        return by_classifier(denoise, log_prob, scale, interval)
    return loss_guidance(denoise, lambda images: -log_prob(images), scale, interval, decode=decode)
