"""Misclassification as detection: the network's wrong answers on a set against its right ones, for every detector."""

import json
import shutil

import numpy as np
import pytest
import torch
from heard import Heard
from run_folders import arrays_of, figures, record_of

import oodbench
from oodbench import metrics, protocols
from oodbench.classifier import Classifier
from oodbench.datasets.load import load_dataset
from oodbench.engine.plan import plan
from oodbench.errors import UsageError
from oodbench.leaderboard.aggregate import means
from oodbench.results import pass_file
from oodbench.results.folder import RunFolder
from oodbench.results.recompute import recompute
from oodbench.suite import Suite, TestSet

SETS = ["digits+haze+misclassified@3", "digits+haze@3", "photos"]
OF_HAZE = "digits+haze+misclassified@3"
FAST = ["msp", "knn", "introspective", "pixels"]
QUICK = {"introspective": {"epochs": 3}}


def run(out, **options):
    given = {"detectors": FAST, "datasets": SETS, "limit": 80, "measure_costs": False, "batch_size": 64, "parameters": QUICK}
    given |= options
    if "introspective" not in given["detectors"]:
        del given["parameters"]
    return oodbench.run(given.pop("suite", "digits"), out=out, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OODBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return run(tmp_path_factory.mktemp("misclassified") / "run")


def random_network():
    torch.manual_seed(0)
    return Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 8)))


def slow_area(scores, wrong):
    """Risk and coverage one image after another, the least anomalous first; no scores tie."""
    errors, risks = 0, []
    for number, image in enumerate(np.argsort(scores), 1):
        errors += wrong[image]
        risks.append(errors / number)
    return sum(risks) / len(risks)


@pytest.mark.parametrize("row", ["msp", "knn", "introspective", "introspective:odin", "pixels"])
def test_the_scores_are_those_of_the_set_by_answer(finished, row):
    images = protocols.limited(load_dataset("digits+haze@3"), 80, 0)
    with torch.no_grad():
        answers = oodbench.load_model("resnet8-digits")(images.images.float() / 255).argmax(1)
    right = (answers == images.labels).numpy()
    record, arrays = record_of(finished, row, "unsupervised", OF_HAZE), arrays_of(finished, row, "unsupervised", OF_HAZE)
    whole = arrays_of(finished, row, "unsupervised", "digits+haze@3")["out_scores"]
    assert (record.kind, record.dataset, record.level) == ("misclassified", "digits+haze+misclassified", 3)
    assert (record.n_in, record.n_out) == (right.sum(), (~right).sum())
    np.testing.assert_array_equal(arrays["in_test"], np.flatnonzero(right))
    np.testing.assert_array_equal(arrays["out_test"], np.flatnonzero(~right))
    np.testing.assert_allclose(arrays["in_scores"], whole[right], rtol=1e-12)  # another batch may round otherwise
    np.testing.assert_allclose(arrays["out_scores"], whole[~right], rtol=1e-12)
    assert record.metrics.auroc == metrics.evaluate(arrays["in_scores"], arrays["out_scores"]).auroc
    assert record.aurc == pytest.approx(slow_area(whole, ~right), abs=1e-12)
    best = slow_area(np.arange(80) + 100 * ~right, ~right)
    assert record.excess_aurc == pytest.approx(record.aurc - best, abs=1e-12)
    again = recompute(finished, record)
    assert (again.metrics, again.aurc, again.excess_aurc) == (record.metrics, record.aurc, record.excess_aurc)


def test_other_records_have_no_aurc_and_other_protocols_no_row(finished):
    for record in finished.records():
        assert (record.aurc is None) == (record.kind != "misclassified")
        assert record.kind != "misclassified" or record.protocol == "unsupervised"
    frame = finished.frame()
    assert (frame["aurc"].notna() == (frame["kind"] == "misclassified")).all()
    assert oodbench.verify(finished.path).problems == []
    scores = finished.scores("msp", OF_HAZE)
    rows = scores.index.get_level_values("row")
    assert sorted(rows) == list(range(80))
    assert scores["image"].is_unique


def test_the_most_confident_order_of_a_network_is_that_of_its_recognition(finished):
    """msp is 1 − the confidence that recognition ranks answers by, and judges the same answers."""
    (network,) = (r for r in finished.recognition() if (r.source, r.set_name) == ("network", "digits+haze@3"))
    record = record_of(finished, "msp", "unsupervised", OF_HAZE)
    assert record.aurc == pytest.approx(network.figures.aurc, abs=1e-9)
    assert record.excess_aurc == pytest.approx(network.figures.excess_aurc, abs=1e-9)
    assert not [r for r in finished.recognition() if "misclassified" in r.set_name]


@pytest.mark.parametrize(
    ("datasets", "passes"),
    [([OF_HAZE, "digits+haze@3"], 2), ([OF_HAZE], 2), (["digits+misclassified", "photos"], 2), (["digits+misclassified"], 1)],
)
def test_it_takes_no_pass_of_its_own(tmp_path, monkeypatch, datasets, passes):
    oodbench.load_model("resnet8-digits")  # its training, the first time, is not counted
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
    run(tmp_path / "run", detectors=["msp"], datasets=datasets, protocols=["unsupervised"])
    assert sum(seen) == 4 + 80 + 87 + passes * 80  # checks, accuracy, the temperature's images, and sides


def test_means_over_all_sets_do_not_include_it(finished):
    found = means(finished.frame()).set_index(["detector", "protocol"]).loc["msp", "unsupervised"]
    record = record_of(finished, "msp", "unsupervised", OF_HAZE)
    others = [record_of(finished, "msp", "unsupervised", name).metrics.auroc for name in ("digits+haze@3", "photos")]
    assert found["misclassified"] == record.metrics.auroc
    assert found["all"] == pytest.approx(np.mean(others))
    assert "Misclassified: images that the network gets wrong" in str(finished.table())


def test_it_resumes_bit_by_bit(finished, tmp_path):
    whole = {place: of for place, of in figures(finished).items() if place[0] == OF_HAZE}
    alone = run(tmp_path / "alone", datasets=[OF_HAZE])
    assert figures(alone) == whole
    heard = Heard()
    run(tmp_path / "alone", datasets=SETS, progress=heard)
    assert any("5 cells already done" in line for line in heard.lines)
    assert figures(alone) == figures(finished)
    (alone.passes_path / f"{OF_HAZE}.safetensors").unlink()
    assert figures(run(tmp_path / "alone")) == figures(finished)


def test_what_cannot_be_told_apart_says_why(tmp_path):
    names = ["digits+misclassified", "photos+misclassified", "digits-heldout+misclassified"]
    folder = run(tmp_path / "run", detectors=["msp", "pixels"], datasets=names)
    found = {record.set_name: (record.status, record.reason) for record in folder.records()}
    assert found == {
        names[0]: (
            "skipped",
            "the network is wrong on 0 of 80 images of digits; 10 correct and 10 wrong predictions are needed",
        ),
        names[1]: ("skipped", "photos has no labels, or its classes are not those of digits"),
        names[2]: ("skipped", "digits-heldout has no labels, or its classes are not those of digits"),
    }
    assert oodbench.verify(folder.path).ok
    sets = [TestSet(name="digits+misclassified")]
    without = Suite(name="none", in_distribution="digits", detectors=["pixels"], sets=sets)
    (record,) = oodbench.run(without, out=tmp_path / "none", limit=40, measure_costs=False).records()
    assert (record.status, record.reason) == ("skipped", "this suite has no network, so there are no predictions to judge")


def test_in_distribution_answers_of_a_bad_network(tmp_path):
    options = {
        "suite": None,
        "in_distribution": "digits",
        "model": f"{__name__}:random_network",
        "detectors": ["msp", "pixels"],
    }
    folder = run(tmp_path / "run", datasets=["digits+misclassified"], **options)
    record = record_of(folder, "msp", "unsupervised", "digits+misclassified")
    assert (record.status, record.n_in + record.n_out, record.level) == ("ok", 80, None)
    assert {r.set_name for r in folder.recognition()} == {"digits"}
    assert oodbench.verify(folder.path).problems == []
    alone = run(tmp_path / "pixels", datasets=["digits+misclassified"], **options | {"detectors": ["pixels"]})
    assert record_of(alone, "pixels", "unsupervised", "digits+misclassified").n_in == record.n_in


def test_suites_name_it_with_levels_and_nothing_learns_from_it(tmp_path):
    sets = [TestSet(name="digits+haze+misclassified", levels=[2, 3])]
    given = {"name": "s", "model": "resnet8-digits", "in_distribution": "digits", "detectors": ["knn"], "sets": sets}
    lines = plan(Suite(**given, protocols=["unsupervised", "per-shift"]), limit=60)
    assert "outside   digits+haze+misclassified@3 (misclassified), 60 images" in lines
    assert lines[-1] == "2 cells"
    heard = Heard()
    folder = run(tmp_path / "run", detectors=["knn"], datasets=[OF_HAZE], protocols=["per-shift"], progress=heard)
    assert f"{OF_HAZE}: misclassified sets are tested under unsupervised only; add --protocol unsupervised" in heard.lines
    assert not list(folder.records())
    first = Suite(**given | {"sets": [TestSet(name="digits+misclassified", first=20)]})
    with pytest.raises(UsageError, match=r"digits\+misclassified: its images are those of digits; leave out the key first"):
        plan(first)
    toml = tmp_path / "suite.toml"
    toml.write_text(
        'model = "resnet8-digits"\nin_distribution = "digits"\ndetectors = ["knn"]\nprotocols = ["transfer"]\n'
        'transfer_from = "digits+misclassified"\n[[sets]]\nname = "digits+misclassified"\n'
    )
    with pytest.raises(UsageError, match=r"nothing can be learnt from digits\+misclassified, which is misclassified"):
        oodbench.run(toml, out=tmp_path / "toml")
    with pytest.raises(UsageError, match=r"only a run knows which images a network gets wrong; load digits\+haze@3"):
        load_dataset(OF_HAZE)


EDITS = {
    "an area": ({"aurc": 0.5}, None, "aurc is 0.5, but its scores give"),
    "no area": ({"aurc": None}, None, "aurc is None, but its scores give"),
    "an excess": ({"excess_aurc": 0.0}, None, "excess_aurc is 0.0, but its scores give"),
    "a kind": ({"kind": "corruption"}, None, "its kind is corruption, but its name says otherwise"),
    "an answer": ({}, {"in_test": lambda rows: np.where(rows == rows.max(), 0, rows)}, "do not hold each image of digits"),
    "no rows": ({}, {"in_test": None}, "stores no in_test"),
    "a protocol": ({"protocol": "oracle"}, None, "oracle is not a protocol"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_named(finished, tmp_path, edit):
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    changes, arrays, says = EDITS[edit]
    path = folder.passes_path / f"{OF_HAZE}.safetensors"
    records, stored, settings = pass_file.read_records(path), pass_file.read_arrays(path), pass_file.read_settings(path)
    for number, record in enumerate(records):
        if record.row == "msp":
            roles = dict(record.arrays)
            for role, change in (arrays or {}).items():
                if change is None:
                    del roles[role]
                else:
                    array = change(folder.arrays(record)[role].copy())
                    roles[role] = pass_file.hash_of(array)
                    stored[roles[role]] = array
            records[number] = record.model_copy(update={"arrays": roles} | changes)
    used = {name for record in records for name in record.arrays.values()}
    pass_file.write(path, records, {name: array for name, array in stored.items() if name in used}, settings)
    found = oodbench.verify(folder.path).problems
    assert any(says in problem for problem in found), json.dumps(found)
