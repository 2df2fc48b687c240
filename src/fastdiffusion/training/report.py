"""report.html of a run, in one file: settings, the loss curve as SVG, the previews. Whatever it shows is escaped."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import counted
from ..io.atomic import write_text
from ..io.run_folder import Folder
from .callback import TrainingView

SHEETS = 6  # previews shown, the first and the last among them
COLORS = ("#4c78a8", "#e45756", "#54a24b")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
{mark}<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }} td {{ padding: .1rem 1rem .1rem 0; vertical-align: top; }}
td:first-child {{ color: #666; }} figure {{ display: inline-block; margin: 0 1rem 1rem 0; }}
img {{ image-rendering: pixelated; max-width: 100%; }} figcaption {{ color: #666; font-size: .9rem; }}
svg {{ width: 100%; height: auto; }} svg text {{ font: 12px system-ui, sans-serif; fill: #666; }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
<h2>Loss</h2>
{curve}
<h2>Previews</h2>
<p>The same noise and classes each time.</p>
{previews}
<h2>Settings</h2>
{settings}
</body></html>
"""


Trained = TypeVar("Trained")
FILE = "report.html"
TURN = 0.01  # part of the validation loss that is worth a word


@dataclass(frozen=True)
class TrainingResult(Generic[Trained]):
    """What a training run made.

    Attributes:
        path: Its folder; None for a run that was kept in memory.
        model: What was trained, on the CPU: a model that is ready to sample from, or a net.
        report: The page with its loss curve and previews; None as long as the run has not reached its end.
    """

    path: Path | None
    model: Trained
    report: Path | None

    @classmethod
    def of(cls, model: Trained, folder: str | os.PathLike[str] | None) -> TrainingResult[Trained]:
        """The result of a run in ``folder``."""
        path = None if folder is None else Path(folder)
        return cls(path, model, path / FILE if path is not None and (path / FILE).exists() else None)


def mark(step: int) -> str:
    """What a report says, unseen, of the step that it was written after."""
    return f'<meta name="step" content="{step}">'


def write(folder: Folder, config: Mapping[str, Any], info: Mapping[str, Any], step: int) -> None:
    """Write ``report.html`` into a run's folder: what it says of itself, its metrics, previews and configuration."""
    records, info, more = folder.metrics(), dict(info), ""
    speeds = [r["images_per_second"] for r in records if "images_per_second" in r]
    if speeds:
        info["images per second"] = f"{sorted(speeds)[len(speeds) // 2]:,.0f}"
    skipped = [name for r in records for name in r.get("skipped", ())]
    if skipped:
        info["examples in skipped batches"] = ", ".join(skipped[:20])
    looks = {name: [(r["step"], r[name]) for r in records if name in r] for name in ("held_out_loss", "retention")}
    if looks["retention"]:
        more = curve({name.replace("_", " "): line for name, line in looks.items() if name == "retention"})
        more = f"<h2>What is left of what it knew</h2>\n{more}"
    series = {
        "held out": looks["held_out_loss"],
        "training": [(r["step"], r["loss"]) for r in records if "loss" in r],
        "validation": [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r],
    }
    series = {name: line for name, line in series.items() if line or name == "training"}
    title = f"Training on {info.get('data', folder.path.name)}"
    page = _PAGE.format(
        mark=mark(step),
        title=escape(title),
        summary=table(info),
        curve=curve(series) + more,
        previews=previews(folder),
        settings=table(config),
    )
    write_text(folder.path / FILE, page)


def table(rows: Mapping[str, Any]) -> str:
    """Names and values as a table."""
    cells = (f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(cells)}</table>"


def previews(folder: Folder) -> str:
    """Some of the preview sheets, evenly spread, the newest last."""
    sheets = sorted((folder.path / "previews").glob("*.png"))
    chosen = sorted({round(i * (len(sheets) - 1) / (SHEETS - 1)) for i in range(SHEETS)}) if sheets else []
    return "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(sheets[i].read_bytes()).decode()}" '
        f'alt="preview"><figcaption>step {int(sheets[i].stem):,}</figcaption></figure>'
        for i in chosen
        if sheets[i].stem.isdigit()
    )


def curve(series: Mapping[str, Sequence[tuple[float, float]]], width: int = 800, height: int = 320) -> str:
    """Curves over steps as SVG, the value's axis logarithmic where all are positive."""
    drawn = {name: [(x, y) for x, y in line if math.isfinite(y)] for name, line in series.items()}
    points = [p for line in drawn.values() for p in line]
    if not points:
        return "<p>No step was recorded.</p>"
    right = max(x for x, _ in points)
    positive = min(y for _, y in points) > 0
    forward, inverse = (math.log, math.exp) if positive else (float, float)
    low, high = forward(min(y for _, y in points)), forward(max(y for _, y in points))
    low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)
    left, top, bottom = 60, 10, height - 30

    def place(x: float, y: float) -> str:
        across = left + (width - left - 10) * x / right
        return f"{across:.1f},{bottom - (bottom - top) * (forward(y) - low) / (high - low):.1f}"

    elements = []
    for i in range(5):
        value = inverse(low + (high - low) * i / 4)
        y = bottom - (bottom - top) * i / 4
        elements.append(f'<line x1="{left}" x2="{width - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        elements.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{value:.3g}</text>')
        x, step = left + (width - left - 10) * i / 4, right * i / 4
        elements.append(f'<text x="{x:.0f}" y="{height - 10}" text-anchor="middle">{step:,.0f}</text>')
    for i, (name, line) in enumerate(drawn.items()):
        if line:
            color, path = COLORS[i % len(COLORS)], " ".join(place(x, y) for x, y in line)
            elements.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
            elements.append(f'<text x="{width - 90}" y="{25 + 16 * i}" style="fill:{color}">{escape(name)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Loss over steps">{"".join(elements)}</svg>'


# ---- in words ---------------------------------------------------------------------------------------------------


def verdict(training: TrainingView) -> str:
    """What was seen beside what such a run usually needs, and where the validation loss was going at the end."""
    state, usual = training.state, training.task.usual
    examples = state.step * training.options.batch_size
    if not usual:
        return f"Trained on {counted(examples, 'example')}{trend(state.validations)}."
    share = examples / usual
    amount = f"{counted(examples, 'example')} seen, where such a run usually needs about {usual:,}"
    if share < 0.5:
        longer = f"train about {max(round(usual / max(examples, 1)), 2):,} times as long"
        return f"This is a beginning ({amount}): {longer}{trend(state.validations)}."
    start = "Trained nearly enough" if share < 1 else "Trained enough, by what such a run usually needs"
    return f"{start} ({amount}){trend(state.validations)}."


def trend(validations: list[tuple[int, float]]) -> str:
    """Where the validation loss was going over the last quarter of what was measured; "" where too little was."""
    if len(validations) < 4:
        return ""
    last = validations[-1][1]
    at, best = min(validations, key=lambda one: one[1])
    before = validations[-1 - max(len(validations) // 4, 1)][1]
    if last > (1 + TURN) * best:
        return (
            f"; its validation loss has risen by {last / best - 1:.1%} since step {at:,}: it begins to learn the "
            "training data by heart, against which more data, augmentation or fewer steps help"
        )
    if last < (1 - TURN) * before:
        return f"; its validation loss was still falling ({1 - last / before:.1%} over the last quarter)"
    return "; its validation loss has settled"
