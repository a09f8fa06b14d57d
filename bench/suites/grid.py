"""A suite as a grid of runs: a list in place of one network, checkpoint, in-distribution set, class or seed.

====================  ================================================  ==========================
key                   a list of                                         in names of other keys
====================  ================================================  ==========================
``models``            networks                                          ``{model}``
``networks``          tables of a name, a model and its weights         –
``weights``           checkpoints of one network                        –
``in_distribution``   sets that the network knows                       ``{in_distribution}``
``normal_class``      classes, each in turn the only one that it knows  ``{normal_class}``
``seeds``             seeds                                             ``{seed}``
``parameters``        tables of hyper-parameters (``[[parameters]]``)   –
====================  ================================================  ==========================

Every combination is one run. A table of ``networks`` may name the suite's model as ``{model}``. A set with ``of`` is only in
the runs of that in-distribution set. Placeholders stand in ``model``, ``models``, ``weights``, ``transfer_from`` and the names
of sets.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import PureWindowsPath
from typing import Any

from oodbench.datasets.name import canonical, heading, parse
from oodbench.errors import UsageError

SINGLE = {"models": "model", "seeds": "seed"}  # what the key of a list is called where there is one value
AXES = ("models", "networks", "weights", "in_distribution", "normal_class", "seeds", "parameters")
MOST_RUNS = 1000  # that a grid may have
MOST_LETTERS = 60  # of the name of a network


def expand(values: Mapping[str, Any], name: object) -> dict[str, dict[str, Any]]:
    """The values of each run of a suite, by the name of its folder, which is empty where the suite is one run.

    ``values`` are those of a suite file; the keys of a grid are checked, all others are left to ``Suite``.

    Raises UsageError for a list that is empty or names something twice, for a key that is given alone and as a list, for
    checkpoints that several networks would share, and for a grid of too many runs.
    """
    axes = {key: _axis(values, key, name) for key in AXES}
    rest = {key: value for key, value in values.items() if key not in (*AXES, *SINGLE.values())}
    if axes["networks"] != [None]:
        _require_networks(axes, name)
    if len(axes["models"]) > 1 and any(isinstance(file, str) and "{model}" not in file for file in axes["weights"]):
        raise UsageError(f"suite {name}: weights: several models cannot share a file; name files with {{model}} in them")
    if (count := len(list(product(*axes.values())))) > MOST_RUNS:
        raise UsageError(f"suite {name}: is a grid of {count:,} runs; list fewer values, at most {MOST_RUNS:,} runs")
    labels = {key: _labels(key, of) for key, of in axes.items()}
    sets = values.get("sets")
    for one in sets if isinstance(sets, list) else ():
        if isinstance(one, dict) and one.get("of", axes["in_distribution"][0]) not in axes["in_distribution"]:
            known = ", ".join(map(str, axes["in_distribution"]))
            raise UsageError(f"suite {name}: set {one.get('name')}: of is {one['of']}, but the suite runs on {known}")
    runs = {}
    for places in product(*(range(len(of)) for of in axes.values())):
        chosen = {key: of[place] for (key, of), place in zip(axes.items(), places, strict=True)}
        label = "_".join(filter(None, (labels[key][place] for key, place in zip(axes, places, strict=True))))
        if label in runs:
            raise UsageError(f"suite {name}: two of its runs would be called {label}; rename a network or a file of weights")
        runs[label] = _one(rest, chosen, name, several_inside=len(axes["in_distribution"]) > 1)
    return runs


def _axis(values: Mapping[str, Any], key: str, name: object) -> list[Any]:
    """The values of one axis; ``[None]`` where the suite says nothing."""
    single = SINGLE.get(key, key)
    if key in values and single != key and single in values:
        raise UsageError(f"suite {name}: has both {single} and {key}; keep one")
    given = values.get(key, values.get(single))
    if key in SINGLE and key in values and not isinstance(given, list):
        raise UsageError(f"suite {name}: {key} takes a list; write {single} = … for one value")
    if not isinstance(given, list):
        return [_network(given, name) if key == "networks" and given is not None else given]
    if not given:
        raise UsageError(f"suite {name}: {key} is empty, so there is nothing to run; name at least one")
    names = [_network(value, name)["name"] for value in given] if key == "networks" else given
    for place, value in enumerate(names):
        if value in names[:place]:
            raise UsageError(f"suite {name}: {key} names {value} twice; leave one out")
    return given


def _network(value: Any, name: object) -> dict[str, str]:
    """A table of ``networks``. Raises UsageError for one that lacks a key or has another, and for values that are not text."""
    keys = ("name", "model", "weights")
    found = value if isinstance(value, dict) else {}
    if wrong := [key for key in (*keys, *found) if key not in keys or not isinstance(found.get(key), str) or not found[key]]:
        what = "takes a text in quotes" if wrong[0] in keys else "is unknown"
        raise UsageError(
            f"suite {name}: networks: {wrong[0]} {what}; each table needs the keys {', '.join(keys)} and no others"
        )
    if len(found["name"]) > MOST_LETTERS:
        raise UsageError(f"suite {name}: networks: a name has {len(found['name'])} letters; give it at most {MOST_LETTERS}")
    return found


def _require_networks(axes: Mapping[str, list[Any]], name: object) -> None:
    """Raise UsageError for keys and options that ``networks`` make pointless, and for one network with two names."""
    if axes["weights"] != [None]:
        raise UsageError(f"suite {name}: each table of networks names its weights; leave out weights, and --weights")
    if axes["models"] != [None] and not any("{model}" in one["model"] for one in axes["networks"]):
        raise UsageError(f"suite {name}: no table of networks has {{model}} as its model; leave out model, and --model")
    first: dict[tuple[str, str], str] = {}
    for one in axes["networks"]:
        if (other := first.setdefault((one["model"], one["weights"]), one["name"])) != one["name"]:
            raise UsageError(f"suite {name}: networks: {other} and {one['name']} are one network; leave one out")


def _one(rest: Mapping[str, Any], chosen: Mapping[str, Any], name: object, *, several_inside: bool) -> dict[str, Any]:
    """The values of one run. The in-distribution set is not among the sets against it where the grid has several."""
    words = {f"{{{SINGLE.get(key, key)}}}": chosen[key] for key in ("models", "in_distribution", "normal_class", "seeds")}
    inside = chosen["in_distribution"]
    if chosen["normal_class"] is not None:
        inside = f"{inside}:{chosen['normal_class']}"

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            for word, text in words.items():
                if word in value and text is None:
                    raise UsageError(f"suite {name}: {value}: the suite has no {word[1:-1]}; give it one, or leave out {word}")
                value = value.replace(word, str(text))
        return value

    network = chosen["networks"] or {"model": chosen["models"], "weights": chosen["weights"]}
    run = {**rest, "in_distribution": inside, "model": filled(network["model"]), "weights": filled(network["weights"])}
    run["network"] = network.get("name", rest.get("network"))
    run |= {"seed": chosen["seeds"], "parameters": chosen["parameters"], "transfer_from": filled(rest.get("transfer_from"))}
    sets = rest.get("sets")
    if isinstance(sets, list):
        named = [one | {"name": filled(one["name"])} if isinstance(one, dict) and "name" in one else one for one in sets]
        mine = (one for one in named if not (isinstance(one, dict) and one.get("of", inside) != inside))
        run["sets"] = [_without_of(one) for one in mine if not (several_inside and _names(one, inside))]
        if sets and not run["sets"]:
            raise UsageError(f"suite {name}: no set is left to test against {inside}; add one")
    optional = ("in_distribution", "model", "network", "weights", "seed", "parameters", "transfer_from")
    return {key: value for key, value in run.items() if value is not None or key not in optional}


def _without_of(one: Any) -> Any:
    return {key: value for key, value in one.items() if key != "of"} if isinstance(one, dict) else one


def _names(one: Any, inside: Any) -> bool:
    """Whether a set is the in-distribution set itself."""
    name = one.get("name") if isinstance(one, dict) else None
    return isinstance(name, str) and isinstance(inside, str) and canonical(name) == canonical(inside)


def _labels(key: str, values: list[Any]) -> list[str]:
    """What a run's folder is called after each value of an axis; empty for the only one."""
    if len(values) == 1:
        return [""]
    if key == "seeds":
        return [f"seed-{value}" for value in values]
    if key == "parameters":
        return [f"parameters-{place}" for place, _ in enumerate(values, 1)]
    texts = [value["name"] if key == "networks" else str(value) for value in values]
    if key == "weights":
        texts = list(_told_apart(texts))
    if key == "in_distribution":
        texts = [named_after(text) for text in texts]
    return [re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "run" for text in texts]


def _told_apart(files: list[str]) -> Iterator[str]:
    """The names of files without suffix, and with as many folders before them as they need to differ."""
    parts = [(*path.parent.parts, path.stem) for path in map(PureWindowsPath, files)]
    for own in parts:
        others = [other for other in parts if other != own]
        depth = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        yield "-".join(own[-depth:])


def named_after(in_distribution: str) -> str:
    """The name of a run on this in-distribution set: ``mydata`` for ``folder:/home/me/mydata``."""
    name = heading(parse(in_distribution).original)
    return re.sub(r"[/\\:]+", "-", name).replace("++", "+")
