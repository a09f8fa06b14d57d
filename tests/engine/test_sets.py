"""The engine on sets that are made from others: attacks, with negatives of their own or without; first images; decolor."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from heard import Heard
from named_pipe import pipe_at

import oodbench
from oodbench import metrics, passes, registry
from oodbench.batching import pieces_of
from oodbench.datasets.load import load_dataset
from oodbench.datasets.name import parse
from oodbench.detectors import TABLE as DETECTORS
from oodbench.engine import timing
from oodbench.engine.fitting import Fitting
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.engine.network import load_network
from oodbench.engine.plan import plan
from oodbench.errors import BadData, Unsuitable, UsageError
from oodbench.heads import StandardisedSquare
from oodbench.inference import thresholds
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.gather import gather
from oodbench.progress import Progress
from oodbench.suite import Suite, TestSet
from oodbench.suites.load import load_suite

FILTERED = {"eps": 0.2, "filtered": True, "noise_std": 0.05}


def suite(*sets: TestSet, **values) -> Suite:
    return Suite(
        name="sets",
        model="resnet8-digits",
        detectors=["msp", "mahalanobis-fe", "pixels"],
        **{"in_distribution": "digits", "protocols": ["unsupervised", "per-shift"], **values},
        sets=list(sets),
    )


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A run against an attack, the same attack filtered (another step count), and two corruptions, transfer included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        sets = (
            TestSet(name="digits+fgsm", first=200),
            TestSet(name="digits+pgd", settings=FILTERED),
            TestSet(name="digits+haze@2"),
            TestSet(name="photos"),
        )
        protocols = ["unsupervised", "per-shift", "transfer"]
        return oodbench.run(
            suite(*sets, protocols=protocols, transfer_from="digits+haze@2"),
            out=tmp_path_factory.mktemp("runs") / "attacked",
            measure_costs=False,
        )


def cells_of(folder, dataset):
    return {(c.detector, c.protocol): c for c in folder.records() if c.dataset == dataset}


def arrays_of(folder, cell):
    return folder.arrays(cell)


def test_every_cell_has_figures(attacked):
    assert {(c.status, c.reason) for c in attacked.records()} == {("ok", "")}
    assert len(list(attacked.records())) == 3 * 4 + 2 * 4 + 2 * 3


def test_an_attack_is_made_of_the_first_images_and_stands_against_all_test_images(attacked):
    cells = cells_of(attacked, "digits+fgsm")
    plain = cells["msp", "unsupervised"]
    assert (plain.n_in, plain.n_out, plain.kind, plain.level) == (577, 200, "adversarial", None)
    assert plain.attack.attack == "fgsm"
    assert plain.attack.settings["eps"] == 0.05
    assert 0 < plain.attack.success_rate <= 1
    assert plain.attack.kept == plain.attack.attacked == 200
    assert plain.auroc_clean is None


def test_a_filtered_attack_stands_against_its_own_clean_and_noisy_images(attacked, monkeypatch):
    cell = cells_of(attacked, "digits+pgd")["mahalanobis-fe", "unsupervised"]
    assert cell.attack.settings["filtered"] is True
    assert cell.n_out == cell.attack.kept < 577
    assert cell.n_in == 2 * cell.n_out
    assert cell.in_fingerprint != cells_of(attacked, "digits+fgsm")["msp", "unsupervised"].in_fingerprint
    found = arrays_of(attacked, cell)
    assert cell.auroc_clean == metrics.auroc(found["in_scores"][: cell.n_out], found["out_scores"])


def test_no_base_image_of_a_filtered_attack_is_both_learnt_from_and_tested(attacked):
    cells = cells_of(attacked, "digits+pgd")
    found = arrays_of(attacked, cells["pixels", "per-shift"])
    kept = cells["pixels", "per-shift"].attack.kept
    learnt = {*found["in_fit"] % kept, *found["in_choose"] % kept, *found["out_fit"], *found["out_choose"]}
    tested = {*found["in_test"] % kept, *found["out_test"]}
    assert len(learnt) + len(tested) == kept
    assert not learnt & tested
    # Under transfer the rows that were learnt from are those of digits and digits+haze@2.
    moved = arrays_of(attacked, cells["pixels", "transfer"])
    assert 0 < len(moved["in_test"]) == 2 * len(moved["out_test"]) < 2 * kept


def test_a_folder_holds_one_making_of_a_set(attacked):
    """Other settings would leave old figures beside new ones; they are refused before anything is attacked."""
    for change in ({"settings": FILTERED | {"steps": 3}}, {"settings": FILTERED, "first": 100}):
        with pytest.raises(UsageError, match=r"holds a run with set digits\+pgd = .* choose another folder"):
            oodbench.run(suite(TestSet(name="digits+pgd", **change)), out=attacked.path, measure_costs=False)


def test_misspelt_settings_are_said_before_anything_is_deleted(attacked):
    with pytest.raises(UsageError, match="unknown setting 'epsilon' of pgd"):
        oodbench.run(suite(TestSet(name="digits+pgd", settings={"epsilon": 1})), out=attacked.path, fresh=True)
    assert list(attacked.records())
    with pytest.raises(UsageError, match="settings are for attacks"):
        plan(suite(TestSet(name="photos", settings={"eps": 1})))


def test_a_broken_source_of_transfer_fails_what_learns_from_it(tmp_path, monkeypatch):
    from oodbench.datasets import photos
    from oodbench.errors import BadData

    def broken(root, split):
        raise BadData("photos.png is no image; replace it")

    monkeypatch.setattr(photos, "photos", broken)
    chosen = suite(
        TestSet(name="photos", tested=False), TestSet(name="uniform"), protocols=["transfer"], transfer_from="photos"
    )
    cells = oodbench.run(chosen, out=tmp_path, measure_costs=False).records()
    assert {(c.status, c.reason) for c in cells} == {
        ("failed", "transfer learns from photos: photos.png is no image; replace it")
    }


def test_a_limit_goes_before_the_first_images(tmp_path):
    chosen = suite(TestSet(name="digits+fgsm", first=200), TestSet(name="digits+snow@1", first=30))
    folder = oodbench.run(chosen, detectors=["msp"], limit=60, out=tmp_path, measure_costs=False)
    assert {c.set_name: c.n_out for c in folder.records()} == {"digits+fgsm": 60, "digits+snow@1": 60}


def test_what_changes_nothing_is_skipped_with_the_reason(tmp_path):
    folder = oodbench.run(suite(TestSet(name="digits+decolor@5")), out=tmp_path, detectors=["msp"], measure_costs=False)
    (cell,) = folder.records()
    assert (cell.status, cell.kind) == ("skipped", "corruption")
    assert cell.reason == "decolor leaves the images of digits as they are: there is nothing to detect"


def test_an_attack_without_a_network_is_skipped(tmp_path):
    chosen = suite(TestSet(name="digits+pgd")).model_copy(update={"model": None, "detectors": ["pixels"]})
    folder = oodbench.run(chosen, out=tmp_path, measure_costs=False)
    assert {(c.status, c.reason) for c in folder.records()} == {
        ("skipped", "digits+pgd is made against a network; name one (a suite's model)")
    }
    assert any("skipped: there is no network to attack" in line for line in plan(chosen))


def test_the_plan_attacks_nothing(monkeypatch):
    monkeypatch.setattr("oodbench.datasets.adversarial.attacks.attack", None)
    lines = plan(suite(TestSet(name="digits+pgd", first=50), TestSet(name="digits+haze@1", first=40)))
    assert "outside   digits+pgd (adversarial), 50 images, to be attacked against resnet8-digits" in lines
    assert "outside   digits+haze@1 (corruption), 40 images" in lines


def test_what_it_costs_is_said_before_the_first_set_goes_by_and_after_the_last(tmp_path):
    told = Heard()
    oodbench.run(suite(TestSet(name="photos")), out=tmp_path, limit=40, progress=told)
    (said,) = (place for place, line in enumerate(told.everything) if line.startswith("1 set will take about "))
    assert all(name in told.everything[said] for name in ("msp", "mahalanobis-fe", "pixels"))
    (after,) = (place for place, line in enumerate(told.everything) if line.startswith("the detectors took "))
    assert all(name in told.everything[after] for name in ("msp", "mahalanobis-fe", "pixels"))
    assert said < told.everything.index("photos: 40 images") < after
    told.everything.clear()
    oodbench.run(suite(TestSet(name="photos")), out=tmp_path, limit=40, progress=told)
    assert not [line for line in told.everything if "took" in line]  # nothing was left to do


@pytest.mark.parametrize(("others", "rest"), [(1, "1 other 1 s"), (2, "2 others 2 s")])
def test_the_slowest_detectors_are_named_and_the_others_counted(others, rest):
    slow = {f"slow-{place}": 9.0 for place in range(5)}
    quick = {f"quick-{place}": 1.0 for place in range(others)}
    assert timing.format_breakdown(slow | quick).endswith(f"slow-4 9 s, {rest}")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([{"name": "photos"}, {"name": "photos"}], "lists the set photos twice"),
        ([{"name": "digits+haze", "levels": [1, 2]}, {"name": "digits+haze@2"}], "lists the set digits\\+haze@2 twice"),
    ],
)
def test_a_set_named_twice_is_an_error(tmp_path, sets, message):
    from oodbench.suites.load import load_suite

    written = "".join("\n[[sets]]\n" + "".join(f"{k} = {v!r}\n" for k, v in one.items()) for one in sets)
    file = tmp_path / "twice.toml"
    file.write_text('in_distribution = "digits"\ndetectors = ["pixels"]\n' + written)
    with pytest.raises(UsageError, match=message):
        load_suite(file)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 3000 + "]" * 3000, r"deep.toml is nested too deeply; write its arrays and tables flat"),
        ("{a=" * 3000 + "1" + "}" * 3000, r"deep.toml is nested too deeply"),
        ("9" * 5000, r"deep.toml is not valid TOML: Exceeds the limit"),
    ],
)
def test_toml_that_python_cannot_hold_is_refused_in_one_line(tmp_path, value, message):
    from oodbench.suites.load import load_suite

    file = tmp_path / "deep.toml"
    text = 'in_distribution = "digits"\ndetectors = ["knn"]\n[[sets]]\nname = "photos"\nsettings = {a = VALUE}\n'
    file.write_text(text.replace("VALUE", value))
    with pytest.raises(UsageError, match=message):
        load_suite(file)


SUITE = 'in_distribution = "digits"\ndetectors = ["pixels"]\n{}\n[[sets]]\nname = "photos"\n'


@pytest.mark.parametrize("name", ["/abs", "../x", "..", ".", "a/b", "a/", "C:x", r"a\\b"])
def test_the_name_of_a_suite_is_one_folder(tmp_path, name):
    from oodbench.suites.load import load_suite

    file = tmp_path / "mine.toml"
    file.write_text(SUITE.format(f'name = "{name}"'))
    with pytest.raises(UsageError, match=r"mine.toml: name: '.*' is not the name of one folder; leave out / and the like"):
        load_suite(file)
    file.write_text(SUITE.format('name = "ünser größter.Test 2"'))
    assert load_suite(file).name == "ünser größter.Test 2"


def test_a_suite_from_elsewhere_names_no_code_unless_it_is_trusted(tmp_path, monkeypatch):
    from oodbench.suites.load import load_suite

    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    there, below, link = tmp_path / "x.toml", tmp_path / "here" / "below" / "x.toml", tmp_path / "here" / "link.toml"
    for file in (there, below):
        file.write_text(SUITE.format('model = "os:abort"'))
    link.symlink_to(there)
    for file in (there, link, "../x.toml"):
        with pytest.raises(UsageError, match=r"x?.toml: model: os:abort is code, .* if you trust the file, use --trust-model"):
            load_suite(file)
    for file in (below, "below/x.toml"):
        assert load_suite(file).model == "os:abort"
    assert load_suite(there, trust_model=True).model == "os:abort"
    there.write_text(SUITE.format('model = "torchvision:resnet18"'))
    assert load_suite(there).model == "torchvision:resnet18"


def test_a_pipe_in_place_of_a_suite_is_named(tmp_path):
    from oodbench.suites.load import load_suite

    with pipe_at(tmp_path / "x.toml"), pytest.raises(BadData, match=r"x.toml is not a regular file; replace it with one"):
        load_suite(tmp_path / "x.toml")


def test_parameters_of_a_detector_that_the_suite_does_not_list_are_an_error(tmp_path):
    from oodbench.suites.load import load_suite

    file = tmp_path / "typo.toml"
    text = 'in_distribution = "digits"\ndetectors = ["knn"]\n[parameters.{}]\nk = 3\n[[sets]]\nname = "photos"\n'
    file.write_text(text.format("kn"))
    with pytest.raises(UsageError, match=r"parameters: unknown detector 'kn'; did you mean 'knn'\? \(its detectors are knn\)"):
        load_suite(file)
    file.write_text(text.format("odin"))  # known, but not in this suite
    with pytest.raises(UsageError, match="parameters: unknown detector 'odin'"):
        load_suite(file)
    file.write_text("\ufeff" + text.format("knn"), encoding="utf-8")  # a byte order mark, as some editors write
    assert load_suite(file).parameters == {"knn": {"k": 3}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learn_share = 0.1", r"wrong.toml: unknown key 'learn_share'; did you mean 'learnt_share'\?"),
        ("[[sets]]\nname = 'a'\nlevel = [1]", "unknown key 'level'; did you mean 'levels'"),
        ("validation = '100'", 'validation takes a whole number, not "100"'),
        ("learnt_share = '0.2'", 'learnt_share takes a number, not "0.2"'),
        ("learnt_share = 0.6", "learnt_share takes at most 0.5, not 0.6"),
    ],
)
def test_a_wrong_key_or_value_of_a_suite_is_named(tmp_path, line, message):
    from oodbench.suites.load import load_suite

    file = tmp_path / "wrong.toml"
    file.write_text(f'in_distribution = "digits"\ndetectors = ["knn"]\n{line}\n[[sets]]\nname = "photos"\n')
    with pytest.raises(UsageError, match=message):
        load_suite(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:p+q", r"unknown change or attack 'q'.*; write a \+ in the name of a folder as \+\+"),
        ("digits+hazy@1", "unknown change or attack 'hazy'"),
        ("digits+haze", "'haze' needs a level"),
        ("digits+pgd@2", "pgd has no level"),
        ("digits/fog@1", "digits has no parts"),
        ("digits/", "names no part of digits"),
        ("cifar10c/fog@9", "names no part of cifar10c"),
    ],
)
def test_names_that_there_are_not(name, message):
    with pytest.raises(UsageError, match=message):
        load_dataset(name)


@pytest.mark.parametrize("change", ["noise@5", "pgd", "foolbox:LinfPGD"])
def test_the_in_distribution_set_is_not_changed_and_says_so(change):
    """``digits+noise@5`` once ran on clean digits."""
    whole = suite(TestSet(name="photos"), in_distribution=f"digits:3+{change}")
    for act in (lambda: oodbench.run(whole), lambda: plan(whole)):
        with pytest.raises(UsageError, match=r"without corruption or attack; write digits:3, and list digits:3.*"):
            act()
    options = {"model": None, "dataset": f"digits:3+{change}"}
    with pytest.raises(UsageError, match=r"digits:3\+.*: in-distribution images .* or attack; write digits:3$"):
        thresholds.fit("pixels", **options)  # noise once went into the fit and the threshold


def test_names_of_parts_and_changes():
    parsed = parse("curetsr:stop/Haze@3+noise@2")
    assert (parsed.base, parsed.wanted_class, parsed.part, parsed.part_level) == ("curetsr", "stop", "Haze", 3)
    assert (parsed.original, parsed.corruption, parsed.level, parsed.attack) == ("curetsr:stop/Haze@3", "noise", 2, "")
    assert parse("folder:a/b@2+pgd").attack == "pgd"
    assert parse("folder:a/b@2").path == "a/b@2"


def test_settings_and_first_are_for_where_they_mean_something():
    with pytest.raises(UsageError, match="settings are for attacks"):
        load_dataset("digits+haze@1", settings={"eps": 0.1})
    with pytest.raises(UsageError, match="first is 0"):
        load_dataset("digits", first=0)
    with pytest.raises(Unsuitable, match="made against a network"):
        load_dataset("digits+pgd")
    few = load_dataset("digits+haze@1", first=7)
    assert (len(few), few.base) == (7, load_dataset("digits").fingerprint)
    assert torch.equal(few.images, load_dataset("digits+haze@1").images[:7])
    assert np.array_equal(few.base_index, np.arange(7))


def test_clean_twins_of_corruptions_attacks_and_negatives(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    sets = [TestSet(name="digits+noise@3"), TestSet(name="digits+pgd", settings=FILTERED), TestSet(name="photos")]
    paired = {"lid": {"reference": "paired"}}
    folder = oodbench.run(suite(*sets), detectors=["lid"], parameters=paired, out=tmp_path / "run", limit=200)
    found = {(cell.dataset, cell.protocol): cell for cell in folder.records()}
    assert len(found) == 6
    for (dataset, _), cell in found.items():
        assert (cell.status, cell.non_default) == (
            "skipped" if dataset == "photos" else "ok",
            {"reference": ("paired", "fixed")},
        )
    said = {cell.reason for cell in found.values() if cell.status == "skipped"}
    assert said == {"needs the clean twin of each image; only sets with a corruption or an attack have them"}
    with pytest.raises(UsageError, match="holds a run with batch_size = 256, not 100"):
        oodbench.run(suite(*sets), detectors=["lid"], parameters=paired, out=tmp_path / "run", limit=200, batch_size=100)
    with pytest.raises(UsageError, match="holds a run with protocols"):
        oodbench.run(
            suite(*sets), detectors=["lid"], parameters=paired, out=tmp_path / "run", limit=200, protocols=["per-shift"]
        )


@pytest.fixture
def registered(monkeypatch):
    """registered(image_set) registers a data set ``theirs`` that is this one."""

    def register(images):
        monkeypatch.setattr("oodbench.datasets.load.their_loader", lambda root, split: images, raising=False)
        record = registry.Record("datasets", "theirs", "oodbench.datasets.load:their_loader", distribution="their-package")
        monkeypatch.setitem(registry._added, ("datasets", "theirs"), record)

    return register


@pytest.mark.parametrize(("limit", "whole"), [(None, True), (40, False)])
def test_official_corruptions_have_the_test_images_for_twins(registered, limit, whole):
    """Where all that they were made from is among the in-distribution test images."""
    digits = load_dataset("digits")
    rows = torch.arange(len(digits)).flip(0)[:200]
    dimmed = replace(digits.select(rows), images=digits.images[rows] // 2, kind="corruption")
    registered(dimmed)
    loaded = LoadedSuite(suite(TestSet(name="theirs")), Progress(), limit=limit)
    loaded.load_test_sets(Progress())
    (test_set,) = loaded.test_sets
    assert test_set.error is None
    assert (test_set.images.clean is not None) is whole
    if whole:
        assert torch.equal(test_set.images.clean, digits.images[rows])


def test_a_set_of_other_classes_is_not_attacked(registered, tmp_path):
    """Its labels are numbers that the network knows, and mean something else."""
    registered(replace(load_dataset("digits"), classes=tuple("abcdefgh"), images=255 - load_dataset("digits").images))
    folder = oodbench.run(suite(TestSet(name="theirs+fgsm")), detectors=["msp"], out=tmp_path, measure_costs=False)
    said = "the network knows other classes than those of theirs; attack digits"
    assert {(cell.status, cell.reason) for cell in folder.records()} == {("skipped", said)}


# Validation images


class Counts(oodbench.Detector):
    """Counts what it is shown; calibrates on held-out images."""

    name = "counts"
    signals = ("images",)
    calibrates = True

    def observe(self, probe):
        totals = probe.images.double().sum((1, 2, 3))
        self._seen = [*getattr(self, "_seen", []), *zip(probe.held_out.tolist(), totals, strict=True)]

    def finish(self):
        self.held_out_ = torch.tensor([float(total) for held_out, total in self._seen if held_out]).double()
        self.others_ = sum(not held_out for held_out, _ in self._seen)

    def statistics(self, probe):
        return probe.images.double().mean((1, 2, 3)) + 0 * self.held_out_.sum()


class CountsTraining(Counts):
    """The same without calibrating."""

    name = "counts-training"
    calibrates = False


def test_validation_images_calibrate_and_are_in_no_set(monkeypatch):
    for kind in (Counts, CountsTraining):
        record = registry.Record("detectors", kind.name, f"tests:{kind.name}", distribution="tests")
        monkeypatch.setitem(registry._added, ("detectors", kind.name), record)
    kinds, resolve = {f"tests:{kind.name}": kind for kind in (Counts, CountsTraining)}, registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda target: kinds.get(target) or resolve(target))
    chosen = suite(TestSet(name="digits+noise@3"), TestSet(name="digits+fgsm"), TestSet(name="photos"), validation=100)
    chosen = chosen.override(detectors=["counts", "counts-training", "klm", "purview"])
    network = load_network(chosen, None, torch.device("cpu"), None)
    loaded = LoadedSuite(chosen, Progress(), limit=200, network=network)
    loaded.load_test_sets(Progress())
    loaded.attack(Progress())
    whole, apart = load_dataset("digits"), loaded.validation
    assert len(apart) == 100
    assert np.bincount(apart.labels).min() >= 8  # stratified
    for images in (loaded.in_distribution, *(one.images for one in loaded.test_sets[:2])):
        assert len(images) == 200
        assert not np.isin(images.base_index, apart.base_index).any()
        assert images.identity == apart.identity == whole.fingerprint
    assert len(LoadedSuite(chosen, Progress()).in_distribution) == len(whole) - 100

    fitting = Fitting(loaded, Progress())
    fitting.fit(chosen.detectors)
    assert not fitting.broken
    counts, training = fitting.detectors["counts"], fitting.detectors["counts-training"]
    assert (counts.others_, len(training.held_out_), training.others_) == (len(loaded.train), 0, len(loaded.train))
    torch.testing.assert_close(counts.held_out_, (apart.images.double() / 255).sum((1, 2, 3)), rtol=1e-6, atol=0)
    softmax = loaded.classifier(apart.images.float() / 255).softmax(1).detach().double()
    predicted = softmax.argmax(1)
    typical = torch.stack([softmax[predicted == k].mean(0) for k in range(8)])
    torch.testing.assert_close(fitting.detectors["klm"].typical_, typical, rtol=1e-4, atol=1e-6)
    purview = fitting.detectors["purview"]
    by_hand = StandardisedSquare()
    pieces = pieces_of(np.arange(100), 256)
    columns = passes.statistics({purview: [{}]}, loaded.classifier, apart, pieces, clean=True)[0][purview]
    by_hand.calibrate(columns[:, :, : -len(purview.variants)])
    np.testing.assert_allclose(fitting.heads[purview].mean_, by_hand.mean_, rtol=1e-6)


def test_rows_say_whether_the_network_has_seen_what_they_calibrate_on(tmp_path):
    remarks = {}
    for validation in (0, 100):
        chosen = suite(TestSet(name="photos"), validation=validation).override(detectors=["msp", "klm", "purview", "pixels"])
        folder = oodbench.run(chosen, out=tmp_path / f"{validation}", limit=60, measure_costs=False)
        frame = folder.frame()
        remarks[validation] = dict(zip(frame.detector + " " + frame.protocol, frame.reason, strict=True))
        assert {r.calibrated_on for r in folder.records()} == ({"", "validation"} if validation else {"", "training"})
    seen = "calibrated on training images, which the network has seen"
    rows = ["msp unsupervised", "klm unsupervised", "purview unsupervised", "purview per-shift", "pixels unsupervised"]
    assert [remarks[0][row] for row in rows] == ["", seen, seen, "", ""]
    assert set(remarks[100].values()) == {""}
    with pytest.raises(UsageError, match=r"validation = 300, but digits \(test\) has 577 images; set apart at most 288"):
        LoadedSuite(suite(TestSet(name="photos"), validation=300), Progress())
    assert "calibrate digits (test), 100 images set apart" in plan(chosen)


def test_rows_name_another_share_of_what_they_learnt_from(tmp_path):
    """Lee et al. 2018 fit on a tenth of the attacked images."""
    of = suite(TestSet(name="digits+fgsm", first=200), learnt_share=0.1).override(detectors=["msp", "mahalanobis-fe"])
    tenth = oodbench.run(of, out=tmp_path / "tenth", measure_costs=False)
    half = oodbench.run(of.model_copy(update={"learnt_share": 0.5}), out=tmp_path / "half", measure_costs=False)
    counts = {(r.detector, r.protocol, r.n_out, tuple(r.non_default)) for r in tenth.records()}
    assert counts == {
        ("msp", "unsupervised", 200, ()),
        ("mahalanobis-fe", "unsupervised", 200, ()),
        ("mahalanobis-fe", "per-shift", 180, ("learnt_share",)),
    }
    both = render(*gather([half, tenth])[:1], width=None)
    for row in ("mahalanobis-fe (learnt_share=0.1)  per-shift", "mahalanobis-fe                     per-shift"):
        assert row in both
    with pytest.raises(UsageError, match="learnt_share"):
        oodbench.run(of.model_copy(update={"learnt_share": 0.2}), out=tmp_path / "tenth")


def test_a_benign_change_of_another_set_is_refused():
    for name in ("photos+jpeg-85", "digits-heldout+grey-level"):
        with pytest.raises(
            UsageError, match=rf"{name.replace('+', '.')}: alarms are right on images of another set; test digits"
        ):
            LoadedSuite(suite(TestSet(name=name)), Progress())
    LoadedSuite(suite(TestSet(name="digits:3+grey-level")), Progress())


def test_benign_sets_without_unsupervised_say_why_they_have_no_row(tmp_path):
    heard = Heard()
    of = suite(TestSet(name="digits+grey-level"), protocols=["per-shift"]).override(detectors=["pixels"])
    assert oodbench.run(of, out=tmp_path / "run", progress=heard).frame().empty
    assert "digits+grey-level: benign sets are tested under unsupervised only; add --protocol unsupervised" in heard.lines


@pytest.mark.parametrize(("before", "after"), [({}, {"validation": 50}), ({"validation": 50}, {}), ({}, {"learnt_share": 0.1})])
def test_a_folder_names_the_key_of_the_suite_that_changed(tmp_path, before, after):
    options = {"out": tmp_path / "run", "limit": 40, "measure_costs": False}
    base = suite(TestSet(name="photos")).override(detectors=["msp"])
    oodbench.run(base.model_copy(update=before), **options)
    key = next(iter(before | after))
    with pytest.raises(UsageError, match=f"holds a run with {key} = "):
        oodbench.run(base.model_copy(update=after), **options)


def test_a_text_is_one_name_and_not_its_letters(tmp_path):
    options = {"detectors": "msp", "datasets": "photos", "protocols": "unsupervised", "limit": 20, "measure_costs": False}
    (record,) = oodbench.run("digits", out=tmp_path / "run", **options).records()
    assert (record.detector, record.dataset, record.protocol) == ("msp", "photos", "unsupervised")
    assert set(load_suite("digits").override(detectors="all").detectors) >= set(DETECTORS)


def test_one_class_against_the_other_classes(tmp_path):
    """The others share a base with the in-distribution images, and none of them is one of these."""
    sets = ("digits:not-3", "digits:4", "digits:not-3+noise@5")
    options = {"detectors": ["pixels"], "measure_costs": False, "out": tmp_path / "run"}
    frame = oodbench.run(in_distribution="digits:3", datasets=sets, **options).frame()
    whole = load_dataset("digits")
    assert set(frame["status"]) == {"ok"}
    assert len(frame) == 6  # two protocols
    first = frame.drop_duplicates("dataset").set_index("dataset")
    assert first["kind"].to_dict() == {"digits:not-3": whole.kind, "digits:4": whole.kind, "digits:not-3+noise": "corruption"}
    assert first["n_out"]["digits:not-3"] == int((whole.labels != 3).sum())
    loaded = LoadedSuite(suite(TestSet(name="digits:not-4"), in_distribution="digits:3"), Progress())
    loaded.load_test_sets(Progress())
    assert "of digits:not-4: also in digits:3 (test), which is in-distribution" in str(loaded.test_sets[0].error)


@pytest.mark.parametrize("model", ["resnet8-digits", "torchvision:resnet18"])  # with weights, and without
def test_a_plan_refuses_the_layers_that_a_run_refuses(model, tmp_path):
    chosen = suite(TestSet(name="photos")).model_copy(update={"model": model, "layers": ["layer9"]})
    for act in (lambda: plan(chosen, data=tmp_path), lambda: oodbench.run(chosen, data=tmp_path, out=tmp_path / "run")):
        with pytest.raises(UsageError, match=f"unknown layer 'layer9' of {model}; did you mean 'layer"):
            act()


def test_a_reason_is_said_once_in_a_plan_with_the_number_of_sets_and_in_a_run(tmp_path):
    chosen = load_suite("digits").override(
        datasets=["cifar10c/fog@1", "uniform", "cifar10c/fog@2", "cifar10c/fog@3"], detectors=["msp"]
    )
    lines = [line for line in plan(chosen, data=tmp_path) if line.startswith("outside")]
    assert [line.split(",")[0] for line in lines] == [
        "outside   cifar10c/fog@1 (far-ood) and 2 others",
        "outside   uniform (far-ood)",
    ]
    assert "skipped: cifar10c (test) is missing: " in lines[0]
    heard = Heard()
    folder = oodbench.run(chosen, data=tmp_path, limit=20, out=tmp_path / "run", measure_costs=False, progress=heard)
    assert [line.split(":")[0] for line in heard.lines if "is missing" in line] == ["cifar10c/fog@1"]
    assert [one.set_name for one in folder.records() if "is missing" in one.reason] == [f"cifar10c/fog@{n}" for n in (1, 2, 3)]
