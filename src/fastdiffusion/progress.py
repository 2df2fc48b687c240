"""Progress bars, one at a time: a loop within a loop that shows one shows none of its own."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class Progress(tqdm):
    """tqdm on stderr, gone when it is done; hidden where stderr is no terminal, and inside another one."""

    shown = 0  # bars that are open

    def __init__(self, *args: Any, **options: Any):
        hidden = True if Progress.shown else None
        super().__init__(*args, **{"disable": hidden, "leave": False, **options})
        self._counted = not self.disable
        Progress.shown += self._counted

    def close(self) -> None:
        """Take the bar away."""
        Progress.shown -= getattr(self, "_counted", False)
        self._counted = False
        super().close()


def say(text: str) -> None:
    """Print a line above the bars that are shown."""
    with tqdm.external_write_mode():
        print(text)
