"""Subjects of five kinds, taught to a model of emoji by each method: how near, how obedient, what is forgotten.

    python bench/personalization.py --methods embedding,lora --subjects toy          # some; about 3 CPU minutes each
    python bench/personalization.py --join A/row-toy-lora-0.png B/row-toy-embedding-0.png   # rows of several runs
    python bench/personalization.py --cost --side own                                # a LoRA step; --side peft: theirs

Subjects are drawn here: nobody's images, and more of them than are trained on. Numbers are the evaluator's:
gap closed   (b - a) / (c - a): similarity to held-out images of what the class's word draws (a), of what the new
             word draws (b), and of the training images (c)
obeys        part of "<x> on a C background" with background C, by its color
diversity    mean distance of images of the class among each other, after over before, with the prior and without
images       what is left of the images that it drew of other prompts, as the run's report says
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image, ImageDraw

import fastdiffusion
from fastdiffusion import metrics
from fastdiffusion.data.emoji.holdout import COLORS
from fastdiffusion.io.images import grid, save_png, to_tensor
from fastdiffusion.tasks.evaluation import evaluator

SIDE, DRAWN = 256, 4  # pixels; images are drawn larger and made smaller
BACKGROUNDS = ("blue", "red", "green", "yellow", "black")


def canvas(background: str | tuple[int, int, int] = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An image, and what draws on it."""
    image = Image.new("RGB", (SIDE, SIDE), background)
    return image, ImageDraw.Draw(image)


def logo(g: random.Random) -> Image.Image:
    """Three arcs around a dot, at changing places and sizes."""
    image, d = canvas()
    x, y, s = SIDE / 2 + g.uniform(-16, 16), SIDE / 2 + g.uniform(-16, 16), g.uniform(0.75, 1.05)
    for radius, color, first in ((100, "#0b6e4f", 20), (72, "#f2a541", 140), (44, "#c1292e", 260)):
        box = [x - s * radius, y - s * radius, x + s * radius, y + s * radius]
        d.arc(box, first, first + 250, fill=color, width=round(22 * s))
    d.ellipse([x - 14 * s, y - 14 * s, x + 14 * s, y + 14 * s], fill="#14213d")
    return image


def toy(g: random.Random) -> Image.Image:
    """A robot of boxes, turned about its axis and seen from a little above: boxes are projected and sorted by depth."""
    image, d = canvas()
    turn, tilt, s = g.uniform(-1.0, 1.0), g.uniform(0.15, 0.4), g.uniform(0.8, 1.0) * 52
    boxes = [  # centre, half sizes, color
        ((0, 0.1, 0), (0.9, 0.8, 0.6), (255, 140, 0)), ((0, 1.35, 0), (0.6, 0.45, 0.5), (255, 190, 60)),
        ((-0.3, 1.4, 0.55), (0.14, 0.14, 0.06), (20, 20, 20)), ((0.3, 1.4, 0.55), (0.14, 0.14, 0.06), (20, 20, 20)),
        ((0, 2.0, 0), (0.08, 0.25, 0.08), (120, 0, 160)), ((-1.15, 0.2, 0), (0.22, 0.65, 0.25), (0, 150, 160)),
        ((1.15, 0.2, 0), (0.22, 0.65, 0.25), (0, 150, 160)), ((-0.45, -1.15, 0), (0.3, 0.45, 0.35), (0, 150, 160)),
        ((0.45, -1.15, 0), (0.3, 0.45, 0.35), (0, 150, 160)),
    ]  # fmt: skip
    faces = [((0, 0, 1), 1.0), ((1, 0, 0), 0.75), ((-1, 0, 0), 0.75), ((0, 1, 0), 1.15), ((0, -1, 0), 0.6)]

    def seen(p: tuple[float, float, float]) -> tuple[float, float, float]:
        x, y, z = p
        x, z = x * math.cos(turn) + z * math.sin(turn), z * math.cos(turn) - x * math.sin(turn)
        return x, y * math.cos(tilt) - z * math.sin(tilt), y * math.sin(tilt) + z * math.cos(tilt)

    quads = []
    for centre, half, color in boxes:
        for normal, light in faces:
            if seen(normal)[2] <= 0:
                continue
            axis = next(i for i in range(3) if normal[i])
            u, v = ((axis + 1) % 3, (axis + 2) % 3)
            corners = []
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                p = [c + n * h for c, n, h in zip(centre, normal, half, strict=True)]
                p[u], p[v] = centre[u] + a * half[u], centre[v] + b * half[v]
                corners.append(seen((p[0], p[1], p[2])))
            shade = tuple(min(round(c * light), 255) for c in color)
            quads.append((sum(c[2] for c in corners), [(SIDE / 2 + s * c[0], 140 - s * c[1]) for c in corners], shade))
    for _, corners, shade in sorted(quads, key=lambda quad: quad[0]):
        d.polygon(corners, fill=shade, outline=(30, 30, 30))
    return image


def style(g: random.Random) -> Image.Image:
    """Things in thick blue outlines with hatching, on cream paper."""
    image, d = canvas("#fbf3dc")
    x, y, r = SIDE / 2 + g.uniform(-14, 14), SIDE / 2 + g.uniform(-14, 14), g.uniform(70, 92)
    for i in range(-40, 41):
        d.line([x - r + 9 * i, y - r, x + r + 9 * i, y + r], fill="#9db8e8", width=3)
    outside = Image.new("L", (SIDE, SIDE), 255)
    o = ImageDraw.Draw(outside)
    sides = g.choice((0, 3, 4, 5, 6, 8))
    turn = g.uniform(0, 6)
    shape = [
        (x + r * math.cos(turn + 2 * math.pi * i / sides), y + r * math.sin(turn + 2 * math.pi * i / sides))
        for i in range(sides)
    ]
    (o.polygon(shape, fill=0) if sides else o.ellipse([x - r, y - r, x + r, y + r], fill=0))
    image.paste(Image.new("RGB", (SIDE, SIDE), "#fbf3dc"), mask=outside)
    d = ImageDraw.Draw(image)
    if sides:
        d.line([*shape, shape[0], shape[1]], fill="#1d3fa5", width=13, joint="curve")
    else:
        d.ellipse([x - r, y - r, x + r, y + r], outline="#1d3fa5", width=13)
    return image


def face(g: random.Random) -> Image.Image:
    """A violet face with square eyes and a zigzag mouth, looking where it likes."""
    image, d = canvas()
    x, y, s = SIDE / 2 + g.uniform(-10, 10), SIDE / 2 + g.uniform(-10, 10), g.uniform(0.85, 1.05)
    dx, dy = g.uniform(-14, 14), g.uniform(-10, 10)
    d.ellipse([x - 100 * s, y - 100 * s, x + 100 * s, y + 100 * s], fill="#8e5bd0", outline="#4a2b7a", width=6)
    for side in (-1, 1):
        ex, ey = x + dx + side * 36 * s, y + dy - 24 * s
        d.rectangle([ex - 17 * s, ey - 17 * s, ex + 17 * s, ey + 17 * s], fill="white", outline="#4a2b7a", width=4)
        d.rectangle([ex - 7 * s, ey - 7 * s, ex + 7 * s, ey + 7 * s], fill="#1c1130")
    points = [(x + dx + i * 18 * s, y + dy + (42 if i % 2 else 26) * s) for i in range(-3, 4)]
    d.line(points, fill="#1c1130", width=9, joint="curve")
    return image


def texture(g: random.Random) -> Image.Image:
    """Overlapping scales in green and turquoise, from edge to edge."""
    image, d = canvas("#0f5257")
    x0, y0, r = g.uniform(-40, 0), g.uniform(-40, 0), g.uniform(30, 40)
    for row in range(14, -1, -1):
        for column in range(-1, 10):
            x, y = x0 + (column + 0.5 * (row % 2)) * 1.5 * r, y0 + row * 0.7 * r
            color = ("#2a9d8f", "#57cc99", "#80ed99")[(row + column) % 3]
            d.ellipse([x - r, y - r, x + r, y + r], fill=color, outline="#0b3c40", width=4)
    return image


SUBJECTS: dict[str, tuple[Callable[[random.Random], Image.Image], str, str]] = {
    "logo": (logo, "object", "circle"), "toy": (toy, "object", "robot"), "style": (style, "style", "symbol"),
    "face": (face, "object", "face"), "texture": (texture, "style", "symbol"),
}  # fmt: skip


def folder_of(name: str, place: Path, n: int) -> Path:
    """Images to train on, drawn from seed 0; those to measure with come from seed 1."""
    folder = place / name
    folder.mkdir(parents=True, exist_ok=True)
    draw, g = SUBJECTS[name][0], random.Random(0)
    for i in range(n):
        draw(g).save(folder / f"{i}.png")
    return folder


def held_out(name: str, n: int = 16) -> torch.Tensor:
    """Images that no run is given, (n, 3, 64, 64)."""
    g = random.Random(1)
    draw = SUBJECTS[name][0]
    return torch.stack([to_tensor(draw(g).resize((64, 64), Image.Resampling.LANCZOS)) for _ in range(n)])


def agreement(drawn: torch.Tensor, to: torch.Tensor) -> float:
    """Mean cosine of two sets of unit vectors."""
    return float((drawn @ to.T).mean())


def gap_closed(own: torch.Tensor, before: torch.Tensor, given: torch.Tensor, truth: torch.Tensor) -> float:
    """Of the way from what the class's word drew to the training images, in similarity to held-out images."""
    a, b, c = (agreement(x, truth) for x in (before, own, given))
    return (b - a) / (c - a)


def ratio_of_spreads(after: torch.Tensor, before: torch.Tensor) -> float:
    """Mean distance of images among each other, after over before, in the evaluator's features."""
    return float(torch.pdist(after).mean() / torch.pdist(before).mean())


def stated(statistic: Callable[..., float], *samples: torch.Tensor) -> list[float]:
    """A value and its 95 % interval over images."""
    return [round(v, 3) for v in (statistic(*samples), *metrics.interval(statistic, *samples))]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


METHODS: dict[str, dict[str, Any]] = {
    "lora": {}, "embedding": {}, "dreambooth": {}, "full": {},
    "lora-free": {"prior": 0, "floor": 0.0, "early_stop": False},
}  # fmt: skip
DRAWN_OF_WORD, DRAWN_OF_CLASS, PLACED = 16, 24, 4  # images


def measure(name: str, method: str, args: argparse.Namespace) -> tuple[dict[str, Any], torch.Tensor]:
    """A run's numbers, and a row of its sheet."""
    options: dict[str, Any] = {"targets": args.targets, "prior": args.prior, **METHODS[method]}
    _, kind, word = SUBJECTS[name]
    folder = folder_of(name, args.out / "images", 5)
    base = replace(fastdiffusion.load(args.model, device="cpu"), tables={})  # all by one sampler, a textbook's
    started, net = time.process_time(), evaluator.load()
    made = fastdiffusion.personalize(
        args.model, folder, token=args.word or f"<{name}>", method=method.split("-")[0], subject=kind,
        class_name=word, device="cpu", folder=args.out / "runs" / f"{name}-{method}-{args.seed}", steps=args.steps,
        seed=args.seed, lr=args.lr, vectors=args.vectors, **options,
    )  # fmt: skip
    seconds, taught = time.process_time() - started, replace(made.model, tables={})

    def drawn(prompt: str, n: int, model: object = taught, seed: int = 100) -> torch.Tensor:
        return fastdiffusion.sample(model, prompt, n=n, seed=seed, steps=12).images

    train = torch.stack(
        [to_tensor(Image.open(p).resize((64, 64), Image.Resampling.LANCZOS)) for p in sorted(folder.glob("*.png"))]
    )
    own = drawn(made.token, DRAWN_OF_WORD)
    placed = torch.cat([drawn(f"{made.token} on a {color} background", PLACED) for color in BACKGROUNDS])
    wanted = [color for color in BACKGROUNDS for _ in range(PLACED)]
    obeys = [x == y for x, y in zip(evaluator.background_color(placed, COLORS), wanted, strict=True)]
    of_class = {key: drawn(f"a {word}", DRAWN_OF_CLASS, model) for key, model in (("was", base), ("is", taught))}
    with torch.no_grad():
        before, truth = net.encode_image(drawn(word, DRAWN_OF_WORD, base)), net.encode_image(held_out(name))
        near, given = net.encode_image(own), net.encode_image(train)
        features = {key: net.features(images) for key, images in of_class.items()}
    a, b, c = (agreement(x, truth) for x in (before, near, given))
    kept = next(look.retention for look in made.looks if look.step == made.step)
    return {
        "a": a, "b": b, "c": c, "gap closed": stated(gap_closed, near, before, given, truth),
        "obeys": sum(obeys) / len(obeys), "diversity": stated(ratio_of_spreads, features["is"], features["was"]),
        "spread before": float(torch.pdist(features["was"]).mean()),
        "retention": kept, "images": made.images, "step": made.step, "steps": made.looks[-1].step,
        "cpu seconds": seconds, "bytes": size_of(made.file), "notes": list(made.notes),
    }, torch.cat([train[:3], own[:5], placed[:: PLACED][:3], of_class["was"][:2], of_class["is"][:2]])  # fmt: skip


# ---- what a step costs ------------------------------------------------------------------------------------------


def folder_of_this_size(place: Path) -> Path:
    """A checkpoint of Stable Diffusion 1.5's size, random, in half precision as such files are."""
    import diffusers
    import transformers

    if (place / "model_index.json").exists():
        return place
    torch.manual_seed(0)
    small = Path(__file__).parents[1] / "tests" / "checkpoints" / "sd-small"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(small / "tokenizer", model_max_length=77)
    text = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    blocks, wide = 4, (128, 256, 512, 512)
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks, up_block_types=["UpDecoderBlock2D"] * blocks,
        block_out_channels=wide, layers_per_block=2, sample_size=512,
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae=vae.half(), text_encoder=transformers.CLIPTextModel(text).half(), tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768).half(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None, feature_extractor=None,
    ).save_pretrained(place)  # fmt: skip
    return place


def peak() -> float:
    """The most memory that this process has had since :func:`forget_peak`, in GB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


def forget_peak() -> None:
    """Count the peak from here on: what loading took for a moment is no part of a step."""
    Path("/proc/self/clear_refs").write_text("5")


CAPTION = "a red square on a white background"


def own_steps(folder: Path, images: Path, steps: int) -> None:
    """``finetune`` on a checkpoint, rank 8 on attention, as it is run; without the looks, which are no step."""
    from fastdiffusion.options import fill
    from fastdiffusion.tasks.personalization import adapting, course, options
    from fastdiffusion.tasks.personalization.images import opened
    from fastdiffusion.training.trainer import Trainer

    chosen = fill(options.FinetuneOptions, precision="bfloat16", batch_size=1, steps=steps, size=256, device="cpu")
    base, chosen = adapting.opened_base(folder, replace(chosen, optimizer="adamw", verbose=False, early_stop=False))
    examples = opened(base, images, 256, 0.3, 0)
    learned = adapting.adapt(base, "lora", gradient_checkpointing=chosen.gradient_checkpointing)

    class Steps(course.Course):
        def measure(self, *args: Any) -> tuple[float, float]:
            return 1.0, 1.0

        def preview(self) -> tuple[torch.Tensor, int]:
            return torch.zeros(1, 3, 8, 8), 1

    steps_alone = Steps(learned, examples, (), "", (), lambda model: 1.0, ())  # type: ignore[arg-type]
    update = Trainer.update

    def timed(self: Trainer, *args: Any) -> Any:
        with step():
            return update(self, *args)

    Trainer.update = timed  # type: ignore[method-assign]
    with TemporaryDirectory() as place:
        course.run(steps_alone, replace(chosen, folder=place), "", {})


def peft_steps(folder: Path, images: Path, steps: int) -> None:
    """What diffusers' train_text_to_image_lora.py does with its defaults, in forty lines on accelerate and peft."""
    import diffusers
    from accelerate import Accelerator
    from peft import LoraConfig

    accelerator = Accelerator(cpu=True)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    unet, vae, text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=targets))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    net, optimizer = accelerator.prepare(unet, torch.optim.AdamW(parameters, 1e-4))
    noise_scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    pixels = to_tensor(Image.open(next(images.glob("*.png")))).float()[None]
    ids = pipe.tokenizer(CAPTION, padding="max_length", max_length=77, return_tensors="pt").input_ids
    for _ in range(steps):
        with step(), accelerator.accumulate(net):
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (1,))
            noisy = noise_scheduler.add_noise(latents, noise, t)
            states = text_encoder(ids, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(net(noisy, t, states, return_dict=False)[0], noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()


SECONDS: list[float] = []


@contextmanager
def step() -> Iterator[None]:
    """Of a step: its processor time, which others on the machine hardly change."""
    if not SECONDS:
        forget_peak()
    started = time.process_time()
    yield
    SECONDS.append(time.process_time() - started)


def cost(args: argparse.Namespace) -> None:
    """Processor seconds per LoRA step and the peak of memory at 256 px, batch 1, on a random Stable Diffusion 1.5.

    Each side runs in a process of its own (``--side own`` or ``--side peft``), for the peak.
    """
    torch.set_num_threads(1)
    folder, images = folder_of_this_size(args.out / "sd15-size"), args.out / "squares"
    images.mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.new("RGB", (256, 256), (200, 40 * i, 40)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(CAPTION)
    if args.side:
        {"own": own_steps, "peft": peft_steps}[args.side](folder, images, args.steps or 4)
        seconds = sorted(SECONDS[1:])  # the first warms up
        median = seconds[len(seconds) // 2]
        print(f"{args.side}: {median:.2f} CPU s a step (n={len(seconds)}), {peak():.2f} GB at the peak")


def joined(rows: list[Path], path: Path) -> None:
    """One sheet of the rows of some runs."""
    images = [Image.open(row) for row in rows]
    sheet = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (0, i * image.height))
    sheet.save(path)


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--methods", default="embedding,lora,lora-free,dreambooth")
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--model", default="emoji", help="that is taught")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--vectors", type=int, default=1)
    parser.add_argument("--targets", default="auto", help="layers with a LoRA")
    parser.add_argument("--prior", type=int, default=None, help="images of the model's own that hold it")
    parser.add_argument("--word", help="for the subject, in place of a new one: a rare word that the model has")
    parser.add_argument("--join", type=Path, nargs="+", help="row-*.png of runs, made one sheet; nothing else is done")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--side", choices=("own", "peft"), help="of --cost; without it the checkpoint alone is made")
    parser.add_argument("--out", type=Path, default=Path("out/bench/personalization"))
    args = parser.parse_args()
    if args.cost:
        return cost(args)
    if args.join:
        return joined(args.join, args.out / "sheet.png")
    place = args.out / "numbers.json"
    numbers = json.loads(place.read_text()) if place.exists() else {}
    for name in args.subjects.split(","):
        for method in args.methods.split(","):
            key = f"{name} {method} {args.seed}"
            if key in numbers:
                continue
            numbers[key], row = measure(name, method, args)
            print(f"{key}:", json.dumps(numbers[key]), flush=True)
            place.write_text(json.dumps(numbers, indent=1))
            save_png(grid(row, len(row), 1), args.out / f"row-{key.replace(' ', '-')}.png")
    joined([args.out / f"row-{key.replace(' ', '-')}.png" for key in numbers], args.out / "sheet.png")
    return None


if __name__ == "__main__":
    main()
