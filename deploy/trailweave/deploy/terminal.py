"""Makes text of unknown origin harmless for a terminal. Pure.

A trail holds what attackers wrote. Shown as it is, an escape sequence could rewrite the screen of
the analyst who investigates it, and a right-to-left override could make one name look like another.
"""

import re
from typing import Final

#: C0 and C1 controls, DEL; line and paragraph separators; marks that reorder or hide text;
#: language tags; lone surrogates, which no output encoding can carry.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

#: Longer text is cut in tables and trees; `--json` has it whole.
SHOWN_CHARACTERS_MAX: Final = 400


def plain(text: object) -> str:
    """The text with everything that drives a terminal written as an escape, such as `\\x1b`."""
    return _UNSAFE.sub(_escaped, str(text))


def shortened(text: object, limit: int = SHOWN_CHARACTERS_MAX) -> str:
    """`plain`, and cut to `limit` characters with an ellipsis."""
    # Cut first: a megabyte of control characters must not become six.
    raw = str(text)
    return plain(raw) if len(raw) <= limit else plain(raw[: limit - 1]) + "…"


def _escaped(found: re.Match[str]) -> str:
    code = ord(found.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
