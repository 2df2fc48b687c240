"""From one kind of picture to another: learned from pairs, from two unsorted piles, or not learned at all.

    net = train_translation("sketches/", "photos/", method="gan", folder="runs/sketch")   # files of equal names
    translate("mine.png", net).save("out.png")

Without training for it, any diffusion model translates into its own kind: :func:`sdedit` adds noise and takes it away
again, and :func:`dual` walks one model's probability flow up to noise and another one's, or another class's, down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ... import losses, noise, samplers, schedules
from ...data import Dataset
from ...errors import InputError
from ...io import guarded, inputs
from ...io.images import to_pil
from ...io.inputs import ImageLike, as_tensor, opened, scaled
from ...io.inputs import fit_image as shown
from ...models import Model
from ...models.registry import loaded, shipped
from ...nets import layers, presets, translators
from ...nets.adversarial import LOSSES, PatchDiscriminator, Pool, r1
from ...nets.perceptual import perceptual_distance
from ...nets.translators import PAIRED, Cycle, Translator, edges
from ...noise import generator
from ...samplers import processes
from ...training import optimizers
from ...training.trainer import Part, train
from ...types import Cond, Step
from .domains import Domains, domains
from .training_free import ddib, sdedit

KINDS: dict[str, Callable[..., nn.Module]] = {"translator": Translator, "cycle": Cycle}
METHODS = (*PAIRED, "cyclegan")
Loss = Callable[[int], Tensor]
SIGMA, NOISE, POOL = 71, 72, 73  # what a generator is for
SIGMAS = (0.02, 20.0)  # of a diffusion that is shown its source
DENSITY = (0.0, 1.4)  # it learns at a lognormal sigma: large areas of one color are told through much noise
SHARE = {"gan": 0.5, "cyclegan": 0.5}  # of the optimizer's usual rate: in a game, the other must be able to follow
CRITIC_LR = 5e-4  # of AdamW
DECAY = 0.25  # of the run: the rate's fall, which is when colors stop to sway
PREVIEW = 250  # steps between previews


# ---- training -----------------------------------------------------------------------------------------------------


def train_translation(
    source: Dataset | str,
    target: Dataset | str | None = None,
    method: str = "gan",
    classes: str | Sequence[str] | None = None,
    steps: int = 2000,
    net: str = "unet-small",
    size: int | None = None,
    folder: str | Path | None = None,
    batch_size: int = 32,
    lr: float | None = None,
    mirror: bool = False,
    holdout: float = 0.05,
    seed: int = 0,
    minutes: float | None = None,
    fresh: bool = False,
) -> Translator | Cycle:
    """Learn to translate; again, to go on.

    Args:
        source: Pictures to come from: a folder or a data set's name. Without ``target`` their edges are the source.
        target: Pictures to go to; pairs are files of equal names.
        method: "regression" (the mean answer), "gan" (pix2pix), "diffusion" and "bridge" (several answers) learn from
            pairs; "cyclegan" from two piles.
        classes: Two classes of ``source`` as the piles, "sneaker,bag".
        steps: Of the whole run.
        net: A U-Net's name in ``nets.PRESETS``.
        size: Side of the pictures in pixels.
        folder: Where checkpoints and previews go; the same call goes on from there, bit for bit.
        batch_size: Pictures a step.
        lr: Highest learning rate; by default the optimizer's, and half of it for gan and cyclegan.
        mirror: Whether a mirrored picture is one of its kind, too.
        holdout: Part kept for the previews and to measure with.
        seed: Of everything.
        minutes: End this session after so long.
        fresh: Forget what the folder holds.
    """
    if method not in METHODS:
        raise InputError(f"No method named {method!r}. Known: {', '.join(METHODS)}.")
    data = domains(source, target, method != "cyclegan", classes, size, holdout, seed)
    spec, (a, b) = presets.unet(net), data.kept(64)
    shape = (b.shape[1], b.shape[2], b.shape[3])
    if method == "cyclegan":
        made: Translator | Cycle = layers.drawn(lambda: Cycle(spec, shape, data.names), seed)
    else:
        difference = max(round(float((b - a).std()), 4), 0.05)
        made = layers.drawn(lambda: Translator(method, spec, shape, difference), seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return data.draw(batch_size, seed, step, mirror)

    if isinstance(made, Cycle):
        loss, critics = _cycle(made, batch, seed)
    elif method == "gan":
        loss, critics = _gan(made, batch, seed)
    else:
        loss, critics = lambda step: _loss(made, *batch(step), seed, step), {}
    optimizer = optimizers.default()
    lr = lr or optimizers.RATES[optimizer] * SHARE.get(method, 1.0)
    learned = {"net": Part(made, loss, optimizer, lr), **critics}
    config = {**made.config, "data": data.fingerprint, "lr": lr, "batch_size": batch_size, "mirror": mirror}
    config["optimizer"] = optimizer
    run = train(learned, steps, config, folder, seed, decay=DECAY, minutes=minutes, fresh=fresh, precision="float32")
    for done in run:
        if folder is not None and (done.step % PREVIEW == 0 or done.step == steps):
            _preview(made, data, Path(folder) / "preview.png")
    made.eval().requires_grad_(False)
    if folder is not None:
        save(made, Path(folder) / "translation.safetensors")
    return made


def _loss(made: Translator, a: Tensor, b: Tensor, seed: int, step: int) -> Tensor:
    """Of what learns to answer with b, with its noisy forms, or with places on the way to it."""
    cond, n = Cond(image=a), len(a)
    if made.method == "regression":
        return (made(a, a.new_zeros(n), cond) - b).square().mean()
    fresh = torch.randn(b.shape, generator=generator(seed, NOISE, step))
    even = schedules.stratified(n, generator(seed, SIGMA, step)).float()
    levels = translators.sigma(even) if made.method == "bridge" else schedules.lognormal(even, *DENSITY)
    weight = partial(losses.edm, sigma_data=made.denoiser.sigma_data)
    return losses.denoising_loss(made.denoiser, b, levels, fresh, cond, weight).mean()


def _gan(made: Translator, batch: Callable, seed: int) -> tuple[Loss, dict[str, Part]]:
    """pix2pix: a critic sees the source and an answer; the answer is also held near the truth."""
    critic = layers.drawn(lambda: PatchDiscriminator(made.shape[0], made.shape[0], 32, _depth(made.shape)), seed + 1)
    game, shown = LOSSES["hinge"], {}

    def generator_loss(step: int) -> Tensor:
        a, b = batch(step)
        fake = made(a, a.new_zeros(len(a)), Cond(image=a))
        shown[0] = (a, b, fake.detach())
        near = 10 * (fake - b).abs().mean() + 2 * perceptual_distance(fake, b).mean()
        return near + 0.1 * game.generator(
            critic(fake, a)
        )  # 100 to 1, eq. 4; at 0.5 all pictures change color together

    def critic_loss(step: int) -> Tensor:
        a, b, fake = shown[0]
        return game.discriminator(critic(b, a), critic(fake, a)) + 0.5 * r1(lambda x: critic(x, a), b)

    return generator_loss, {"critic": Part(critic, critic_loss, lr=CRITIC_LR)}


def _cycle(made: Cycle, batch: Callable, seed: int) -> tuple[Loss, dict[str, Part]]:
    """CycleGAN (Zhu et al. 2017, eq. 3 and sec. 5.2): two critics, there and back again, and what is there stays."""
    make = partial(PatchDiscriminator, made.shape[0], 0, 32, _depth(made.shape))
    of_a, of_b = (layers.drawn(make, seed + i) for i in (1, 2))
    pool_a, pool_b = Pool(made.shape), Pool(made.shape)
    critics = nn.ModuleList([of_a, of_b, pool_a, pool_b])
    game, shown = LOSSES["least_squares"], {}

    def generator_loss(step: int) -> Tensor:
        a, b = batch(step)
        like_b, like_a = made(a), made(b, reverse=True)
        shown[0] = (a, b, like_a.detach(), like_b.detach())
        cycle = (made(like_b, reverse=True) - a).abs().mean() + (made(like_a) - b).abs().mean()
        some = math.ceil(len(a) / 4)  # enough to learn that what is there stays, at a quarter of the time
        same = (made(b[:some]) - b[:some]).abs().mean() + (made(a[:some], reverse=True) - a[:some]).abs().mean()
        # Half of the paper's weight on the way back, a tenth on what stays: nets that begin as identities dare little
        return game.generator(of_b(like_b)) + game.generator(of_a(like_a)) + 5 * cycle + 0.5 * same

    def critic_loss(step: int) -> Tensor:
        a, b, like_a, like_b = shown[0]
        draw = generator(seed, POOL, step)
        old_a, old_b = pool_a.exchange(like_a, draw), pool_b.exchange(like_b, draw)
        return game.discriminator(of_a(a), of_a(old_a)) + game.discriminator(of_b(b), of_b(old_b))

    return generator_loss, {"critics": Part(critics, critic_loss, lr=CRITIC_LR)}


def _depth(shape: tuple[int, int, int]) -> int:
    return 2 if max(shape[1:]) <= 48 else 3


def _preview(made: Translator | Cycle, data: Domains, path: Path) -> None:
    """Held-out sources and answers, and what they should be, or the way back."""
    training, (a, b) = made.training, data.kept(8)
    made.eval()
    if isinstance(made, Cycle):
        with torch.no_grad():
            rows = [a, made(a), made(made(a), reverse=True), b, made(b, reverse=True)]
    else:
        rows = [a, answer(made, a, steps=10), b]
    made.train(training)
    inputs.sheet(torch.cat(rows), path, len(a))


# ---- use ----------------------------------------------------------------------------------------------------------


def translate(
    image: ImageLike,
    net: Translator | Cycle | Model | str | Path,
    steps: int = 20,
    n: int = 1,
    seed: int = 0,
    size: int | None = None,
    from_edges: bool = False,
    reverse: bool = False,
    prompt: str | None = None,
    source_prompt: str | None = None,
    strength: float = 0.9,
    scale: float = 2.0,
) -> list[Image.Image]:
    """A picture's counterpart, or ``n`` of them.

    Args:
        picture: A picture, its file, or (c, h, w) in [-1, 1].
        net: What :func:`train_translation` made, its file, or its run's folder; with ``to``, a diffusion model.
        steps: Calls of the network, where the method takes several.
        n: Answers to give; only a diffusion or a bridge has more than one.
        seed: Of answer 0; answer i has seed + i.
        size: Shorter side to work at, in pixels; by default what was trained. The answer has this size.
        lines: Take the picture's edges for the source, where the net was trained so.
        back: Of a net that learned both ways, the way back.
        to: Class of a diffusion model, or words, to turn the picture into, by :func:`sdedit` at the model's own size.
        origin: Class or words for what the picture shows; with it, by :func:`dual`.
        strength: With ``to``, how far to go: 0 returns the picture, 1 forgets it (``sdedit``) or all but its noise.
        scale: Classifier-free guidance of the diffusion model.

    Raises:
        InputError: More answers than there are, a way back where there is none.
        DataError: A file that is no picture.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}.")
    if prompt is not None:
        if isinstance(net, Translator | Cycle):
            raise InputError("Only a diffusion model has classes to turn into. Leave `to` out.")
        made = _by_model(loaded(net), image, steps, n, seed, prompt, source_prompt, strength, scale)
        return [to_pil(x) for x in made]
    if isinstance(net, Model) or (isinstance(net, str | Path) and shipped(str(net))):
        net = loaded(net)
        raise InputError(
            f"A diffusion model needs a class or words to turn into, such as prompt={(*net.classes, 'a cat')[0]!r}."
        )
    ready = load(net) if isinstance(net, str | Path) else net
    several = isinstance(ready, Translator) and ready.method in ("diffusion", "bridge")
    if n > 1 and not several:
        raise InputError(f"This net has one answer to a picture, {n} were asked for. Leave n at 1.")
    if reverse and not isinstance(ready, Cycle):
        raise InputError("This net has learned one way only. Train the other with source and target exchanged.")
    source = _prepared(opened(image, "picture", 4), ready.shape, size, from_edges)
    if isinstance(ready, Cycle):
        with torch.no_grad():
            made = ready(source, reverse)
    else:
        run = answer_steps(ready, source.expand(n, -1, -1, -1), steps, range(seed, seed + n))
        with torch.no_grad():
            made = samplers.final(iter(tqdm(run, "translating", steps if several else 1, disable=None, leave=False)))
    return [to_pil(x) for x in made.clamp(-1, 1)]


def _by_model(
    model: Model, image: ImageLike, steps: int, n: int, seed: int, prompt: str,
    source_prompt: str | None, strength: float,
    scale: float,
) -> Tensor:  # fmt: skip
    """Answers of a diffusion model at its own size."""
    shape = model.image_shape
    source = shown(opened(image, "picture", 4), shape)[None]
    means = model.cond if model.classes else model.encode_prompt
    if source_prompt is None:
        many = source.expand(n, -1, -1, -1)
        return sdedit(model, many, strength, means([prompt] * n), steps, range(seed, seed + n), scale)
    if n > 1:
        raise InputError(f"With an origin there is one answer, {n} were asked for. Leave n at 1, or origin out.")
    return ddib(model, model, source, means([source_prompt]), means([prompt]), steps, strength, scale)


def _prepared(image: Image.Image, shape: tuple[int, int, int], size: int | None, from_edges: bool) -> Tensor:
    """As the net knows them: its channels, its shorter side."""
    x = as_tensor(image)
    x = scaled(x, (size or min(shape[1:])) / min(x.shape[-2:]))
    if from_edges:
        return edges(x).expand(-1, shape[0], -1, -1)
    return x if shape[0] == 3 else x.mean(1, keepdim=True)


def answer_steps(
    net: Translator,
    source: Float[Tensor, "b c h w"],
    steps: int = 20,
    seeds: Sequence[int] | None = None,
    eta: float = 1.0,
) -> Iterator[Step]:
    """The answers of a net that learned from pairs, call by call; regression and GAN need one.

    Args:
        net: That answers.
        source: In [-1, 1], of its channels.
        steps: Calls, of a diffusion or bridge.
        seeds: One per picture; other seeds are other answers.
        eta: How much of a bridge's noise is renewed.
    """
    seeds, cond = list(seeds) if seeds is not None else list(range(len(source))), Cond(image=source)
    if net.method in ("regression", "gan"):
        x = net(source, source.new_zeros(len(source)), cond)
        yield Step(0, 1, 0.0, x, x)
    elif net.method == "diffusion":
        table = samplers.table("dpmpp_2m", schedules.exponential(steps, *SIGMAS))
        x = source + SIGMAS[1] * noise.initial(seeds, source.shape[1:])
        yield from samplers.run(net, x, table, cond)
    else:
        table = samplers.table("euler", torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        yield from processes.run(net, source, table, processes.Bridge(source), cond, eta, seeds)


@torch.no_grad()
def answer(net: Translator, source: Float[Tensor, "b c h w"], **options: object) -> Tensor:
    """The result of :func:`answer_steps`, in [-1, 1]."""
    return samplers.final(answer_steps(net, source, **options)).clamp(-1, 1)  # type: ignore[arg-type]


# ---- files --------------------------------------------------------------------------------------------------------


def save(net: Translator | Cycle, path: str | Path) -> None:
    """Write one safetensors file, atomically."""
    guarded.save("cycle" if isinstance(net, Cycle) else "translator", net, path)


def load(path: str | Path) -> Translator | Cycle:
    """Read a file of :func:`save`, or the one in a run's folder; raises CheckpointError for any other."""
    path = Path(path) / "translation.safetensors" if Path(path).is_dir() else Path(path)
    return guarded.load(path, KINDS, "train-translation")
