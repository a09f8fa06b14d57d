"""The registry: built-in tables, other packages' plug-ins found without importing them, and what is said of broken ones."""

import importlib
import sys
import textwrap

import pytest

import oodbench
from oodbench import registry
from oodbench.commands.list import list_names
from oodbench.errors import OodbenchError, UsageError


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(name, version, entry_points, **modules): a distribution on the import path, as pip would lay it out."""
    monkeypatch.setattr(registry, "_added", {})
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installed = []

    def install(name: str, version: str, entry_points: str, **modules: str) -> None:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        for module, source in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(source))
            installed.append(module)
        importlib.invalidate_caches()

    yield install
    for module in installed:
        sys.modules.pop(module, None)


GOOD = """
    import oodbench

    class Brightness(oodbench.Detector):
        "The mean of all pixels."

        name = "brightness"
        signals = ("images",)

        def statistics(self, probe):
            return probe.images.flatten(1).mean(1)
    """


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_builtin_targets_are_ours_and_say_what_they_are(family):
    for name, record in registry.records(family).items():
        assert record.target.startswith("oodbench."), name
        assert record.summary, name
        assert record.error == "", name
        assert registry.resolve(record.target) is not None
        if family == "detectors":
            assert record.learns_from, name


def test_plugin_is_found_with_its_owner_and_not_imported(install):
    install("bright-plugin", "2.5", "[oodbench.detectors]\nbrightness = bright_module:Brightness\n", bright_module=GOOD)
    record = registry.records("detectors")["brightness"]
    assert (record.target, record.distribution, record.version) == ("bright_module:Brightness", "bright_plugin", "2.5")
    assert record.owner == "bright_plugin 2.5"
    assert "bright_module" not in sys.modules
    assert registry.check(record).error == ""
    assert isinstance(oodbench.load_detector("brightness"), oodbench.Detector)


def test_plugins_off(install, monkeypatch):
    install("bright-plugin", "2.5", "[oodbench.detectors]\nbrightness = bright_module:Brightness\n", bright_module=GOOD)
    monkeypatch.setenv("OODBENCH_PLUGINS", "0")
    assert "brightness" not in registry.records("detectors")
    assert "msp" in registry.records("detectors")
    with pytest.raises(UsageError, match="unknown detector 'brightness'"):
        registry.load("detectors", "brightness")


def test_broken_plugin_is_a_record_and_fatal_only_where_asked_for(install):
    install("sick-plugin", "0.1", "[oodbench.detectors]\nsick = sick_module:Sick\n", sick_module="1 / 0\n")
    record = registry.records("detectors")["sick"]
    assert record.error == ""  # nothing was imported yet
    checked = registry.check(record)
    assert checked.error == "ZeroDivisionError: division by zero (sick_module.py, line 1)"
    assert "sick_module" in checked.traceback
    assert registry.load("detectors", "msp").__name__ == "MSP"
    with pytest.raises(
        OodbenchError, match=r"'sick' of sick_plugin 0\.1 \(sick_module:Sick\) cannot be imported: ZeroDivision"
    ):
        registry.load("detectors", "sick")


def test_missing_class_is_named(install):
    install("hollow", "1", "[oodbench.detectors]\nhollow = hollow_module:Missing\n", hollow_module="")
    with pytest.raises(OodbenchError, match=r"hollow_module:Missing.*AttributeError"):
        registry.load("detectors", "hollow")


def test_duplicate_names_both_owners_and_leaves_the_rest_alone(install):
    install("first-plugin", "1.0", "[oodbench.detectors]\ntwin = bright_module:Brightness\n", bright_module=GOOD)
    install("second-plugin", "2.0", "[oodbench.detectors]\ntwin = bright_module:Brightness\nown = bright_module:Brightness\n")
    error = registry.records("detectors")["twin"].error
    assert "first_plugin 1.0" in error
    assert "second_plugin 2.0" in error
    with pytest.raises(UsageError, match="registered by"):
        registry.load("detectors", "twin")
    assert registry.load("detectors", "own").__name__ == "Brightness"


def test_builtin_names_are_reserved(install):
    install("thief", "3.1", "[oodbench.detectors]\nmsp = bright_module:Brightness\n", bright_module=GOOD)
    assert registry.records("detectors")["msp"].target == "oodbench.detectors.msp:MSP"
    with pytest.warns(UserWarning, match=r"'msp' of thief 3\.1 uses a name that is reserved .*; the built-in is used$"):
        kind = registry.load("detectors", "msp")
    assert kind.__module__ == "oodbench.detectors.msp"  # the main job goes on
    assert "'msp' of thief 3.1 uses a name that is reserved" in registry.records("detectors")["msp (thief)"].error


def test_a_long_name_is_shown_in_part():
    with pytest.raises(UsageError) as raised:
        registry.find("detectors", "9" * 5000)
    assert str(raised.value) == f"unknown detector '{'9' * 100}…' (oodbench list detectors)"


def test_unknown_names_suggest():
    with pytest.raises(UsageError, match=r"^unknown detector 'mps'; did you mean 'msp'\? \(oodbench list detectors\)$"):
        registry.find("detectors", "mps")
    with pytest.raises(UsageError, match=r"did you mean 'mahalanobis-v' or 'mahalanobis.+' or 'mahalanobis-p' or "):
        registry.find("detectors", "Maha")
    with pytest.raises(UsageError, match=r"did you mean 'mc-dropout'\?"):
        registry.find("detectors", "dropout")
    with pytest.raises(UsageError, match=r"^unknown detector 'zz' \(oodbench list detectors\)$"):
        registry.find("detectors", "zz")
    with pytest.raises(UsageError, match=r"^unknown detector 'zzzzzz' \(oodbench list detectors\)$"):
        registry.find("detectors", "zzzzzz")


@pytest.mark.parametrize(
    "malformed",
    [
        "no section = here\n",
        "[oodbench.detectors]\nonly a name\n",
        "[oodbench.detectors]\nx = a:B\nx = a:B\n",
        "[oodbench.detectors]\nx = 100%:B\n",
    ],
    ids=["no-section", "no-value", "twice", "interpolation"],
)
def test_malformed_entry_points_hide_nobody_else(install, malformed):
    install("bright-plugin", "2.5", "[oodbench.detectors]\nbrightness = bright_module:Brightness\n", bright_module=GOOD)
    install("mangled", "1.0", malformed)
    with pytest.warns(UserWarning, match=r"^mangled: its entry_points.txt cannot be read \(.*\); reinstall mangled$"):
        found = registry.records("detectors")
    assert found["brightness"].version == "2.5"
    assert "msp" in found


def test_malformed_target_hides_nobody_else(install):
    install("mangled", "1.0", "[oodbench.detectors]\nbad = not-a-module:B\nbrightness = m:B\n")
    with pytest.warns(UserWarning, match="not-a-module"):
        found = registry.records("detectors")
    assert "brightness" in found
    assert "bad" not in found


def test_egg_info_without_a_version(install, tmp_path):
    info = tmp_path / "site" / "old_style.egg-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[oodbench.detectors]\nold = m:B\n")
    assert registry.records("detectors")["old"].owner == "old_style"


def test_session_plugin(install):
    install("plain", "1", "", bright_module=GOOD, other_module="class Other:\n    pass\n")
    assert registry.add_plugin("bright_module:Brightness") == "brightness"
    assert registry.add_plugin("other_module:Other") == "other"
    assert registry.records("detectors")["brightness"].owner == "--plugin"
    assert registry.load("detectors", "brightness").__name__ == "Brightness"
    with pytest.raises(
        UsageError,
        match=r"'other' is .*not a subclass of oodbench\.Detector; this command runs detectors, "
        "so --plugin other_module:Other must name a detector",
    ):
        oodbench.load_detector("other")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("bright_module", "takes module:Class or module:function, not 'bright_module'"),
        ("nowhere_module:X", "nowhere_module:X cannot be imported: ModuleNotFoundError"),
        ("bright_module:Missing", "bright_module:Missing cannot be imported: AttributeError"),
    ],
)
def test_session_plugin_that_cannot_be(install, target, message):
    install("plain", "1", "", bright_module=GOOD)
    with pytest.raises(UsageError, match=message):
        registry.add_plugin(target)
    assert registry._added == {}


@pytest.mark.parametrize("first", [(), ("bright_module:Brightness",)], ids=["built-in", "plug-in"])
def test_a_session_plugin_with_a_name_that_is_taken_is_refused(install, first):
    taken, owner = ("brightness", "bright_module:Brightness of --plugin") if first else ("msp", "oodbench.detectors.msp:MSP")
    install("plain", "1", "", bright_module=GOOD, other_module=f"class Other:\n    name = {taken!r}\n")
    for target in first * 2:  # the same one again is no clash
        assert registry.add_plugin(target) == taken
    with pytest.raises(UsageError, match=f"--plugin other_module:Other: the name '{taken}' belongs to {owner}"):
        registry.add_plugin("other_module:Other")
    assert registry.find("detectors", taken).target != "other_module:Other"


def test_a_session_plugin_may_be_what_its_package_registers(install):
    install("bright-plugin", "2.5", "[oodbench.detectors]\nbrightness = bright_module:Brightness\n", bright_module=GOOD)
    assert registry.add_plugin("bright_module:Brightness") == "brightness"
    assert registry.load("detectors", "brightness").__name__ == "Brightness"


@pytest.mark.parametrize("name", ["a:b", "a\nb", 3])
def test_a_plugin_with_a_name_that_is_no_row_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "oddly_named.py").write_text(f"class Odd:\n    name = {name!r}\n")
    monkeypatch.delitem(sys.modules, "oddly_named", raising=False)
    with pytest.raises(UsageError, match="cannot name a detector"):
        registry.add_plugin("oddly_named:Odd")
    monkeypatch.delitem(sys.modules, "oddly_named")


def test_a_plugin_is_summed_up_by_its_docstring_or_its_target(install, capsys):
    points = "[oodbench.detectors]\nbright = bright_module:Brightness\nbare = bare_module:Bare\n"
    bare = "import oodbench\n\nclass Bare(oodbench.Detector):\n    pass\n"
    install("bright-plugin", "2.5", points, bright_module=GOOD, bare_module=bare)
    found = registry.records("detectors")
    assert registry.check(found["bright"]).summary == "The mean of all pixels"
    assert registry.check(found["bare"]).summary == ""  # not the one of its base class
    list_names("detectors")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("bare ", "bright "))] == [
        "bare_module:Bare",
        "bright_module:Brightness",
    ]
