"""A fitted detector with its threshold: what is saved scores the same, errs as rarely as it says, and trusts no file."""

import copy
import json
import os
import pickle
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import new_process
import numpy as np
import pytest
import torch
from flips import flipped
from scipy.stats import binom

import oodbench
from oodbench import protocols, registry, standalone, state
from oodbench.detectors import ensemble
from oodbench.errors import BadData, MissingData, OodbenchError, UsageError
from oodbench.inference import thresholds
from oodbench.inference.fitted import Fitted, load_fitted

FIT = {"model": "resnet8-digits", "dataset": "digits"}
MYNET = """
    import torch

    import oodbench


    def build():
        print("imported")
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))
        return oodbench.Classifier(module, name="mynet")
"""


@pytest.fixture(scope="module")
def made() -> dict[str, Fitted]:
    """Fitted detectors by name, each made once."""
    return {}


@pytest.fixture
def fitted(made):
    def fit(name: str) -> Fitted:
        if name not in made:
            made[name] = thresholds.fit(name, **FIT)
        return made[name]

    return fit


@pytest.fixture
def file(fitted, tmp_path) -> Path:
    fitted("knn").save(tmp_path / "knn.safetensors")
    return tmp_path / "knn.safetensors"


@pytest.fixture(scope="module")
def digits():
    return oodbench.load_dataset("digits")


def rewritten(path: Path, change) -> Path:
    """The file after ``change(header, state)``."""
    header, found = state.load(path)
    change(header, found)
    state.save(path, header, found)
    return path


@pytest.mark.parametrize("name", ["msp", "energy", "knn", "mahalanobis-fe", "react", "pixels"])
def test_false_alarms_hold_on_images_that_neither_fit_nor_threshold_saw(name, fitted, digits):
    found = fitted(name)
    thresholding, unseen = thresholds._halves(digits, seed=0)
    assert not set(thresholding) & set(unseen)
    alarms = found.about.false_alarms
    assert (alarms.asked, alarms.drawn_from, alarms.measured_on) == (0.05, len(thresholding), len(unseen))
    _, flagged = found(digits.images[torch.from_numpy(thresholding)])
    assert flagged.sum() == int(0.05 * (len(thresholding) + 1)) - 1  # as many as may be, for a new one counts too
    _, flagged = found(digits.images[torch.from_numpy(unseen)])
    assert alarms.measured == flagged.mean()
    assert alarms.measured_low < alarms.measured < alarms.measured_high
    # An exchangeable image is flagged with a probability of at most 14 / (289 + 1); the threshold itself varies too.
    assert flagged.sum() <= binom.ppf(0.999, len(unseen), 0.05 + 3 * (0.05 * 0.95 / len(thresholding)) ** 0.5)


def test_the_rate_holds_on_average_over_seeds(digits):
    rates = [thresholds.fit("knn", **FIT, seed=seed).about.false_alarms.measured for seed in range(6)]
    assert np.mean(rates) < 0.05 + 3 * (0.05 * 0.95 / len(digits)) ** 0.5
    assert np.mean(rates) > 0.02  # nor does it flag next to nothing


def test_the_fit_sees_training_images_alone(monkeypatch):
    seen = []
    fit = standalone.fit
    monkeypatch.setattr(standalone, "fit", lambda d, c, images, *a, **k: seen.append(images) or fit(d, c, images, *a, **k))
    thresholds.fit("knn", **FIT)
    kept = thresholds.fit("knn", **FIT, held_out_split="train").about
    train = oodbench.load_dataset("digits", split="train")
    assert seen[0].fingerprint == train.fingerprint
    assert len(seen[1]) + kept.false_alarms.drawn_from + kept.false_alarms.measured_on == len(train)
    held_out = np.flatnonzero(protocols.held_out(len(train), train.labels.numpy(), 0))
    assert not set(seen[1].base_index.tolist()) & set(held_out.tolist())


def test_what_the_file_says(fitted, file):
    about = load_fitted(file).about
    assert about == fitted("knn").about
    train = oodbench.load_dataset("digits", split="train")
    assert about.training.fingerprint == train.fingerprint
    assert (about.training.images, about.training.held_out_split) == (len(train), "test")
    assert about.input.model_dump() == {"size": (8, 8), "resize": "bilinear", "shorter_side": None, "channels": 3}
    assert about.model.weights_hash == oodbench.load_model("resnet8-digits").weights_hash
    assert about.provenance["torch"] == torch.__version__
    found = load_fitted(file)
    assert (found.threshold, found.false_alarms, found.cost) == (about.threshold, 0.05, about.cost)
    assert found.cost["ms_per_image"] > 0
    assert found.cost["overhead"] > 0


def test_a_detector_of_a_network_needs_one():
    with pytest.raises(UsageError, match="knn needs a network; name one with --model"):
        thresholds.fit("knn", model=None, dataset="digits")
    found = thresholds.fit("pixels", model=None, dataset="digits")
    assert found.about.model is None
    assert found.cost["overhead"] is None


# New images


def test_images_of_any_size_are_resized_as_in_training(fitted, digits):
    found = fitted("knn")
    large = torch.nn.functional.interpolate(digits.images[:6].float(), 24).to(torch.uint8)
    wanted = torch.stack([oodbench.datasets.resize.Resized(large, (8, 8), "bilinear")[[row]][0] for row in range(6)])
    np.testing.assert_array_equal(found(large)[0], found(wanted)[0])
    np.testing.assert_array_equal(found(digits.images[:6, :1])[0], found(digits.images[:6])[0])  # grey
    np.testing.assert_array_equal(found(digits.images[:6].numpy())[0], found(digits.images[:6])[0])
    np.testing.assert_allclose(found(digits.images[:6].float() / 255)[0], found(digits.images[:6])[0], rtol=1e-6)
    scores, flagged = found(digits)
    assert scores.dtype == np.float64
    assert flagged.dtype == bool
    np.testing.assert_array_equal(flagged, scores > found.threshold)


def test_images_that_it_does_not_take(fitted):
    with pytest.raises(BadData, match=r"images are floats \(3, 9, 9\); give uint8, which is resized"):
        fitted("knn")(torch.zeros(2, 3, 9, 9))
    with pytest.raises(BadData, match="1 of 2 images are not finite"):
        fitted("knn")(torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), torch.nan)]))
    with pytest.raises(BadData, match=r"an image is torch.uint8 \(4, 8, 8\); give uint8 \(1 or 3, H, W\)"):
        fitted("knn")(torch.zeros(2, 4, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["knn", "odin", "mahalanobis-fe"])
def test_in_a_new_process_it_scores_the_same(name, fitted, digits, tmp_path):
    fitted(name).save(tmp_path / "file")
    scores, flagged = fitted(name)(digits.images[:50])
    np.save(tmp_path / "images.npy", digits.images[:50].numpy())
    code = textwrap.dedent("""
        import json, numpy, sys, oodbench
        fitted = oodbench.load_fitted(sys.argv[1] + "/file")
        scores, flagged = fitted(numpy.load(sys.argv[1] + "/images.npy"))
        print(json.dumps([scores.tolist(), flagged.tolist(), fitted.threshold]))
    """)
    done = new_process.python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [scores.tolist(), flagged.tolist(), fitted(name).threshold]


def test_what_trains_something_of_its_own_keeps_it(tmp_path, digits):
    found = thresholds.fit("gradcon", model=None, dataset="digits", parameters={"epochs": 1})
    found.save(tmp_path / "file")
    np.testing.assert_array_equal(load_fitted(tmp_path / "file")(digits.images[:20])[0], found(digits.images[:20])[0])


# What a file may not do


@pytest.fixture
def mynet(tmp_path, monkeypatch):
    """A file that names a model of the user's own module, and the classifier."""
    (tmp_path / "mynet_for_a_test.py").write_text(textwrap.dedent(MYNET))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = thresholds.fit("msp", model="mynet_for_a_test:build", dataset="digits")
    found.save(tmp_path / "file")
    sys.modules.pop("mynet_for_a_test")
    return tmp_path / "file", found.classifier


def test_a_model_that_the_file_names_is_not_imported(mynet, capsys, digits):
    file, classifier = mynet
    capsys.readouterr()
    with pytest.raises(UsageError, match="loading it would run that code; if you trust the file, use --trust-model"):
        load_fitted(file)
    assert capsys.readouterr().out == ""
    assert "mynet_for_a_test" not in sys.modules
    with_classifier = load_fitted(file, classifier)
    trusted = load_fitted(file, trust_model=True)
    np.testing.assert_array_equal(with_classifier(digits)[0], trusted(digits)[0])


def test_other_weights_are_refused(file, make_classifier, tmp_path):
    with pytest.raises(
        BadData,
        match=r"was fitted on resnet8-digits with weights [0-9a-f]{16}, not [0-9a-f]{16}; give the original weights file",
    ):
        load_fitted(file, make_classifier())
    rewritten(file, lambda header, found: header["fitted"]["model"].update(weights_hash="0" * 16))
    with pytest.raises(BadData, match="with weights 0000000000000000, not"):
        load_fitted(file)


def test_weights_are_found_again_and_known_by_content(tmp_path, digits):
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in oodbench.load_model("resnet8-digits").module.state_dict().items()}, weights)
    found = thresholds.fit("msp", **FIT, weights=weights)
    found.save(tmp_path / "file")
    assert found.about.model.weights == str(weights)
    np.testing.assert_array_equal(load_fitted(tmp_path / "file")(digits)[0], found(digits)[0])
    moved = weights.rename(tmp_path / "moved.safetensors")
    np.testing.assert_array_equal(load_fitted(tmp_path / "file", weights=moved)(digits)[0], found(digits)[0])
    tensors = load_file(moved)
    save_file({name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, weights)
    with pytest.raises(BadData, match="has changed since"):
        load_fitted(tmp_path / "file")
    with pytest.raises(BadData, match="was fitted on resnet8-digits with weights"):
        load_fitted(tmp_path / "file", weights=weights)


def test_a_detector_is_known_by_its_registered_name_alone(file, tmp_path, monkeypatch, digits):
    rewritten(file, lambda header, found: header.update(detector="os:system"))
    with pytest.raises(
        UsageError, match=r"holds the detector 'os:system', which no package here registers; install its package"
    ):
        load_fitted(file)
    (tmp_path / "loud_for_a_test.py").write_text(
        "import oodbench\n\n\nclass Loud(oodbench.Detector):\n    'Minus the largest logit.'\n    signals = ('logits',)\n\n"
        "    def statistics(self, probe):\n        return -probe.logits.max(1).values\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_added", {})
    registry.add_plugin("loud_for_a_test:Loud")
    found = thresholds.fit("loud", **FIT)
    found.save(tmp_path / "loud")
    np.testing.assert_array_equal(load_fitted(tmp_path / "loud")(digits)[0], found(digits)[0])
    registry._added.clear()
    with pytest.raises(UsageError, match="holds the detector 'loud', which no package here registers"):
        load_fitted(tmp_path / "loud")


def test_a_detector_that_names_a_model_does_not_have_it_imported(fitted, tmp_path, monkeypatch):
    (tmp_path / "evil_for_a_test.py").write_text(f"open({str(tmp_path / 'evil')!r}, 'w')\n\n\ndef build(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fitted("msp").save(tmp_path / "file")

    def forge(header, found):
        header.update(detector="ensemble", parameters={"members": ["evil_for_a_test:build"]}, head=None)
        found.update(weights_=[torch.zeros(1)])

    with pytest.raises(OodbenchError, match="the member 'evil_for_a_test:build' is code to run"):
        load_fitted(rewritten(tmp_path / "file", forge))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("members", [10**9, ["resnet8-digits"] * 100])
def test_an_ensemble_of_a_file_has_no_more_members_than_weights(members, fitted, tmp_path, monkeypatch):
    fitted("msp").save(tmp_path / "file")
    weights, made = [*fitted("msp").classifier.module.state_dict().values()], []

    def network(*_):
        made.append(copy.deepcopy(fitted("msp").classifier))
        assert len(made) < 9
        return made[-1]

    def forge(header, found):
        header.update(detector="ensemble", parameters={"members": members}, head=None)
        found.update(weights_=weights * 2)

    monkeypatch.setattr(ensemble, "copy", SimpleNamespace(deepcopy=network))
    monkeypatch.setattr(ensemble, "build", network)
    with pytest.raises(BadData, match=r"does not hold what ensemble needs \(the fitted networks have another architecture"):
        load_fitted(rewritten(tmp_path / "file", forge))
    assert len(made) == (3 if members == 10**9 else 2)  # two have weights; what a name stands for is known without building it


@pytest.mark.parametrize("size", [[4096, 4096], [1025, 1024]])
def test_a_file_that_asks_for_large_images_must_be_trusted(file, size, monkeypatch):
    rewritten(file, fields(input={"size": size, "resize": "bilinear"}))
    asked = []
    monkeypatch.setattr(Fitted, "__call__", lambda self, images: asked.append(tuple(images.shape)))
    says = rf"asks for images of {size[0]}×{size[1]} pixels, more than 1,048,576, which may .*; if you trust the file, use --tr"
    with pytest.raises(UsageError, match=says):
        load_fitted(file)
    assert asked == []
    load_fitted(file, trust_model=True)
    assert asked == [(1, 3, *size)]


def test_a_large_network_without_weights_is_not_built(file, monkeypatch):
    rewritten(file, lambda header, found: header["fitted"]["model"].update(name="torchvision:vit_h_14"))
    monkeypatch.setattr("oodbench.models.load.build", lambda *_: pytest.fail("built"))
    with pytest.raises(MissingData, match="no weights for torchvision:vit_h_14: looked for"):
        load_fitted(file)


def fields(**changes):
    def change(header, found):
        header["fitted"].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda header, found: header.pop("fitted"), "holds no threshold; create the file with oodbench fit"),
        (lambda header, found: header.update(fitted=3), "schema version None"),
        (fields(schema_version=99), "has schema version 99; this oodbench reads version 1; fit it again"),
        (fields(threshold="high"), "threshold: Input should be a valid number"),
        (fields(threshold=float("nan")), "threshold: Input should be a finite number"),
        (fields(surprise=1), "surprise: Extra inputs are not permitted"),
        (fields(input={"size": [10**9, 10**9], "resize": "bilinear"}), "do not use this file"),
        (fields(input={"size": [8, 8], "resize": "nearest"}), "do not use this file"),
        (lambda header, found: header.update(parameters={"k": "many"}), "does not hold what knn needs"),
        (lambda header, found: header.update(parameters={"kk": 3}), "does not hold what knn needs"),
        (
            lambda header, found: header.update(detector="mc-dropout", parameters={"passes": 10**9}),
            "does not hold what mc-dropout needs (mc-dropout: passes = 1000000000; give a whole number from 2 to 1000); fit",
        ),
        (
            lambda header, found: header.update(detector="gram", parameters={"powers": 10**9}),
            "does not hold what gram needs (gram: powers = 1000000000; give a whole number from 1 to 100); fit",
        ),
        (lambda header, found: header.update(parameters=None), "does not hold a fitted Detector (TypeError: "),
        (
            lambda header, found: header.update(head="guillotine"),
            "hold a fitted Detector (KeyError: 'guillotine'); fit it again",
        ),
        (
            lambda header, found: header.update(head="logistic"),
            "needs (its head is Logistic, not identity or choose); fit it again",
        ),
        (
            lambda header, found: header.update(head="choose"),
            "does not hold what knn needs (its head has not chosen a setting of the grid); fit it again",
        ),
        (lambda header, found: found.update(bank_=torch.zeros(3, 5)), "does not hold what knn needs"),
        (lambda header, found: [found.pop(name) for name in list(found)], "does not hold what knn needs"),
        (lambda header, found: found.update(score=1), "sets 'score', which is not fitted state"),
        (lambda header, found: found.update(__class__=1), "sets '__class__', which is not fitted state"),
    ],
)
def test_a_file_that_is_not_what_fit_writes_is_refused_in_one_line(file, change, says, recwarn):
    with pytest.raises(OodbenchError) as raised:
        load_fitted(rewritten(file, change))
    assert not recwarn.list
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).count(str(file)) == 1
    assert str(raised.value).count("fit it again") <= 1


@pytest.fixture
def purview(tmp_path) -> Path:
    """A file whose head has state."""
    thresholds.fit("purview", **FIT).save(tmp_path / "purview")
    return tmp_path / "purview"


@pytest.mark.parametrize(("name", "value"), [("head:mean_", float("nan")), ("head:scale_", 1e308)])
def test_scores_that_are_not_finite_are_no_verdict(purview, digits, name, value):
    whole = load_fitted(purview)
    setattr(whole.detector.head, name.removeprefix("head:"), [value] * len(whole.detector.head.mean_))
    with pytest.raises(BadData, match=r"^20 of 20 scores of purview are not finite \(NaN or infinity\), although"):
        whole(digits.images[:20])
    rewritten(purview, lambda header, found: found.update({name: [value] * len(found[name])}))
    with pytest.raises(BadData, match=r"purview does not hold what purview needs \(1 of 1 scores of purview are not finite"):
        load_fitted(purview)


@pytest.mark.parametrize("head", ["identity", "standardised-sum", "choose-logistic", None])
def test_a_head_of_another_kind_is_refused_with_the_files_name(purview, head):
    def change(header, found):
        assert header["head"] == "standardised-square"
        header.update(head=head)

    with pytest.raises(BadData, match=r"purview does not hold what purview needs \(.*\); fit it again$"):
        load_fitted(rewritten(purview, change))


def test_a_flipped_byte_is_refused_in_one_line(file, digits):
    whole, told = load_fitted(file), []
    for content in flipped(file.read_bytes()):
        file.write_bytes(content)
        try:
            found = load_fitted(file)
        except BadData as error:
            told.append(str(error))
        else:
            assert found.about == whole.about
            np.testing.assert_array_equal(found(digits.images[:9])[0], whole(digits.images[:9])[0])
    assert len(told) > 50
    for line in told:
        assert line.startswith(f"{file} is not an oodbench file, or is damaged (")
        assert line.endswith("; name another, or make it again")
        assert "\n" not in line


def test_a_truncated_file_and_a_pickle_are_refused(file, tmp_path):
    whole = file.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(BadData, match="is not an oodbench file, or is damaged"):
            load_fitted(file)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    for write in (lambda: file.write_bytes(pickle.dumps(Evil())), lambda: torch.save({"x": Evil()}, file)):
        write()
        with pytest.raises(BadData, match="is not an oodbench file"):
            load_fitted(file)
    assert not (tmp_path / "evil").exists()
    with pytest.raises(BadData, match="no such file"):
        load_fitted(tmp_path / "nowhere")


def test_a_callers_inference_mode_and_autocast_change_no_score(fitted):
    odin = fitted("odin")
    images = oodbench.load_dataset("digits").images[:20]
    expected = odin(images)[0]
    floats = images / 255
    with torch.inference_mode():
        assert (odin(images)[0] == expected).all()
        assert (odin(floats.clone())[0] == odin(images / 255)[0]).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (odin(images)[0] == expected).all()


def test_a_plain_module_and_a_lost_weights_file_are_named(tmp_path, fitted):
    odin = fitted("odin")
    odin.save(tmp_path / "odin.safetensors")
    with pytest.raises(UsageError, match=r"classifier is CifarResNet; give an oodbench\.Classifier"):
        oodbench.load_fitted(tmp_path / "odin.safetensors", classifier=odin.classifier.module)
    about = odin.about
    moved = about.model.model_copy(update={"weights": str(tmp_path / "gone.safetensors"), "weights_hash": "0" * 16})
    fitting = type(odin)(odin.detector, odin.classifier, about.model_copy(update={"model": moved}))
    fitting.save(tmp_path / "moved.safetensors")
    with pytest.raises(BadData, match=r"\(its file .*gone\.safetensors is gone\).* with --weights, or fit again"):
        oodbench.load_fitted(tmp_path / "moved.safetensors")


def test_a_fitted_detector_is_not_weights(tmp_path, fitted):
    odin = fitted("odin")
    odin.save(tmp_path / "odin.safetensors")
    with pytest.raises(BadData, match="holds a fitted detector, not the weights of a network; name another file"):
        oodbench.load_model("resnet8-digits", weights=tmp_path / "odin.safetensors")
