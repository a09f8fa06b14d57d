"""Make text from anybody's plug-ins harmless in each format of a table."""

import json
import re
from typing import Any

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "×": r"$\times$", "–": "--", "…": r"\dots{}",
}  # fmt: skip

ASCII = str.maketrans(dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)) | {"×": "x", "–": "-", "…": "...", "∞": "inf"})


def plain(text: Any) -> str:
    """One line of printable characters: line ends and tabs become blanks, terminal controls and overrides �."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(str(text).split()))


def without_surrogates(value: Any) -> Any:
    """A text with backslash escapes in place of lone surrogates, which pandas cannot keep where it stores texts in Arrow.

    Any other value is returned unchanged.
    """
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def shortened(text: Any, length: int = 40) -> str:
    """``plain`` text of ``length`` characters at most."""
    line = plain(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def spreadsheet(text: str) -> str:
    """The text, after an apostrophe if a spreadsheet would read it as a formula, as OWASP advises."""
    return f"'{text}" if text.startswith(("\t", "\r", "\n")) or text.lstrip().startswith(("=", "+", "-", "@")) else text


def encodable(text: str, encoding: str) -> str:
    """The text unchanged if the encoding has all its characters, otherwise in ASCII as far as there are similar ones."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "replace").decode(encoding)
    return text


def encodable_json(text: str, encoding: str) -> str:
    """The same JSON, with terminal controls and lone surrogates escaped, and all but ASCII where the encoding lacks one."""
    text = re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    return text


def similar(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for ``codecs.register_error``: similar ASCII for what cannot be encoded, or else a backslash escape.

    A surrogate in a file name becomes its original byte.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return character.translate(ASCII).encode("ascii", "backslashreplace").decode(), error.start + 1


def markdown(text: Any) -> str:
    """Text that GitHub's Markdown shows unchanged, in the cells of a table too."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", plain(text))


def latex(text: Any) -> str:
    """Text that LaTeX prints unchanged."""
    return "".join(LATEX.get(c, c) for c in plain(text))
