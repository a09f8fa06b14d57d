"""The contract of metrics: shapes, sizes, names, and how a metric of another package is found."""

import json
import sys

import pytest
import torch

from oodbench import registry
from oodbench.errors import BadData, MissingData, OodbenchError, Unsuitable, UsageError
from oodbench.quality.metric import QualityMetric, load_metric
from oodbench.quality_metrics import TABLE

PIQ = ("ssim", "ms-ssim", "iw-ssim", "sr-sim", "fsim", "fsimc", "vif")
READS_FILES = ("csv", "unique", "ms-unique", "introspective-unique")


class MeanError(QualityMetric):
    """Mean absolute difference, over a power."""

    higher_is_better = False
    smallest_side = 4

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def compare(self, references, distorted):
        return (references.double() - distorted.double()).abs().mean((1, 2, 3)) ** self.power


def images(count=2, side=8, seed=0):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("name", TABLE)
def test_the_table_names_a_metric_with_what_list_shows(name):
    metric = load_metric(name)
    assert metric.name == name
    assert metric.__doc__
    assert TABLE[name].summary
    assert TABLE[name].parameters.split() == list(metric.parameters())
    assert json.loads(json.dumps(metric.parameters())) == metric.parameters()
    assert metric.higher_is_better


def test_scores_are_float64_on_the_cpu():
    scores = MeanError().score(images(), images(seed=1).flip(0))
    assert scores.dtype == torch.float64
    assert scores.device.type == "cpu"
    assert scores.shape == (2,)
    assert MeanError().score(images()[:0], images()[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("references", "distorted", "says"),
    [
        (images(2), images(3), r"the references are \(2, 3, 8, 8\) and the distorted images \(3, 3, 8, 8\)"),
        (images(2), images(2, side=9), r"\(2, 3, 9, 9\)"),
        (images()[:, :1], images()[:, :1], r"\(2, 1, 8, 8\)"),
        (images()[0], images()[0], r"\(3, 8, 8\)"),
        (images() / 255, images() / 255, "are torch.float32 and torch.float32; give uint8"),
        (images(), images().int(), "torch.uint8 and torch.int32"),
    ],
)
def test_other_images_are_refused_in_one_line(references, distorted, says):
    with pytest.raises(BadData, match=says) as error:
        MeanError().score(references, distorted)
    assert "\n" not in str(error.value)


def test_psnr_compares_images_of_any_size():
    assert [name for name in TABLE if load_metric(name).smallest_side == 1] == ["psnr"]


@pytest.mark.parametrize("name", [name for name in TABLE if name != "psnr"])
def test_a_smaller_image_than_the_smallest_side_is_refused(name):
    metric = load_metric(name)
    small = torch.zeros(1, 3, metric.smallest_side - 1, 400, dtype=torch.uint8)
    with pytest.raises(Unsuitable, match=f"^{name}: compares images of at least {metric.smallest_side} pixels per side"):
        metric.score(small, small)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda r, d: torch.full((2,), torch.nan), "its value for row 0 of the batch is nan"),
        (lambda r, d: torch.tensor([0.0, torch.inf]), "its value for row 1 of the batch is inf"),
        (lambda r, d: torch.zeros(2, 1), r"compare gave torch.float32 \(2, 1\) for 2 images"),
        (lambda r, d: 0.5, "compare gave float for 2 images"),
    ],
)
def test_what_is_no_number_for_each_image_is_refused(value, says):
    kind = type("Broken", (QualityMetric,), {"compare": lambda self, r, d: value(r, d)})
    with pytest.raises(BadData, match=says):
        kind().score(images(), images())


def test_a_metric_of_another_package_is_found_like_ours(monkeypatch):
    module = type(sys)("metrics_for_a_test")
    module.MeanError = MeanError
    monkeypatch.setitem(sys.modules, module.__name__, module)
    target = f"{module.__name__}:MeanError"
    found = [("mean-error", target, "others", "1.0"), ("psnr", target, "others", "1.0")]
    monkeypatch.setattr(registry, "discover", lambda group: found if group == "oodbench.quality_metrics" else [])
    metric = load_metric("mean-error", power=2.0)
    assert metric.parameters() == {"power": 2.0}
    assert metric.non_default() == {"power": [2.0, 1.0]}
    assert registry.records("quality_metrics")["mean-error"].owner == "others 1.0"
    with pytest.warns(UserWarning, match="reserved for an oodbench built-in"):
        assert type(load_metric("psnr")).__name__ == "PSNR"


def test_unknown_names_and_parameters_suggest():
    with pytest.raises(UsageError, match="did you mean 'psnr"):
        load_metric("pnsr")
    with pytest.raises(UsageError, match="unknown parameter 'tables' of csv; did you mean 'table'"):
        load_metric("csv", tables="w2c.mat")


@pytest.mark.parametrize("name", PIQ)
def test_without_piq_its_metrics_say_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "piq", None)
    metric = load_metric(name)
    with pytest.raises(OodbenchError, match=f"quality metric '{name}' needs piq; run pip install 'oodbench\\[quality\\]'"):
        metric.score(*[images(side=metric.smallest_side)] * 2)


@pytest.mark.parametrize("name", READS_FILES)
def test_without_its_files_a_metric_says_where_it_looked_and_what_to_do(name, tmp_path):
    metric = load_metric(name, data=tmp_path)
    for call in (metric.files, lambda: metric.score(*[images(side=metric.smallest_side)] * 2)):
        with pytest.raises(MissingData, match=f"^{name}: looked for {tmp_path}/models/") as error:
            call()
        remedies = ("http", "set table") if name == "csv" else ("download ImageNet_Weights_YGCr", "train_unique(images")
        assert all(remedy in str(error.value) for remedy in remedies)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "parameters"), [("csv", {"table": 3}), ("unique", {"folder": ""}), ("ms-unique", {"folder": None})]
)
def test_a_path_that_is_none_is_refused(name, parameters):
    with pytest.raises(UsageError, match="give a path, absolute or below a data root"):
        load_metric(name, **parameters)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "models" / "w2c.mat").mkdir(parents=True)
    with pytest.raises(BadData, match=r"w2c.mat is not a regular file"):
        load_metric("csv", data=tmp_path).files()
