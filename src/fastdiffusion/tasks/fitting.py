"""``fit``: sampler tables for a model, from a plan that says beforehand what they cost."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import choices
from ..errors import DataError, InputError, counted
from ..options import fill, option
from ..version import __version__
from .generation.options import image_size
from .loading import HUB, LoadOptions

if TYPE_CHECKING:
    from ..data import Dataset
    from ..models import Model
    from ..samplers import Table
    from ..samplers.fitting import Problem
    from ..samplers.planning import Plan
    from .choosing import Choice


@dataclass(frozen=True)
class FitOptions(LoadOptions):
    """What a sampler is fitted for, and what the fit may cost, besides how the model is loaded.

    Attributes:
        steps: A number of steps or several, also as text: "6,8".
        prompts: What a text-to-image model will be asked for: prompts, or a text file with one in each line. The more
            the better.
        scale: Guidance scale; by default the model's own. 1 is off where guidance is classifier-free.
        size: Of the images, as of ``sample``; by default the model's own.
        sigma_min: The noise level of the last evaluation of what is followed; by default the model's own. A higher one
            ends in smoother images, which are often nearer to real ones: see docs/samplers.md.
        reference: Images that the samples should look like: a folder or the name of a data set, at least 64. Then the
            table whose images are nearest to them is kept, be it fitted or a textbook one. If they have captions, these
            are the prompts, unless others are given.
        evaluations: What may be spent, for all tables together: evaluations of one image (a guided one is one). By
            default what the model's size makes bearable: 1,500 for a large network, up to 100,000 for a small one.
        noises: How many noises to fit to, at most.
        polish: Turn all numbers together at the end, where evaluations are left for it.
        levels: Fit the noise levels alone, for this textbook sampler: a list of sigmas for other programs.
        seed: Of the noises.
        batch_size: Images that are evaluated together.
    """

    steps: int | str | Sequence[int] = option(
        "5,8,12", "For how many steps: one number, or several with commas.", kind=str
    )
    prompts: str | Path | Sequence[str] | None = option(
        None, "A text file with a prompt in each line; or a prompt, repeatable.", hidden=("--prompt",),
        kind=list[str] | None,
    )  # fmt: skip
    scale: float | None = option(
        None, "Guidance to fit for; by default the model's own.", "--scale", "--guidance-scale"
    )
    size: int | str | tuple[int, int] | None = option(
        None, "Size of the images: SIDE or WIDTHxHEIGHT.", kind=str | None
    )
    sigma_min: float | None = option(None, "Noise level of the last evaluation; a higher one is smoother.")
    reference: str | Path | Dataset | None = option(
        None, "Images that the samples should look like: keeps the table that comes nearest.", kind=str | None
    )
    evaluations: int | None = option(None, "What may be spent; by default what the model's size makes bearable.")
    noises: int = option(64, "Number of noises to fit to, at most.")
    polish: bool = option(True, "Turn all numbers together at the end, where evaluations are left for it.")
    levels: str | None = option(
        None, "Fit the noise levels alone, for this textbook sampler.", choices=choices.SAMPLERS
    )
    seed: int = option(0, "Seed of the noises.")
    batch_size: int = option(16, "Images that are evaluated together.")


@dataclass(frozen=True)
class FitResult:
    """Fitted tables.

    Attributes:
        tables: By their number of steps.
        model: The same model with these tables: ``sample(result.model, steps=8)`` takes one.
        notes: What came out, in sentences.
        plan: What was planned to be spent.
        path: Where the tables were written; None for a ``Model`` that was not read from a file.
    """

    tables: Mapping[int, Table]
    model: Model
    notes: tuple[str, ...]
    plan: Plan
    path: Path | None = None

    def sigmas(self, steps: int) -> list[float]:
        """The levels of a table as other programs list them, the final 0 included; of a flow model as times."""
        flow = getattr(getattr(self.model.denoise, "levels", None), "prediction", None) == "flow"
        return [s / (1 + s) if flow else s for s in self.tables[steps].sigmas]

    def listed(self) -> str:
        """The levels of all tables as text, as ComfyUI's nodes and ``sigmas=`` of diffusers' schedulers take them.

        Flow schedulers of diffusers shift such a list once more: give them a ``TableScheduler``.
        """
        texts = []
        for steps, table in self.tables.items():
            numbers = ", ".join(f"{s:.6g}" for s in self.sigmas(steps))
            texts.append(f"# {table.name}, {counted(steps, 'step')}\n{numbers}\n")
        return "".join(texts)

    def save(self, folder: str | Path) -> list[Path]:
        """Write each table as JSON, and all levels as text; returns where they are."""
        from ..io.atomic import write_text

        paths = [Path(folder) / f"{table.name}-{steps}.json" for steps, table in self.tables.items()]
        for path, table in zip(paths, self.tables.values(), strict=True):
            write_text(path, table.to_json() + "\n")
        write_text(Path(folder) / "sigmas.txt", self.listed())
        return [*paths, Path(folder) / "sigmas.txt"]


def fit(model: Model | str | Path, **options: Any) -> FitResult:
    """Fit samplers to a model: the same images in fewer evaluations.

    The tables are written into the model's file, or beside another family's checkpoint (``sdxl.tables.json``; in the
    cache where that cannot be written); ``sample`` takes one where steps, scale and size are the same. A fit that is
    interrupted goes on where it was when it is repeated. Nothing about the result depends on how fast the machine is.

    Args:
        model: A model, its file or folder.
        options: See :class:`FitOptions`: steps, prompts, scale, size, evaluations, levels, ...

    Raises:
        InputError: Options that cannot be used, or a text-to-image model without prompts.
    """
    return prepare(model, **options).run()


@dataclass(frozen=True)
class Prepared:
    """A fit with all its choices made, before anything is spent."""

    path: Path | None
    model: Model
    problem: Problem
    plan: Plan
    options: FitOptions
    purpose: str
    scale: float
    size: tuple[int, int]
    choice: Choice | None = None

    @property
    def evaluations(self) -> int:
        """Of one image each, at most: for the fit, and for choosing by images."""
        from . import choosing

        images = 0 if self.choice is None else choosing.cost(self.plan.steps, len(self.choice.real))
        return self.plan.evaluations + images

    def cost(self) -> str:
        """What it will cost, from the time of one evaluation here: for people, it decides nothing."""
        import torch

        from ..guidance import start
        from ..types import Run

        x, cond = self.problem.draw(0, 1)
        sigma = self.problem.sigma_max
        denoise = start(self.problem.denoise, Run((sigma,), 1, 0, sigma))
        began = time.perf_counter()
        with torch.no_grad():
            float(denoise(x, x.new_full((1,), sigma), cond).sum())  # a GPU is waited for
        seconds = time.perf_counter() - began
        more = self.evaluations - self.plan.evaluations
        chosen = f", and {more:,} more to choose by images" if more else ""
        return f"{self.plan}{chosen}. One took {seconds:.2g} s here: {_duration(seconds * self.evaluations)} at most."

    def run(self) -> FitResult:
        """Do it, or go on with it."""
        from ..progress import Progress
        from ..samplers.fitting import fit_tables
        from ..samplers.ledger import Ledger

        with _work(self.path) as keep, Progress(total=self.evaluations) as bar:

            def show(done: int, of: int, what: str) -> None:
                bar.set_description(what, refresh=False)
                bar.update(done - bar.n)

            tables = fit_tables(self.problem, self.plan, self.options.levels, keep, self.purpose, show)
            if self.choice is not None:
                name = f"images-{hashlib.sha256(self.purpose.encode()).hexdigest()[:16]}.jsonl"
                ledger = Ledger(self.evaluations, None if keep is None else keep / name, show)
                ledger.spend(self.plan.evaluations)
                ledger.what = "choosing by images"
                tables = {steps: self.choice.nearest(table, ledger) for steps, table in tables.items()}
            model, path = self.model, None
            if self.options.levels is None:
                for steps, table in tables.items():
                    model = model.with_table(steps, table, self.scale, self.size)
                    path = None if self.path is None else _write(self.path, model, steps, self.scale, self.size, table)
        return FitResult(tables, model, tuple(map(_note, tables, tables.values())), self.plan, path)


def prepare(model: Model | str | Path, **options: Any) -> Prepared:
    """Make the choices of a fit, or raise the errors of :func:`fit`; nothing is evaluated yet."""
    from ..models import Model
    from ..prompts import plain
    from ..samplers.fitting import Problem
    from ..samplers.planning import default_evaluations, plan
    from . import choosing
    from .loading import loaded

    chosen = fill(FitOptions, **options)
    counts = _steps(chosen.steps)
    if not isinstance(model, Model):
        _check_place(str(model))
    ready = loaded(model, chosen)
    path = None if isinstance(model, Model) else _place(ready, model)
    scale = ready.scale if chosen.scale is None else chosen.scale
    if chosen.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {chosen.batch_size}. Try 16.")
    size, shape = _shape(ready, image_size(chosen.size))
    texts = _prompts(chosen.prompts)
    reference = None if chosen.reference is None else _reference(chosen, ready, size)
    rows = [] if reference is None else choosing.chosen_rows(reference, ready.image_shape[0])
    if reference is not None and ready.conditioner is not None and not texts:
        texts = [plain(caption) for caption in reference.annotations(rows).captions if caption]
    guided = ready.guidance == "embedded" or scale != 1
    denoise = ready.guide(ready.denoise, scale, ready.null(1, size)) if guided else ready.denoise
    cond = ready.cond(range(len(ready.classes))) if ready.classes else None
    if texts and ready.conditioner is None:
        raise InputError("--prompts is for text-to-image models, and this one takes no prompt. Leave it out.")
    if ready.conditioner is not None:
        if guided and not texts:
            raise InputError(
                "A text-to-image model is fitted at its guidance scale, which needs prompts: "
                "add --prompts prompts.txt, a text file with a prompt in each line, or --scale 1."
            )
        cond = ready.encode_prompt(texts, size) if texts else cond
    evaluations = chosen.evaluations or default_evaluations(ready.parameters_count, shape)
    planned = plan(counts, evaluations, shape, chosen.noises, chosen.polish)
    low = ready.sigma_min if chosen.sigma_min is None else chosen.sigma_min
    if not 0 < low < ready.sigma_max / 10:
        raise InputError(
            f"sigma_min must be above 0 and far below {ready.sigma_max:.4g}, got {low}. Try {ready.sigma_min:.2g}."
        )
    purpose = {
        "fastdiffusion": __version__, "model": ready.id, "prompts": texts, "scale": scale, "shape": shape,
        "seed": chosen.seed, "batch_size": chosen.batch_size, "levels": chosen.levels, "plan": str(planned),
        "steps": counts, "polish": chosen.polish, "device": ready.device.type, "sigma_min": chosen.sigma_min,
        "reference": reference and reference.fingerprint,
    }  # fmt: skip
    problem = Problem(
        denoise, shape, ready.sigma_max, low, cond, chosen.seed, chosen.batch_size, ready.device,
        lambda steps: ready.schedule(steps, size), {"scale": scale, "size": list(size), "prompts": len(texts)},
    )  # fmt: skip
    choice = None
    if reference is not None:
        same = ready.classes and ready.classes == tuple(reference.classes)
        shown = ready.cond(reference.annotations(rows).labels.tolist()) if same else cond
        choice = choosing.choice(ready, problem, reference, rows, shown)
    return Prepared(path, ready, problem, planned, chosen, json.dumps(purpose), scale, size, choice)


# ---- the choices --------------------------------------------------------------------------------------------------


def _steps(steps: int | str | Sequence[int]) -> tuple[int, ...]:
    try:
        parts = steps.split(",") if isinstance(steps, str) else [steps] if isinstance(steps, int) else steps
        return tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        raise InputError(f"steps are whole numbers with commas, got {steps!r}. Example: --steps 5,8,12") from None


def _prompts(prompts: str | Path | Sequence[str] | None) -> list[str]:
    """The prompts: each a text, or those in a text file."""
    texts: list[str] = []
    for item in [prompts] if isinstance(prompts, str | Path) else prompts or []:
        path = Path(item)
        if isinstance(item, Path) or path.suffix == ".txt":
            try:
                rows = [row.strip() for row in path.read_text(encoding="utf-8-sig").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "it is no text in UTF-8"
                raise DataError(f"Cannot read the prompts in {str(path)!r}: {why}.") from None
            texts += [row for row in rows if row and not row.startswith("#")]
        elif item.strip():
            texts.append(item)
    if prompts and not texts:
        raise DataError(f"There are no prompts in {prompts!r}. Write one in each line.")
    return texts


def _reference(chosen: FitOptions, model: Model, size: tuple[int, int]) -> Dataset:
    """The images that the samples should look like, cropped to squares where they are a folder's."""
    from .. import data

    if chosen.levels is not None:
        raise InputError("--levels fits noise levels alone and --reference chooses whole tables. Leave one out.")
    assert chosen.reference is not None
    return data.load_folder(chosen.reference, max(size) or None, usual="crop")


def _shape(model: Model, size: tuple[int, int] | None) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The images' height and width, and the shape of what the denoiser works on."""
    if size is None:
        return model.pixels, model.shape
    if len(model.shape) < 3 or any(side % model.factor for side in size):
        raise InputError(f"This model makes sizes that divide by {model.factor}, got {size[1]}x{size[0]}.")
    return size, (*model.shape[:-2], *(side // model.factor for side in size))


def _check_place(name: str) -> None:
    """Raise InputError for a model beside which no tables can be kept."""
    from ..models import registry

    if registry.shipped(name) is not None:
        raise InputError(
            f"{name!r} comes with the package and stays as it is. Copy it first: "
            f"fastdiffusion.save(fastdiffusion.load({name!r}), 'mine.safetensors'), then fit mine.safetensors."
        )
    if not name.startswith(HUB) and not Path(name).exists():
        raise InputError(f"There is no file {name!r} to fit samplers into. Give the path of your model.")


# ---- where things are ---------------------------------------------------------------------------------------------


def _place(model: Model, name: str | Path) -> Path:
    """The file or folder that a model was read from: of a checkpoint of the hub, where it lies here."""
    checkpoint = getattr(model.denoise, "checkpoint", None)
    return Path(name) if checkpoint is None else Path(checkpoint.path)


@contextmanager
def _work(path: Path | None) -> Iterator[Path | None]:
    """A folder for the work in progress, beside the model or in the cache; it is gone when the work is done."""
    from ..data import cache_folder

    if path is None:
        yield None
        return
    place = path.resolve().with_name(f"{path.resolve().name}.fit.parts")
    try:
        place.mkdir(exist_ok=True)
    except OSError:
        place = cache_folder() / "fits" / place.name
    yield place
    shutil.rmtree(place, ignore_errors=True)


def _write(path: Path, model: Model, steps: int, scale: float, size: tuple[int, int], fitted: Table) -> Path:
    """Write a fitted table into a native model's file, or beside another family's checkpoint."""
    from ..io.checkpoints import annotate
    from ..models import folder
    from ..models.native import own_denoiser
    from ..models.serialization import FILE, notes

    if own_denoiser(model.denoise) is None:
        return folder.write_table(path, model, steps, scale, size, fitted)
    file, tables = path / FILE if path.is_dir() else path, {"tables": notes(model)["tables"]}
    annotate(file, lambda config: {**config, **tables})
    return file


def _note(steps: int, table: Table) -> str:
    error, textbook, name = (table.info[key] for key in ("error", "textbook_error", "textbook"))
    if "reference" in table.info:
        own, best = table.info["fitted_distance"], table.info["textbook_distance"]
        kept = "the fitted table" if table.info["fitted"] else name
        return (
            f"{counted(steps, 'step')}: by their images {kept} is kept. Distance of the fitted table {own:.3g}, "
            f"of the best textbook table {best:.3g}."
        )
    if not table.info["fitted"]:
        return f"{counted(steps, 'step')}: nothing is clearly better than {name} (error {textbook:.4f}), which is kept."
    return f"{counted(steps, 'step')}: error {error:.4f}, the best textbook table ({name}) has {textbook:.4f}."


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.3g} h"
    )
