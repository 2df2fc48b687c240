"""Images and captions in one space: the two encoders, the losses that draw pairs together, and the prior between them.

An image encoder is half a U-Net, conditioned on the noise level like any denoiser: one net for clean images, noisy
ones, and latents, whatever it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..denoisers import expand, scaling
from ..types import Cond
from .classifier import Half, Head
from .layers import fourier, records_config, zero
from .text import TextEncoder

CLEAN = 0.02  # the noise level of an image without noise: less than the eye sees


class ImageEncoder(nn.Module):
    """Images or latents, clean or noisy, as unit vectors.

    Args:
        net: Keywords of ``UNet``, of which half is built.
        dim: Length of the vectors.
        sigma_data: Standard deviation of the data.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, net: Mapping[str, Any], dim: int = 192, sigma_data: float = 0.5):
        super().__init__()
        self.trunk = Half(net)
        self.head = Head(self.trunk, dim)
        nn.init.normal_(self.head.out.weight, std=self.trunk.features**-0.5)  # a zero vector has no direction
        self.sigma_data = sigma_data

    def forward(self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"] | None = None) -> Float[Tensor, "b d"]:
        """Unit vectors; without ``sigma`` the images are clean."""
        sigma = x.new_full((len(x),), CLEAN) if sigma is None else sigma
        c = scaling("edm", expand(sigma, x), self.sigma_data)
        inputs = (c.c_in * x).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.head(*self.trunk(inputs, c.c_noise.flatten())).float(), dim=1)


class Clip(nn.Module):
    """A dual encoder (Radford et al. 2021, arXiv:2103.00020): encode images and captions, then compare.

    Args:
        image: Keywords of :class:`ImageEncoder`.
        text: Keywords of ``TextEncoder``.
        side: Pixels of the images that it takes; others are resized. 0 takes them (latents) as they come.
        known: Captions that it was trained on, some hundreds, to compare others with.
        loss: A name in ``LOSSES``: what it was trained with.
        noisy: Whether it was trained on noisy images (or latents).
    """

    config: dict[str, Any]

    @records_config
    def __init__(
        self,
        image: Mapping[str, Any],
        text: Mapping[str, Any],
        side: int = 64,
        known: Sequence[str] = (),
        loss: str = "infonce",
        noisy: bool = False,
    ):
        super().__init__()
        self.noisy = noisy
        self.side, self.known = side, tuple(known)
        self.image, self.text = ImageEncoder(**image), TextEncoder(**text)
        self.project = nn.Linear(self.text.width, self.image.config["dim"], bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.project.out_features

    def encode_image(
        self, x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"]:
        """Images in [-1, 1] as unit vectors."""
        if self.side and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        return self.image(x, sigma)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "b d"]:
        """Captions as unit vectors."""
        _, _, pooled = self.text(self.text.tokens(list(texts)).to(self.project.weight.device))
        return F.normalize(self.project(pooled).float(), dim=1)


def matches(
    clip: Clip, texts: Sequence[str] | Tensor, others: Sequence[str] | None = None
) -> Callable[..., Float[Tensor, " b"]]:
    """log p(text | x; sigma) among ``texts`` and ``others``: what guidance takes.

        guidance.classifier(denoise, matches(noisy, ["a red car"]))                   # of the noisy image
        guidance.loss_guidance(denoise, lambda x0: -matches(clip, ["a red car"])(x0))         # of the clean estimate

    Args:
        clip: An encoder of what the denoiser works on.
        texts: One for all images, or one for each; or unit vectors, of images or from the prior.
        others: What it is compared with; by default the captions that the encoder was trained on.
    """
    with torch.no_grad():
        text_vectors = texts if isinstance(texts, Tensor) else clip.encode_text(texts)
        rest = clip.encode_text(clip.known if others is None else others)

    def log_prob(x: Tensor, sigma: Tensor | None = None, cond: Cond | None = None) -> Tensor:
        image_vectors, scale = clip.encode_image(x, sigma), clip.log_scale.exp().clamp(max=100)
        own = scale * (image_vectors * text_vectors[torch.arange(len(x)) % len(text_vectors)]).sum(1)
        return own - torch.cat([own[:, None], scale * image_vectors @ rest.T], 1).logsumexp(1)

    return log_prob


# ---- losses ---------------------------------------------------------------------------------------------------------


def infonce(image_vectors: Tensor, text_vectors: Tensor, scale: Tensor, same: Bool[Tensor, "b b"]) -> Float[Tensor, ""]:
    """Which caption belongs to each image, and which image to each caption (van den Oord et al. 2018; Radford, fig. 3).

    Args:
        image_vectors: Unit vectors of images (b, d).
        text_vectors: Unit vectors of their captions.
        scale: Inverse temperature; learned.
        same: Pairs off the diagonal that belong together too; they count neither way.
    """
    logits = (scale * image_vectors @ text_vectors.T).masked_fill(same, -math.inf)
    target = torch.arange(len(image_vectors), device=image_vectors.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def cloob(
    image_vectors: Tensor,
    text_vectors: Tensor,
    scale: Tensor,
    same: Bool[Tensor, "b b"],
    beta: float = 8.0,
    sharp: float = 30.0,
) -> Float[Tensor, ""]:
    """InfoLOOB of what Hopfield networks retrieve (Fürst et al. 2022, arXiv:2110.11316, eq. 6 to 8).

    Each vector is first replaced by a mean over the batch of images (then of captions), weighted by a softmax with
    ``beta``: what pairs share in many ways is kept, what one pair has alone is not. In InfoLOOB the right pair is
    left out of the denominator, so that the loss goes on after it has won; its temperature ``1 / sharp`` is fixed.
    """
    value = image_vectors.new_zeros(())
    eye = torch.eye(len(image_vectors), dtype=torch.bool, device=image_vectors.device)
    for stored, turned in ((image_vectors, False), (text_vectors, True)):
        retrieved = [
            F.normalize((beta * asking @ stored.T).softmax(1) @ stored, dim=1)
            for asking in (image_vectors, text_vectors)
        ]
        logits = sharp * (retrieved[0] @ retrieved[1].T)
        logits = logits.T if turned else logits
        hidden = eye | (same.T if turned else same)
        contrasted = ~hidden.all(1)  # a row beside which there is no other pair teaches nothing
        others = logits.masked_fill(hidden, -math.inf)[contrasted].logsumexp(1)
        value = value + (others - logits.diagonal()[contrasted]).sum() / (sharp * max(len(others), 1))
    return value


LOSSES: dict[str, Callable[..., Tensor]] = {"infonce": infonce, "cloob": cloob}


# ---- from a caption to an image's vector -----------------------------------------------------------------------------


class Prior(nn.Module):
    """The net of a denoiser of vectors: from the text embedding, ``Cond.pooled``, to the image's.

    unCLIP's prior (Ramesh et al. 2022, arXiv:2204.06125, sec. 2.2) as a residual MLP.

    Args:
        dim: Length of the embeddings.
        width: Of the hidden layers.
        depth: Residual blocks.
    """

    config: dict[str, Any]

    @records_config
    def __init__(self, dim: int = 192, width: int = 256, depth: int = 4):
        super().__init__()
        self.embed = nn.Linear(64, width)
        self.inside, self.condition = nn.Linear(dim, width), nn.Linear(dim, width, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "norm": nn.LayerNorm(width, elementwise_affine=False), "adapt": nn.Linear(width, 2 * width),
                "up": nn.Linear(width, 2 * width), "down": zero(nn.Linear(2 * width, width)),
            })
            for _ in range(depth)
        )  # fmt: skip
        self.out = zero(nn.Linear(width, dim))

    def forward(
        self, x: Float[Tensor, "b d"], c_noise: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b d"]:
        """The network's answer."""
        emb = self.embed(fourier(c_noise, 64))
        if cond is not None and cond.pooled is not None:
            emb = emb + self.condition(cond.pooled)
        h, emb = self.inside(x) + emb, F.silu(emb)
        for block in self.blocks:
            scale, shift = block["adapt"](emb).chunk(2, 1)  # pyright: ignore[reportIndexIssue]
            inner = block["norm"](h) * (1 + scale) + shift  # pyright: ignore[reportIndexIssue]
            h = h + block["down"](F.gelu(block["up"](inner)))  # pyright: ignore[reportIndexIssue]
        return self.out(h)
