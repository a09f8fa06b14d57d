"""The grammar of set names. All parsing of names is here; no torch is imported.

======================  =====================================================================
``cifar10``             a registered set
``cifar10:airplane``    one class of it, by name or number
``cifar10:not-airplane``  all other classes of it; a class that is called ``not-airplane`` takes precedence
``tinyimagenet:disjoint``  it without the classes that are also in CIFAR-10 (``oodbench.datasets.overlaps``)
``cifar10c/fog@3``      a part of a set that has parts, at a level
``cifar10+haze@3``      a corruption at a level from 1 to 5
``cifar10+jpeg-85``     a benign change, which should raise no alarm
``cifar10+pgd``         an attack, built-in or of another library (``cifar10+foolbox:LinfPGD``)
``cifar10+misclassified``  the images that the network gets wrong, against those that it gets right
``folder:PATH``         a folder of images, absolute or below the data root; ``folder:PATH:class`` is one class
``imglist:FILE``        the images that a text file lists; the same rules as for ``folder:PATH``
======================  =====================================================================

The corruption, benign change or attack comes last: ``cifar10:airplane+haze@3``. Only ``+misclassified`` may follow, with the
level behind it: ``cifar10+haze+misclassified@3``, ``cifar10c/fog+misclassified@3``. A path has one spelling: ``folder:./a/``
is ``folder:a``. A plus sign in a path is doubled: ``folder:a++b+haze@3`` is the folder ``a+b`` under haze.
Results name an absolute path by its last part: ``folder:/home/me/photos`` is ``folder:photos`` there.
"""

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath

from oodbench.errors import UsageError
from oodbench.registry import unknown

CORRUPTIONS = ("noise", "lens-blur", "gaussian-blur", "dirty-lens", "exposure", "snow", "haze", "decolor")
BENIGN = ("jpeg-95", "jpeg-85", "jpeg-75", "grey-level", "pixel-shift")
ATTACKS = ("fgsm", "bim", "pgd", "iterll", "cw", "semantic")
MISCLASSIFIED = "misclassified"  # a kind, and the end of the names of its sets
CHANGED = ("corruption", "benign", "adversarial", MISCLASSIFIED)  # kinds of the sets that are made from another by a change
LEVELS = (1, 2, 3, 4, 5)
NOT = "not-"  # before the class that a selection leaves out
FOLDER, IMAGE_LIST = "folder", "imglist"
BY_PATH = {FOLDER: "folder", IMAGE_LIST: "list"}  # the user's own images, named by a path; what messages call them

# The parts of CIFAR-10-C, named as its authors' files are (Hendrycks & Dietterich, ICLR 2019). The paper's benchmark is
# the mean over the 15 main corruptions; the 4 extra ones are for validation.
MAIN_CORRUPTIONS_C = (
    *("brightness", "contrast", "defocus_blur", "elastic_transform", "fog", "frost", "gaussian_noise", "glass_blur"),
    *("impulse_noise", "jpeg_compression", "motion_blur", "pixelate", "shot_noise", "snow", "zoom_blur"),
)
EXTRA_CORRUPTIONS_C = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
CORRUPTIONS_C = tuple(sorted(MAIN_CORRUPTIONS_C + EXTRA_CORRUPTIONS_C))
# The parts of CURE-TSR, in the order of their numbers, from 1 (Temel et al., NIPS workshop 2017).
CHALLENGES = (
    *("Decolorization", "LensBlur", "CodecError", "Darkening", "DirtyLens", "Exposure"),
    *("GaussianBlur", "Noise", "Rain", "Shadow", "Snow", "Haze"),
)


@dataclass(frozen=True)
class Name:
    """A parsed set name. Absent components are empty.

    Attributes:
        original: the name without its corruption, benign change or attack, as in results.
        base: the registered set, or one of ``BY_PATH``.
        path: the path of a folder or list, absolute or below the data root.
        wanted_class: the one class to keep, by name or number, or the one to leave out after ``NOT``.
        part, part_level: the part of a set that has parts, and its level.
        corruption, level: the generated corruption, and its level.
        benign: the benign change.
        attack: the attack.
        misclassified: whether right and wrong answers of the network on these images are told apart.
    """

    original: str
    base: str
    path: str = ""
    wanted_class: str = ""
    part: str = ""
    part_level: int | None = None
    corruption: str = ""
    level: int | None = None
    benign: str = ""
    attack: str = ""
    misclassified: bool = False

    @property
    def plain(self) -> "Name":
        """The name of the images, whatever the network answers."""
        return replace(self, misclassified=False)

    @property
    def full(self) -> str:
        """The name with its level, as in results."""
        return self.dataset if self.severity is None else f"{self.dataset}@{self.severity}"

    @property
    def dataset(self) -> str:
        """The name without its level, as shown in tables."""
        if self.misclassified:
            return f"{self.plain.dataset}+{MISCLASSIFIED}"
        if change := self.corruption or self.benign or self.attack:
            return f"{self.original}+{change}"
        return self.original if self.part_level is None else self.original.rpartition("@")[0]

    @property
    def whole(self) -> str:
        """The set, or its part, without class and change."""
        if self.path:
            return path_name(self.base, self.path)
        level = "" if self.part_level is None else f"@{self.part_level}"
        return f"{self.base}/{self.part}{level}" if self.part else self.base

    @property
    def severity(self) -> int | None:
        """The level of the corruption or of the part."""
        return self.level if self.corruption else self.part_level

    @property
    def kind(self) -> str:
        """The kind that the name gives the set, one of ``CHANGED``, or empty."""
        if self.misclassified:
            return MISCLASSIFIED
        return "adversarial" if self.attack else "benign" if self.benign else "corruption" if self.corruption else ""


def parse(text: str) -> Name:
    """Parse a name. Raises UsageError for an unknown change or attack, and for a level that is missing or not 1 to 5."""
    try:
        text.encode()
    except UnicodeEncodeError:  # no file of results could hold it
        raise UsageError(f"{text!r} is not valid UTF-8; rename the {BY_PATH.get(base_of(text), FOLDER)}") from None
    original, plus, change = _parts(canonical(text))
    scheme = _scheme(original)
    if MISCLASSIFIED in re.split(r"[+@]", change):
        return _of_answers(text, original, change)
    if original.endswith(":") and original != scheme:
        raise UsageError(f"'{text}' names no class; leave out the colon, or write {original}CLASS")
    if scheme:
        path, _, wanted_class = _path_and_class(original)
        parsed = Name(_recorded(original), scheme[:-1], path.replace("++", "+"), wanted_class.replace("++", "+"))
    else:
        whole, slash, part = original.partition("/")
        base, _, wanted_class = whole.partition(":")
        part, at, level = part.partition("@")
        if (slash and not part) or (at and _level(level) is None):
            raise UsageError(
                f"'{text}' names no part of {base}; write {base}/PART, or {base}/PART@LEVEL with a level from 1 to 5"
            )
        parsed = Name(original, base, "", wanted_class, part, _level(level) if at else None)
    return _with_change(parsed, text, change) if plus else parsed


def parse_unchanged(text: str, otherwise: str = "") -> Name:
    """Parse the name of an in-distribution set, whose images are used as they are.

    Raises UsageError for a corruption, benign change or attack; ``otherwise`` says where the set belongs instead.
    """
    parsed = parse(text)
    if parsed.kind:
        raise UsageError(
            f"{text}: in-distribution images are used without corruption or attack; write {parsed.original}{otherwise}"
        )
    return parsed


def canonical(text: str) -> str:
    """Return the one spelling of a name: without ``.``, and without doubled or closing slashes in its path.

    Accepts any text, also invalid names.
    """
    original, plus, change = _parts(text)
    if not (scheme := _scheme(original)):
        return text
    path, colon, wanted_class = _path_and_class(original)
    one_path = str(PurePosixPath(path)) if path else ""
    return f"{scheme}{one_path}{colon}{wanted_class}{plus}{change}"


def path_name(base: str, path: str) -> str:
    """Return the name of a folder or list, the inverse of ``parse(name).path``."""
    return f"{base}:{path.replace('+', '++')}"


def heading(name: str) -> str:
    """Return a name as headings show it: of the user's own images the path alone. Accepts any text."""
    return name.removeprefix(_scheme(name))


def without_answers(text: str) -> str:
    """Return the name of the images of which ``text``, a name with ``+misclassified``, tells right and wrong answers apart."""
    before, _, level = text.rpartition(f"+{MISCLASSIFIED}")
    return before + level


def recorded(text: str) -> str:
    """Return the name that results have: of an absolute path only its last part. Accepts any text, also invalid names."""
    original, plus, change = _parts(canonical(text))
    return f"{_recorded(original)}{plus}{change}"


def is_absolute(path: str) -> bool:
    """Whether a path is absolute, on this system or another."""
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def is_sound(path: str, absolute: bool = False) -> bool:
    """Whether a path names something below the folder that it is relative to, or may be ``absolute``; never with ``..``."""
    # Parse as Windows does, with both kinds of slash and drives: a path inside by these rules is inside on every system.
    parsed = PureWindowsPath(path)
    return bool(parsed.name) and ".." not in parsed.parts and (not parsed.anchor or (absolute and is_absolute(path)))


def require_sound(base: str, path: str) -> None:
    """Raise UsageError for the path of a folder or list that is neither absolute nor stays below the data root."""
    if not is_sound(path, absolute=True):
        raise UsageError(
            f"{base}:{path} must name a {BY_PATH[base]} without '..'; write {base}:PATH with a path below the data root, or an"
            " absolute one"
        )


def base_of(text: str) -> str:
    """Return the registered set at the start of a name, or one of ``BY_PATH``. Accepts any text, also invalid names."""
    return text.partition("+")[0].partition(":")[0].partition("/")[0]


def source_and_change(dataset: str) -> tuple[str, str]:
    """Split a name: ``cifar10+haze`` into (``cifar10``, ``haze``), ``cifar10c/fog`` into (``cifar10c``, ``fog``).

    For other names, the second value is empty. A slash belongs to a path; in a name without one it precedes a part.
    Accepts any text.
    """
    original, _, change = _parts(dataset)
    if "/" in original and not _scheme(dataset):
        original, _, change = dataset.partition("/")
    return original, change


def require_corruption(corruption: str, level: int | str) -> None:
    """Raise UsageError for an unknown corruption, or a level that is not 1 to 5."""
    if corruption not in CORRUPTIONS:
        raise UsageError(unknown("corruption", corruption, CORRUPTIONS, f"known: {', '.join(CORRUPTIONS)}"))
    if level not in LEVELS:
        wanted = f"'{corruption}' needs a level from 1 (mild) to 5"
        if level == "":
            raise UsageError(f"{wanted}; write {corruption}@1, or in a suite give levels = {list(LEVELS)}")
        raise UsageError(f"{wanted}, not {level}; write {corruption}@1")


def _scheme(text: str) -> str:
    """Return the beginning of a name that holds a path, ``folder:`` or ``imglist:``; else nothing."""
    base, colon, _ = text.partition(":")
    return f"{base}:" if colon and base in BY_PATH else ""


def _parts(text: str) -> tuple[str, str, str]:
    """Split a name before its corruption or attack: at the first plus sign or, after a path, the first that is not doubled."""
    if not _scheme(text):
        return text.partition("+")
    matched = re.match(r"(?:[^+]|\+\+)*", text)
    assert matched  # it matches any text
    original = matched[0]
    return original, text[len(original) :][:1], text[len(original) + 1 :]


def _path_and_class(original: str) -> tuple[str, str, str]:
    """Split a name that holds a path into path, colon and class. The colon of a Windows drive belongs to the path."""
    text = heading(original)
    drive = text[:2] if PureWindowsPath(text).is_absolute() and text[1:2] == ":" else ""
    path, colon, wanted_class = text.removeprefix(drive).partition(":")
    return drive + path, colon, wanted_class


def _recorded(original: str) -> str:
    if not (scheme := _scheme(original)):
        return original
    path, colon, wanted_class = _path_and_class(original)
    return f"{scheme}{PureWindowsPath(path).name if is_absolute(path) else path}{colon}{wanted_class}"


def _with_change(parsed: Name, text: str, change: str) -> Name:
    changing, at, level = change.partition("@")
    if changing in CORRUPTIONS:
        require_corruption(changing, _level(level) or (level and repr(level)))
        return Name(**vars(parsed) | {"corruption": changing, "level": _level(level)})
    if changing not in (*BENIGN, *ATTACKS) and ":" not in changing:  # attacks of other libraries have a colon
        known = [*CORRUPTIONS, *BENIGN, *ATTACKS]
        doubled = f"; write a + in the name of a {BY_PATH[parsed.base]} as ++" if parsed.path else ""
        raise UsageError(unknown("change or attack", changing, known, f"known: {', '.join(known)}{doubled}"))
    if at:
        raise UsageError(f"'{text}': {changing} has no level; write {parsed.original}+{changing}")
    return Name(**vars(parsed) | {"benign" if changing in BENIGN else "attack": changing})


def _of_answers(text: str, original: str, change: str) -> Name:
    """Parse a name that ends in ``+misclassified``, with its level behind it: ``change`` is what follows the ``original``."""
    changes, at, level = change.partition("@")
    before, _, last = f"+{changes}".rpartition("+")
    if last != MISCLASSIFIED or MISCLASSIFIED in before:
        raise UsageError(f"'{text}': +{MISCLASSIFIED} comes last, and behind it the level; write SET+{MISCLASSIFIED}@LEVEL")
    if at and not before and "/" not in original:
        raise UsageError(f"'{text}': {original} has no level; write {original}+{MISCLASSIFIED}")
    parsed = parse(f"{original}{before}{at}{level}")
    if parsed.attack:
        raise UsageError(f"'{text}': an attack is made to be misclassified; write {parsed.original}+{MISCLASSIFIED}")
    return replace(parsed, misclassified=True)


def _level(text: str) -> int | None:
    """Return 1 to 5, or None for any other text, also for ``03``: a set has one name."""
    return int(text) if text in map(str, LEVELS) else None
