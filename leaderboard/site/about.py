"""What a site says about detectors and data sets, from the registry and from docstrings."""

import importlib
import inspect
import re
from importlib.resources import files
from typing import NamedTuple

from oodbench import registry

PAPERS = "papers.bib"


class About(NamedTuple):
    """Facts about a detector; empty where this installation does not know it."""

    summary: str
    method: str  # first paragraph of its class's docstring
    paper: str
    learns_from: str
    owner: str  # distribution and version
    known: bool


def about_detector(name: str) -> About:
    """What is known of a detector. Its code is imported only if it is one of ours."""
    record = registry.records("detectors").get(name)
    if record is None or record.error:
        return About("", "", "", "", "", False)
    method = _docstring(record.target) if record.distribution == "oodbench" else ""
    return About(record.summary, method, record.source, record.learns_from, record.owner, True)


def about_set(name: str) -> tuple[str, str, str]:
    """Summary, home page and package of a set; empty where this installation does not know it."""
    record = registry.records("datasets").get(name)
    return ("", "", "") if record is None or record.error else (record.summary, record.source, record.owner)


def _docstring(target: str) -> str:
    module, _, attribute = target.partition(":")
    text = inspect.getdoc(getattr(importlib.import_module(module), attribute)) or ""
    return re.sub(r"\s+", " ", text.split("\n\n")[0]).replace("``", "")


def papers() -> dict[str, str]:
    """The BibTeX entry of each paper, by the name of the detector or data set that it is the paper of."""
    text = files("oodbench.leaderboard.site").joinpath(PAPERS).read_text("utf-8")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=@)", text):
        if names := re.search(r"^  keywords = \{(.*)\},?$", entry, re.MULTILINE):
            found |= dict.fromkeys(names[1].split(", "), entry.strip())
    return found


def bibtex(names: list[str]) -> str:
    """The BibTeX entries of the papers of these detectors and data sets, each once."""
    known = papers()
    entries = dict.fromkeys(known[name] for name in names if name in known)
    return "\n\n".join(entries) + "\n" if entries else ""
