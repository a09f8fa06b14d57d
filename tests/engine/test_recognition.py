"""Records of recognition: every source of class probabilities on every set with the network's classes, in the same pass."""

import math
import shutil

import numpy as np
import pytest
import torch
from heard import Heard
from run_folders import figures, files
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

import oodbench
from oodbench import batching, calibration, registry
from oodbench.calibration import evaluate_probabilities, fitted_temperature
from oodbench.classifier import Classifier
from oodbench.datasets.load import load_dataset
from oodbench.engine import fitting
from oodbench.engine.recognition import Recognition, shows_classes
from oodbench.image_set import ImageSet
from oodbench.protocols import held_out, limited
from oodbench.results import pass_file
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite, TestSet
from oodbench.training_set import TrainingSet

SETS = ["digits-heldout", "digits+noise@5", "digits+haze@3", "digits+jpeg-85", "digits+fgsm"]
WITH_CLASSES = {"digits": "in-distribution", "digits+noise@5": "corruption", "digits+haze@3": "corruption",
                "digits+jpeg-85": "benign", "digits+fgsm": "adversarial"}  # fmt: skip
QUICK = {
    "introspective": {"epochs": 3},
    "ensemble": {"members": 3, "epochs": 2},
    "duq": {"epochs": 4},
    "mc-dropout": {"passes": 4},
}
SOURCES = [*("network", *QUICK), *(f"{name}-scaled" for name in ("network", *QUICK))]


class Gives(oodbench.Detector):
    """Gives what a test asks for as class probabilities."""

    name = "gives"

    def __init__(self, what="nothing"):
        self.what = what

    def statistics(self, probe):
        return probe.images.mean((1, 2, 3))

    def probabilities(self, probe):
        if self.what == "an error":
            raise RuntimeError("out of luck")
        if self.what == "an array":
            return probe.softmax.numpy()
        if self.what == "a row":
            return probe.softmax[:1]
        if self.what in ("a zero", "zeros"):
            return uneven(probe.softmax, probe.images) if self.what == "a zero" else (probe.softmax < 0.5).float() / 7
        return torch.full((len(probe), 8), 0.5) if self.what == "halves" else None


def uneven(given, images):
    """Wrong for some images, and 0 for a class that is not the label's: float32."""
    soft = given**0.2
    some = (images * 255).round().sum((1, 2, 3)) % 4 == 0
    soft[some] = soft[some].roll(1, 1)
    never = (soft.argmax(1, keepdim=True) + 3) % 8
    soft = soft.scatter(1, never, 0)
    return (soft / soft.sum(1, keepdim=True)).float()


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    monkeypatch.setattr(registry, "_added", {})
    for name in ("gives", "gives-scaled", "network"):
        registry._added["detectors", name] = registry.Record("detectors", name, "tests:gives", distribution="tests")
    resolve = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda target: Gives if target == "tests:gives" else resolve(target))


def run(out, **options):
    given = {"detectors": ["msp"], "datasets": SETS, "limit": 80, "measure_costs": False, "batch_size": 64} | options
    return oodbench.run(given.pop("suite", "digits"), out=out, device="cpu", **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        names = ["msp", "knn", "odin", *QUICK]
        return run(tmp_path_factory.mktemp("recognition") / "run", detectors=names, parameters=QUICK)


def found_in(folder, set_name):
    return {record.source: record for record in folder.recognition() if record.set_name == set_name}


def logits_of(images):
    classifier = oodbench.load_model("resnet8-digits")
    with torch.no_grad():
        parts = [classifier(batch) for _, batch in batching.batches(images, classifier, [np.arange(len(images))])]
    return torch.cat(parts).double().numpy()


def test_each_source_has_a_record_on_each_set_with_the_networks_classes(finished):
    records = list(finished.recognition())
    sources = {*SOURCES}
    assert {(r.set_name, r.kind) for r in records} == set(WITH_CLASSES.items())
    assert len(records) == len(WITH_CLASSES) * len(sources)
    assert {(r.source, r.detector) for r in records} == {(s, s.removesuffix("-scaled").replace("network", "")) for s in sources}
    assert {(r.status, r.reason, r.n) for r in records} == {("ok", "", 80)}
    assert {r.temperature is None for r in records if not r.source.endswith("-scaled")} == {True}
    assert {r.calibrated_on for r in records if r.source.endswith("-scaled")} == {"training"}
    for source in SOURCES:
        assert len({r.temperature for r in records if r.source == source}) == 1
    assert 0.06 < found_in(finished, "digits")["introspective-scaled"].temperature < 19  # neither bound
    (record,) = (r for r in records if (r.source, r.set_name) == ("introspective", "digits+haze@3"))
    assert record.corruption.corruption == "haze"
    assert record.parameters["epochs"] == 3
    assert record.code
    assert {r.attack.attack for r in records if r.kind == "adversarial"} == {"fgsm"}


@pytest.mark.parametrize("name", ["digits", "digits+noise@5", "digits+haze@3"])
def test_the_networks_figures_are_those_of_its_softmax(finished, name):
    images = limited(load_dataset(name), 80, 0)
    logits, labels = logits_of(images), images.labels.numpy()
    train = load_dataset("digits", split="train")
    apart = train.select(torch.from_numpy(np.flatnonzero(held_out(len(train), train.labels.numpy(), 0))))
    temperature = fitted_temperature(logits_of(apart), apart.labels.numpy())
    for source, t in (("network", 1), ("network-scaled", temperature)):
        record = found_in(finished, name)[source]
        expected = evaluate_probabilities(softmax(logits / t, axis=1), labels)
        found = record.figures.model_dump(exclude={"aurc", "excess_aurc"})
        assert found == pytest.approx(expected.model_dump(), rel=1e-4, abs=1e-8)
        assert record.figures.nll == pytest.approx(
            -log_softmax(logits / t, 1)[np.arange(80), labels].mean(), rel=1e-4, abs=1e-8
        )
    scaled = found_in(finished, name)["network-scaled"]
    assert scaled.temperature == pytest.approx(temperature, rel=1e-4)
    assert scaled.calibrated_on == "training"


@pytest.mark.parametrize("name", QUICK)
def test_a_detectors_figures_are_those_of_its_probabilities(finished, name):
    record = found_in(finished, "digits+haze@3")[name]
    images = limited(load_dataset("digits+haze@3"), 80, 0)
    classifier, train = oodbench.load_model("resnet8-digits"), load_dataset("digits", split="train")
    detector = oodbench.load_detector(name, **record.parameters)
    detector.fit(classifier, train, train.labels)
    probe = oodbench.probe.Probe(classifier, images.images.float() / 255, detector.signals)
    given = detector.probabilities(probe).detach().double().numpy()
    expected = evaluate_probabilities(given, images.labels.numpy())
    found = record.figures.model_dump(exclude={"aurc", "excess_aurc"})
    assert found == pytest.approx(expected.model_dump(), rel=1e-3, abs=1e-6)


def given_by(detector, classifier, images):
    """Image by image: float64 (N, classes)."""
    rows = [detector.probabilities(oodbench.probe.Probe(classifier, x[None].float() / 255)) for x in images.images]
    return torch.cat(rows).detach().double().numpy()


def slowly_scaled(row, temperature):
    logs = [math.log(max(float(p), np.finfo(np.float64).tiny)) / temperature for p in row]
    powers = [math.exp(log - max(logs)) for log in logs]
    return [power / sum(powers) for power in powers]


def slow_nll(probabilities, labels, temperature):
    rows = zip(probabilities, labels, strict=True)
    return sum(-math.log(max(slowly_scaled(row, temperature)[label], 1e-300)) for row, label in rows) / len(labels)


@pytest.mark.parametrize("name", ["introspective", "gives"])
def test_a_scaled_detector_against_a_slow_reference(tmp_path, name):
    """Its temperature is that of a search over the likelihood of held-out images, which it was not fitted on."""
    parameters = QUICK.get(name, {"what": "a zero"})
    folder = run(tmp_path / "run", detectors=[name], datasets=["digits+haze@3"], parameters={name: parameters})
    classifier, train = oodbench.load_model("resnet8-digits"), load_dataset("digits", split="train")
    apart = train.select(torch.from_numpy(np.flatnonzero(held_out(len(train), train.labels.numpy(), 0))))
    detector = registry.resolve("tests:gives")(**parameters) if name == "gives" else oodbench.load_detector(name, **parameters)
    detector.fit(classifier, train, train.labels)
    calibrating, labels = given_by(detector, classifier, apart), apart.labels.tolist()
    assert (calibrating == 0).any() == (name == "gives")
    search = minimize_scalar(
        lambda log: slow_nll(calibrating, labels, math.exp(log)),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-8},
    )
    temperature = math.exp(search.x)
    assert 0.06 < temperature < 19  # neither bound
    images = limited(load_dataset("digits+haze@3"), 80, 0)
    given = given_by(detector, classifier, images)
    expected = evaluate_probabilities([slowly_scaled(row, temperature) for row in given], images.labels.numpy())
    record = found_in(folder, "digits+haze@3")[f"{name}-scaled"]
    assert record.temperature == pytest.approx(temperature, rel=1e-3)
    assert record.figures.model_dump(exclude={"aurc", "excess_aurc"}) == pytest.approx(
        expected.model_dump(), rel=2e-3, abs=1e-6
    )
    unscaled = found_in(folder, "digits+haze@3")[name].figures
    assert (record.figures.accuracy, record.figures.nll != unscaled.nll) == (unscaled.accuracy, True)
    assert oodbench.verify(folder.path).ok


def test_a_probability_of_zero_is_scaled_as_the_smallest_double(tmp_path):
    """Here that of every label, as the network is right: then the highest temperature is best."""
    options = {"detectors": ["gives"], "datasets": ["digits+haze@1"], "parameters": {"gives": {"what": "zeros"}}}
    found = found_in(run(tmp_path / "run", **options), "digits")
    least = -math.log(np.finfo(np.float64).tiny)
    assert found["gives"].figures.nll == pytest.approx(least)
    assert found["gives-scaled"].temperature == 20
    assert found["gives-scaled"].figures.nll == pytest.approx((least - math.log(7)) / 20 + math.log(7), rel=1e-9)
    assert oodbench.verify(tmp_path / "run").ok


def test_the_figures_beside_a_detectors_scores_are_those_of_the_in_distribution_images(finished):
    inside = found_in(finished, "digits")
    for record in finished.records():
        if record.detector in QUICK and record.status == "ok":
            of = record.calibration
            for source, one in ((record.detector, of.detector), ("network", of.network)):
                assert inside[source].figures.model_dump(exclude={"aurc", "excess_aurc"}) == one.model_dump()
        else:
            assert record.calibration is None


def test_the_network_alone_needs_no_detector_that_gives_probabilities(tmp_path, monkeypatch):
    oodbench.load_model("resnet8-digits")  # its training, the first time, is not counted
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
    options = {"datasets": ["digits+haze@3"], "protocols": ["unsupervised"]}
    folder = run(tmp_path / "run", **options)
    assert {r.set_name: r.source for r in folder.recognition()}.keys() == {"digits", "digits+haze@3"}
    assert sum(seen) == 4 + 80 + 87 + 80 + 80  # checks, accuracy, the held-out images for the temperature, both sides
    assert {r.source for r in folder.recognition()} == {"network", "network-scaled"}
    before, calls = files(folder), len(seen)
    run(tmp_path / "run", **options)
    assert files(folder).items() >= {name: of for name, of in before.items() if name.startswith("passes")}.items()
    assert len(seen) == calls + 3  # a finished run only checks that the network takes the images


def test_members_of_an_ensemble_see_each_image_once(tmp_path, monkeypatch):
    options = {"detectors": ["ensemble"], "datasets": ["digits+haze@3"], "protocols": ["unsupervised"]}
    options |= {"parameters": {"ensemble": QUICK["ensemble"]}}
    run(tmp_path / "first", **options)  # trains the members, which the cache keeps
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
    folder = run(tmp_path / "run", **options)
    assert found_in(folder, "digits+haze@3")["ensemble"].status == "ok"
    assert sum(seen) == 4 + 80 + 3 * (87 + 80 + 80)


def test_scores_are_the_same_without_it(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Recognition, "riders", lambda self, images: [])
    monkeypatch.setattr(Recognition, "measured", lambda self, test_set, cache: [])
    without = run(tmp_path / "run", detectors=["msp", "knn", "odin", *QUICK], parameters=QUICK)
    assert not list(without.recognition())
    expected = figures(finished)
    for place, record in figures(without).items():
        for values in (record, expected[place]):
            values["arrays"] = {role: of for role, of in values["arrays"].items() if "probabilities" not in role}
            del values["calibration"]
        assert record == expected[place]


def test_a_run_without_records_of_recognition_gets_them_where_a_pass_is_due(finished, tmp_path):
    """As a folder of an earlier oodbench."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    (folder.passes_path / "digits.safetensors").unlink()
    for path in folder.pass_files():
        records = [record for record in pass_file.read_records(path) if record.task == "detection"]
        used = {name for record in records for name in record.arrays.values()} & pass_file.array_names(path)
        pass_file.write(path, records, pass_file.read_arrays(path, used), folder.manifest().settings)
    before = files(folder)
    options = {"detectors": ["msp", "knn", "odin", *QUICK], "parameters": QUICK}
    run(folder.path, **options)
    assert not list(folder.recognition())
    assert {name for name, of in files(folder).items() if before.get(name) != of} <= {"run.json"}
    run(folder.path, **options, fresh=False, datasets=[*SETS, "digits+haze@4"])
    assert {record.set_name for record in folder.recognition()} == {"digits", "digits+haze@4"}
    assert oodbench.verify(folder.path).ok
    (folder.passes_path / "digits+haze@3.safetensors").unlink()
    run(folder.path, **options)
    again, whole = (found_in(of, "digits+haze@3") for of in (folder, finished))
    assert {name: r.figures for name, r in again.items()} == {name: r.figures for name, r in whole.items()}


def test_a_run_without_records_of_scaled_detectors_gets_them_where_a_pass_is_due(finished, tmp_path, monkeypatch):
    """As a folder of an earlier oodbench, which is read, verified, compared and published as it is."""
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    new = {f"{name}-scaled" for name in QUICK}
    for path in folder.pass_files():
        records = [one for one in pass_file.read_records(path) if one.task == "detection" or one.source not in new]
        used = {name for record in records for name in record.arrays.values()} & pass_file.array_names(path)
        pass_file.write(path, records, pass_file.read_arrays(path, used), folder.manifest().settings)
    assert oodbench.verify(folder.path).ok
    assert {record.source for record in folder.recognition()} == {*SOURCES} - new
    assert oodbench.compare(folder.path, finished.path).ok
    assert oodbench.publish([folder.path], tmp_path / "site").exists()
    options = {"detectors": ["msp", "knn", "odin", *QUICK], "parameters": QUICK}
    before, fit = files(folder), calibration.fitted_temperature
    monkeypatch.setattr(calibration, "fitted_temperature", lambda *given: pytest.fail("nothing is lacking"))
    run(folder.path, **options)
    assert {name for name, of in files(folder).items() if before.get(name) != of} <= {"run.json"}
    monkeypatch.setattr(calibration, "fitted_temperature", fit)
    run(folder.path, **options, datasets=[*SETS, "digits+haze@4"])
    scaled = [record for record in folder.recognition() if record.source in new]
    assert {record.set_name for record in scaled} == {"digits", "digits+haze@4"}
    assert len(scaled) == 2 * len(new)
    assert oodbench.verify(folder.path).ok
    for record in scaled:
        if record.set_name == "digits":
            assert record.figures == found_in(finished, "digits")[record.source].figures


def test_a_resumed_run_fits_only_what_is_lacking(finished, tmp_path, monkeypatch):
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    (folder.passes_path / "digits+haze@3.safetensors").unlink()
    before, calls, fit = files(folder), [], calibration.fitted_temperature
    monkeypatch.setattr(calibration, "fitted_temperature", lambda *given: calls.append(given) or fit(*given))
    options = {"detectors": ["msp", "knn", "odin", *QUICK], "parameters": QUICK}
    run(folder.path, **options)
    assert len(calls) == 1 + len(QUICK)
    after = files(folder)
    assert {name for name, of in before.items() if after[name] != of} <= {"run.json"}
    again, whole = (found_in(of, "digits+haze@3") for of in (folder, finished))
    assert {name: (r.figures, r.temperature) for name, r in again.items()} == {
        name: (r.figures, r.temperature) for name, r in whole.items()
    }
    run(folder.path, **options)
    assert len(calls) == 1 + len(QUICK)


def test_images_set_apart_calibrate_the_temperature(tmp_path):
    sets, detectors = [TestSet(name="digits+haze", levels=[3])], ["msp", "mc-dropout"]
    chosen = Suite(name="s", model="resnet8-digits", in_distribution="digits", detectors=detectors, sets=sets, validation=100)
    folder = oodbench.run(chosen, out=tmp_path / "run", measure_costs=False)
    for source in ("network-scaled", "mc-dropout-scaled"):
        scaled = [record for record in folder.recognition() if record.source == source]
        assert {record.calibrated_on for record in scaled} == {"validation"}
        assert len({record.temperature for record in scaled}) == 1
    assert {record.n for record in scaled} == {577 - 100}
    assert oodbench.verify(folder.path).ok


def test_only_protocols_that_learn_still_judge_every_image(tmp_path):
    folder = run(tmp_path / "run", detectors=["odin", "mc-dropout"], protocols=["per-shift", "transfer"])
    assert {record.n for record in folder.recognition()} == {80}
    assert {record.set_name for record in folder.recognition()} == set(WITH_CLASSES) - {"digits+jpeg-85"}  # benign: no rows
    assert oodbench.verify(folder.path).ok


def test_what_cannot_be_judged_says_why(tmp_path):
    names, sets = ["msp", "gives"], ["digits+haze@3"]
    nothing = run(tmp_path / "nothing", detectors=names, datasets=sets, protocols=["unsupervised"])
    for source in ("gives", "gives-scaled"):
        record = found_in(nothing, "digits+haze@3")[source]
        assert (record.status, record.reason) == ("skipped", "gives gives no class probabilities with its hyper-parameters")
    assert set(nothing.frame().status) == {"ok"}
    of_shape = "gave float64 of shape (1, 8) for 64 images; return floats (N, classes)"
    reasons = {"an error": "out of luck", "halves": "do not sum to 1", "an array": "gave ndarray", "a row": of_shape}
    for what, why in reasons.items():
        options = {"detectors": names, "datasets": sets, "parameters": {"gives": {"what": what}}}
        folder = run(tmp_path / what, **options, protocols=["unsupervised"])
        for name in ("digits", *sets):
            found = found_in(folder, name)
            assert (found["gives"].status, found["gives-scaled"].status, found["network"].status) == ("failed", "failed", "ok")
            assert why in found["gives"].reason
            assert why in found["gives-scaled"].reason
        assert folder.frame().set_index("detector").status.to_dict() == {"msp": "ok", "gives": "failed"}
        assert oodbench.verify(folder.path).ok


def test_without_labels_of_held_out_images_nothing_is_scaled(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "TrainingSet", lambda images, labels, *rest: TrainingSet(images, None, *rest))
    options = {"datasets": ["digits+haze@3"], "protocols": ["unsupervised"]}
    found = found_in(run(tmp_path / "run", detectors=["mc-dropout", "introspective"], **options), "digits+haze@3")
    assert found["mc-dropout"].status == "ok"
    for source in ("network-scaled", "mc-dropout-scaled"):
        record = found[source]
        assert (record.status, record.reason) == ("skipped", "there are no images with labels to calibrate on")
    assert found["introspective"].reason == found["introspective-scaled"].reason
    assert "needs the labels" in found["introspective"].reason
    assert oodbench.verify(tmp_path / "run").ok


def test_a_detector_keeps_its_name_where_another_would_be_scaled_under_it(tmp_path):
    heard = Heard()
    options = {"datasets": ["digits+haze@3"], "protocols": ["unsupervised"], "progress": heard}
    parameters = {name: {"what": "a zero"} for name in ("gives", "gives-scaled")}
    folder = run(tmp_path / "run", detectors=[*parameters], parameters=parameters, **options)
    found = found_in(folder, "digits+haze@3")
    assert {source: record.detector for source, record in found.items()} == {
        "network": "", "network-scaled": "", "gives": "gives", "gives-scaled": "gives-scaled",
        "gives-scaled-scaled": "gives-scaled",
    }  # fmt: skip
    assert found["gives-scaled"].temperature is None
    says = "gives is not measured with temperature scaling, because gives-scaled is a detector; rename that detector"
    assert says in heard.lines
    assert oodbench.verify(folder.path).ok


def test_a_detector_with_the_name_of_the_network_is_not_measured_as_one(tmp_path):
    heard = Heard()
    options = {"datasets": ["digits+haze@3"], "protocols": ["unsupervised"], "parameters": {"network": {"what": "zeros"}}}
    folder = run(tmp_path / "run", detectors=["network"], progress=heard, **options)
    assert {one.detector for one in folder.recognition()} == {""}
    why = "are not measured, because the network's have this name; rename the detector"
    assert f"the class probabilities of the detector network {why}" in heard.lines


def test_a_network_of_fewer_classes_has_no_figures(tmp_path):
    (tmp_path / "data").mkdir()
    model = f"{__name__}:four_classes"
    folder = run(tmp_path / "run", suite=None, in_distribution="digits", model=model, datasets=["digits+haze@3"])
    for record in folder.recognition():
        assert record.status == "failed"
        assert record.reason == "labels lie in 0 to 7, and there are 4 classes; give a probability of each"
    assert {record.source for record in folder.recognition()} == {"network", "network-scaled"}


def four_classes():
    torch.manual_seed(0)
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4)))


def test_a_run_that_does_not_ask_the_network_judges_nothing(tmp_path):
    folder = run(tmp_path / "run", detectors=["pixels"], datasets=["digits+haze@3"])
    assert not list(folder.recognition())


def test_which_sets_show_the_networks_classes():
    pixels, labels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.arange(3)
    pixels[1:] += torch.tensor([1, 2], dtype=torch.uint8)[:, None, None, None]
    inside = ImageSet(pixels, labels, "inside", classes=("a", "b", "c"))
    other = ImageSet(pixels + 7, labels, "other", classes=("a", "b", "c"))
    assert shows_classes(other, inside)  # other photographs of the same things
    assert not shows_classes(ImageSet(pixels + 7, labels, "other", classes=("a", "c", "b")), inside)
    assert not shows_classes(ImageSet(pixels + 7, None, "other", classes=("a", "b", "c")), inside)
    nameless, changed = ImageSet(pixels, labels, "inside"), ImageSet(pixels + 7, labels, "other")
    assert not shows_classes(changed, nameless)
    assert shows_classes(ImageSet(pixels + 7, labels, "inside+haze@1", base=nameless.identity), nameless)
    assert not shows_classes(changed, ImageSet(pixels, None, "inside"))
