"""What an engine's child process runs: ``python trial.py NET.xml FOLDER PRECISION THREADS``.

FOLDER holds inputs.npz; outputs.npz is written beside it. Neither torch nor this package is imported, so that a trial
starts at once, and a crash of the engine is the end of this process alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def openvino() -> Any:
    """The package, without the telemetry that it would send when it is imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # a stub is then taken
    import openvino

    return openvino


def hint(precision: str) -> str:
    """What OpenVINO calls the type to compute in; what 8 bits leave of a network is in whatever is fastest here."""
    able = "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if precision == "bf16" or (precision == "int8" and able) else "f32"


def compiled(path: Path, shapes: Sequence[Sequence[int]], precision: str, threads: int) -> Any:
    """The network of a file, for inputs of exactly these shapes: several times as fast as for any shape."""
    ov = openvino()
    core = ov.Core()
    net = core.read_model(path)
    net.reshape({port: ov.PartialShape(list(shape)) for port, shape in zip(net.inputs, shapes, strict=True)})
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    return core.compile_model(net, "CPU", settings)


if __name__ == "__main__":
    import numpy as np

    path, folder, precision, threads = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    inputs = list(np.load(folder / "inputs.npz").values())
    program = compiled(path, [array.shape for array in inputs], precision, threads)
    np.savez(folder / "outputs.npz", *program(inputs).values())
