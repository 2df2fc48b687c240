"""Tiny models and images for the table of verbs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pictures import photo
from PIL import Image
from torch import nn

from fastdiffusion import data, nets
from fastdiffusion.corruptions import parse
from fastdiffusion.denoisers import Denoiser
from fastdiffusion.io.images import to_pil, to_tensor
from fastdiffusion.models import Model, save
from fastdiffusion.nets import tokenizer
from fastdiffusion.nets.autoencoders import KL

NET = {"name": "unet", "width": 8, "multiples": [1, 2], "blocks": [1, 1], "attention": [1], "head": 8}
LOCAL = {"name": "unet", "patch": 2, "refine": 4, "width": 8, "multiples": [1], "blocks": [1], "attention": [],
         "updown": False, "local": True}  # fmt: skip
WORDS = {"vocabulary": 300, "width": 16, "depth": 1, "head": 8}
COLORS = ("red", "green", "blue", "yellow")


def digits() -> data.Dataset:
    """A few of them."""
    return data.Subset(data.load("digits"), range(64))


def stirred(net: nn.Module) -> nn.Module:
    """With random weights everywhere: what starts at zero would hide a mixture behind it."""
    for p in net.parameters():
        if p.ndim >= 2 or not p.any():
            nn.init.normal_(p, std=0.1)
    return net.eval()


def laid_out(place: Path) -> SimpleNamespace:
    """Tiny models and images, as files: a verb that is given a file cannot move what others use."""
    torch.manual_seed(0)
    (place / "photos").mkdir()
    (place / "clean").mkdir()
    for i in range(8):
        photo(16, 16, seed=i).save(place / "photos" / f"{i}.png")
        photo(16, 16, seed=i + 8).save(place / "clean" / f"{i}.png")
        (place / "photos" / f"{i}.txt").write_text(f"a {COLORS[i % 4]} square")
    photo(24, 24, seed=3).save(place / "photo.png")
    photo(20, 20, seed=4).save(place / "style.png")
    photo(16, 16, seed=5).save(place / "small.png")
    for side in (16, 24):
        hole = Image.new("L", (side, side))
        hole.paste(255, (side // 3, side // 3, side // 2, side // 2))
        hole.save(place / f"hole-{side}.png")
    mark = parse("watermark 'AB' 0.95 0.5 0.5 0.5").on((3, 64, 96), [0] * 6)
    clean = 0.8 * torch.stack([to_tensor(photo(96, 64, seed=20 + i)) for i in range(6)])
    for i, image in enumerate(mark.forward(clean + 0.02 * torch.randn(clean.shape))):
        to_pil(image).save(place / f"marked-{i}.png")
    blocks = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8) * 2 - 1, (64, 64))
    to_pil(parse("blur 1.5").on((1, 64, 64), [0]).forward(blocks)[0]).save(place / "blurred.png")

    def write(name: str, net: nn.Module, shape: tuple[int, ...], **options: Any) -> Path:
        keys = ("sigma_data", "cond_channels")
        denoiser = Denoiser(stirred(net), **{k: options.pop(k) for k in keys if k in options}).eval()
        save(Model(denoiser, shape, **options), place / f"{name}.safetensors")
        return place / f"{name}.safetensors"

    gray = {**NET, "in_channels": 1, "out_channels": 1}
    classes = write("classes", nets.build({**gray, "classes": 10}), (1, 8, 8), classes=tuple("0123456789"))
    plain = write("plain", nets.build({**NET, "in_channels": 3, "out_channels": 3}), (3, 16, 16))
    restoring = {
        "sigma_data": 0.1,
        "cond_channels": 3,
        "corruption": "blur 0.5..2 | downscale 2 | gray | mask 0.05..0.4",
    }
    restorer = write("restorer", nets.build({**LOCAL, "in_channels": 6, "out_channels": 3}), (3, 64, 64), **restoring)
    text_net = nets.build({**NET, "in_channels": 3, "out_channels": 3, "words": WORDS})
    captions = [f"a {color} square" for color in COLORS]
    text_net.text_encoder.set_vocabulary(tokenizer.train(captions, 300))
    text = write("text", text_net, (3, 16, 16))
    autoencoder = stirred(KL(channels=1, latent=2, width=8, multiples=[1], blocks=1))
    latent_net = nets.build({**NET, "in_channels": 2, "out_channels": 2, "classes": 10})
    latent = write("latent", latent_net, (2, 4, 4), classes=tuple("0123456789"), autoencoder=autoencoder)
    return SimpleNamespace(
        place=place, classes=classes, plain=plain, restorer=restorer, text=text, latent=latent, captions=captions,
        photos=place / "photos", clean=place / "clean", photo=place / "photo.png", small=place / "small.png",
        style=place / "style.png", hole=place / "hole-24.png", small_hole=place / "hole-16.png",
        marked=[place / f"marked-{i}.png" for i in range(6)], blurred=place / "blurred.png", made={},
    )  # fmt: skip


def made(desk: SimpleNamespace, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that a trainer wrote on the CPU, once for all rows."""
    if name not in desk.made:
        desk.made[name] = desk.place / "made" / name
        make(desk.made[name])
    return desk.made[name]
