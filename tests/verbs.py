"""Every verb at its smallest, as a table: what ``test_device`` runs on the CPU and on a GPU.

A row's body gets a desk of tiny models and images, a device and an empty folder, and returns what it made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from desk import LOCAL, NET, WORDS, digits, made
from PIL import Image
from torch import nn

import fastdiffusion
from fastdiffusion import Learner, data, schedules
from fastdiffusion.guidance import loss_guidance
from fastdiffusion.io.images import to_tensor
from fastdiffusion.models import Model

TINY = {"steps": 2, "batch_size": 4}
EXACT = {**TINY, "precision": "float32"}


@dataclass(frozen=True)
class Row:
    """A verb at its smallest.

    Attributes:
        command: What the command line calls it; None for what only Python has.
        body: ``body(desk, device, folder)``: what it makes, as tensors, nets, images or numbers.
    """

    command: str | None
    body: Callable[..., Any]


ROWS: dict[str, Row] = {}


def row(command: str | None = None) -> Callable[..., Any]:
    """Enter a body in the table, under its own name."""

    def enter(body: Callable[..., Any]) -> Callable[..., Any]:
        ROWS[body.__name__] = Row(command, body)
        return body

    return enter


WHERE = {
    "train_classifier": "tasks.classification.train", "train_autoencoder": "tasks.autoencoding.train",
    "train_token_prior": "tasks.autoencoding.token_prior", "sample_tokens": "tasks.autoencoding.token_prior",
    "train_clip": "tasks.text_image.clip", "train_caption_mean": "tasks.text_image.caption_mean",
    "add_language": "tasks.text_image.multilingual", "variations": "tasks.variations",
    "build_index": "tasks.variations", "train_cold": "tasks.restoration.cold_diffusion",
    "remove_watermark": "tasks.restoration.watermarks", "train_style": "tasks.stylization.network",
    "train_translation": "tasks.translation.paired",
}  # fmt: skip


def verb(name: str) -> Callable[..., Any]:
    """A verb, from the package or from the room that it lives in."""
    return getattr(
        fastdiffusion if name in fastdiffusion.__all__ else import_module(f"fastdiffusion.{WHERE[name]}"), name
    )


# ---- generation ---------------------------------------------------------------------------------------------------


@row("sample")
def sample_prompt(desk, device, folder):
    return verb("sample")(desk.text, "a red square", n=2, steps=3, scale=2.0, device=device)


@row("sample")
def sample_negative_prompt(desk, device, folder):
    return verb("sample")(
        desk.text, "a (red:1.3) square", negative_prompt="blue", n=2, steps=3, scale=2.0, device=device
    )


@row("sample")
def sample_classes(desk, device, folder):
    return verb("sample")(desk.classes, classes="3,7", n=2, steps=3, scale=1.5, device=device)


@row("sample")
def sample_from_image(desk, device, folder):
    return verb("sample")(desk.plain, image=desk.photo, strength=0.6, n=2, steps=3, device=device)


@row("sample")
def sample_inpaint(desk, device, folder):
    return verb("sample")(desk.plain, guidance=f"inpaint {desk.small} {desk.small_hole}", n=1, steps=3, device=device)


@row("sample")
def sample_masked(desk, device, folder):
    options = {"image": desk.small, "mask": desk.small_hole, "outpaint": "0,4,4,0", "n": 1, "steps": 3}
    return verb("sample")(desk.latent, classes="3", **options, size=20, device=device)


@row("sample")
def sample_upscaled(desk, device, folder):
    return verb("sample")(desk.plain, n=1, steps=2, upscale="x2", device=device)


@row("sample")
def sample_noise_of_others(desk, device, folder):
    return [
        verb("sample")(desk.plain, n=2, steps=3, rng=rng, sampler="euler_ancestral", device=device)
        for rng in ("a1111", "comfy")
    ]


@row("sample")
def sample_loss_on_images(desk, device, folder):
    model = fastdiffusion.load(desk.latent, device=device)
    decode = model.autoencoder.decode

    def guided(denoise):
        return loss_guidance(denoise, lambda images: images.flatten(1).mean(1), 2.0, decode=decode)

    return verb("sample")(model, classes="3", n=1, steps=2, guidance=guided)


@row()
def sample_previews(desk, device, folder):
    return [step.preview.clone() for step in verb("sample_steps")(desk.latent, n=2, steps=3, device=device)]


@row("sample")
def sample_latents(desk, device, folder):
    return verb("sample")(desk.latent, classes="3", n=2, steps=3, device=device)


@row("sample")
def sample_stochastic(desk, device, folder):
    return verb("sample")(desk.classes, n=2, steps=3, sampler="euler_ancestral", variation_strength=0.2, device=device)


@row("sample")
def sample_larger(desk, device, folder):
    return verb("sample")(desk.plain, size=24, n=1, steps=2, device=device)


@row()
def sample_steps(desk, device, folder):
    return [step.images.clone() for step in verb("sample_steps")(desk.classes, n=2, steps=3, device=device)]


@row("reproduce")
def reproduce(desk, device, folder):
    (path, *_) = verb("sample")(desk.classes, n=2, steps=3, device="cpu").save(folder)
    return verb("reproduce")(path, model=desk.classes, device=device)


@row("study")
def study(desk, device, folder):
    return list(verb("study")(desk.classes, ["scale=1,2"], n=1, steps=2, device=device).cells)


@row("export")
def export(desk, device, folder):
    verb("export")(desk.classes, folder / "shared", name="Digits", license="apache-2.0", n=2, steps=2, device=device)
    return Image.open(folder / "shared" / "preview.png")


@row("variations")
def variations(desk, device, folder):
    index = made(desk, "index.safetensors", lambda path: _index(desk, path))
    return verb("variations")(desk.small, n=2, model=desk.text, index=index, clip=_clip(desk), steps=2, device=device)


@row("index")
def index(desk, device, folder):
    return verb("build_index")(_clip(desk), data.load(str(desk.photos), 16), device=device).vectors


def _index(desk, path):
    module = import_module("fastdiffusion.tasks.variations")
    module.save(module.build_index(_clip(desk), data.load(str(desk.photos), 16)), path)


def _clip(desk):
    def make(path):
        verb("train_clip")(data.load(str(desk.photos), 16), net="tiny", folder=path, device="cpu", **TINY)

    return made(desk, "clip", make)


# ---- measuring ----------------------------------------------------------------------------------------------------


@row("evaluate")
def evaluate(desk, device, folder):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    options = {"n": 32, "steps": 2, "rounds": 3, "note": False, "features": features, "device": device}
    report = verb("evaluate")(desk.classes, digits(), **options)
    return list(report.numbers.values())


@row("fit")
def fit(desk, device, folder):
    model = fastdiffusion.load(desk.classes).to(device)
    result = verb("fit")(model, steps=2, scale=2.0, noises=4, evaluations=350, batch_size=3, device=device)
    return list(result.tables[2].rows)


@row()
def likelihood(desk, device, folder):
    from fastdiffusion.samplers import probability_flow

    model = fastdiffusion.load(desk.classes).to(device)
    images = to_tensor(digits().batch([0, 1]).images).to(device)
    return probability_flow.bits_per_dim(model.denoise, images, cond=model.cond([0, 1]), tolerance=0.1)


@row()
def interpolation(desk, device, folder):
    from fastdiffusion.samplers import probability_flow

    model = fastdiffusion.load(desk.classes).to(device)
    images = to_tensor(digits().batch([0, 1]).images).to(device)
    sigmas = schedules.exponential(3, model.sigma_min, model.sigma_max)
    return probability_flow.interpolate(model.denoise, images[:1], images[1:], sigmas, 3)


# ---- restoration --------------------------------------------------------------------------------------------------


@row("restore")
def restore_supervised(desk, device, folder):
    return verb("restore")(desk.photo, "blur 1.5", desk.restorer, n=2, steps=2, device=device)


@row("restore")
def restore_zero_shot(desk, device, folder):
    return verb("restore")(desk.photo, "upscale x2", desk.plain, method="zero-shot", steps=2, device=device)


@row("restore")
def restore_inpaint(desk, device, folder):
    return verb("restore")(desk.photo, f"inpaint {desk.hole}", desk.plain, method="zero-shot", steps=2, device=device)


@row("restore")
def restore_by_gradients(desk, device, folder):
    options = {"method": "zero-shot", "posterior": "dps", "steps": 2, "device": device}
    return verb("restore")(desk.photo, "blur 1", desk.plain, **options)


@row("restore")
def restore_jpeg(desk, device, folder):
    return verb("restore")(desk.photo, "jpeg 30", desk.plain, method="zero-shot", steps=2, device=device)


@row("restore")
def restore_colorize(desk, device, folder):
    return verb("restore")(
        desk.photo, "colorize", desk.restorer, palette="#a03020,#203040", self_ensemble=True, device=device
    )


@row("restore")
def restore_cold(desk, device, folder):
    return verb("restore")(desk.photo, "blur 1.5", desk.restorer, method="cold", steps=2, device=device)


@row("restore")
def restore_blind(desk, device, folder):
    return verb("restore")(desk.blurred, "deblur blind", desk.plain, method="zero-shot", steps=2, device=device)


@row("remove-watermark")
def remove_watermark(desk, device, folder):
    return verb("remove_watermark")(desk.marked, model=desk.restorer, device=device)


@row("train-cold")
def train_cold(desk, device, folder):
    return verb("train_cold")(str(desk.photos), "blur 2", size=16, net="unet-tiny", device=device, **TINY).model


# ---- style and translation ----------------------------------------------------------------------------------------


@row("stylize")
def stylize(desk, device, folder):
    return verb("stylize")(desk.photo, desk.style, steps=2, size=24, device=device)


@row("rearrange")
def rearrange(desk, device, folder):
    return verb("rearrange")(desk.photo, n=1, device=device)


@row("stylize")
def stylize_inside_a_model(desk, device, folder):
    return verb("stylize")(desk.photo, desk.style, steps=2, model=desk.plain, device=device)


@row("stylize")
def stylize_by_a_net(desk, device, folder):
    def make(path):
        verb("train_style")(desk.style, str(desk.photos), size=16, folder=path, device="cpu", **TINY)

    net = made(desk, "style", make) / "style.safetensors"
    return verb("stylize")(desk.photo, net, device=device)


@row("train-style")
def train_style(desk, device, folder):
    return verb("train_style")(desk.style, str(desk.photos), size=16, device=device, **TINY).model


def _editing(method):
    def editing(desk, device, folder):
        options = {"source": "a blue square", "method": method, "keep": method == "flowedit", "steps": 3, "seed": 1}
        options |= {"extra_steps": 1, "cached": False}
        return verb("edit")(desk.photo, "a red square", desk.text, device=device, **options)

    editing.__name__ = f"edit_{method}"
    row("edit")(editing)


for _method in ("diffedit", "flowedit", "edit-friendly", "null-text", "sdedit", "imagic"):
    _editing(_method)


@row("edit")
def edit_of_words(desk, device, folder):
    return verb("edit")(None, "a red square", desk.text, source="a blue square", method="p2p", steps=3, device=device)


@row("explain")
def explain(desk, device, folder):
    made = verb("explain")("a red square", desk.text, steps=2, points=8, device=device)
    return [made.images, made.maps, made.attribution.rows]


@row("explain")
def explain_from_image(desk, device, folder):
    options = {"image": desk.small, "negative_prompt": "a blue square", "scale": 2.0, "maps": "attention"}
    made = verb("explain")("a red square", desk.text, box="2,2,9,6", steps=3, points=8, device=device, **options)
    return [made.images, made.maps, made.attribution.pixels, made.attribution.negative]


@row("translate")
def translate_by_class(desk, device, folder):
    return verb("translate")(desk.photo, desk.classes, prompt="3", steps=2, device=device)


@row("translate")
def translate_by_prompts(desk, device, folder):
    prompts = {"prompt": "a red square", "source_prompt": "a blue square"}
    return verb("translate")(desk.photo, desk.text, **prompts, steps=2, device=device)


def _translation(method):
    options = {"method": method, "size": 16, "net": "unet-tiny", **TINY}

    def pair(desk):
        return str(desk.photos), str(desk.clean)

    def training(desk, device, folder):
        return verb("train_translation")(*pair(desk), **options, device=device).model

    def using(desk, device, folder):
        def make(path):
            verb("train_translation")(*pair(desk), **options, folder=path, device="cpu")

        net = made(desk, f"translation-{method}", make)
        return verb("translate")(desk.photo, net, steps=2, device=device)

    training.__name__, using.__name__ = f"train_translation_{method}", f"translate_{method}"
    row("train-translation")(training)
    row("translate")(using)


for _method in ("regression", "gan", "diffusion", "bridge", "cyclegan"):
    _translation(_method)


# ---- training -----------------------------------------------------------------------------------------------------


def net_of(model):
    return model.modules["net"]


def learned(source, device, **options):
    quiet = {"net": NET, "batch_size": 4, "precision": "float32", "verbose": False}
    learner = Learner(source, device=device, **{**quiet, **options}).fit(steps=2)
    return net_of(learner.model), learner.state.validation


@row("train")
def train_classes(desk, device, folder):
    return learned(digits(), device, self_condition=True, augment=("mirror",), dropout=0.1)


@row("train")
def train_adamw(desk, device, folder):
    return learned(digits(), device, optimizer="adamw", uncertainty=True, grad_accumulation=2)


@row("train")
def train_text(desk, device, folder):
    return learned(data.load(str(desk.photos), 16), device, net={**NET, "words": WORDS}, captions=True)


@row("train")
def train_latents(desk, device, folder):
    return learned(digits(), device, autoencoder=desk.latent)


@row("train")
def train_restorer(desk, device, folder):
    return learned(data.load(str(desk.photos), 16), device, net=LOCAL, restore="blur 0.5..2")


@row("train")
def train_continued(desk, device, folder):
    options = {"net": NET, "batch_size": 4, "precision": "float32", "verbose": False, "folder": folder / "run"}
    Learner(digits(), device="cpu", **options).fit(steps=1)
    return net_of(Learner(digits(), device=device, **options).fit(steps=2).model)


@row("train-classifier")
def train_classifier(desk, device, folder):
    return verb("train_classifier")(digits(), dropout=0.0, device=device, **TINY).model


def _autoencoder(kind):
    def training(desk, device, folder):
        options = {"kind": kind, "width": 8, "levels": 1, "adversarial": 0.1, "perceptual": 0.1, "codebook_size": 64}
        return verb("train_autoencoder")(digits(), device=device, **options, **EXACT).model

    training.__name__ = f"train_autoencoder_{kind}"
    row("train-autoencoder")(training)


for _kind in ("kl", "vq", "fsq", "gumbel"):
    _autoencoder(_kind)


@row("evaluate-autoencoder")
def evaluate_autoencoder(desk, device, folder):
    from fastdiffusion.models import load_autoencoder
    from fastdiffusion.tasks.autoencoding import analysis

    images = digits()
    return list(analysis.describe(load_autoencoder(desk.latent).to(device), images, n=8, samples=2).values())


def _tokens(desk):
    def make(path):
        options = {"kind": "fsq", "width": 8, "levels": 1, "codebook_size": 64, "folder": path, "device": "cpu"}
        verb("train_autoencoder")(digits(), **options, **EXACT)

    return made(desk, "tokens", make) / "codec.safetensors"


@row("train-token-prior")
def train_token_prior(desk, device, folder):
    return verb("train_token_prior")(_tokens(desk), digits(), width=16, depth=1, device=device, **TINY).model.prior


@row("sample-tokens")
def sample_tokens(desk, device, folder):
    from fastdiffusion.tasks.autoencoding import token_prior

    def make(path):
        verb("train_token_prior")(_tokens(desk), digits(), width=16, depth=1, folder=path, device="cpu", **TINY)

    return verb("sample_tokens")(made(desk, "prior", make) / token_prior.FILE, n=2, steps=2, device=device)


# ---- text and images ----------------------------------------------------------------------------------------------


@row("train-clip")
def train_clip(desk, device, folder):
    return verb("train_clip")(data.load(str(desk.photos), 16), net="tiny", device=device, **TINY).model


@row("train-caption-mean")
def train_caption_mean(desk, device, folder):
    options = {"net": {**NET, "words": WORDS}, "side": 8, "precision": "float32"}
    made = verb("train_caption_mean")(data.load(str(desk.photos), 16), device=device, **options, **TINY).model
    return net_of(made) if isinstance(made, Model) else made


@row("add-language")
def add_language(desk, device, folder):
    from fastdiffusion.data.emoji.translations import Pair

    words = ("rojo", "verde", "azul", "amarillo")
    pairs = [Pair(f"un cuadro {word}", known) for word, known in zip(words, desk.captions, strict=True)]
    options = {"vocabulary": 300, "depth": 1, **EXACT}
    model = fastdiffusion.load(desk.text)
    return net_of(verb("add_language")(model, pairs, device=device, **options).model).text_encoder.student_encoder


@row("clip-score")
def clip_score(desk, device, folder):
    return verb("clip_score")(desk.photo, ["a red square", "a cat"], model=_clip(desk), device=device)


@row("search")
def search(desk, device, folder):
    return verb("search")(desk.photos, "a red square", n=4, model=_clip(desk), device=device)


# ---- personalization ----------------------------------------------------------------------------------------------


def _own(folder, **options):
    return {"folder": folder / "run", "steps": 2, "batch_size": 2, "rank": 2, "verbose": False, **options}


@row("personalize")
def personalize(desk, device, folder):
    made = verb("personalize")(desk.text, desk.photos, class_name="square", prior=2, device=device, **_own(folder))
    return [made.model.modules["net"], [look.loss for look in made.looks]]


@row("finetune")
def finetune(desk, device, folder):
    options = _own(folder, retain=2, method="full")
    made = verb("finetune")(desk.text, desk.photos, device=device, **options)
    return [made.model.modules["net"], [look.loss for look in made.looks]]


@row("lora")
def lora(desk, device, folder):
    made = verb("personalize")(desk.text, desk.photos, class_name="square", prior=0, device=device, **_own(folder))
    done = verb("lora")("resize", made.file, desk.text, folder / "small.safetensors", device, rank=1)
    return fastdiffusion.load(desk.text, device=device, lora=[str(done.path)]).modules["net"]
