"""Where what a run uses comes from: packages of detectors, sets and networks, and the licence and paper of each set."""

from dataclasses import asdict
from typing import Any

from oodbench import registry
from oodbench.datasets.name import BY_PATH, base_of
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.results.folder import RunFolder

FACTS = ("title", "homepage", "licence", "citation")  # of a set


def note_origins(loaded: LoadedSuite, folder: RunFolder) -> None:
    """Write into run.json what this run uses, beside what earlier runs in the folder used."""
    suite = loaded.suite
    used = {"detectors": suite.detectors, "datasets": [suite.in_distribution, *suite.each_set()], "models": [suite.model or ""]}
    plugins: dict[str, str] = {}
    for family, names in used.items():
        known = registry.records(family)
        records = [known[name] for name in dict.fromkeys(map(base_of, names)) if name in known]
        plugins |= {record.name: record.owner for record in records if record.distribution != "oodbench"}
    images = [loaded.in_distribution, *(one.images for one in loaded.test_sets if one.images is not None)]
    images = [one for one in images if base_of(one.name) not in BY_PATH]
    sources = {base_of(one.name): {name: text for name, text in asdict(one.source).items() if name in FACTS} for one in images}
    before: dict[str, Any] = folder.manifest().provenance
    found = {"plugins": plugins, "sources": sources}
    folder.add_provenance(**{name: before.get(name, {}) | of for name, of in found.items() if of or name in before})
