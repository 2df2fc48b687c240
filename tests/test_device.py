"""Every verb on a GPU: on one that is not there, which refuses to mix devices, and on a real one where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from pretended_device import forget_accelerator, pretended
from torch import Tensor, nn
from verbs import ROWS, verb

from fastdiffusion.io.images import to_tensor
from fastdiffusion.samplers import SAMPLERS

# Commands that do not compute with a net, or that compute through a verb of the table alone.
EXEMPT = {"scan", "list-samplers", "about", "recipe", "doctor", "demo", "names"}

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def values(result: Any) -> list[Tensor]:
    """All numbers of a result, as tensors on the CPU."""
    if isinstance(result, Tensor):
        return [result.detach().cpu().double()]
    if isinstance(result, int | float):
        return [torch.tensor(float(result)).double()]
    if isinstance(result, Image.Image):
        return [to_tensor(result).double()]
    if isinstance(result, nn.Module):
        return [value for _, tensor in sorted(result.state_dict().items()) for value in values(tensor)]
    if hasattr(result, "images"):
        return values(result.images)
    if is_dataclass(result):
        return values([getattr(result, f.name) for f in fields(result)])
    if isinstance(result, list | tuple):
        return [value for part in result for value in values(part)]
    assert result is None or isinstance(result, str), type(result)
    return []


@pytest.fixture(scope="module")
def on_cpu(desk, tmp_path_factory) -> Callable[[str], list[Tensor]]:
    """What the CPU makes of a row, once for both devices."""
    known: dict[str, list[Tensor]] = {}

    def run(name: str) -> list[Tensor]:
        if name not in known:
            torch.manual_seed(0)
            known[name] = values(ROWS[name].body(desk, "cpu", tmp_path_factory.mktemp("cpu")))
        torch.manual_seed(0)
        return known[name]

    return run


@contextmanager
def real() -> Iterator[SimpleNamespace]:
    """The GPU of this machine, at full precision."""
    used, tf32 = SimpleNamespace(operations=0), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    forget_accelerator()
    torch.cuda.reset_peak_memory_stats()
    try:
        before = torch.cuda.memory_allocated()
        yield used
        used.operations = torch.cuda.max_memory_allocated() - before
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        forget_accelerator()


def enrolled() -> Iterator[Any]:
    for name in ROWS:
        yield pytest.param(name, pretended, id=f"{name}-pretended")
        yield pytest.param(name, real, id=f"{name}-gpu", marks=[pytest.mark.gpu, NO_GPU])


@pytest.mark.parametrize(("name", "where"), list(enrolled()))
def test_a_verb_makes_the_same_on_a_gpu(name, where, desk, on_cpu, tmp_path):
    expected = on_cpu(name)
    assert expected
    with where() as device:
        result = values(ROWS[name].body(desk, "cuda", tmp_path))
    assert device.operations > 0, "it computed on the CPU all the same"
    atol = 1e-5 if where is pretended else 1e-2
    assert len(result) == len(expected)
    for got, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=atol, rtol=atol)


def test_every_command_that_computes_is_in_the_table():
    from fastdiffusion.cli.app import app

    commands = {c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands if not c.hidden}
    covered = {entry.command for entry in ROWS.values()} - {None}
    assert commands - EXEMPT == covered & commands
    assert covered <= commands, "a command that there is no more"


@pytest.mark.parametrize(
    "options",
    [
        *({"sampler": name, "scale": 2.0} for name in SAMPLERS),
        {},
        {"guidance": "cfg scale=2 interval=0.3..5"},
        {"guidance": "apg scale=3"},
        {"guidance": "negative 4 scale=2"},
    ],
    ids=lambda options: " ".join(map(str, options.values())) or "plain",
)
def test_sampling_does_not_wait_for_the_device(desk, options):
    """Twice the steps, as many waits: the loop itself never asks the device for a number."""

    def waits(steps):
        with pretended() as device:
            verb("sample")(desk.classes, classes="3", n=1, steps=steps, device="cuda", **options)
        return device.places

    assert waits(6) == waits(3)
