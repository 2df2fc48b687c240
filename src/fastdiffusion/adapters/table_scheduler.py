"""A sampler table as a scheduler of diffusers: any solver here, or a fitted table, in any of its pipelines.

pipe.scheduler = TableScheduler.from_table("sdxl.fit/fitted-8.json", pipe.scheduler)
pipe("a lighthouse", num_inference_steps=8)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..denoisers import to_x0
from ..errors import InputError
from ..noise import Paths
from ..samplers import Table, move
from .levels import TrainedLevels


class Stepped(NamedTuple):
    """What :meth:`TableScheduler.step` returns; the names are diffusers'."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class TableScheduler:
    """What pipelines ask of a scheduler, answered from a table.

    A network that predicts noise, v or x0 works on x = x0 + sigma * noise, as with diffusers' Euler scheduler; a flow's
    on x / (1 + sigma) at the times sigma / (1 + sigma).

    Attributes:
        table: The sampler.
        config: Of the scheduler whose place this one takes.
        timesteps: What the network takes for time at each evaluation.
        sigmas: Noise level of each evaluation, and 0; of a flow its times.
        init_noise_sigma: What a pipeline multiplies its noise by.
    """

    order = 1
    _compatibles: tuple[str, ...] = ()

    def __init__(self, table: Table, config: Any, flow: bool, seeds: Sequence[int] = ()):
        self.table, self.config, self.flow, self.seeds = table, config, flow, seeds
        levels = torch.tensor([row.sigma for row in table.rows], dtype=torch.float64)
        times = levels / (1 + levels)
        trained = None if flow else TrainedLevels(config)
        self.prediction = "flow" if trained is None else trained.prediction
        self.timesteps = (1000 * times).float() if trained is None else trained.t(levels)
        self.sigmas = torch.cat([times if flow else levels, levels.new_zeros(1)]).float()
        self.init_noise_sigma = float(times[0] if flow else levels[0])
        self.num_inference_steps = table.nfe
        self._begin = 0
        self._restart(0)

    @classmethod
    def from_table(cls, table: Table | str | Path, scheduler: Any, seeds: Sequence[int] = ()) -> TableScheduler:
        """The scheduler of a table, in the place of a pipeline's own.

        Args:
            table: A table, its JSON, or a file of it.
            scheduler: The pipeline's: it says how the network was trained.
            seeds: Of the noise of a stochastic table, one per image; by default 0, 1, 2, ... It has the form of the
                pipeline's latents, so FLUX's, which are packed, get other noise than ``sample`` draws.

        Raises:
            InputError: No table, or a scheduler of a kind of model that is not known.
        """
        if not isinstance(table, Table):
            text = str(table)
            try:
                text = text if text.lstrip().startswith("{") else Path(table).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(
                    f"{table} cannot be read as a sampler table ({error}). Give a table or its file."
                ) from None
            table = Table.from_json(text)
        config = scheduler.config
        flow = "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"
        return cls(table, config, flow, seeds)

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a pipeline that holds a table could not be loaded again."""
        raise InputError("A TableScheduler is not saved with a pipeline. Put the pipeline's own scheduler back first.")

    # ---- a run ------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Begin a run. The levels are the table's; InputError for another number of steps than it has."""
        known = (len(self.table.sigmas) - 1, self.table.nfe)
        if num_inference_steps is None and sigmas is not None:
            num_inference_steps = len(sigmas)
        if num_inference_steps not in (*known, None):
            raise InputError(
                f"This table has {known[0]} steps, and the pipeline was asked for {num_inference_steps}. "
                f"Call it with num_inference_steps={known[0]}."
            )
        self.timesteps = self.timesteps.to(device)
        self._begin = 0
        self._restart(0)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later evaluation, as image to image does."""
        self._begin = begin_index
        self._restart(begin_index)

    @property
    def begin_index(self) -> int:
        """The evaluation that a run starts at."""
        return self._begin

    @property
    def step_index(self) -> int:
        """The evaluation that comes next."""
        return self._index

    def _restart(self, index: int) -> None:
        self._index = index
        self._history: list[Tensor] = []
        self._paths: Paths | None = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network takes for x."""
        if self.flow:
            return sample
        return sample / (self.table.rows[min(self._index, self.table.nfe - 1)].sigma ** 2 + 1) ** 0.5

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Stepped:
        """The state after an evaluation. ``generator`` and other options play no part: seeds decide the noise."""
        rows, i = self.table.rows, self._index
        if i >= len(rows):
            raise InputError(f"The run of {len(rows)} evaluations is over. Call set_timesteps before the next one.")
        row, to = rows[i], rows[i + 1].sigma if i + 1 < len(rows) else 0.0
        x = sample.float() * (1 + row.sigma) if self.flow else sample.float()
        x0 = to_x0(self.prediction, model_output.float(), x, x.new_full((len(x),), row.sigma))
        new = move(replace(row, weights=row.weights[: len(self._history)]), x, x0, self._history)
        for b, level, below in row.noise:
            if self._paths is None:
                self._paths = Paths([*self.seeds, *range(len(self.seeds), len(x))][: len(x)], x)
            new = new + b * self._paths.draw(level, below)
        self._history = [x0, *self._history][: self.table.depth]
        self._index += 1
        new = new / (1 + to) if self.flow else new
        return Stepped(new.to(sample.dtype), x0.to(sample.dtype))

    # ---- images with noise, for image to image and inpainting ---------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """An image at the levels of some of ``timesteps``, one per image or one for all."""
        known = self.timesteps.to(noise.device, torch.float64)
        wanted = timesteps.to(noise.device, torch.float64).reshape(-1, 1)
        levels = torch.tensor([row.sigma for row in self.table.rows], dtype=torch.float32, device=noise.device)
        sigma = levels[(known - wanted).abs().argmin(1)].reshape(-1, *[1] * (noise.ndim - 1))
        mixed = original_samples + sigma.to(original_samples.dtype) * noise
        return mixed / (1 + sigma).to(mixed.dtype) if self.flow else mixed

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """The same by the name that flow pipelines call."""
        return self.add_noise(sample, noise, timestep)
