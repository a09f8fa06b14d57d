"""Runs of active learning: killed and resumed, with strategies, networks and sets that do not work, and verified."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
from run_folders import files
from torch import nn

import oodbench
from oodbench import registry
from oodbench.active_learning.strategy import Strategy
from oodbench.classifier import Classifier
from oodbench.detectors.introspective import Introspective
from oodbench.engine.tasks import active_learning, run_task
from oodbench.engine.tasks.active_learning import plan
from oodbench.engine.tasks.active_learning import run as run_suite
from oodbench.errors import BadData, Unsuitable, UsageError
from oodbench.leaderboard.comparison.compare_table import render_comparison
from oodbench.leaderboard.tasks import task_of
from oodbench.leaderboard.tasks.active_learning import active_learning_frame, render_active_learning, tables
from oodbench.progress import Progress
from oodbench.results import bundle, pass_file
from oodbench.results.folder import RunFolder
from oodbench.results.records import ActiveLearningRecord
from oodbench.suites.load import suite_text
from oodbench.suites.tasks import load_task_suite

LIMIT = 60
BOTH = ["feed-forward", "introspective"]
SETS = ("digits", "digits+noise@3")
pytestmark = pytest.mark.usefixtures("one_thread")


class Heard(Progress):
    """Keeps what is said, and counts steps."""

    def __init__(self):
        super().__init__()
        self.lines, self.failures, self.expected, self.advanced = [], [], 0, 0

    def say(self, line):
        self.lines.append(line)

    def fail(self, what, error, target=""):
        self.failures.append((what, error))

    def expect(self, count):
        self.expected += count

    def advance(self, count):
        self.advanced += count


def run(suite, out, **options):
    return run_suite(suite, out=out, device="cpu", limit=LIMIT, **options)


def records(folder):
    return {(one.set_name, one.round, one.dataset): one for one in folder.of_task(ActiveLearningRecord)}


def content(folder):
    """Everything but time and provenance, and the arrays themselves, by strategy, round and set."""
    return {
        key: (
            one.model_dump(mode="json", exclude={"seconds", "provenance"}),
            {role: array.tolist() for role, array in folder.arrays(one).items()},
        )
        for key, one in records(folder).items()
    }


def rewrite(folder, stem, change):
    """Rewrite the file of a strategy with the records and arrays that ``change`` makes of them."""
    (path,) = (path for path in folder.pass_files() if path.name.startswith(stem))
    found, arrays = folder.records_of(path), pass_file.read_arrays(path)
    pass_file.write(path, *change(found, arrays), pass_file.read_settings(path))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted run."""
    return run(tiny(features=BOTH), tmp_path_factory.mktemp("whole") / "run")


# What a run writes


def test_a_run_has_every_round_of_every_strategy(whole):
    found = records(whole)
    assert len(found) == 2 * 2 * 3 * 2
    for (_, number, _), one in found.items():
        assert one.status == "ok", one.reason
        arrays = whole.arrays(one)
        assert one.labelled == len(arrays["labelled"]) == 24 + 16 * number
        assert one.n == LIMIT
        assert one.accuracy == arrays["right"].mean()
        assert one.accuracy_low <= one.accuracy <= one.accuracy_high
    assert bundle.verify(whole.path).problems == []


def test_all_strategies_share_the_first_network(whole):
    first = [one for (_, number, dataset), one in records(whole).items() if number == 0 and dataset == "digits"]
    assert len({one.arrays["labelled"] for one in first}) == 1
    assert len({one.seconds for one in first}) == 1  # the seconds of its training, for each of them
    assert first[0].seconds > 0.01
    for features in BOTH:
        assert len({one.arrays["right"] for one in first if one.features == features}) == 1
    assert len({one.arrays["right"] for one in first}) == 2  # H is another classifier


def test_labels_stay_and_strategies_differ(whole):
    found = records(whole)
    for name in ("bald", "badge"):
        for features in BOTH:
            rounds = [whole.arrays(found[f"{name} {features}", number, "digits"])["labelled"] for number in range(3)]
            assert np.isin(rounds[0], rounds[1]).all()
            assert np.isin(rounds[1], rounds[2]).all()
            assert rounds[2].max() < 150
    assert (
        len({found[f"{name} {features}", 2, "digits"].arrays["labelled"] for name in ("bald", "badge") for features in BOTH})
        == 4
    )


def test_the_same_seed_gives_the_same_and_another_seed_another_run(tiny, whole, tmp_path):
    again = run(tiny(features=BOTH), tmp_path / "again")
    assert content(again) == content(whole)
    other = run(tiny(features=["feed-forward"], strategies=["bald"], seed=1), tmp_path / "other")
    key = ("bald feed-forward", 0, "digits")
    assert records(other)[key].arrays["labelled"] != records(whole)[key].arrays["labelled"]


def test_h_learns_all_labelled_images_and_no_other(tiny, tmp_path, monkeypatch):
    learnt, prepare = [], Introspective.prepare

    def heard(self, train_set, *arguments):
        learnt.append(train_set.rows.tolist())
        prepare(self, train_set, *arguments)

    monkeypatch.setattr(Introspective, "prepare", heard)
    folder = run(tiny(features=["introspective"], strategies=["margin"], rounds=1), tmp_path / "run")
    found = records(folder)
    rounds = [folder.arrays(found["margin introspective", number, "digits"])["labelled"].tolist() for number in range(2)]
    assert learnt == rounds


# Killed and resumed


@pytest.mark.parametrize("written", [1, 2, 3, 4, 8, 9, 11])  # within a strategy, between two, and before the last round
def test_a_run_that_is_killed_after_any_round_resumes_to_the_same(tiny, whole, tmp_path, monkeypatch, written):
    count, write = 0, RunFolder.write

    def killed(self, *arguments, **options):
        nonlocal count
        write(self, *arguments, **options)
        count += 1
        if count == written:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(features=BOTH), tmp_path / "run")
    assert len(records(RunFolder(tmp_path / "run"))) == 2 * written
    assert bundle.verify(tmp_path / "run").problems == []
    trained, heard, train = [], Heard(), active_learning.train
    monkeypatch.setattr(active_learning, "train", lambda *a, **o: trained.append(len(a[2])) or train(*a, **o))
    assert content(run(tiny(features=BOTH), tmp_path / "run", progress=heard)) == content(whole)
    assert len(trained) <= 12 - written + 1  # what is missing, and the network that chooses the next images
    assert heard.expected == heard.advanced == 12  # finished rounds count, too
    assert any("Resuming" in line or "already done" in line for line in heard.lines)


def test_a_run_that_is_killed_in_training_keeps_the_rounds_before(tiny, tmp_path, monkeypatch):
    suite, train, calls = tiny(strategies=["badge"]), active_learning.train, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(active_learning, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            run(suite, tmp_path / "run")
    assert {number for _, number, _ in records(RunFolder(tmp_path / "run"))} == {0, 1}
    assert content(run(suite, tmp_path / "run")) == content(run(suite, tmp_path / "whole"))


def test_a_finished_run_trains_nothing_and_changes_nothing(tiny, whole, tmp_path, monkeypatch):
    copy = RunFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    before = {name: of for name, of in files(copy).items() if name.startswith("passes")}
    monkeypatch.setattr(active_learning, "train", lambda *a, **o: pytest.fail("trained again"))
    heard = Heard()
    run(tiny(features=BOTH), copy.path, progress=heard)
    assert {name: of for name, of in files(copy).items() if name.startswith("passes")} == before
    assert heard.lines == [f"{name} {features}: already done" for name in ("bald", "badge") for features in BOTH]


# Strategies that do not work


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("twice", "strategy 'gives' gave row 0 twice; give each row of the pool to label once"),
        ("unknown", "strategy 'gives' gave row 125, but the pool has 110; give each row of the pool to label once"),
        ("few", "strategy 'gives' gave int64 (15,), not 16 row numbers; give each row of the pool to label once"),
        ("an error", "ValueError: out of luck and of lines (conftest.py, line "),
        ("exit", "RuntimeError: raised SystemExit(3), which would end the process"),
        ("unsuitable", "needs more classes"),
    ],
)
def test_a_strategy_that_fails_fails_alone_from_that_round_on(tiny, plugins, tmp_path, what, says):
    suite = tiny(strategies=["gives", "random"], parameters={"gives": {"what": what, "labelled": 40}}, test_sets=["digits"])
    heard = Heard()
    folder = run(suite, tmp_path / "run", progress=heard)
    found = records(folder)
    assert [found["gives feed-forward", number, "digits"].status for number in range(3)] == ["ok", "ok", "failed"]
    assert [found["random feed-forward", number, "digits"].status for number in range(3)] == ["ok"] * 3
    reason = found["gives feed-forward", 2, "digits"].reason
    assert reason.startswith(says)
    assert "\n" not in reason
    assert [name for name, _ in heard.failures] == ["gives feed-forward"]
    assert bundle.verify(folder.path).problems == []
    text = render_active_learning(active_learning_frame([folder]))
    assert text.count(reason[:40]) == 1
    assert "– gives (feed-forward) failed from round 2 on" in text
    assert "\n- gives (feed-forward) failed" in render_active_learning(active_learning_frame([folder]), "md")


def test_a_strategy_that_was_mended_goes_on_where_it_failed(tiny, plugins, tmp_path):
    broken = tiny(strategies=["gives"], parameters={"gives": {"what": "an error", "labelled": 40}}, test_sets=["digits"])
    folder = run(broken, tmp_path / "run")
    first = content(folder)["gives feed-forward", 0, "digits"]
    heard = Heard()
    run(broken, tmp_path / "run", progress=heard)
    assert content(folder)["gives feed-forward", 0, "digits"] == first
    assert "Resuming gives feed-forward at round 2 of 2" in heard.lines


def test_a_strategy_that_cannot_be_made_fails_alone(tiny, plugins, tmp_path):
    folder = run(tiny(strategies=["cannot-be-made", "margin"], test_sets=["digits"]), tmp_path / "run")
    found = records(folder)
    assert [found["cannot-be-made feed-forward", number, "digits"].status for number in range(3)] == ["failed"] * 3
    assert found["cannot-be-made feed-forward", 0, "digits"].reason.startswith("RuntimeError: no licence")
    assert found["margin feed-forward", 2, "digits"].status == "ok"


def test_a_network_that_diverges_is_one_line_per_strategy(tiny, tmp_path, monkeypatch):
    presets = {"gauss": dataclasses.replace(active_learning.PROTOCOLS["gauss"], lr=1e30)}
    monkeypatch.setattr(active_learning, "PROTOCOLS", presets)
    found = records(run(tiny(strategies=["margin"], test_sets=["digits"], until=1.0), tmp_path / "run"))
    assert {one.status for one in found.values()} == {"failed"}
    assert found["margin feed-forward", 0, "digits"].reason.startswith("training resnet8-digits diverged (loss nan)")


def test_too_few_epochs_are_said(tiny, tmp_path):
    heard = Heard()
    folder = run(tiny(strategies=["random"], rounds=1, most_epochs=1, until=1.0), tmp_path / "run", progress=heard)
    assert sum("after 1 epochs, below 100 %; raise most_epochs" in line for line in heard.lines) == 2
    assert {one.epochs for one in records(folder).values()} == {1}


# What no strategy can work with: one line, and nothing is trained


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"strategies": ["badge", "entrpy"]}, UsageError, "unknown strategy 'entrpy'; did you mean 'entropy'"),
        ({"strategies": ["no-strategy"]}, UsageError, "not a subclass of oodbench.active_learning.Strategy"),
        ({"parameters": {"bald": {"pases": 3}}}, UsageError, "unknown parameter 'pases' of bald"),
        ({"parameters": {"bald": {"passes": 1}}}, UsageError, "bald: passes = 1; give a whole number"),
        ({"parameters": {"blad": {"passes": 3}}}, UsageError, "unknown strategy 'blad'; did you mean 'bald'"),
        ({"parameters": {"introspective": {"epoch": 3}}}, UsageError, "unknown parameter 'epoch' of introspective"),
        ({"model": "resnet8-digit"}, UsageError, "unknown model 'resnet8-digit'; did you mean 'resnet8-digits'"),
        ({"in_distribution": "digit"}, UsageError, "unknown dataset 'digit'"),
        ({"test_sets": ["digit"]}, UsageError, "unknown dataset 'digit'"),
        ({"test_sets": ["uniform"]}, BadData, "has no labels, so accuracy on it is unknown; leave it out of test_sets"),
        ({"in_distribution": "uniform", "train_split": "test"}, BadData, "has no labels; name a labelled set"),
        ({"test_sets": ["digits-heldout"]}, BadData, "digits-heldout has other classes than digits; leave it out of test_sets"),
        (
            {"pool": 55},
            UsageError,
            "digits has 55 images to label, and gauss labels 56; lower start, query or rounds in the suite",
        ),
        ({"model": "headless"}, Unsuitable, "headless has no final linear layer"),
        ({"model": "three"}, BadData, r"three gives 3 logits, but digits has \d+ classes; use another model"),
    ],
)  # fmt: skip
def test_wrong_suites_are_one_line_before_anything_is_trained(tiny, plugins, tmp_path, monkeypatch, changes, error, says):
    def network(name, classes, seed=0):
        layers = [nn.Flatten(), nn.LazyLinear(3)] if name == "three" else [nn.Conv2d(3, classes, 8), nn.Flatten()]
        module = nn.Sequential(*layers)
        module(torch.zeros(1, 3, 8, 8))
        return Classifier(module, mean=(0.5,) * 3, std=(0.25,) * 3, layers=[], name=name)

    build = active_learning.build
    own = ("headless", "three")
    monkeypatch.setattr(active_learning, "build", lambda name, *rest: (network if name in own else build)(name, *rest))
    monkeypatch.setattr(active_learning, "train", lambda *a, **o: pytest.fail("trained"))
    with pytest.raises(error, match=says) as raised:
        run(tiny(**changes), tmp_path / "run")
    assert "\n" not in str(raised.value)
    with pytest.raises(error, match=says):
        plan(tiny(**changes), data=None, limit=None)
    assert not list((tmp_path / "run" / "passes").glob("*"))


@pytest.mark.parametrize(
    ("changes", "limit", "says"),
    [
        ({"query": 8}, LIMIT, "holds a run with rules.query = 16, not 8"),
        ({"until": 0.8}, LIMIT, "holds a run with rules.until = 0.9, not 0.8"),
        ({"protocol": "badge"}, LIMIT, "holds a run with protocol = gauss, not badge"),
        ({"seed": 1}, LIMIT, "holds a run with seed = 0, not 1"),
        ({"pool": 140}, LIMIT, "holds a run with images = "),
        ({"test_sets": ["digits"]}, LIMIT, "holds a run with images = "),
        ({}, 50, f"holds a run with limit = {LIMIT}, not 50"),
        ({"parameters": {"introspective": {}}}, LIMIT, "holds a run with parameters of introspective = {'epochs': 3}, not {}"),
    ],
)
def test_changed_settings_in_the_same_folder(tiny, whole, tmp_path, changes, limit, says):
    copy = RunFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    before = files(copy)
    with pytest.raises(UsageError, match="choose another folder with --out, or start over with --fresh") as raised:
        run_suite(tiny(features=BOTH, **changes), out=copy.path, device="cpu", limit=limit)
    assert says in str(raised.value)
    assert files(copy) == before


def test_another_network_of_the_same_name_is_noticed(tiny, whole, tmp_path, monkeypatch):
    copy, build = shutil.copytree(whole.path, tmp_path / "copy"), active_learning.build

    def other(*arguments):
        classifier = build(*arguments)
        classifier.module.more = nn.Linear(2, 2)
        return classifier

    monkeypatch.setattr(active_learning, "build", other)
    with pytest.raises(UsageError, match="holds a run with code of the network"):
        run(tiny(features=BOTH), copy)


def test_other_parameters_of_a_strategy_are_computed_again(tiny, whole, tmp_path):
    copy = RunFolder(shutil.copytree(whole.path, tmp_path / "copy"))
    before = content(copy)
    run(tiny(strategies=["bald"], parameters={"bald": {"passes": 3}}), copy.path)
    after = content(copy)
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {key for key in after if key[0] == "bald feed-forward"}
    assert {after[key][0]["parameters"]["passes"] for key in changed} == {3}
    assert bundle.verify(copy.path).problems == []


def test_a_plan_computes_nothing_and_names_what_would_run(tiny, monkeypatch):
    monkeypatch.setattr(active_learning, "train", lambda *a, **o: pytest.fail("trained"))
    lines = plan(tiny(strategies=["all"], features=BOTH), data=None, limit=None)
    assert "pool      digits (train), 150 images" in lines
    assert "labelled  24, 40, 56" in lines
    assert sum(line.startswith("strategy  ") for line in lines) == 7
    with pytest.raises(UsageError, match="unknown strategy"):
        plan(tiny(strategies=["entrpy"]), data=None, limit=None)


# Verify and bundles


def problems(folder):
    return "\n".join(bundle.verify(folder.path).problems)


@pytest.fixture
def copy(whole, tmp_path):
    return RunFolder(shutil.copytree(whole.path, tmp_path / "copy"))


def replaced(found, arrays, number, role, change, datasets=("digits",)):
    """Another array in place of that of a round on these sets, with its own name."""
    own = dict(arrays)
    for place, record in enumerate(found):
        if record.round == number and record.dataset in datasets:
            array = change(arrays[record.arrays[role]].copy())
            own[pass_file.hash_of(array)] = array
            found[place] = record.model_copy(update={"arrays": record.arrays | {role: pass_file.hash_of(array)}})
    used = {name for record in found for name in record.arrays.values()}
    return found, {name: array for name, array in own.items() if name in used}


def test_verify_finds_flipped_answers(copy):
    def flip(right):
        right[right.argmin() if not right.all() else 0] ^= True
        return right

    rewrite(copy, "badge_feed", lambda found, arrays: replaced(found, arrays, 1, "right", flip))
    assert "badge feed-forward on badge feed-forward (digits): " in problems(copy)
    assert "accuracy" in problems(copy)


def test_verify_finds_labels_that_vanish(copy):
    def other(rows):
        return np.sort(np.append(rows[1:], np.setdiff1d(np.arange(150), rows)[0]))

    rewrite(copy, "badge_feed", lambda found, arrays: replaced(found, arrays, 2, "labelled", other, datasets=SETS))
    assert problems(copy) == "badge feed-forward: round 2 lacks labels of round 1"


def test_verify_finds_labels_that_differ_between_sets_of_a_round(copy):
    def other(rows):
        return np.sort(np.append(rows[1:], np.setdiff1d(np.arange(150), rows)[0]))

    rewrite(copy, "badge_feed", lambda found, arrays: replaced(found, arrays, 2, "labelled", other))
    assert "badge feed-forward: round 2 has 2 sets of labelled images" in problems(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:-1], "has 55 labelled images, but its protocol labels 56 by round 2"),
        (lambda rows: np.append(rows[:-1], rows[-2]), "labels an image twice"),
        (lambda rows: np.append([-1], rows[1:]), "labels an image twice"),
        (lambda rows: rows.astype(float), "labelled is not what oodbench stores (float64 (56,))"),
    ],
)
def test_verify_finds_wrong_labels(copy, change, says):
    rewrite(copy, "bald_intro", lambda found, arrays: replaced(found, arrays, 2, "labelled", change))
    assert says in problems(copy)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("accuracy", 0.99, "accuracy"),
        ("accuracy_high", 1.0, "accuracy_high"),
        ("labelled", 55, "labelled"),
        ("n", 61, "n"),
        ("seed", 1, "its seed is 1, but that of the run is 0"),
        ("model", "other", "its model is other, but that of the run is resnet8-digits"),
        ("protocol", "badge", "its protocol is badge, but that of the run is gauss"),
        ("rules", {"start": 24, "query": 16}, "its rules are"),
        ("fingerprint", "f" * 16, "its images are ffffffffffffffff, but those of the run are"),
        ("status", "failed", "is failed, but has labelled, n, accuracy, accuracy_low, accuracy_high"),
    ],
)
def test_verify_finds_wrong_figures_and_facts(copy, field, value, says):
    def change(found, arrays):
        place = next(place for place, one in enumerate(found) if one.round == 2)
        found[place] = found[place].model_copy(update={field: value})
        return found, arrays

    assert problems(copy) == ""
    rewrite(copy, "bald_feed", change)
    assert says in problems(copy).replace("its rules is", "its rules are")


def test_verify_finds_a_file_that_was_edited_by_a_byte(copy):
    (path,) = (path for path in copy.pass_files() if path.name.startswith("badge_feed"))
    content = path.read_bytes()
    for at in (9, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert problems(copy), at
    path.write_bytes(content)
    assert problems(copy) == ""


def test_a_bundle_is_verified_and_read_as_its_run(whole, tmp_path):
    found = bundle.write_bundle(whole.path, out := tmp_path / "run.zip")
    assert (found.records, found.figures, found.problems) == (24, 24, [])
    assert bundle.verify(out).ok
    (opened,) = bundle.open_folders(out)
    assert content(opened) == content(whole)
    assert active_learning_frame([opened]).equals(active_learning_frame([whole]))
    assert bundle.gaps(whole.path) == []
    told = json.loads((bundle.unpack(out) / "run.json").read_text())
    assert told["settings"]["task"] == "active-learning"


def test_what_a_bundle_lacks_is_said(tiny, plugins, tmp_path):
    suite = tiny(strategies=["gives"], parameters={"gives": {"what": "few", "labelled": 40}}, test_sets=["digits"])
    folder = run(suite, tmp_path / "run")
    assert bundle.gaps(folder.path) == [f"{folder.path}: 1 cell failed"]  # of the last round


def test_rounds_that_a_killed_run_lacks_are_gaps(tiny, tmp_path, monkeypatch):
    trained, train = [], active_learning.train

    def killed(*arguments, **options):
        trained.append(1)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(active_learning, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(strategies=["random"], test_sets=["digits"]), tmp_path / "run")
    assert bundle.gaps(tmp_path / "run") == [f"{tmp_path / 'run'}: random feed-forward ends at round 1 of 2"]
    text = render_active_learning(active_learning_frame([RunFolder(tmp_path / "run")]))
    assert "– random (feed-forward), seed 0: ends at round 1 of 2; run the suite again to finish it" in " ".join(text.split())
    assert "mean" not in text.split()  # a mean over some of the rounds compares with no other
    with pytest.raises(UsageError, match=r"holds a run with rules.rounds = 2, not 3"):
        run(tiny(strategies=["random"], test_sets=["digits"], rounds=3), tmp_path / "run")


@pytest.mark.parametrize("rounds", ["many", 10**400, -1, None, [2]])
def test_rules_may_say_anything(whole, rounds):
    one = next(iter(whole.of_task(ActiveLearningRecord)))
    assert one.last_round == 2
    assert one.model_copy(update={"rules": {"rounds": rounds}}).last_round is None


def test_a_comparison_names_strategies_and_rounds(whole):
    text = " ".join(render_comparison(oodbench.compare(whole.path, whole.path), whole=True).split())
    one = next(iter(whole.of_task(ActiveLearningRecord)))
    assert "verdict strategy features set first second" in text
    assert f"equal {one.strategy} {one.features} digits (round 0)" in text


def test_runs_on_other_images_have_tables_of_their_own(tiny, whole, tmp_path):
    """And those of other seeds, which drew as many images, share one."""
    given = {"strategies": ["random"], "test_sets": ["digits"], "rounds": 1}
    few = run_suite(tiny(**given), out=tmp_path / "few", device="cpu", limit=40)
    same = [run(tiny(**given, seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    frame = active_learning_frame([few, *same])
    assert set(frame["dataset"]) == {"digits (40 images)", f"digits ({LIMIT} images)"}
    text = " ".join(render_active_learning(frame).split())
    assert text.count("Means of 2 seeds") == 1
    other = run(tiny(**given | {"pool": 140}), tmp_path / "pool")  # as many test images, but another pool
    names = set(active_learning_frame([same[0], other])["dataset"])
    assert len(names) == 2
    assert all(name.startswith("digits (") for name in names)


def test_tables_are_of_one_task(whole, tmp_path):
    few = {"detectors": ["msp"], "datasets": ["uniform"], "limit": 40, "measure_costs": False}
    detection = oodbench.run("digits", **few, out=tmp_path)
    with pytest.raises(UsageError, match=r"is a run of active-learning, and .* one of detection; name runs of one task"):
        task_of([whole, RunFolder(detection.path)])


def test_runs_of_other_settings_are_told_apart(tiny, tmp_path):
    given = {"strategies": ["random", "bald"], "test_sets": ["digits"], "rounds": 1}
    some = run(tiny(**given, parameters={"bald": {"passes": 2}}), tmp_path / "a")
    other = run(tiny(**given | {"until": 0.8}, parameters={"bald": {"passes": 3}}), tmp_path / "b")
    frame = active_learning_frame([some, other])
    assert sorted(frame["strategy"].unique()) == ["bald (passes 2)", "bald (passes 3)", "random"]
    assert sorted(frame["protocol"].unique()) == ["gauss (until 0.8)", "gauss (until 0.9)"]
    assert set(active_learning_frame([some])["strategy"]) == {"bald", "random"}


# Suites


def test_the_embedded_suite_is_what_it_says():
    suite = load_task_suite("digits-active")
    assert active_learning.rules_of(suite).labelled(3) == 128
    lines = plan(suite, data=None, limit=None)
    assert sum(line.startswith("strategy") and "(feed-forward, introspective)" in line for line in lines) == 7


def test_a_negative_seed_is_one_line(tmp_path):
    file = tmp_path / "negative.toml"
    file.write_text(suite_text("digits-active") + "seeds = [0, -1]\n")
    with pytest.raises(UsageError, match=r"seeds.*at least 0, not -1"):
        load_task_suite(file)


def test_a_study_of_two_seeds(tiny, tmp_path):
    suite = tiny(strategies=["random", "margin"], seeds=[0, 3], rounds=1, test_sets=[])
    target = run_task(suite, out=tmp_path / "study", device="cpu", limit=LIMIT)
    assert bundle.verify(target).ok
    folders = bundle.open_folders(target)
    frame = active_learning_frame(folders)
    assert sorted(frame["seed"].unique()) == [0, 3]
    assert len(frame) == 2 * 2 * 2
    text = render_active_learning(frame)
    for name in ("random", "margin"):
        own = frame[(frame["strategy"] == name) & (frame["round"] == 1)]["accuracy"]
        assert f"{100 * own.mean():.1f} ±{100 * own.std():.1f}" in text
    assert "Means of 2 seeds, ± their standard deviation." in text
    unfinished = frame[(frame["seed"] == 0) | (frame["round"] == 0) | (frame["strategy"] == "random")]
    text = render_active_learning(unfinished, "csv")
    assert {row["labelled"] for row in csv.DictReader(io.StringIO(text))} == {"24", "40"}  # whole numbers
    (table,) = tables(unfinished)
    assert "Means of 1 to 2 seeds, as each column says, ± their standard deviation." in table.caption
    assert [column.lines for column in table.sets] == [("24", "2 seeds"), ("40", "1 to 2 seeds")]
    found = bundle.write_bundle(target, tmp_path / "study.zip")
    assert found.figures == 8
    assert len(bundle.open_folders(tmp_path / "study.zip")) == 2
    run_task(suite, out=target, device="cpu", limit=LIMIT)  # nothing is left to do
    assert active_learning_frame(bundle.open_folders(target)).equals(frame)
    with pytest.raises(UsageError, match="seeds names a seed twice"):
        run_task(tiny(seeds=[1, 1]), out=tmp_path / "twice")


def test_third_parties_register_strategies_by_name():
    assert issubclass(registry.load("strategies", "badge"), Strategy)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_refused_run_leaves_nothing_behind(tiny, tmp_path, seeds):
    refused = {"suite": tiny(pool=20, seeds=seeds), "device": "cpu"}
    with pytest.raises(UsageError, match="20 images to label"):
        run_task(**refused, out=tmp_path / "runs" / "tiny")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="20 images to label"):
        run_task(**refused, out=tmp_path / "mine")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]  # which was there before


@pytest.mark.parametrize("doubled", [{"test_sets": ["digits", "digits"]}, {"features": ["feed-forward"] * 2}])
def test_what_a_suite_names_twice_is_refused(tiny, doubled):
    (key, (name, _)) = next(iter(doubled.items()))
    with pytest.raises(UsageError, match=f"suite tiny: {key} names {name} twice; remove one"):
        plan(tiny(**doubled), data=None, limit=None)
