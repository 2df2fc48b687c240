"""From one kind of image to another: learned from pairs, from two unpaired domains, or not learned at all.

    net = train_translation("sketches/", "photos/", method="gan", folder="runs/sketch").model   # files of equal names
    translate("mine.png", net).save("out.png")

Without training for it, any diffusion model translates into its own domain: :func:`sdedit` adds noise and removes it,
and :func:`ddib` follows one model's probability flow up to noise and another one's, or another class's, down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ... import losses, noise, samplers, schedules
from ...data import Dataset
from ...device import device_of
from ...errors import InputError, unknown
from ...io import guarded, inputs
from ...io.images import flatten, to_tensor, to_uint8
from ...io.inputs import ImageLike, as_tensor, fit_image, opened, scaled
from ...io.metadata import recipe
from ...io.results import ImageResult
from ...models import Model
from ...models.registry import shipped
from ...nets import layers, presets, translators
from ...nets.adversarial import LOSSES, PatchDiscriminator, Pool, r1
from ...nets.perceptual import perceptual_distance
from ...nets.translators import PAIRED, Cycle, Translator, edges
from ...noise import Stream, generator
from ...options import changed, fill, refuse
from ...progress import Progress
from ...samplers import processes
from ...training import optimizers
from ...training.distributed import gathered, rank_and_world
from ...training.report import TrainingResult
from ...training.task import Part, Task, Updates, Whole
from ...training.trainer import train
from ...types import Cond, Step
from ..loading import loaded
from .domains import Domains, domains
from .options import TrainTranslationOptions, TranslateOptions
from .training_free import ddib, sdedit

KINDS: dict[str, Callable[..., nn.Module]] = {"translator": Translator, "cycle": Cycle}
METHODS = (*PAIRED, "cyclegan")
FILE = "translation.safetensors"
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Any]
Loss = Callable[[Batch], Tensor]
SIGMAS = (0.02, 20.0)  # of a diffusion that is conditioned on its source
SIGMA_DISTRIBUTION = (0.0, 1.4)  # lognormal: large areas of one color are decided in much noise
SHARE = {"gan": 0.5, "cyclegan": 0.5}  # of the optimizer's usual rate: in a game, the other must be able to follow
CRITIC_LR = 5e-4  # of AdamW
SMALLEST = 4  # pixels of a side that a U-Net takes
DECAY = 0.25  # of the run: the rate's fall, which is when colors stop swaying


# ---- training -----------------------------------------------------------------------------------------------------


def train_translation(
    source: Dataset | str, target: Dataset | str | None = None, **options: Any
) -> TrainingResult[Translator | Cycle]:
    """Learn to translate; again, to go on.

    Args:
        source: Images to translate from: a folder or a data set's name. Without ``target`` their edges are the source.
        target: Images to translate to; pairs are files of equal names.
        options: See :class:`TrainTranslationOptions`.
    """
    chosen = fill(TrainTranslationOptions, **options)
    if chosen.method not in METHODS:
        raise unknown("method", chosen.method, METHODS)
    data = domains(
        source, target, chosen.method != "cyclegan", chosen.classes, chosen.size, chosen.holdout, chosen.seed
    )
    made = _drawn(chosen, data)
    optimizer = optimizers.default() if chosen.optimizer == "auto" else chosen.optimizer
    lr = chosen.lr or optimizers.RATES.get(optimizer, 1e-3) * SHARE.get(chosen.method, 1.0)
    config = {**made.config, "data": data.fingerprint, "lr": lr, "batch_size": chosen.batch_size}
    config |= {"mirror": chosen.mirror, "optimizer": optimizer}
    config |= {name: getattr(chosen, name) for name in changed(chosen, ["holdout"])}  # runs of before have the usual
    loss, critics = _losses(made, chosen.seed)
    train(Task(
        {"net": Part(made, loss, optimizer, lr), **critics}, partial(_draw, data, chosen), config,
        " to ".join(data.names), chosen.usual_examples, "train-translation", updates=Updates(decay=DECAY),
        preview=partial(_preview, made, data),
        write=lambda folder: save(made, folder / FILE), file=FILE,
    ), chosen)  # fmt: skip
    return TrainingResult.of(made.cpu().requires_grad_(False), chosen.folder)


def _drawn(options: TrainTranslationOptions, data: Domains) -> Translator | Cycle:
    """The net for the method, with its first weights."""
    spec, (a, b) = presets.unet(options.net), data.kept(64)
    shape = (b.shape[1], b.shape[2], b.shape[3])
    if options.method == "cyclegan":
        return layers.drawn(lambda: Cycle(spec, shape, data.names), options.seed)
    difference = max(round(float((b - a).std()), 4), 0.05)
    return layers.drawn(lambda: Translator(options.method, spec, shape, difference), options.seed)


def _draw(data: Domains, options: TrainTranslationOptions, step: int) -> Batch:
    """Images of both domains, noise, numbers evenly in [0, 1], and the step."""
    a, b = data.draw(options.batch_size, options.seed, step, options.mirror)
    fresh = torch.randn(b.shape, generator=generator(options.seed, Stream.TRANSLATION_NOISE, step))
    even = schedules.stratified(len(b), generator(options.seed, Stream.TRANSLATION_SIGMA, step))
    return a, b, fresh, even, Whole([step])


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _losses(made: Translator | Cycle, seed: int) -> tuple[Loss, dict[str, Part]]:
    """The net's loss, and critics where the method has them."""
    if isinstance(made, Cycle):
        return _cycle(made, seed)
    return _gan(made, seed) if made.method == "gan" else (partial(_loss, made), {})


def _loss(made: Translator, batch: Batch) -> Tensor:
    """Of a net that learns to estimate b, from its noisy forms or from places on the bridge to it."""
    a, b, fresh, even, _ = batch
    cond = Cond(image=a)
    if made.method == "regression":
        return (made(a, a.new_zeros(len(a)), cond) - b).square().mean()
    levels = translators.sigma(even) if made.method == "bridge" else schedules.lognormal(even, *SIGMA_DISTRIBUTION)
    weight = partial(losses.edm, sigma_data=made.denoiser.sigma_data)
    return losses.denoising_loss(made.denoiser, b, levels, fresh, cond, weight).mean()


def _gan(made: Translator, seed: int) -> tuple[Loss, dict[str, Part]]:
    """pix2pix: a critic sees the source and an answer; the answer is also held near the truth."""
    critic = layers.drawn(lambda: PatchDiscriminator(made.shape[0], made.shape[0], 32, _depth(made.shape)), seed + 1)
    game, shown = LOSSES["hinge"], {}

    def generator_loss(batch: Batch) -> Tensor:
        a, b, *_ = batch
        fake = made(a, a.new_zeros(len(a)), Cond(image=a))
        shown[0] = fake.detach()
        near = 10 * (fake - b).abs().mean() + 2 * perceptual_distance(fake, b).mean()
        # 100 to 1, eq. 4; at 0.5 all images change color together
        return near + 0.1 * game.generator(critic(fake, a))

    def critic_loss(batch: Batch) -> Tensor:
        a, b, *_ = batch
        return game.discriminator(critic(b, a), critic(shown[0], a)) + 0.5 * r1(lambda x: critic(x, a), b)

    return generator_loss, {"critic": Part(critic, critic_loss, lr=CRITIC_LR)}


def _cycle(made: Cycle, seed: int) -> tuple[Loss, dict[str, Part]]:
    """CycleGAN (Zhu et al. 2017, eq. 3 and sec. 5.2): two critics, there and back again, and what is there stays."""
    make = partial(PatchDiscriminator, made.shape[0], 0, 32, _depth(made.shape))
    of_a, of_b = (layers.drawn(make, seed + i) for i in (1, 2))
    pool_a, pool_b = Pool(made.shape), Pool(made.shape)
    critics = nn.ModuleList([of_a, of_b, pool_a, pool_b])
    game, shown = LOSSES["least_squares"], {}

    def generator_loss(batch: Batch) -> Tensor:
        a, b, *_ = batch
        like_b, like_a = made(a), made(b, reverse=True)
        shown[0] = (like_a.detach(), like_b.detach())
        cycle = (made(like_b, reverse=True) - a).abs().mean() + (made(like_a) - b).abs().mean()
        some = math.ceil(len(a) / 4)  # enough to learn that what is there stays, at a quarter of the time
        same = (made(b[:some]) - b[:some]).abs().mean() + (made(a[:some], reverse=True) - a[:some]).abs().mean()
        # Half of the paper's weight on the way back, a tenth on what stays: nets that begin as identities dare little
        return game.generator(of_b(like_b)) + game.generator(of_a(like_a)) + 5 * cycle + 0.5 * same

    def critic_loss(batch: Batch) -> Tensor:
        a, b, _, _, (step,) = batch
        draw = generator(seed, Stream.TRANSLATION_POOL, step)
        mine = slice(rank_and_world()[0] * len(a), (rank_and_world()[0] + 1) * len(a))
        # the pools are the same in all processes
        old_a, old_b = (p.exchange(gathered(x), draw)[mine] for p, x in zip((pool_a, pool_b), shown[0], strict=True))
        return game.discriminator(of_a(a), of_a(old_a)) + game.discriminator(of_b(b), of_b(old_b))

    return generator_loss, {"critics": Part(critics, critic_loss, lr=CRITIC_LR)}


def _depth(shape: tuple[int, int, int]) -> int:
    return 2 if max(shape[1:]) <= 48 else 3


def _preview(made: Translator | Cycle, data: Domains) -> tuple[Tensor, int]:
    """Held-out sources and results, and what they should be, or the way back; and how many to a row."""
    a, b = (images.to(_device(made)) for images in data.kept(8))
    if isinstance(made, Cycle):
        rows = [a, made(a), made(made(a), reverse=True), b, made(b, reverse=True)]
    else:
        rows = [a, answer(made, a, steps=10), b]
    return torch.cat(rows), len(a)


# ---- use ----------------------------------------------------------------------------------------------------------


def translate(image: ImageLike, net: Translator | Cycle | Model | str | Path, **options: Any) -> ImageResult:
    """An image's counterpart, or ``n`` of them.

    Args:
        image: An image, its file, or (c, h, w) in [-1, 1].
        net: What :func:`train_translation` made, its file, or its run's folder; with ``prompt``, a diffusion model.
        options: See :class:`TranslateOptions`.

    Raises:
        InputError: More results than there are, a way back where there is none.
        DataError: A file that is no image.
    """
    chosen = fill(TranslateOptions, **options)
    if chosen.n < 1 or chosen.steps < 1:
        raise InputError(f"n and steps must be at least 1, got {chosen.n} and {chosen.steps}.")
    if chosen.size is not None and chosen.size < SMALLEST:
        raise InputError(f"size must be at least {SMALLEST}, got {chosen.size}. Leave it out for the trained one.")
    diffusion = isinstance(net, Model) or (isinstance(net, str | Path) and shipped(str(net)) is not None)
    if chosen.prompt is not None:
        if isinstance(net, Translator | Cycle):
            raise InputError("Only a diffusion model has classes to turn into. Leave the prompt out.")
        refuse(chosen, ("size", "reverse", "from_edges"), "with a prompt, where a diffusion model translates")
        made = _by_model(loaded(net, chosen.device), image, chosen, chosen.prompt)
    elif diffusion:
        example = (*loaded(net, chosen.device).classes, "a cat")[0]  # pyright: ignore[reportArgumentType]
        raise InputError(f"A diffusion model needs a class or prompt to turn into, such as prompt={example!r}.")
    else:
        refuse(chosen, ("source_prompt", "strength", "scale"), "without a prompt, where a trained net translates")
        made = _by_net(_ready(net, chosen.device), image, chosen)  # pyright: ignore[reportArgumentType]
    stem = Path(image).stem if isinstance(image, str | os.PathLike) else "image"
    names = [f"{stem}-translated" + (f"-{i}" if len(made) > 1 else "") for i in range(len(made))]
    kept = recipe("translate", vars(chosen), image, net)
    return ImageResult(to_tensor(to_uint8(made.clamp(-1, 1).cpu())), tuple(names), kept, tuple(inputs.losses(image)))


def _ready(net: Translator | Cycle | str | Path, device: str | None) -> Translator | Cycle:
    """The net, read if need be, on its device: where it is, or for a file the best there is."""
    if isinstance(net, str | Path):
        return load(net).to(device_of(device))
    return net if device is None else net.to(device_of(device))


@torch.no_grad()
def _by_net(net: Translator | Cycle, image: ImageLike, options: TranslateOptions) -> Tensor:
    """The results of a trained net."""
    several = isinstance(net, Translator) and net.method in ("diffusion", "bridge")
    if options.n > 1 and not several:
        raise InputError(f"This net has one answer to an image, {options.n} were asked for. Leave n at 1.")
    if options.reverse and not isinstance(net, Cycle):
        raise InputError("This net has learned one way only. Train the other with source and target exchanged.")
    if isinstance(net, Cycle):
        refuse(options, ("from_edges",), "with a net of two kinds of images, of which none are edges")
    source = _prepared(opened(image, "image", SMALLEST), net.shape, options.size, options.from_edges).to(_device(net))
    if isinstance(net, Cycle):
        return net(source, options.reverse)
    seeds = range(options.seed, options.seed + options.n)
    run = answer_steps(net, source.expand(options.n, -1, -1, -1), options.steps, seeds)
    return samplers.final(iter(Progress(run, "translating", options.steps if several else 1)))


def _by_model(model: Model, image: ImageLike, options: TranslateOptions, prompt: str) -> Tensor:
    """The results of a diffusion model at its own size."""
    if len(model.image_shape) != 3:
        raise InputError(f"This model makes samples of shape {model.image_shape}, no images: it cannot translate one.")
    channels, height, width = model.image_shape
    source = fit_image(opened(image, "image", SMALLEST), (channels, height, width))[None]
    condition = model.cond if model.classes else model.encode_prompt
    strength, steps, scale = options.strength, options.steps, options.scale
    if options.source_prompt is None:
        seeds = range(options.seed, options.seed + options.n)
        many = source.expand(options.n, -1, -1, -1)
        return sdedit(model, many, strength, condition([prompt] * options.n), steps, seeds, scale)
    if options.n > 1:
        raise InputError(
            f"With a source prompt there is one answer, {options.n} were asked for. Leave n at 1, or it out."
        )
    return ddib(model, model, source, condition([options.source_prompt]), condition([prompt]), steps, strength, scale)


def _prepared(image: Image.Image, shape: tuple[int, int, int], size: int | None, from_edges: bool) -> Tensor:
    """As the net was trained: its channels, its shorter side."""
    x = as_tensor(flatten(image).convert("L") if shape[0] == 1 else image)[:, : shape[0]]  # gray as data are made
    x = scaled(x, (size or min(shape[1:])) / min(x.shape[-2:]), SMALLEST)
    return edges(x).expand(-1, shape[0], -1, -1) if from_edges else x


def answer_steps(
    net: Translator,
    source: Float[Tensor, "b c h w"],
    steps: int = 20,
    seeds: Sequence[int] | None = None,
    eta: float = 1.0,
) -> Iterator[Step]:
    """The results of a net that learned from pairs, step by step; regression and GAN need one evaluation.

    Args:
        net: What was trained.
        source: In [-1, 1], of its channels.
        steps: Evaluations, of a diffusion or bridge.
        seeds: One per image; other seeds give other results.
        eta: How much of a bridge's noise is renewed.
    """
    source = source.to(_device(net))
    seeds, cond = list(seeds) if seeds is not None else list(range(len(source))), Cond(image=source)
    if net.method in ("regression", "gan"):
        x = net(source, source.new_zeros(len(source)), cond)
        yield Step(0, 1, 0.0, x, x)
    elif net.method == "diffusion":
        table = samplers.table("dpmpp_2m", schedules.exponential(steps, *SIGMAS))
        x = source + SIGMAS[1] * noise.initial(seeds, source.shape[1:]).to(source)
        yield from samplers.run(net, x, table, cond)
    else:
        table = samplers.table("euler", torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        yield from processes.run(net, source, table, processes.Bridge(source), cond, eta, seeds)


@torch.no_grad()
def answer(net: Translator, source: Float[Tensor, "b c h w"], **options: Any) -> Tensor:
    """The result of :func:`answer_steps`, in [-1, 1], on the device of ``source``."""
    return samplers.final(answer_steps(net, source, **options)).clamp(-1, 1).to(source.device)


# ---- files --------------------------------------------------------------------------------------------------------


def save(net: Translator | Cycle, path: str | Path) -> None:
    """Write one safetensors file, atomically."""
    guarded.save("cycle" if isinstance(net, Cycle) else "translator", net, path)


def load(path: str | Path) -> Translator | Cycle:
    """Read a file of :func:`save`, or the one in a run's folder; raises CheckpointError for any other."""
    path = Path(path) / "translation.safetensors" if Path(path).is_dir() else Path(path)
    return guarded.load(path, KINDS, "train-translation")
