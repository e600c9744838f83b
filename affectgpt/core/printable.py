"""Text of others on a terminal: labels, answers, names of files, a server's errors."""

from __future__ import annotations

import re

# Control characters (ESC among them), marks that turn the reading direction, and halves of characters.
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, lines: bool = False) -> str:
    r"""Text of others as a terminal may show it: control characters and the like are written out as ``\u001b``.

    Unescaped, a label or an answer could move the cursor, rewrite lines above or set the window's title. ``lines``:
    line ends and tabs stay. JSON stays JSON of the same meaning.
    """
    return UNSHOWN.sub(lambda m: m[0] if lines and m[0] in "\n\t" else _SHORT.get(m[0], f"\\u{ord(m[0]):04x}"), text)
