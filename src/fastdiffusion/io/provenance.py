"""What a file says of where its image comes from, read: IPTC's digital source type in XMP, and the invisible mark."""

from __future__ import annotations

import os
import re
from typing import Any

from ..errors import DataError
from . import mark
from .images import opened, read_image, read_recipe


def read_provenance(path: str | os.PathLike[str], key: str = mark.KEY) -> dict[str, Any]:
    """What an image file says of where it comes from; empty where there is neither.

    Keys: "digital_source_type", the name in IPTC's vocabulary; "mark", how many standard deviations the invisible mark
    of ``key`` stands out, if it is found. Raises DataError for no image.
    """
    try:
        with opened(path) as image:
            image.load()
            texts = [image.info.get(name) for name in ("xmp", "XML:com.adobe.xmp")]
        shown = read_image(path)
    except (DataError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"Cannot read {os.path.basename(path)!r}: {error}.") from None
    found: dict[str, Any] = {}
    for text in texts:
        packet = text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")
        if named := re.search(r"cv\.iptc\.org/newscodes/digitalsourcetype/(\w{1,60})", packet):
            found["digital_source_type"] = named[1]
    if min(shown.size) >= mark.SMALLEST and (strength := mark.found(shown, key)) >= mark.FOUND:
        found["mark"] = round(strength, 1)
    return found


def read_all(path: str | os.PathLike[str], key: str = mark.KEY) -> dict[str, Any]:
    """The recipe of an image, and under "provenance" its tag and mark, if it has them.

    Raises DataError where there is none of them.
    """
    found = read_provenance(path, key)
    try:
        return read_recipe(path) | ({"provenance": found} if found else {})
    except DataError:
        if not found:
            raise
        return {"provenance": found}
