"""How good is a model? Numbers with their floor and interval, and the images that it may have copied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ... import data as datasets
from ... import metrics, prompts
from ...data import Dataset, cache_folder, selection
from ...errors import CheckpointError, InputError, warn
from ...io.atomic import write_json
from ...io.checkpoints import annotate, fingerprint, load_tensors, save_tensors
from ...io.images import grid, safe_name, save_png, to_tensor, to_uint8
from ...io.outputs import free_folder
from ...models import FILE, Model
from ...models.registry import digest
from ...options import fill
from ..generation.options import RunOptions
from ..generation.sample import sample
from ..generation.samples import Samples
from ..loading import loaded, of_run
from . import feature_net
from .options import EvaluateOptions

SHOWN = 10  # generated images beside their neighbors


@dataclass(frozen=True)
class Number:
    """One result.

    Attributes:
        value: Of the generated images.
        low: 95 % bootstrap interval, see ``metrics.interval``.
        high: See ``low``.
        floor: The same of as many real images: what a perfect model would have.
        better: "lower" or "higher"; "" where the floor itself is the goal.
    """

    value: float
    low: float
    high: float
    floor: float
    better: str


@dataclass(frozen=True)
class Report:
    """What :func:`evaluate` found. ``print`` it, or ``save`` it as JSON and images.

    Attributes:
        name: Of the data.
        n: Images on each side.
        numbers: By name, e.g. "fd_digits".
        gradients: ``metrics.gradient_distance`` family by family.
        features: Which net the features are of.
        neighbors: Generated images that come nearest to a real one, each with the five real ones nearest to it.
        samples: The generated images, where a model made them.
    """

    name: str
    n: int
    numbers: dict[str, Number]
    gradients: dict[str, float]
    features: dict[str, Any]
    neighbors: Image.Image
    samples: Samples | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as JSON."""
        numbers = {name: asdict(number) for name, number in self.numbers.items()}
        made = {} if self.samples is None else {"recipe": dict(self.samples.recipe)}
        rest = {"gradients": self.gradients, "features": self.features, **made}
        return {"data": self.name, "n": self.n, "numbers": numbers, **rest}

    def save(self, folder: str | Path) -> Path:
        """Write ``report.json``, ``neighbors.png`` and, where a model made them, ``samples.png``; returns the folder.

        Another report that lies there stays: this one then goes to FOLDER-2, and so on.
        """
        folder = free_folder(folder, "report.json", self.to_dict())
        write_json(folder / "report.json", self.to_dict())
        save_png(self.neighbors, folder / "neighbors.png")
        if self.samples is not None:
            save_png(self.samples[:100].grid(), folder / "samples.png")
        return folder

    def __str__(self) -> str:
        width = max(map(len, self.numbers))
        rows = [f"{self.n} generated against {self.n} real images of {self.name}"]
        rows.append(f"{'':{width}}  {'value':>7}  {'95 % interval':>16}  {'real':>7}")
        for name, x in self.numbers.items():
            span = f"{x.low:.3f} to {x.high:.3f}"
            rows.append(f"{name:{width}}  {x.value:7.3f}  {span:>16}  {x.floor:7.3f}  {x.better}".rstrip())
        about = "a classifier of {of} with accuracy {accuracy}" if "accuracy" in self.features else "the net {name}"
        rows.append(f"Features of {about.format(**self.features)}.")
        return "\n".join(rows)


def evaluate(model: Model | str | Path, data: Dataset | str | Path, **options: Any) -> Report:
    """Make ``n`` images and measure them against as many real ones, of their classes or with their captions as prompts.

    Args:
        model: A model, its file, or the folder of its training run.
        data: What it was trained on: a data set, or what ``data.load`` takes.
        options: See :class:`EvaluateOptions <fastdiffusion.tasks.evaluation.options.EvaluateOptions>`: n, steps, seed,
            scale, guidance, features, rounds, ...
    """
    chosen = fill(EvaluateOptions, **options)
    ready = loaded(model, chosen)
    if len(ready.image_shape) != 3:
        raise InputError(f"This model makes samples of shape {ready.image_shape}, and images alone are measured.")
    _, height, width = ready.image_shape
    trained = ready.info.get("options") if isinstance(data, str | Path) and Path(data).is_dir() else None
    keys = ("aspect", "mode", "labels")  # the data are read as the training read them
    loading = {key: trained[key] for key in keys if key in trained} if isinstance(trained, dict) else {}
    data = datasets.load(data, size=height if height == width else None, **loading)
    n = _count(chosen.n, data)
    _check_shape(ready.image_shape, data)
    labels = classes = captions = None
    conditions = data.annotations(selection.choose(data, n, chosen.seed))
    if ready.classes and ready.classes == tuple(data.classes):
        classes = conditions.labels.tolist()
    if ready.conditioner is not None and any(conditions.captions):
        captions = [prompts.plain(caption) for caption in conditions.captions]
    shared = of_run({f.name: getattr(chosen, f.name) for f in fields(RunOptions)})
    size = {"size": (height, width)} if "size" in ready.info else {}  # as the data are, and not as most of them were
    made = sample(ready, captions, classes=classes, **{**shared, "n": n, **size})
    if classes is not None:
        labels = [data.classes.index(name) if name else -1 for name in made.labels]
    report = measure(made.images, data, labels, chosen.features, chosen.seed, chosen.rounds, made)
    if chosen.note and not isinstance(model, Model):
        record_metrics(report, Path(model))
    return report


def record_metrics(report: Report, path: Path) -> None:
    """Write a report's numbers into a model's file (or its run's folder), where ``cards.card`` finds them.

    A file that cannot be written is left as it is, with a warning: the report is what was asked for.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():  # one that ships with the package
        return
    made = report.samples
    settings = "" if made is None else ", {steps} steps, scale {scale:g}".format(**made.recipe["parameters"])
    numbers = {f"{name} (n={report.n:,}{settings})": [x.low, x.value, x.high] for name, x in report.numbers.items()}

    def with_metrics(config: dict[str, Any]) -> dict[str, Any]:
        info = config.get("info", {})
        return {**config, "info": {**info, "metrics": {**info.get("metrics", {}), **numbers}}}

    try:
        if made is not None and digest(path) != made.recipe["model"]["sha256"]:
            raise CheckpointError("It has been trained on in the meantime.")
        annotate(path, with_metrics)
    except CheckpointError as error:
        warn(f"The numbers were not noted in the model. {error}")


def measure(
    images: Tensor,
    data: Dataset,
    labels: Sequence[int] | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    rounds: int = 100,
    samples: Samples | None = None,
) -> Report:
    """The numbers of :func:`evaluate` for images from anywhere, in [-1, 1]; ``labels`` are what they should show.

    Raises:
        InputError: Fewer than 10 images, or of another shape than the data's.
    """
    _check_shape(images.shape[1:], data)
    n = _count(len(images), data)
    fake, chosen = to_uint8(images[:n]), selection.choose(data, 2 * n, seed)
    net = features or feature_net.feature_net(data)
    name, about = _described(net)
    (real, _), (other, other_labels) = (selection.load_images(data, part) for part in (chosen[:n], chosen[n:]))
    generated = metrics.features(net, fake)
    near, far = (_cached_features(net, data, part, x) for part, x in ((chosen[:n], real), (chosen[n:], other)))
    numbers: dict[str, Number] = {}

    def add(key: str, better: str, statistic: Callable[..., float], ours: Sequence[Tensor], theirs: Sequence[Tensor]):
        low, high = metrics.interval(statistic, *ours, rounds=rounds)
        low = low if key.startswith("kd") else max(low, 0.0)  # all but the unbiased one cannot be negative
        numbers[key] = Number(statistic(*ours), low, high, statistic(*theirs), better)

    def mean(values: Tensor) -> float:
        return float(values.double().mean())

    add(f"fd_{name}", "lower", metrics.frechet, (near, generated), (near, far))
    add(f"kd_{name}", "lower", metrics.kernel_distance, (near, generated), (near, far))
    pairs = ((metrics.precision_recall, "precision", "recall"), (metrics.density_coverage, "density", "coverage"))
    for manifold, *keys in pairs:
        for key, ours, theirs in zip(keys, manifold(near, generated), manifold(near, far), strict=True):
            add(key, "higher", mean, [ours], [theirs])
    if labels is not None and isinstance(net, metrics.Classifier) and net.info.get("of") == "labels":
        right = [_right(net, x, y) for x, y in ((fake, torch.as_tensor(labels[:n])), (other, other_labels))]
        if all(map(len, right)):  # of few labels, none may be of an image that was drawn
            add("label accuracy", "higher", mean, right[:1], right[1:])
    slopes = [metrics.gradient_statistics(to_tensor(x)) for x in (real, fake, other)]
    keys, widths = list(slopes[0]), [v.shape[1] for v in slopes[0].values()]

    def gradients(*both: Tensor) -> dict[str, float]:
        return metrics.gradient_distance(*(dict(zip(keys, x.split(widths, 1), strict=True)) for x in both))

    joined = [torch.cat(list(x.values()), 1) for x in slopes]
    add("gradients", "lower", lambda *both: gradients(*both)["all"], joined[:2], (joined[0], joined[2]))
    distances, floor, sheet = _neighbors(fake, other, data, chosen[n:])
    unit = float(floor.median())
    add("nearness", "", lambda d: float(d.median()) / max(unit, 1e-9), [distances], [floor])
    details = {key: round(value, 5) for key, value in gradients(*joined[:2]).items()}
    return Report(data.name, n, numbers, details, about, sheet, samples)


def _check_shape(made: Sequence[int], data: Dataset) -> None:
    """Refuse images that are not of the data's shape."""
    if tuple(made) != tuple(data.shape):
        shapes = ["x".join(map(str, shape)) for shape in (made, data.shape)]
        raise InputError(f"The model makes {shapes[0]} images, the data has {shapes[1]}. Load the data with size=.")


def _count(n: int, data: Dataset) -> int:
    """How many images can be compared: half of the real ones are kept for the floor."""
    most = min(n, len(data) // 2)
    if most < 10:
        raise InputError(f"Measuring needs n of at least 10 and twice as many real images, got {n} and {len(data)}.")
    return most


def _described(net: Callable[[Tensor], Tensor]) -> tuple[str, dict[str, Any]]:
    """What numbers in a net's features are called, and what the report says of it."""
    if isinstance(net, metrics.Classifier):
        return net.info["name"], {**net.info, "sha256": _hash(net)}
    name = safe_name(type(net).__name__).lower()
    return name, {"name": name, **({"sha256": _hash(net)} if isinstance(net, nn.Module) else {})}


def _hash(net: nn.Module) -> str:
    """Of the structure and the tensors."""
    return fingerprint(net.state_dict(), {"net": repr(net)})


def _cached_features(net: Callable[[Tensor], Tensor], data: Dataset, indices: list[int], images: Tensor) -> Tensor:
    """Features of real images, from the cache where the same net has been given the same ones."""
    if not isinstance(net, nn.Module):
        return metrics.features(net, images)
    key = json.dumps([data.fingerprint, list(data.shape), _hash(net), indices]).encode()
    path = cache_folder() / "features" / f"{hashlib.sha256(key).hexdigest()[:32]}.safetensors"
    try:
        return load_tensors(path)[1]["features"]
    except (CheckpointError, KeyError):
        features = metrics.features(net, images)
        save_tensors(path, {"features": features}, {"data": data.fingerprint})
        return features


@torch.no_grad()
def _right(net: metrics.Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """1 where the classifier predicts the label, 0 elsewhere; images without a label are left out."""
    shown = torch.cat([net(to_tensor(part)).argmax(1) for part in images.split(256)])
    return (shown == labels)[labels >= 0].double()


def _neighbors(fake: Tensor, other: Tensor, data: Dataset, held: list[int]) -> tuple[Tensor, Tensor, Image.Image]:
    """Pixel distance to the nearest training image, of generated and of real ones, and the sheet of the nearest.

    Pixels, at most 16 x 16 of them: a copy is a copy whatever a net makes of it. Real images (at ``held``) are not
    counted as their own neighbors.
    """
    every = selection.choose(data, 60_000)
    everything, _ = selection.load_images(data, every)
    fake, other, held = fake[:1000], other[:1000], held[:1000]

    def pixels(images: Tensor) -> Tensor:
        size = (min(images.shape[-2], 16), min(images.shape[-1], 16))
        pooled = (functional.adaptive_avg_pool2d(to_tensor(part), size).flatten(1) for part in images.split(1024))
        return torch.cat(list(pooled))

    points = pixels(everything)
    distances, indices = metrics.nearest(pixels(fake), points, 5)
    theirs, who = metrics.nearest(pixels(other), points, 2)
    itself = torch.tensor(every)[who[:, 0]] == torch.tensor(held)
    floor = torch.where(itself, theirs[:, 1], theirs[:, 0])
    rows = distances[:, 0].argsort()[:SHOWN].tolist()
    shown = [image for i in rows for image in (fake[i], *everything[indices[i]])]
    return distances[:, 0], floor, grid(shown, 6, max(1, 64 // max(data.shape[1:])))
