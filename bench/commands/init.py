"""``oodbench init``: write a commented suite file, from options or from answers on a terminal."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from oodbench.commands.common import Debug, check_names
from oodbench.datasets.name import BY_PATH, CORRUPTIONS, LEVELS, base_of, canonical, parse, parse_unchanged
from oodbench.errors import UsageError, one_line
from oodbench.registry import unknown

NONE = "none"  # in place of a model
MODELS = {"digits": "resnet8-digits", "cifar10": "resnet20-cifar10"}  # by in-distribution set: what is proposed

TEMPLATE = """\
# A suite of oodbench. Check it, then run it:
#   {command} --dry-run
#   {command}
# If folders of images are below another folder, add --data DIR to both.

title = {title}

# The network: one of `oodbench list models`, timm:NAME, torchvision:NAME, or module:function for a function of yours.
{model}

# The file of its weights, from the working folder. A function of yours, and some built-in networks, bring their own.
{weights}

# The set that the network knows. Its split train fits detectors; images of its split test are those to accept.
in_distribution = {in_distribution}

# The pixels per side to which all images are resized. Without it: the size of the in-distribution set.
{size}

# The number of in-distribution test images to set apart, to calibrate detectors on images that the network has not seen.
# validation = 100

# What detectors may learn from: no image of a set (unsupervised), half of each set (per-shift), one other set (transfer),
# or a set that is not tested, to choose hyper-parameters only (validation).
protocols = {protocols}
{transfer_from}
{validation_set}

# Some of `oodbench list detectors`, or "all".
detectors = {detectors}

# Hyper-parameters of a detector.
# [parameters.knn]
# k = 10

# The sets to tell from in_distribution: those of `oodbench list datasets`, folders of images (folder:PATH) and lists of them
# (imglist:FILE), and corruptions or attacks of any set, such as +haze with levels, or +pgd.
{sets}"""

Read = TypeVar("Read")


def init(
    file: Annotated[
        Path | None, typer.Argument(help="File to write (default: named after the in-distribution set).", show_default=False)
    ] = None,
    in_distribution: Annotated[str | None, typer.Option(metavar="NAME", help="Set that the network knows.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Network: a name, module:function, or none.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="Weights of the network.")] = None,
    size: Annotated[str | None, typer.Option(metavar="N", help="Pixels per side to which all images are resized.")] = None,
    dataset: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Set to tell from the in-distribution set; repeat for several. A corruption without a level gets all five.",
        ),
    ] = [],  # noqa: B006
    detector: Annotated[list[str], typer.Option(metavar="NAME", help="Detector to run, or all; repeat for several.")] = [],  # noqa: B006
    protocol: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Protocol: unsupervised, per-shift, transfer or validation; repeat for several."),
    ] = [],  # noqa: B006
    transfer_from: Annotated[
        str | None, typer.Option(metavar="NAME", help="Set that transfer learns from (default: the first one).")
    ] = None,
    validation_set: Annotated[
        str | None, typer.Option(metavar="NAME", help="Set that validation chooses hyper-parameters on, which is not tested.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: use the default where no option is given.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    debug: Debug = False,
) -> None:
    """Write a suite file with comments, to change and to run. On a terminal, ask for what no option gives.

    The last line of the output is the file.
    """
    from oodbench.models import imports_code
    from oodbench.paths import write_atomically
    from oodbench.suite import ALL, PROTOCOLS
    from oodbench.suites.grid import named_after
    from oodbench.suites.load import below_working_folder, read_study, suite_names, title_of

    if file is not None:
        _require_free(file, force)
    names = ("in-distribution", "model", "dataset", "detector", "protocol")
    answers = (in_distribution, model, dataset, detector, protocol)
    missing = [f"--{name}" for name, given in zip(names, answers, strict=True) if not given]
    asking = bool(missing) and not yes
    if asking and not (sys.stdin and sys.stdin.isatty()):
        raise UsageError(f"init can ask on a terminal only; give {', '.join(missing)} too, or --yes for their defaults")

    def answer(question: str, given: str | None, default: str | None, read: Callable[[str], Read]) -> Read:
        """What the option says, else the answer on the terminal, else the default; ``read`` raises UsageError for nonsense."""
        if given is None and asking:
            return typer.prompt(question, default=default, show_default=bool(default), value_proc=_again(read), err=True)
        return read((default or "") if given is None else given)

    inside = answer("In-distribution set, which the network knows", in_distribution, "digits", _set)
    if file is None:  # a suite of the package has a run folder of its own
        file = Path(f"{'my-' * (named_after(inside) in suite_names())}{named_after(inside)}.toml")
        _require_free(file, force)
    proposed = MODELS.get(inside)
    if yes and not (model or proposed):
        raise UsageError(f"{inside} has no default network; give --model NAME, or --model {NONE} for detectors without one")
    network = answer("Network, such as net:build for a function of yours", model, proposed, _model)
    of_network = network and answer("File of its weights, empty if it brings its own", weights, "", _file)
    side = answer("Pixels per side that it takes, empty for the size of the images", size, "", _size)
    listed = answer("Sets to tell from it, separated by commas", _joined(dataset), f"uniform, {inside}+noise", _sets)
    each = [f"{name}@{level}" if level else name for name, levels in listed.items() for level in levels or [0]]
    chosen = answer("Detectors, separated by commas", _joined(detector), ALL, _detectors)
    who = answer("Protocols", _joined(protocol), "unsupervised, per-shift", lambda text: _some(text, "protocol", PROTOCOLS))
    source = None
    if "transfer" in who:
        source = answer("Set that transfer learns from", transfer_from, each[0], lambda text: _some(text, "set", each)[0])
    elif transfer_from is not None:
        raise UsageError("--transfer-from is for the protocol transfer; add --protocol transfer")
    chosen_on = None
    if "validation" in who:
        if validation_set is None and not asking:
            raise UsageError("the protocol validation chooses on a set that is not tested; add --validation-set NAME")
        chosen_on = answer("Set that hyper-parameters are chosen on, which is not tested", validation_set, None, _set)
    elif validation_set is not None:
        raise UsageError("--validation-set is for the protocol validation; add --protocol validation")
    command = f"oodbench run {shlex.quote(str(file))}"
    if network and imports_code(network) and not below_working_folder(file):
        command += " --trust-model"
    text = TEMPLATE.format(
        command=one_line(command),
        title=_toml(title_of(inside, list(listed))),
        model=_line("model", network, "resnet18"),
        weights=_line("weights", of_network, "FILE"),
        in_distribution=_toml(inside),
        size=_line("size", side, 224),
        protocols=_toml(who),
        transfer_from=_line("transfer_from", source, each[0]),
        validation_set=f'{"" if chosen_on else "# "}validation_set = {{ name = {_toml(chosen_on or "NAME")}, split = "test" }}',
        detectors=_toml(ALL if chosen == [ALL] else chosen),
        sets="\n".join(_table(name, levels) for name, levels in listed.items()),
    )
    read_study(text, file)
    write_atomically(file, text.encode())
    print(f"Check what it would run: {one_line(command)} --dry-run")
    print(one_line(str(file)))


def _require_free(file: Path, force: bool) -> None:
    if file.suffix != ".toml":
        raise UsageError(f"{file}: the name of a suite file ends in .toml; write {file}.toml")
    if file.exists() and not force:
        raise UsageError(f"{file} exists; name another file, or replace it with --force")


def _again(read: Callable[[str], Read]) -> Callable[[str], Read]:
    """For a prompt, which reports the error and asks again."""

    def checked(text: str) -> Read:
        try:
            return read(text.strip())
        except UsageError as error:
            raise typer.BadParameter(str(error)) from error

    return checked


def _joined(given: list[str]) -> str | None:
    return ",".join(given) if given else None


def _split(text: str) -> list[str]:
    """The names in a text, without repetitions. Raises UsageError if there is none."""
    names = list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
    if not names:
        raise UsageError("give at least one name")
    return names


def _set(text: str) -> str:
    parse_unchanged(text)
    check_names([], [text], [], {})
    return canonical(text)


def _model(text: str) -> str | None:
    if text == NONE:
        return None
    check_names([], [], [text], {})
    return text


def _file(text: str) -> str | None:
    if text and not Path(text).is_file():
        raise UsageError(f"weights file {text} does not exist; check the path")
    return text or None


def _size(text: str) -> int | None:
    if text and not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"--size takes a whole number of pixels, such as 224, not '{text}'")
    return int(text) if text else None


def _sets(text: str) -> dict[str, list[int]]:
    """Levels by name of each set; a corruption without a level stands for all levels."""
    found: dict[str, list[int]] = {}
    for name in _split(text):
        every = name.rpartition("+")[2] in CORRUPTIONS
        parse(f"{name}@{LEVELS[0]}" if every else name)
        check_names([], [name], [], {})
        found[canonical(name)] = list(LEVELS) if every else []
    return found


def _detectors(text: str) -> list[str]:
    names = _split(text)
    check_names([name for name in names if name != "all"], [], [], {})
    return names


def _some(text: str, what: str, known: Any) -> list[str]:
    names = _split(text)
    for name in names:
        if name not in known:
            raise UsageError(unknown(what, name, known, ", ".join(known)))
    return names


def _toml(value: object) -> str:
    """A text, a number or a list of them: TOML writes these as JSON does, except for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(key: str, value: object, example: object) -> str:
    """A key with its value, or a comment that shows how to give it."""
    return f"{key} = {_toml(value)}" if value is not None else f"# {key} = {_toml(example)}"


def _table(name: str, levels: list[int]) -> str:
    lines = ["[[sets]]", f"name = {_toml(name)}"]
    if levels:
        lines.append(f"levels = {levels}")
    elif base_of(name) in BY_PATH and not parse(name).kind:
        lines.append('# kind = "near-ood"  # by default far-ood')
    return "\n".join([*lines, ""])
