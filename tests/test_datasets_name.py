"""The grammar of set names: every form, what it says of a set, and what is refused."""

import pytest

from oodbench.datasets import benign
from oodbench.datasets.adversarial import attacks
from oodbench.datasets.corruptions import CORRUPTIONS as GENERATED
from oodbench.datasets.name import (
    ATTACKS,
    BENIGN,
    BY_PATH,
    CHALLENGES,
    CORRUPTIONS,
    CORRUPTIONS_C,
    EXTRA_CORRUPTIONS_C,
    LEVELS,
    MAIN_CORRUPTIONS_C,
    Name,
    base_of,
    canonical,
    heading,
    parse,
    path_name,
    recorded,
    require_corruption,
    source_and_change,
    without_answers,
)
from oodbench.errors import UsageError


def test_the_names_are_those_of_the_code():
    assert tuple(GENERATED) == CORRUPTIONS
    assert tuple(attacks.ATTACKS) == ATTACKS
    assert tuple(benign.BENIGN) == BENIGN
    assert len({*CORRUPTIONS, *BENIGN, *ATTACKS}) == len(CORRUPTIONS) + len(BENIGN) + len(ATTACKS)


def test_the_parts_of_the_published_corruptions():
    assert (len(CORRUPTIONS_C), len(MAIN_CORRUPTIONS_C), len(EXTRA_CORRUPTIONS_C), len(CHALLENGES)) == (19, 15, 4, 12)
    assert set(CORRUPTIONS_C) == set(MAIN_CORRUPTIONS_C) | set(EXTRA_CORRUPTIONS_C)


@pytest.mark.parametrize(
    ("text", "name", "dataset", "severity", "kind"),
    [
        ("cifar10", Name("cifar10", "cifar10"), "cifar10", None, ""),
        ("cifar10:airplane", Name("cifar10:airplane", "cifar10", wanted_class="airplane"), "cifar10:airplane", None, ""),
        ("cifar10:not-0", Name("cifar10:not-0", "cifar10", wanted_class="not-0"), "cifar10:not-0", None, ""),
        ("cifar10:0", Name("cifar10:0", "cifar10", wanted_class="0"), "cifar10:0", None, ""),
        ("cifar10c/fog@3", Name("cifar10c/fog@3", "cifar10c", part="fog", part_level=3), "cifar10c/fog", 3, ""),
        ("cifar10c/fog", Name("cifar10c/fog", "cifar10c", part="fog"), "cifar10c/fog", None, ""),
        (
            "cifar10c:cat/fog@3",
            Name("cifar10c:cat/fog@3", "cifar10c", wanted_class="cat", part="fog", part_level=3),
            *("cifar10c:cat/fog", 3, ""),
        ),
        ("cifar10+haze@3", Name("cifar10", "cifar10", corruption="haze", level=3), "cifar10+haze", 3, "corruption"),
        ("cifar10+pgd", Name("cifar10", "cifar10", attack="pgd"), "cifar10+pgd", None, "adversarial"),
        ("cifar10+jpeg-85", Name("cifar10", "cifar10", benign="jpeg-85"), "cifar10+jpeg-85", None, "benign"),
        (
            "cifar10+foolbox:LinfPGD",
            Name("cifar10", "cifar10", attack="foolbox:LinfPGD"),
            *("cifar10+foolbox:LinfPGD", None, "adversarial"),
        ),
        (
            "cifar10:airplane+haze@1",
            Name("cifar10:airplane", "cifar10", wanted_class="airplane", corruption="haze", level=1),
            *("cifar10:airplane+haze", 1, "corruption"),
        ),
        (
            "curetsr/Haze@3+noise@5",  # the severity is that of the last change
            Name("curetsr/Haze@3", "curetsr", part="Haze", part_level=3, corruption="noise", level=5),
            *("curetsr/Haze@3+noise", 5, "corruption"),
        ),
        (
            "curetsr/Haze@3+pgd",
            Name("curetsr/Haze@3", "curetsr", part="Haze", part_level=3, attack="pgd"),
            *("curetsr/Haze@3+pgd", 3, "adversarial"),
        ),
        ("folder:a/b c", Name("folder:a/b c", "folder", path="a/b c"), "folder:a/b c", None, ""),
        ("folder:a/b:cat", Name("folder:a/b:cat", "folder", path="a/b", wanted_class="cat"), "folder:a/b:cat", None, ""),
        ("folder:a@2", Name("folder:a@2", "folder", path="a@2"), "folder:a@2", None, ""),
        (
            "folder:a/b+snow@1",
            Name("folder:a/b", "folder", path="a/b", corruption="snow", level=1),
            *("folder:a/b+snow", 1, "corruption"),
        ),
        ("folder:a++b", Name("folder:a++b", "folder", path="a+b"), "folder:a++b", None, ""),
        ("folder:++", Name("folder:++", "folder", path="+"), "folder:++", None, ""),
        ("folder:a:c++++", Name("folder:a:c++++", "folder", path="a", wanted_class="c++"), "folder:a:c++++", None, ""),
        (
            "folder:./a+++haze@2",  # the folder a+ under haze
            Name("folder:a++", "folder", path="a+", corruption="haze", level=2),
            *("folder:a+++haze", 2, "corruption"),
        ),
        (
            "folder:a++b+foolbox:LinfPGD",
            Name("folder:a++b", "folder", path="a+b", attack="foolbox:LinfPGD"),
            *("folder:a++b+foolbox:LinfPGD", None, "adversarial"),
        ),
        ("folder:", Name("folder:", "folder"), "folder:", None, ""),
        ("imglist:", Name("imglist:", "imglist"), "imglist:", None, ""),
        ("imglist:a/b c.txt", Name("imglist:a/b c.txt", "imglist", path="a/b c.txt"), "imglist:a/b c.txt", None, ""),
        (
            "imglist:./a++b.txt:3+haze@2",
            Name("imglist:a++b.txt:3", "imglist", path="a+b.txt", wanted_class="3", corruption="haze", level=2),
            *("imglist:a++b.txt:3+haze", 2, "corruption"),
        ),
        (
            "imglist:/home/me/a.txt+pgd",
            Name("imglist:a.txt", "imglist", path="/home/me/a.txt", attack="pgd"),
            *("imglist:a.txt+pgd", None, "adversarial"),
        ),
    ],
)
def test_every_form(text, name, dataset, severity, kind):
    found = parse(text)
    assert found == name
    assert (found.dataset, found.severity, found.kind) == (dataset, severity, kind)


@pytest.mark.parametrize("base", BY_PATH)
@pytest.mark.parametrize("path", ["a", "a+b", "+", "a++", "a/+b", "a+haze@3"])
def test_every_path_has_a_name(base, path):
    name = path_name(base, path)
    assert (parse(name).path, parse(f"{name}+haze@3").path) == (path, path)
    assert heading(name) == name.partition(":")[2]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        *(("cifar10", "cifar10"), ("cifar10:cat+haze@3", "cifar10"), ("cifar10c:cat/fog@3", "cifar10c/fog@3")),
        *(("cifar10c/fog", "cifar10c/fog"), ("folder:a++b:cat+pgd", "folder:a++b"), ("imglist:/a/b.txt:3", "imglist:/a/b.txt")),
    ],
)
def test_the_whole_set_behind_a_name(text, whole):
    assert parse(text).whole == whole


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_corruption_at_every_level(corruption, level):
    found = parse(f"digits+{corruption}@{level}")
    assert (found.corruption, found.level, found.attack) == (corruption, level, "")


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack(attack):
    assert (parse(f"digits+{attack}").attack, parse(f"digits+{attack}").corruption) == (attack, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar10:", "'cifar10:' names no class; leave out the colon, or write cifar10:CLASS"),
        (
            "cifar10c/",
            "'cifar10c/' names no part of cifar10c; write cifar10c/PART, or cifar10c/PART@LEVEL with a level from 1 to 5",
        ),
        ("cifar10c/@3", "'cifar10c/@3' names no part of cifar10c"),
        ("cifar10c/fog@", "'cifar10c/fog@' names no part of cifar10c"),
        *((f"cifar10c/fog@{level}", "with a level from 1 to 5") for level in ("0", "6", "x", "-1", "1.0", "²", "11", "03")),
        ("cifar10+haze", r"^'haze' needs a level from 1 \(mild\) to 5; write haze@1, or in a suite give levels = \[1, 2, 3"),
        *(
            (f"cifar10+haze@{level}", r"'haze' needs a level from 1 \(mild\) to 5, not '")
            for level in ("0", "6", "x", "-1", "03", "٣")
        ),
        ("cifar10+haze@", r"^'haze' needs a level from 1 \(mild\) to 5; write haze@1"),
        ("cifar10+haez@3", "unknown change or attack 'haez'; did you mean 'haze'"),
        ("folder:b\udcff", "is not valid UTF-8; rename the folder"),
        ("imglist:b\udcff", "is not valid UTF-8; rename the list"),
        ("folder:a+b", r"unknown change or attack 'b'.*; write a \+ in the name of a folder as \+\+"),
        ("imglist:a+b.txt", r"unknown change or attack 'b.txt'.*; write a \+ in the name of a list as \+\+"),
        ("cifar10+", "unknown change or attack ''"),
        ("cifar10+pgd@3", r"'cifar10\+pgd@3': pgd has no level; write cifar10\+pgd"),
        ("cifar10+foolbox:LinfPGD@3", "LinfPGD has no level"),
        ("cifar10+haze@3+noise@1", "'haze' needs a level"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_corruption_alone_is_checked():
    require_corruption("haze", 5)
    with pytest.raises(UsageError, match="unknown corruption 'pgd'"):
        require_corruption("pgd", 1)
    for level in (0, 6, "3"):
        with pytest.raises(UsageError, match="'haze' needs a level"):
            require_corruption("haze", level)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((f"folder:{path}", "folder:a") for path in ("a", "a/", "./a", "././a//", "a/.")),
        *(("folder:a//b/./c/:cat", "folder:a/b/c:cat"), ("folder:./a/+haze@1", "folder:a+haze@1")),
        *((text, text) for text in ("folder:a/../b", "folder:/a", "folder:..", "folder:", "cifar10c/fog@3", "./a/", "")),
        *((f"folder:{path}", "folder:.") for path in (".", "./", "././")),
        *(("imglist:./a//b.txt:3+haze@1", "imglist:a/b.txt:3+haze@1"), ("imglist:/a.txt", "imglist:/a.txt")),
    ],
)
def test_a_folder_has_one_name(text, name):
    assert canonical(text) == canonical(canonical(text)) == name
    if name.startswith("folder:a+") or name.endswith(("a", "cat")):
        assert parse(text) == parse(name)


@pytest.mark.parametrize(
    ("text", "base"),
    [
        *(
            ("cifar10", "cifar10"),
            ("cifar10:airplane", "cifar10"),
            ("cifar10+haze@3", "cifar10"),
            ("cifar10+nothing", "cifar10"),
        ),
        *(("cifar10c/fog@3", "cifar10c"), ("cifar10c:cat/fog@3", "cifar10c"), ("curetsr/Haze@9", "curetsr")),
        *(("folder:a/b", "folder"), ("folder:a/b:cat+haze@1", "folder"), ("folder", "folder"), ("", ""), ("+/:", "")),
        ("imglist:a/b.txt:3+haze@1", "imglist"),
    ],
)
def test_the_base_of_any_text(text, base):
    assert base_of(text) == base


@pytest.mark.parametrize(
    ("dataset", "source", "change"),
    [
        *(("digits", "digits", ""), ("digits+haze", "digits", "haze"), ("digits+foolbox:LinfPGD", "digits", "foolbox:LinfPGD")),
        *(("digits+art:a/b", "digits", "art:a/b"), ("cifar10:cat+haze", "cifar10:cat", "haze")),
        *(("cifar10c/fog", "cifar10c", "fog"), ("cifar10c:cat/fog", "cifar10c:cat", "fog")),
        *(
            ("folder:a/b", "folder:a/b", ""),
            ("folder:a/b+haze", "folder:a/b", "haze"),
            ("folder:a/b:cat", "folder:a/b:cat", ""),
        ),
        *(("folder:a++b", "folder:a++b", ""), ("folder:a+++haze", "folder:a++", "haze")),
        *(("imglist:a/b.txt:3", "imglist:a/b.txt:3", ""), ("imglist:a/b.txt+haze", "imglist:a/b.txt", "haze")),
        *(("a set of somebody", "a set of somebody", ""), ("", "", "")),
    ],
)
def test_source_and_change(dataset, source, change):
    assert source_and_change(dataset) == (source, change)


@pytest.mark.parametrize(
    ("text", "plain", "dataset", "level"),
    [
        ("digits+misclassified", "digits", "digits+misclassified", None),
        ("digits+haze+misclassified@3", "digits+haze@3", "digits+haze+misclassified", 3),
        ("digits+jpeg-85+misclassified", "digits+jpeg-85", "digits+jpeg-85+misclassified", None),
        ("cifar10c/fog+misclassified@2", "cifar10c/fog@2", "cifar10c/fog+misclassified", 2),
        ("cifar10:airplane+misclassified", "cifar10:airplane", "cifar10:airplane+misclassified", None),
        ("folder:/a/b++c+misclassified", "folder:/a/b++c", "folder:b++c+misclassified", None),
    ],
)
def test_answers_on_a_set(text, plain, dataset, level):
    found = parse(text)
    assert (found.kind, found.dataset, found.severity) == ("misclassified", dataset, level)
    assert found.plain == parse(plain)
    assert without_answers(text) == plain
    assert found.full == recorded(text)
    assert parse(found.full).full == found.full


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("digits+haze@3+misclassified", r"comes last, and behind it the level; write SET\+misclassified@LEVEL"),
        ("digits+misclassified+haze@3", r"comes last, and behind it the level"),
        ("digits+misclassified@3", r"digits has no level; write digits\+misclassified"),
        ("digits+haze+misclassified", "'haze' needs a level from 1"),
        ("digits+haze+misclassified@6", "'haze' needs a level from 1"),
        ("digits+pgd+misclassified", r"an attack is made to be misclassified; write digits\+misclassified"),
        ("digits+misclassified+misclassified", r"comes last, and behind it the level"),
    ],
)
def test_names_of_answers_that_are_none(text, says):
    with pytest.raises(UsageError, match=says):
        parse(text)
