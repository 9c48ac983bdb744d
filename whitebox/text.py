"""Text that somebody else wrote, on its way into a layer that would read more in it than letters.

Class names, paths, file and run names cross here, each layer by one function: the terminal (`shown`), pictures
(`drawn`, `font`), Markdown, LaTeX and CSV. What a layer cannot show appears as its code, ``U+4E2D``. Matplotlib's
mathtext is off in figures unless a label of ours asks for it (``analysis`` sets ``text.parse_math``).
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

LONGEST_DRAWN = 48  # letters of a name in a picture; the middle of longer ones is left out
_DIRECTIONS = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # would turn what follows
_INVISIBLE = {0xFEFF, *_DIRECTIONS}


def code(character: str) -> str:
    """``U+4E2D``."""
    return f"U+{ord(character):04X}"


def _acts(character: str) -> bool:
    """Whether a character does something to a terminal or a line instead of being seen."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or ord(character) in _INVISIBLE


def shown(text: object) -> str:
    """One line for a terminal or a message: line breaks, escape sequences and the like appear as codes."""
    written = str(text)
    if written.isprintable():  # nearly always, and in a hundredth of the time
        return written
    return "".join(code(each) if _acts(each) else each for each in written)


def require_text(text: str, what: str) -> str:
    """``text`` itself, where it can be written to a file as UTF-8.

    Raises:
        ConfigError: it holds half a character, as a file name of another encoding does.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{what} {shown(text)!r} is no text in UTF-8: rename it.") from None
    return text


def composed(text: str) -> str:
    """The normal form in which é is one character: two names that look the same are then the same."""
    return unicodedata.normalize("NFC", text)


def file_name(text: str) -> str:
    """``text`` as part of a file's name: no folder, and not too long for one."""
    return text.replace("/", "_").encode(errors="surrogateescape")[:200].decode(errors="ignore")


# --- pictures --------------------------------------------------------------------------------------------------------


def drawn(text: str, most: int = LONGEST_DRAWN) -> str:
    """A name as a picture can show it: letters that DejaVu Sans lacks as codes, no longer than ``most`` letters."""
    known = _letters()
    seen = [code(each) if _acts(each) or ord(each) not in known else each for each in composed(text)]
    if sum(map(len, seen)) <= most:
        return "".join(seen)
    return f"{_fitting(seen, most // 2)}…{_fitting(seen[::-1], most - most // 2 - 1, backwards=True)}"


def _fitting(parts: list[str], most: int, backwards: bool = False) -> str:
    """As many of the first ``parts`` as have ``most`` letters together."""
    lengths = itertools.accumulate(map(len, parts))
    fitting = [part for part, length in zip(parts, lengths, strict=True) if length <= most]
    return "".join(fitting[::-1] if backwards else fitting)


def drawn_lines(text: str, most: int = LONGEST_DRAWN) -> str:
    """As `drawn`, for a title or label of ours that holds names: words, not the whole, are shortened; lines stay."""
    return "".join(word if word.isspace() else drawn(word, most) for word in re.split(r"([ \n]+)", text))


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_file())).get_charmap())


def _font_file() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@functools.cache
def font(size: float) -> FreeTypeFont:
    """DejaVu Sans, which matplotlib brings, for Pillow; ``size`` in px."""
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_file()), size)


# --- tables ----------------------------------------------------------------------------------------------------------

_MARKDOWN = str.maketrans({**{each: f"\\{each}" for each in "\\|*_`[]$~"}, "<": "&lt;", ">": "&gt;"})
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "[": "{[}",  # an optional argument, where it follows the end of a row
        "*": "{*}",
        "–": "--",
        **{each: f"\\{each}" for each in "&%$#_{}"},
    }
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def markdown(text: str) -> str:
    """Text for a cell or paragraph of Markdown: no link, no HTML, no end of the cell."""
    return re.sub(r"&(?=#?\w+;)", "&amp;", shown(text)).translate(_MARKDOWN)


def latex(text: str) -> str:
    """Text for LaTeX: no command, no end of the row."""
    return shown(text).translate(_LATEX)


def csv_text(text: str) -> str:
    """Text for a cell of CSV; a spreadsheet computes what begins like a formula, so that gets an apostrophe."""
    text = f"'{text}" if text.startswith(_FORMULA) else text
    return shown(text)
