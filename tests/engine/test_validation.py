"""The protocol ``validation``: settings chosen on images that are never tested, as a plain loop chooses them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import save_image
from run_folders import figures
from sklearn.metrics import roc_auc_score

import oodbench
from oodbench import passes, protocols
from oodbench.batching import pieces_of
from oodbench.datasets.load import load_dataset
from oodbench.engine.loaded_suite import LoadedSuite
from oodbench.engine.plan import plan
from oodbench.errors import MissingData, UsageError
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.sentences import sentence
from oodbench.progress import Progress
from oodbench.results import pass_file, verify
from oodbench.results.folder import RunFolder
from oodbench.suite import Suite, TestSet, validated

NETWORK = "resnet8-digits"
PARAMETERS = {
    "knn": {"ks": [1, 10, 200]},
    "odin": {"temperatures": [1, 1000], "epsilons": [0, 0.05]},
    "react": {"percentiles": [70, 99]},
    "mahalanobis-pfe": {"epsilons": [0, 0.05]},
}
SETS = ["photos", "digits+noise@3"]


def suite(**changes):
    values = {
        "name": "tuned",
        "model": NETWORK,
        "in_distribution": "digits",
        "validation_set": {"name": "digits-heldout", "images": 60},
        "protocols": ["unsupervised", "validation"],
        "detectors": ["msp", *PARAMETERS],
        "parameters": PARAMETERS,
        "sets": [{"name": name} for name in SETS],
    }
    return Suite.model_validate(values | changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return oodbench.run(suite(), out=tmp_path_factory.mktemp("tuned") / "run", device="cpu", measure_costs=False)


def chosen_on():
    """The images that the suite chooses on, found without the harness's splits."""
    inside, outside = load_dataset("digits"), load_dataset("digits-heldout")
    order = protocols.stratified_order(len(inside), inside.labels.numpy(), 0)
    drawn = protocols.stratified_order(len(outside), outside.labels.numpy(), 0)[:60]
    return inside.select(torch.from_numpy(np.sort(order[: len(inside) // 2]))), outside.select(torch.from_numpy(np.sort(drawn)))


def plain_auroc(name, setting, sides):
    """The AUROC of a detector that is built with the setting, fitted by itself and knows of no grid."""
    detector, classifier, train = (
        oodbench.load_detector(name, **setting),
        oodbench.load_model(NETWORK),
        load_dataset("digits", split="train"),
    )
    detector.fit(classifier, train, train.labels)
    inside, outside = (
        passes.statistics({detector: [detector.setting]}, classifier, images, pieces_of(np.arange(len(images)), 256))[0][
            detector
        ][:, 0]
        for images in sides
    )
    mean, spread = inside.mean(0), inside.std(0)  # for one column, this changes no order
    scores = np.concatenate([((side - mean) / spread).sum(1) for side in (inside, outside)])
    return roc_auc_score(np.repeat([0, 1], [len(inside), len(outside)]), scores)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_choice_is_that_of_a_plain_loop_over_the_grid(tuned, name):
    sides = chosen_on()
    grid = oodbench.load_detector(name, **PARAMETERS[name]).grid
    found = [plain_auroc(name, setting, sides) for setting in grid]
    assert max(found) > min(found), "the settings differ"
    best = grid[int(np.argmax(found))]
    for record in tuned.records():
        if (record.detector, record.protocol) == (name, "validation"):
            assert (record.setting, record.transfer_from) == (best, "digits-heldout (test)")
            assert record.choice_auroc == pytest.approx(max(found), abs=1e-12)


def test_only_what_has_settings_to_choose_has_rows_and_the_folder_verifies(tuned):
    records = list(tuned.records())
    assert {r.status for r in records} == {"ok"}
    assert {r.detector for r in records if r.protocol == "validation"} == {*PARAMETERS}
    assert {r.detector for r in records if r.protocol == "unsupervised"} == {"msp", *PARAMETERS}
    assert all((r.choice_auroc is None) == (r.protocol == "unsupervised") for r in records)
    heads = {r.detector: (r.head, r.calibrated_on) for r in records if r.protocol == "validation"}
    assert heads == {
        "knn": ("identity", ""), "odin": ("identity", ""), "react": ("identity", "training"),
        "mahalanobis-pfe": ("standardised-sum", "validation"),
    }  # fmt: skip
    assert oodbench.verify(tuned.path).ok
    said = "validate  chooses hyper-parameters on 60 images of digits-heldout (test) against"
    assert f"{said} 288 of the 577 images of digits (test)" in plan(suite())
    assert f"{said} 100 images of digits (test)" in plan(suite(validation=100))
    alone = suite(protocols=["validation"], detectors=["msp"], parameters={})
    assert "no row under validation, where only detectors with hyper-parameters to choose" in "\n".join(plan(alone))


def test_no_image_is_chosen_on_and_tested(tuned):
    inside, noisy = load_dataset("digits"), load_dataset("digits+noise@3")
    for record in tuned.records():
        if record.protocol != "validation":
            continue
        arrays = tuned.arrays(record)
        chose, tested = arrays["in_choose"], arrays["in_test"]
        assert sorted([*chose, *tested]) == list(range(len(inside)))
        assert not {*arrays["in_fit"], *arrays["out_fit"], *arrays["out_choose"]}
        assert len(arrays["out_choice"]) == 60
        if record.dataset == "digits+noise":
            assert not {*inside.base_index[chose].tolist()} & {*noisy.base_index[arrays["out_test"]].tolist()}
        else:
            assert len(arrays["out_test"]) == record.n_out == 500


@pytest.fixture
def copies(tmp_path):
    """A data root with a folder of anomalous images, and another that holds 10 of them and 30 more."""
    images = load_dataset("photos", split="val").images.numpy()
    for name, rows in (("chosen", range(40)), ("tested", range(30, 70))):
        for row in rows:
            save_image(tmp_path / name / f"{row:02d}.png", images[row])
    return tmp_path


def test_copies_of_what_was_chosen_on_are_not_tested(copies):
    changes = {"validation_set": {"name": "folder:chosen"}, "sets": [{"name": "folder:tested"}], "detectors": ["knn"]}
    chosen = suite(**changes, parameters={"knn": PARAMETERS["knn"]})
    folder = oodbench.run(chosen, data=copies, out=copies / "run", measure_costs=False)
    found = {record.protocol: record for record in folder.records()}
    assert (found["unsupervised"].n_out, found["validation"].n_out) == (40, 30)
    assert folder.arrays(found["validation"])["out_test"].tolist() == list(range(10, 40))
    assert oodbench.verify(folder.path).ok


def test_images_that_are_set_apart_choose_where_there_are_some(tmp_path):
    chosen = suite(validation=100, detectors=["knn"], parameters={"knn": PARAMETERS["knn"]}, sets=[{"name": "photos"}])
    folder = oodbench.run(chosen, out=tmp_path / "run", measure_costs=False)
    for record in folder.records():
        assert record.n_in == 477
        if record.protocol == "validation":
            arrays = folder.arrays(record)
            assert (len(arrays["in_choice"]), len(arrays["in_choose"])) == (100, 0)
    assert oodbench.verify(folder.path).ok


def test_shifted_images_of_one_that_chose_are_not_tested_in_the_full_spectrum(tmp_path):
    sets = [{"name": "digits+noise@1", "kind": "csid"}, {"name": "uniform"}]
    parameters = {"knn": PARAMETERS["knn"]}
    full = suite(full_spectrum=True, sets=sets, detectors=["knn"], parameters=parameters, learnt_share=0.1)
    folder = oodbench.run(full, out=tmp_path / "run", limit=100, measure_costs=False)
    arrays = folder.arrays(next(record for record in folder.records() if record.protocol == "validation"))
    base = np.concatenate([np.arange(100)] * 2)  # of the clean images, and of the same with noise
    chose, tested = (base[arrays[role]] for role in ("in_choose", "in_test"))
    assert len(chose) == 20
    assert sorted({*chose, *tested}) == list(range(100))
    assert not {*chose} & {*tested}
    assert oodbench.verify(folder.path).ok


def test_an_attack_on_the_full_spectrum_has_the_clean_images_as_twins():
    changes = {"protocols": ["unsupervised"], "detectors": ["msp"], "parameters": {}, "model": None}
    sets = [{"name": "digits+noise@1", "kind": "csid"}, {"name": "digits+noise@5"}]
    loaded = LoadedSuite(suite(full_spectrum=True, sets=sets, **changes), Progress(), limit=20)
    loaded.load_test_sets(Progress())
    attacked = replace(load_dataset("digits").select(loaded.in_distribution.base_index[:20]), clean=None)
    assert torch.equal(protocols.with_twins(attacked, loaded.in_distribution).clean, attacked.images)


def test_the_draw_is_the_same_for_every_seed():
    of_seed = [LoadedSuite(suite(seed=seed), Progress()) for seed in (0, 1)]
    for loaded in of_seed:
        loaded.load_test_sets(Progress())
    outside = [loaded.choosing.anomalous for loaded in of_seed]
    assert outside[0].fingerprint == outside[1].fingerprint == chosen_on()[1].fingerprint


@pytest.mark.parametrize("changes", [
    {"validation_set": {"name": "photos"}, "sets": [{"name": "photos"}]},
    {"validation_set": {"name": "photos"}, "sets": [{"name": "photos+noise", "levels": [2]}]},
    {"validation_set": {"name": "cifar10:cat"}, "sets": [{"name": "cifar10"}]},
    {"validation_set": {"name": "imagenet/ninco"}, "sets": [{"name": "imagenet/*"}]},
])  # fmt: skip
def test_a_set_that_is_tested_is_refused(changes):
    with pytest.raises(UsageError, match=r"validation_set: .* is also tested, as .*; leave out .*, or name another set or"):
        suite_of(changes)


def suite_of(changes):
    return validated(suite().model_dump() | changes, "tuned")


@pytest.mark.parametrize(("changes", "message"), [
    ({"validation_set": None}, r"validation needs anomalous images that are not tested; name them .* under \[validation_set\]"),
    ({"validation_set": {"name": "photos+pgd"}}, "photos.pgd is adversarial; name a set without that change"),
    ({"validation_split": "test"}, "the split test is fitted or tested on; name another, or leave it out"),
    ({"validation_set": {"name": "photos", "part": "val"}}, r"unknown key 'part' .*name, split, images"),
    ({"validation_set": {"split": "val"}}, "name of validation_set is missing"),
])  # fmt: skip
def test_a_wrong_suite_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        suite_of(changes)


def test_other_classes_and_splits_may_be_tested():
    assert suite_of({"validation_set": {"name": "cifar10:cat"}, "sets": [{"name": "cifar10:dog"}]}).validation_set
    assert suite_of({"validation_set": {"name": "photos", "split": "val"}}).validation_set
    with pytest.raises(UsageError, match=r"digits-heldout \(test\) is also tested, as digits-heldout"):
        suite().override(datasets="digits-heldout")


def test_a_missing_set_ends_the_run_before_anything_is_computed(tmp_path):
    chosen = suite(validation_set={"name": "folder:absent"})
    for act in (lambda: oodbench.run(chosen, data=tmp_path, out=tmp_path / "run"), lambda: plan(chosen, data=tmp_path)):
        with pytest.raises(MissingData, match=r"on folder:absent \(test\): .*absent.*; or leave out the protocol validation"):
            act()
    assert plan(chosen.model_copy(update={"protocols": ["unsupervised"]}), data=tmp_path)


def test_the_leaderboard_says_what_was_chosen_on_what(tuned):
    frame, notes = gather([tuned])
    assert set(frame["protocol"]) == {"unsupervised", "validation"}
    (note,) = (words for words in map(sentence, notes) if words.startswith("validation:"))
    assert "on digits-heldout (test), which is not tested: knn k " in note
    assert not any("transfer" in sentence(one) for one in notes)


@pytest.mark.parametrize(("changes", "arrays", "problem"), [
    ({"choice_auroc": 0.5}, {}, "choice_auroc is 0.5, but its scores give"),
    ({}, {"in_choice": lambda scores: scores[:-1]}, "choice_auroc is"),
    ({}, {"in_choose": lambda rows: rows + 1}, "that its head learnt from"),
    ({"setting": {"k": 10}}, {}, "knn has 2 choices of hyper-parameters under validation, where all sets share one"),
    ({"transfer_fingerprint": "0"}, {}, "knn has 2 choices of hyper-parameters"),
    ({"transfer_from": "photos"}, {}, "it learns from photos, but validation of the run from digits-heldout (test)"),
])  # fmt: skip
def test_a_forged_choice_is_noticed(tuned, tmp_path, changes, arrays, problem):
    folder = RunFolder(shutil.copytree(tuned.path, tmp_path / "run"))
    path = folder.passes_path / "photos.safetensors"
    records, stored, settings = pass_file.read_records(path), pass_file.read_arrays(path), pass_file.read_settings(path)
    place = next(n for n, record in enumerate(records) if record.place == ("knn", "validation"))
    new = {role: edit(folder.arrays(records[place])[role]) for role, edit in arrays.items()}
    roles = records[place].arrays | {role: pass_file.hash_of(array) for role, array in new.items()}
    records[place] = records[place].model_copy(update=changes | {"arrays": roles})
    pass_file.write(path, records, stored | {pass_file.hash_of(array): array for array in new.values()}, settings)
    assert any(problem in found for found in oodbench.verify(folder.path).problems)


@pytest.mark.parametrize("told", [7, [7], [[]], [], {"a": 1}])
def test_a_forged_set_to_choose_on_is_noticed(tuned, told):
    record = next(record for record in tuned.records() if record.place == ("knn", "validation"))
    assert any("validation of the run from" in found for found in verify._disagreements(record, {"validation_set": told}))


def test_a_second_run_computes_nothing_and_another_draw_is_another_run(tuned, tmp_path):
    folder = RunFolder(shutil.copytree(tuned.path, tmp_path / "run"))
    before = figures(folder)
    oodbench.run(suite(), out=folder.path, measure_costs=False)
    assert figures(folder) == before
    with pytest.raises(UsageError, match="validation_set"):
        oodbench.run(suite(validation_set={"name": "photos", "split": "val"}), out=folder.path, measure_costs=False)


def test_set_of_a_suite_that_only_names_it_is_not_read(tmp_path):
    loaded = LoadedSuite(
        suite(validation_set={"name": "folder:absent"}, protocols=["unsupervised"], sets=[TestSet(name="photos").model_dump()]),
        Progress(),
        data=tmp_path,
    )
    loaded.load_test_sets(Progress())
    assert loaded.choosing is None
