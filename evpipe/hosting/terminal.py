"""What a terminal may be given of lines that somebody else wrote."""

from __future__ import annotations

import re
from typing import Final

#: Escape sequences of ECMA-48: those with parameters (CSI), those with a text (OSC and its like) and the short ones.
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x9c|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]?"
)
#: Control characters but the tab, other ends of lines, and what turns the direction of writing.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """Give of a line what a terminal may show: no escape sequences, no control characters but tabs.

    Of what was written over itself with carriage returns, as progress bars are, it is the last.
    """
    return _CONTROLS.sub("", _ESCAPES.sub("", text).rstrip("\r").rpartition("\r")[2])


def shown_lines(text: str) -> str:
    """Give of a text of several lines, such as a traceback, what a terminal may show."""
    return "\n".join(map(shown, text.split("\n")))
