"""Records of recognition: every source of class probabilities on every set with the network's classes, in the same pass."""

import shutil

import numpy as np
import pytest
import torch
from run_folders import figures, files
from scipy.special import log_softmax, softmax

import oodbench
from oodbench import batching, registry
from oodbench.calibration import evaluate_probabilities, fitted_temperature
from oodbench.classifier import Classifier
from oodbench.datasets.load import load_dataset
from oodbench.engine.recognition import Recognition, shows_classes
from oodbench.image_set import ImageSet
from oodbench.protocols import held_out, limited
from oodbench.results import pass_file
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite, TestSet

SETS = ["digits-heldout", "digits+noise@5", "digits+haze@3", "digits+jpeg-85", "digits+fgsm"]
WITH_CLASSES = {"digits": "in-distribution", "digits+noise@5": "corruption", "digits+haze@3": "corruption",
                "digits+jpeg-85": "benign", "digits+fgsm": "adversarial"}  # fmt: skip
QUICK = {
    "introspective": {"epochs": 3},
    "ensemble": {"members": 3, "epochs": 2},
    "duq": {"epochs": 4},
    "mc-dropout": {"passes": 4},
}


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
        return torch.full((len(probe), 8), 0.5) if self.what == "halves" else None


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    monkeypatch.setattr(registry, "_added", {})
    registry._added["detectors", "gives"] = registry.Record("detectors", "gives", "tests:gives", distribution="tests")
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
    sources = {"network", "network-scaled", *QUICK}
    assert {(r.set_name, r.kind) for r in records} == set(WITH_CLASSES.items())
    assert len(records) == len(WITH_CLASSES) * len(sources)
    assert {(r.source, r.detector) for r in records} == {(s, s if s in QUICK else "") for s in sources}
    assert {(r.status, r.reason, r.n) for r in records} == {("ok", "", 80)}
    assert {r.temperature for r in records if r.source != "network-scaled"} == {None}
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
    assert sum(seen) == 4 + 80 + 87 + 3 * (80 + 80)


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


def test_images_set_apart_calibrate_the_temperature(tmp_path):
    sets = [TestSet(name="digits+haze", levels=[3])]
    chosen = Suite(name="s", model="resnet8-digits", in_distribution="digits", detectors=["msp"], sets=sets, validation=100)
    folder = oodbench.run(chosen, out=tmp_path / "run", measure_costs=False)
    scaled = [record for record in folder.recognition() if record.source == "network-scaled"]
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
    record = found_in(nothing, "digits+haze@3")["gives"]
    assert (record.status, record.reason) == ("skipped", "gives gives no class probabilities with its hyper-parameters")
    assert set(nothing.frame().status) == {"ok"}
    for what, why in (("an error", "out of luck"), ("halves", "do not sum to 1")):
        options = {"detectors": names, "datasets": sets, "parameters": {"gives": {"what": what}}}
        folder = run(tmp_path / what, **options, protocols=["unsupervised"])
        for name in ("digits", *sets):
            found = found_in(folder, name)
            assert (found["gives"].status, found["network"].status) == ("failed", "ok")
            assert why in found["gives"].reason
        assert folder.frame().set_index("detector").status.to_dict() == {"msp": "ok", "gives": "failed"}
        assert oodbench.verify(folder.path).ok


def test_a_network_of_fewer_classes_has_no_figures(tmp_path):
    (tmp_path / "data").mkdir()
    model = f"{__name__}:four_classes"
    folder = run(tmp_path / "run", suite=None, in_distribution="digits", model=model, datasets=["digits+haze@3"])
    for record in folder.recognition():
        assert record.status == "failed"
        assert record.reason == "labels lie in 0 to 7, and there are 4 classes"
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
