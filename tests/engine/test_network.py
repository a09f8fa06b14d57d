"""A run and a fit say how good the network is, once, and what is wrong with a bad one."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from heard import Heard
from new_process import oodbench as command
from run_folders import figures
from scipy.stats import binomtest
from torch import nn

import oodbench
from oodbench import registry
from oodbench.classifier import Classifier
from oodbench.engine.network import MOST_IMAGES, load_network, try_network
from oodbench.errors import TooSlow, UsageError
from oodbench.image_set import ImageSet
from oodbench.inference import thresholds
from oodbench.leaderboard.brief import brief
from oodbench.leaderboard.gather import gather
from oodbench.leaderboard.sentences import sentence
from oodbench.models import weights
from oodbench.models.load import load_model
from oodbench.results.folder import RunFolder
from oodbench.results.network import stored
from oodbench.suites.load import load_suite


class Reads(nn.Module):
    """Gives the class that is written into the first pixel, so that a test decides which answers are right."""

    def __init__(self, classes, change=lambda logits: logits):
        super().__init__()
        self.classes, self.change, self.passed = classes, change, 0

    def forward(self, x):
        self.passed += len(x)
        return self.change(-((255 * x[:, :1, 0, 0] - torch.arange(self.classes)) ** 2))


def images(answers, labels, **more):
    pixels = torch.as_tensor(answers, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return ImageSet(pixels.clone(), torch.as_tensor(labels), "mine", **more)


def tried(network, test, train=None, **options):
    options = {"name": "net", "batch_size": 64, "seed": 0, "progress": Heard()} | options
    return try_network(Classifier(network), test, train or test, **options)


def test_accuracy_is_the_share_of_right_answers_with_its_exact_interval():
    labels = np.arange(300) % 4
    answers = np.where(np.arange(300) < 30, (labels + 1) % 4, labels)
    network, heard = Reads(4), Heard()
    found = tried(network, images(answers, labels), progress=heard)
    assert network.passed == 300
    assert (heard.expected, heard.done) == (0, 0)  # how much work follows is not known yet
    assert (found.images, found.drawn_from, found.gives, found.classes) == (300, 300, 4, 4)
    interval = binomtest(270, 300).proportion_ci(0.95)
    assert (found.accuracy.right, found.accuracy.low, found.accuracy.high) == (0.9, interval.low, interval.high)
    assert found.lines() == ["accuracy of net on mine (test): 90.0 % of 300 images (95 % interval 86.0 to 93.2)"]
    assert found.model_copy(update={"images": 1}).sentence().startswith("accuracy of net on mine (test): 90.0 % of 1 image,")
    assert heard.stages == ["mine: accuracy of net on 300 images"]


def test_of_many_images_some_are_drawn_by_the_seed_and_said():
    count = MOST_IMAGES + 400
    labels = np.arange(count) % 3
    answers = np.where(np.random.default_rng(0).random(count) < 0.3, (labels + 1) % 3, labels)
    network = Reads(3)
    found = tried(network, images(answers, labels))
    assert network.passed == found.images == MOST_IMAGES
    assert "% of 2,000 images, drawn from 2,400 (95 %" in found.sentence()
    again, other = tried(Reads(3), images(answers, labels)), tried(Reads(3), images(answers, labels), seed=1)
    assert found == again != other


def test_without_labels_nothing_is_said_and_nothing_passes():
    network, heard = Reads(3), Heard()
    assert tried(network, ImageSet(torch.zeros(5, 3, 4, 4, dtype=torch.uint8)), progress=heard) is None
    assert network.passed == 0
    assert heard.everything == []


def test_a_network_that_fails_is_left_to_the_detectors_but_one_that_hangs_is_not():
    def fails(error):
        def change(logits):
            raise error

        return Reads(3, change)

    labels = [0, 1, 2] * 4
    assert tried(fails(RuntimeError("broken")), images(labels, labels)) is None
    assert tried(fails(SystemExit(3)), images(labels, labels)) is None
    with pytest.raises(TooSlow):
        tried(fails(TooSlow("late")), images(labels, labels))


def test_logits_that_are_not_finite_are_wrong_answers():
    labels = np.zeros(40, dtype=int)
    labels[:10] = 1

    def change(logits):
        return torch.where(torch.arange(len(logits))[:, None] % 2 == 0, torch.nan, logits)

    assert tried(Reads(2, change), images(labels, labels)).accuracy.right == 0.5


def test_what_the_network_keeps_may_need_gradients_later():
    class Keeps(Reads):
        """Makes its scale in the first pass."""

        scale = None

        def forward(self, x):
            self.scale = x.new_ones(()) * 2 if self.scale is None else self.scale
            return super().forward(x * self.scale / self.scale)

    network = Keeps(3)
    tried(network, images([0, 1, 2], [0, 1, 2]))
    x = torch.rand(1, 3, 4, 4).requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("answers", "labels", "chance"),
    [
        ([0] * 100, [0] * 40 + [1] * 30 + [2] * 30, True),  # always the largest class
        ([(n + 1) % 4 for n in range(100)], [n % 4 for n in range(100)], True),  # its classes in another order
        ([n % 4 if n < 40 else (n + 1) % 4 for n in range(100)], [n % 4 for n in range(100)], False),
        ([n % 4 if n < 30 else (n + 1) % 4 for n in range(100)], [n % 4 for n in range(100)], True),  # p = .15
        ([0, 0], [0, 1], False),  # so few images tell nothing
        ([1] * 50, [0] * 50, False),  # nor does a single class
    ],
)
def test_chance_is_what_a_test_against_the_largest_class_cannot_exclude(answers, labels, chance):
    found = tried(Reads(max(labels) + 1), images(answers, labels))
    assert found.accuracy.chance == chance
    lines = [line for line in found.warnings() if "may be no better than chance on mine (test): it is right on " in line]
    assert len(lines) == chance


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (3, None),
        (10, "net gives 10 classes, but the labels of mine (test) have 3; use weights that were trained on these classes"),
        (1, "net gives 1 class, but the labels of mine (test) have 3, so its accuracy is not measured; use weights"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_the_classes_of_network_and_labels_are_compared(gives, said, named):
    labels = [0, 1] * 100
    network = Reads(gives)
    names = {"classes": ("a", "b", "c")} if named else {}
    found = tried(network, images(labels, labels, **names), images([2], [2]))  # the class that the test images lack
    assert (found.accuracy is None) == (gives == 1)
    assert network.passed == (64 if gives == 1 else 200)
    if gives == 10 and not named:  # the images may show some of its classes only
        said = None
    assert len(found.warnings()) == (said is not None)
    assert said is None or found.warnings()[0].startswith(said)


@pytest.fixture
def network(monkeypatch):
    """The network of a run on digits: it counts the images that pass, and ``change`` is done to its logits."""
    made = {"passed": 0, "change": lambda logits: logits}

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = oodbench.load_model("resnet8-digits")

        def forward(self, x):
            made["passed"] += len(x)
            return made["change"](self.inner(x))

    resolve = registry.resolve
    monkeypatch.setattr(registry, "resolve", lambda name: (lambda: Counts()) if name == "tests:counts" else resolve(name))
    return made


def run(out, **options):
    options = {"model": "tests:counts", "detectors": ["msp"], "datasets": ["photos"], "limit": 50} | options
    heard = Heard()
    return oodbench.run("digits", out=out, protocols=["unsupervised"], measure_costs=False, progress=heard, **options), heard


def test_a_run_says_it_once_and_keeps_it(network, tmp_path, monkeypatch):
    folder, heard = run(tmp_path / "run")
    said = "accuracy of tests:counts on digits (test): 100.0 % of 50 images (95 % interval 92.9 to 100.0)"
    assert [line for line in heard.lines if "accuracy" in line] == [said]
    assert heard.everything.index(said) < heard.everything.index("photos: 50 images")
    kept = stored(folder.manifest().provenance)
    assert kept.lines() == [said]
    assert all("accuracy" not in record.provenance for record in folder.records())
    frame, notes = gather([folder])
    assert [sentence(note) for note in notes if "accuracy" in sentence(note)] == [said]
    assert said in brief(frame, notes, width=200).splitlines()
    before = network["passed"]
    assert figures(run(tmp_path / "run")[0]) == figures(folder)
    loading = network["passed"] - before
    network["passed"] = 0
    _, heard = run(tmp_path / "run", datasets=["photos", "uniform"])
    assert said in heard.lines
    assert not [stage for stage in heard.stages if "accuracy" in stage]
    assert network["passed"] == loading + 50 + 50  # the in-distribution images and the new set, and no third pass
    assert stored(folder.manifest().provenance) == kept


def test_an_older_run_folder_is_read_and_gets_its_accuracy(network, tmp_path):
    folder, _ = run(tmp_path / "run")
    path = folder.path / "run.json"
    old = json.loads(path.read_text())
    del old["provenance"]["accuracy"], old["sha256"]
    path.write_text(json.dumps(old))
    assert not [note for note in gather([RunFolder(folder.path)])[1] if "accuracy" in sentence(note)]
    _, heard = run(tmp_path / "run")
    assert [line for line in heard.lines if line.startswith("accuracy of tests:counts")]
    assert stored(folder.manifest().provenance) is not None


def test_equal_accuracies_of_several_runs_are_one_note(network, tmp_path):
    one, _ = run(tmp_path / "one")
    two, _ = run(tmp_path / "two", datasets=["uniform"])
    other, _ = run(tmp_path / "other", limit=40)
    assert [sentence(note) for note in gather([one, two])[1] if "accuracy" in sentence(note)] == [
        "accuracy of tests:counts on digits (test): 100.0 % of 50 images (95 % interval 92.9 to 100.0)"
    ]
    notes = [sentence(note) for note in gather([one, two, other])[1] if "accuracy" in sentence(note)]
    assert [re.search(r"of (\d+) images.*\) \((.*)\)$", note).groups() for note in notes] == [
        ("50", f"{one.path}, {two.path}"),
        ("40", f"{other.path}"),
    ]


def test_a_bad_network_is_said_in_the_run_and_below_its_tables(network, tmp_path):
    network["change"] = lambda logits: logits.roll(1, 1)
    folder, heard = run(tmp_path / "run")
    why = "tests:counts may be no better than chance on digits (test): it is right on 0.0 %, and always naming the largest"
    assert len([line for line in heard.lines if line.startswith(why)]) == 1
    shown = brief(*gather([folder]), width=300).splitlines()
    assert len([line for line in shown if line.startswith(why)]) == 1
    assert len([line for line in shown if line.startswith("accuracy of tests:counts on digits (test): 0.0 % of 50")]) == 1


@pytest.mark.parametrize("change", [lambda logits: logits.softmax(1), lambda logits: logits.log_softmax(1)])
def test_probabilities_are_said_once_and_have_no_accuracy(change, network, tmp_path):
    network["change"] = change
    folder, heard = run(tmp_path / "run", detectors=["msp", "pixels"])
    assert len([line for line in heard.lines if "probabilities" in line]) == 1
    assert not [line for line in heard.everything if "accuracy" in line]
    assert stored(folder.manifest().provenance) is None


def test_a_run_without_a_network_says_nothing(tmp_path):
    suite = oodbench.suite.Suite(name="none", in_distribution="digits", detectors=["pixels"], sets=[{"name": "photos"}])
    heard = Heard()
    folder = oodbench.run(suite, out=tmp_path / "run", limit=40, measure_costs=False, progress=heard)
    assert not [line for line in heard.everything if "accuracy" in line]
    assert "accuracy" not in folder.manifest().provenance


def test_a_fit_keeps_it_and_warns(network):
    heard = Heard()
    fitted = thresholds.fit("msp", model="tests:counts", dataset="digits", progress=heard)
    kept = stored(fitted.about.provenance)
    assert kept.sentence().startswith("accuracy of tests:counts on digits (test): 99.8 % of 577 images")
    assert heard.lines == []
    network["change"] = lambda logits: logits.roll(1, 1)
    fitted = thresholds.fit("msp", model="tests:counts", dataset="digits", progress=heard)
    (line,) = heard.lines
    assert line.startswith("tests:counts may be no better than chance on digits (test): it is right on 0.2 %")


def test_the_code_of_the_users_network_is_part_of_a_run(tmp_path):
    """Its weights are the same before and after, and so is its name."""
    net = tmp_path / "net.py"
    code = (
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.linear = torch.nn.Linear(192, 8)\n    def forward(self, x):\n"
        "        return self.linear(x.flatten(1) * SCALE)\ndef build():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    options = ["run", "digits", "--model", "net:build", "--detector", "msp", "--dataset", "photos", "--limit", 40, "--no-costs"]
    for scale, says in ((1, ""), (2, "holds a run with code of the network = "), (1, "1 cell already done")):
        net.write_text(f"SCALE = {scale}\n{code}")
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # whose time stamps are too coarse for a test
        done = command(*options, "--out", "run", "--protocol", "unsupervised", cwd=tmp_path)
        assert says in done.stderr
        assert done.returncode == (2 if "holds" in says else 0)


@pytest.mark.parametrize(
    ("card", "name"),
    [
        (None, "resnet8-digits (mine)"),
        ({"method": "noise"}, "resnet8-digits (noise)"),
        ({"method": ""}, "resnet8-digits"),
        ({"method": ["noise"]}, "resnet8-digits"),
        ({"method": {}}, "resnet8-digits"),
        ({"method": "<b>"}, "resnet8-digits"),
        ([], "resnet8-digits"),
        ("{", "resnet8-digits"),
    ],
)
def test_a_network_is_called_after_its_training(tmp_path, card, name):
    """A card is data of others; without one the suite's name counts."""
    file = tmp_path / "net.safetensors"
    weights.write(file, load_model("resnet8-digits").module)
    if card is not None:
        hash = load_model("resnet8-digits", file).weights_hash
        text = card if isinstance(card, str) else json.dumps({"weights": {"hash": hash}, "recipe": card})
        file.with_suffix(".card.json").write_text(text)
    suite = load_suite("digits").model_copy(update={"network": "mine"})
    found = load_network(suite, file, torch.device("cpu"), None)
    assert found.name == (name if card != "{" else "resnet8-digits (mine)")


def test_a_card_that_was_added_since_is_named(tmp_path):
    file = tmp_path / "net.safetensors"
    weights.write(file, load_model("resnet8-digits").module)
    few = {"detectors": ["msp"], "datasets": ["uniform"], "limit": 40, "measure_costs": False, "out": tmp_path / "run"}
    oodbench.run("digits", weights=file, **few)
    hash = load_model("resnet8-digits", file).weights_hash
    file.with_suffix(".card.json").write_text(json.dumps({"weights": {"hash": hash}, "recipe": {"method": "noise"}}))
    says = (
        r"model = resnet8-digits, not resnet8-digits \(noise\), for the same weights: their \*\.card\.json, or network in the"
    )
    with pytest.raises(UsageError, match=says):
        oodbench.run("digits", weights=file, **few)
