"""The emoji's scenes, named in fourteen languages: for encoders of images and words, and to train a model further."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from ...errors import InputError
from ..dataset import Annotations, Batch, Dataset, digest
from . import holdout
from .font import LANGUAGES, emoji
from .scenes import Scenes, scenes
from .translations import describe_background


def multilingual(
    size: int | None = None,
    languages: Sequence[str] = LANGUAGES[1:],
    english: float = 0.4,
    font: str | os.PathLike[str] | None = None,
) -> Multilingual:
    """:func:`scenes`, whose captions are in any of several languages when a generator draws them.

    Args:
        size: Side in pixels, 64 by default.
        languages: Beside English, in equal parts; of ``emoji.LANGUAGES``. Names that ``holdout.pair`` holds out are
            said in English.
        english: Part of the captions that is English, 0 to 1.
        font: See :func:`emoji`.

    Raises:
        InputError: An unknown language, or a part out of range.
        MissingExtra: As :func:`scenes`.
    """
    if not 0 <= english <= 1:
        raise InputError(f"english is a part of the captions, from 0 to 1, got {english!r}. Try 0.4.")
    names = {
        language: [own[0] for own in emoji(languages=[language], alpha=True, font=font).captions]
        for language in languages
    }
    if not names:
        raise InputError("There is no other language. Try languages=['ja'], or the data set emoji-scenes.")
    return Multilingual(scenes(size, font=font), names, english)


class Multilingual(Dataset):
    """See :func:`multilingual`. Without a generator, captions are English."""

    classes = ()

    def __init__(self, parent: Scenes, names: dict[str, list[str]], english: float) -> None:
        self.scenes, self.names, self.english = parent, names, english
        self.name, self.shape = "emoji-polyglot", parent.shape
        self.fingerprint = digest(parent.fingerprint, names, english)

    def __len__(self) -> int:
        return len(self.scenes)

    def key(self, index: int) -> str:
        """See :meth:`Dataset.key`."""
        return self.scenes.key(index)

    def source(self, index: int) -> int:
        """See :meth:`Dataset.source`."""
        return self.scenes.source(index)

    def batch(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """See :meth:`Dataset.batch`."""
        batch = self.scenes.batch(indices, generator)
        return batch._replace(captions=self._captions(indices, batch.captions, generator))

    def annotations(self, indices: Sequence[int], generator: torch.Generator | None = None) -> Annotations:
        """See :meth:`Dataset.annotations`."""
        english = self.scenes.annotations(indices, generator)
        return english._replace(captions=self._captions(indices, english.captions, generator))

    def texts(self, indices: Sequence[int] | None = None) -> list[str]:
        """See :meth:`Dataset.texts`."""
        rows = range(len(self)) if indices is None else indices
        translated = dict.fromkeys(self._translated(i, language) for i in rows for language in self.names)
        return [*self.scenes.texts(indices), *filter(None, translated)]

    def _translated(self, index: int, language: str) -> str:
        row, color = self.scenes.rows[index]
        held = holdout.pair(self.scenes.images.names[row], language)
        return "" if held else describe_background(self.names[language][row], language, color)

    def _captions(
        self, indices: Sequence[int], captions: Sequence[str], generator: torch.Generator | None
    ) -> list[str]:
        if generator is None:
            return list(captions)
        u = torch.rand(len(captions), 2, generator=generator).tolist()
        languages = list(self.names)
        chosen = [self._translated(i, languages[int(v * len(languages))]) for i, (_, v) in zip(indices, u, strict=True)]
        return [
            own if w < self.english else other or own for own, other, (w, _) in zip(captions, chosen, u, strict=True)
        ]
