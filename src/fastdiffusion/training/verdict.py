"""Is it trained enough? One sentence in words, after training."""

from __future__ import annotations

from ..errors import counted
from .callback import TrainingView

TURN = 0.01  # part of the validation loss that is worth a word


def verdict(training: TrainingView) -> str:
    """What was seen beside what such a run usually needs, and where the validation loss was going at the end."""
    state, usual = training.state, training.task.usual
    seen = state.step * training.options.batch_size
    if not usual:
        return f"Trained on {counted(seen, 'example')}{trend(state.validations)}."
    share = seen / usual
    amount = f"{counted(seen, 'example')} seen, where such a run usually needs about {usual:,}"
    if share < 0.5:
        longer = f"train about {max(round(usual / max(seen, 1)), 2):,} times as long"
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
