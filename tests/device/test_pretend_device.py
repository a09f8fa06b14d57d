"""Everything that computes, on a device that refuses to mix with the CPU (``helpers/pretend_device.py``).

The device belongs to a process, so each test is a process of its own.
"""

import json
import re
from pathlib import Path

import new_process
import numpy as np
import pytest
import torch
from PIL import Image

from oodbench import registry

if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this PyTorch knows no devices written in Python", allow_module_level=True)

HELPERS = Path(__file__).parents[1] / "helpers"
SET_UP = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import numpy as np, pytest, torch
import pretend_device
from oodbench.conformance.subject import INSIDE, INSIDE_LABELS, LABELS, TRAIN
from oodbench.conformance.task import trained_classifier
from oodbench.detector import load_detector
"""
# Parameters of detectors that train a network; an epoch shows as much as a hundred.
SHORT = {name: {"epochs": 1} for name in ("duq", "ensemble", "gradcon", "gradcon-vae", "introspective")}
either = pytest.mark.parametrize("float64", [True, False], ids=["with float64", "without float64"])


def on_device(code: str, *arguments, cwd=None, float64: bool = True) -> str:
    """What the code prints in a process with the device, which may lack float64."""
    set_up = f"{SET_UP}\npretend_device.set_up(float64={float64})\n"
    done = new_process.python(set_up + code, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pretend has no float64") == (not float64)
    return done.stdout


def oodbench(*arguments, cwd, float64: bool = True) -> str:
    """What the command prints in a process with the device."""
    return on_device("from oodbench.cli import main\nsys.argv[0] = 'oodbench'\nmain()", *arguments, cwd=cwd, float64=float64)


def test_the_device_refuses_what_cuda_refuses():
    refused = on_device("""
x, there = torch.ones(2, 2), torch.ones(2, 2, device="pretend")
refused = [
    lambda: there + x,
    lambda: torch.cat([there, x]),
    lambda: torch.stack([there.sum(), x.sum()]),
    lambda: torch.nn.Linear(2, 2)(there),
    lambda: torch.nn.Linear(2, 2).to("pretend")(x),
    lambda: x[there.long()],
    lambda: x.add_(there),
    lambda: there.numpy(),
    lambda: torch.rand(2, device="pretend", generator=torch.Generator()),
    lambda: x.pin_memory(),
]
for mix in refused:
    for context in (torch.no_grad(), torch.inference_mode()):
        with pytest.raises((RuntimeError, TypeError)), context:
            mix()
print(2 * len(refused))
assert (there * x.sum() + x.sum()).tolist() == [[8.0, 8.0], [8.0, 8.0]]
assert there[torch.tensor([0])].device == torch.device("pretend:0")
assert x.copy_(there * 2).tolist() == [[2.0, 2.0], [2.0, 2.0]]
there.t()[0] = 5
assert there.cpu().tolist() == [[5.0, 1.0], [5.0, 1.0]]
""")
    assert int(refused) == 20


def test_random_numbers_of_the_device_are_its_own():
    repeated = on_device("""
from oodbench.models.device import random_state, seeded
torch.manual_seed(1)
state, own = torch.get_rng_state(), random_state()
drawn = torch.rand(3, device="pretend")
assert torch.equal(torch.get_rng_state(), state) and not torch.equal(random_state(), own)
own = random_state()
for _ in range(2):
    with seeded(1):
        print(torch.equal(torch.rand(3, device="pretend").cpu(), drawn.cpu()))
    assert torch.equal(random_state(), own) and torch.equal(torch.get_rng_state(), state)
""")
    assert repeated.split() == ["True", "True"]


def test_without_float64_only_what_needs_it_runs_on_the_cpu():
    found = on_device(
        """
from oodbench.models.exact import float64_for
with pytest.raises(TypeError, match="support float64"):
    torch.ones(2, device="pretend").double()
ones = torch.ones(2, device="pretend")
with float64_for(ones.device):
    wide = ones.double()
    made = torch.zeros(2, dtype=torch.float64, device="pretend")
    assert [each.device.type for each in (made, wide, wide.argmax(), wide + ones)] == ["cpu"] * 4
    assert [wide.to("pretend").device.type, wide.to("pretend").dtype] == ["cpu", torch.float64]
    assert [wide.to(ones).device.type, wide.to(ones).dtype] == ["pretend", torch.float32]
    assert [(ones * 2).device.type, (ones * torch.tensor(2.0)).device.type] == ["pretend"] * 2
    ones += wide
    ones[:1] = 3 * wide[:1]
    ones[torch.tensor([False, True])] -= wide[1:]
    print(ones.device.type, *ones.tolist())
    leaf = ones.requires_grad_()
    gradient = torch.autograd.grad((leaf.double() * wide).sum(), leaf)[0]
    print(gradient.device.type, *gradient.tolist())
with float64_for(torch.device("pretend:0")):
    pass
""",
        float64=False,
    )
    assert found.splitlines() == ["pretend 3.0 1.0", "pretend 1.0 1.0"]


@either
def test_every_detector_scores_as_on_the_cpu(tmp_path, float64):
    found = on_device(
        """
import json, traceback
here, there = trained_classifier(), trained_classifier(device="pretend")

def scores(name, parameters):
    expected = load_detector(name, **parameters).fit(here, TRAIN, LABELS).score(here, INSIDE)
    fitted = load_detector(name, **parameters).fit(there, TRAIN, LABELS)
    fitted.save("fitted")
    yield from (expected, fitted.score(there, INSIDE), fitted.score(there, INSIDE.to("pretend")))
    yield from (type(fitted).load("fitted", network.device).score(network, INSIDE) for network in (here, there))

for name, parameters in json.loads(sys.argv[1]).items():
    try:
        print(json.dumps([name, [each.tolist() for each in scores(name, parameters)]]))
    except Exception:
        print(json.dumps([name, traceback.format_exc()]))
assert pretend_device.OPERATIONS["aten::convolution"] > 100
""",
        json.dumps({name: SHORT.get(name, {}) for name in registry.records("detectors")}),
        cwd=tmp_path,
        float64=float64,
    )
    results = dict(map(json.loads, found.splitlines()))
    assert results.keys() == registry.records("detectors").keys()
    for name, scores in results.items():
        assert not isinstance(scores, str), f"{name}: {scores}"
        expected, *others = np.array(scores)
        for each in others:
            np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5 * np.ptp(expected), err_msg=name)


def test_no_batch_waits_for_the_device(tmp_path):
    """A pass over six batches waits as often as one over two: for what is copied once the set ends."""
    found = on_device(
        """
import json
from oodbench import passes
from oodbench.batching import pieces_of
from oodbench.classifier import Classifier
there = trained_classifier(device="pretend")
layers = torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(INSIDE[0].numel(), 4)
dropping = Classifier(torch.nn.Sequential(*layers)).to("pretend")
jobs = [(name, parameters, there) for name, parameters in json.loads(sys.argv[1]).items()]
for name, parameters, network in [*jobs, ("mc-dropout", {}, dropping)]:
    detector, waits = load_detector(name, **parameters).fit(network, TRAIN, LABELS), {}
    for size in (len(INSIDE), 30, 10):  # the first one warms up
        pretend_device.WAITS.clear()
        passes.statistics({detector: [detector.setting]}, network, INSIDE, pieces_of(np.arange(len(INSIDE)), size), logits=[])
        waits[size] = dict(+pretend_device.WAITS)
    print(json.dumps([name, waits[30], waits[10]]))
""",
        json.dumps({name: SHORT.get(name, {}) for name in registry.records("detectors")}),
        cwd=tmp_path,
    )
    results = list(map(json.loads, found.splitlines()))
    assert len(results) == len(registry.records("detectors")) + 1
    for name, two, six in results:
        assert two == six, name
        assert sum(six.values()) <= 8, (name, six)  # images, statistics, logits, and checks of the set


def test_what_a_batch_requires_is_checked_when_the_set_ends():
    refused = on_device("""
from oodbench.errors import Unsuitable
from oodbench.classifier import Classifier
network = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4)))
for device in ("cpu", "pretend"):
    with pytest.raises(Unsuitable) as error:
        load_detector("ash").score(network.to(device), torch.rand(9, 3, 8, 8), batch_size=4)
    print(error.value)
""")
    assert ["assumes features of at least 0" in line for line in refused.splitlines()] == [True, True]


def test_full_blocks_of_statistics_are_copied_before_the_set_ends():
    waits = on_device("""
from oodbench.passes import gathered
from oodbench.batching import pieces_of
from oodbench import passes
there, detector = trained_classifier(device="pretend"), load_detector("msp")
found, waits = [], []
for gathered.BLOCK_BYTES in (2**26, 300):  # 37 images of 8 bytes
    pretend_device.WAITS.clear()
    found.append(passes.statistics({detector: [{}]}, there, INSIDE, pieces_of(np.arange(60), 10))[0][detector])
    waits.append(sum(pretend_device.WAITS.values()))
assert np.array_equal(*found)
print(*waits)
""")
    at_the_end, before = map(int, waits.split())
    assert before == at_the_end + 1


@either
def test_every_attack_gives_the_images_of_the_cpu(float64):
    on_device(
        """
from oodbench.datasets.adversarial.attacks import ATTACKS, attack
others = {"hsv": ("semantic", {"reading": "hsv", "trials": 5}),
          "foolbox": ("foolbox:LinfPGD", {"eps": 0.03, "random_start": False}),
          "art": ("art:ProjectedGradientDescent", {"max_iter": 3})}
here, there, images, labels = trained_classifier(), trained_classifier(device="pretend"), INSIDE[:20], INSIDE_LABELS[:20]
for name, settings in ({name: (name, {}) for name in ATTACKS} | others).values():
    expected = attack(here, images, labels, name, **settings)
    for given in (images, images.to("pretend")):
        for classes in (labels, labels.to("pretend")):
            found = attack(there, given, classes, name, **settings)
            assert found.device == given.device and there.device == torch.device("pretend:0"), name
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6, msg=lambda text: f"{name}: {text}")
assert pretend_device.OPERATIONS["aten::convolution_backward"] > 100
""",
        float64=float64,
    )


@either
def test_training_ends_with_the_weights_of_the_cpu_and_resumes(tmp_path, float64):
    on_device(
        """
from oodbench.datasets.load import load_dataset
from oodbench.models import train as training
from oodbench.models.checkpoint import Checkpoint
digits, removed = load_dataset("digits", split="train").select(torch.arange(300)), Checkpoint.remove
options = {"epochs": 2, "batch_size": 50, "progress": False}
ends = [
    training.train("resnet8-digits", digits, out=f"{device}.safetensors", device=device, **options).cpu().state_dict()
    for device in ("cpu", "pretend")
]
step = training.Training.epoch
training.Training.epoch = lambda self, number, *rest: step(self, number, *rest) if number == 0 else 1 / 0
with pytest.raises(ZeroDivisionError):
    training.train("resnet8-digits", digits, out="again.safetensors", device="pretend", **options)
training.Training.epoch = step
ends.append(training.train("resnet8-digits", digits, out="again.safetensors", device="pretend", **options).cpu().state_dict())
for name, value in ends[0].items():
    torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4)
    assert torch.equal(ends[1][name], ends[2][name]), name
""",
        cwd=tmp_path,
        float64=float64,
    )


def test_a_run_has_the_figures_of_the_cpu(tmp_path):
    compared = on_device(
        """
import oodbench
from oodbench.engine.replay import replay
from oodbench.results.folder import RunFolder
options = {
    "detectors": ["msp", "odin", "mahalanobis-v", "knn", "vim", "lid", "purview", "mc-dropout", "pixels"],
    "datasets": ["photos", "digits+fgsm"],
}
for device in ("cpu", "pretend"):
    oodbench.run("digits", limit=60, device=device, out=device, **options)
here, there = ({(r.set_name, *r.place): r for r in RunFolder(device).records()} for device in ("cpu", "pretend"))
assert here.keys() == there.keys()
print(len(here))
for place, record in here.items():
    assert record.status == there[place].status == "ok", place
    assert vars(there[place].metrics) == pytest.approx(vars(record.metrics), abs=1e-6, nan_ok=True), place
folder = RunFolder("pretend")
assert folder.manifest().provenance["device"].startswith("pretend")
assert folder.costs() and {cost["peak_memory_mb"] for cost in folder.costs().values()} == {None}
assert replay("pretend", 10, device="auto").ok
""",
        cwd=tmp_path,
    )
    assert int(compared) > 30


def test_a_run_with_too_little_memory_has_the_same_figures(tmp_path):
    """The network takes no more than 20 images at once."""
    largest = on_device(
        """
import oodbench
from oodbench.classifier import Classifier
from oodbench.results.folder import RunFolder
forward, largest = Classifier.forward, []

def short_of_memory(self, images):
    if len(images) > 20:
        raise torch.OutOfMemoryError("out of memory")
    largest.append(len(images))
    return forward(self, images)

options = {"detectors": ["msp", "odin", "knn", "mahalanobis-v"], "datasets": ["photos"], "limit": 60, "device": "pretend"}
for name, step in (("whole", forward), ("halved", short_of_memory)):
    Classifier.forward = step
    oodbench.run("digits", out=name, batch_size=64, protocols=["unsupervised"], measure_costs=False, **options)
print(max(largest))
whole, halved = ({(r.set_name, *r.place): r for r in RunFolder(name).records()} for name in ("whole", "halved"))
assert whole.keys() == halved.keys()
for place, record in whole.items():
    assert record.status == halved[place].status == "ok", place
    assert vars(halved[place].metrics) == pytest.approx(vars(record.metrics), abs=1e-6, nan_ok=True), place
""",
        cwd=tmp_path,
    )
    assert int(largest) == 15  # 60 images are halved twice


def test_a_precision_that_the_device_lacks_is_refused(tmp_path):
    refused = on_device(
        """
import oodbench
from oodbench.errors import UsageError
with pytest.raises(UsageError) as error:
    oodbench.run("digits", out="bf16", precision="bf16", device="pretend", limit=20)
print(error.value)
""",
        cwd=tmp_path,
    )
    assert re.search("pretend.* cannot compute in bf16 .*; leave out --precision", refused)
    assert len(refused) < 300


def test_what_is_fitted_on_the_device_scores_anywhere(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    fit = ("fit", "mahalanobis-p", "--dataset", "digits", "--model", "resnet8-digits", "--out", "fitted")
    oodbench(*fit, "--device", "pretend", cwd=tmp_path)
    there, here = (oodbench("score", "fitted", "images", "--device", name, cwd=tmp_path) for name in ("pretend", "cpu"))
    assert there == here
    assert there.count("anomalous") == 3


@either
def test_methods_of_training_and_filters_compute_there_what_the_cpu_does(tmp_path, float64):
    on_device(
        """
from oodbench.datasets.load import load_dataset
from oodbench.models import recipes
from oodbench.models import train as training
from oodbench.models.load import load_model
digits = load_dataset("digits", split="train").select(torch.arange(100))
for name, recipe in recipes.RECIPES.items():
    if recipe.method:
        options = {"recipe": name, "epochs": 2, "batch_size": 50, "lr": 0.01, "progress": False}
        ends = [
            training.train("resnet8-digits", digits, out=f"{name}-{device}.safetensors", device=device, **options).cpu()
            for device in ("cpu", "pretend")
        ]
        of_cpu, of_device = (end.state_dict() for end in ends)
        for key, value in of_cpu.items():
            torch.testing.assert_close(of_device[key], value, rtol=1e-2, atol=1e-3, msg=f"{name}: {key}")
images = digits.images[:20].float() / 255
for name in ("denoised:resnet8-digits", "denoised:filter=median:resnet8-digits"):
    here, there = load_model(name), load_model(name, device="pretend")
    torch.testing.assert_close(there(images.to("pretend")).cpu(), here(images))
""",
        cwd=tmp_path,
        float64=float64,
    )
