"""What takes a moment to make (a drawing, highlighted code) is kept by content, so that a page is there in milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from assay.files import write_atomically
from assay.paths import trained_dir


def kept(what: str, ending: str, make: Callable[[], str]) -> str:
    """The text that ``make`` returns, from the cache if it was made before.

    Args:
        what: all that the text depends on, code and versions of what makes it included.
        ending: of the cached file's name.
        make: makes the text.
    """
    path = trained_dir().parent / "atlas" / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.{ending}"
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        text = make()
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return text
