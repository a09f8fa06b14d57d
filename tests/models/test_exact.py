"""float32 that is not TF32 or bfloat16, and how it was is restored."""

import threading

import pytest
import torch

import oodbench
from oodbench.models import exact

CPU = torch.device("cpu")


@pytest.fixture(params=["by operation", "before PyTorch 2.9"])
def lowered(request, monkeypatch):
    """A user has allowed TF32 and bfloat16."""
    before = exact.float32()
    if request.param == "by operation":
        exact.set_float32(("tf32", "tf32", "tf32", "bf16", "bf16", "bf16"))
    else:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("medium")
        monkeypatch.delattr(torch.backends.GenericModule, "fp32_precision")
        assert exact.float32() == ("tf32", "medium")
    yield exact.float32()
    monkeypatch.undo()
    exact.set_float32(before)
    assert exact.float32() == before


def is_exact() -> bool:
    by_operation = [torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    return {each.fp32_precision for each in by_operation} <= {"ieee", "none"}


def test_what_was_set_is_restored_after_the_last_thread(lowered):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with exact.exact(CPU):
            inside.set()
            leave.wait(60)

    with exact.exact(CPU):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(60)
        assert is_exact()
    assert is_exact(), "the other thread still computes"
    leave.set()
    thread.join()
    assert exact.float32() == lowered
    with pytest.raises(ZeroDivisionError), exact.exact(CPU):
        _ = 1 / 0
    assert exact.float32() == lowered


def test_runs_and_detectors_compute_in_float32(lowered, tmp_path, monkeypatch):
    seen = []
    forward = oodbench.Classifier.forward

    def watched(self, images):
        seen.append(is_exact())
        return forward(self, images)

    monkeypatch.setattr(oodbench.Classifier, "forward", watched)
    options = {"detectors": ["msp", "knn", "purview"], "datasets": ["photos", "digits+fgsm"], "limit": 20}
    oodbench.run("digits", out=tmp_path / "run", protocols=["unsupervised"], device="cpu", **options)
    network = oodbench.load_model("resnet8-digits")
    detector = oodbench.load_detector("msp")
    detector.fit(network, torch.rand(8, 1, 8, 8), torch.arange(8))
    detector.score(network, torch.rand(8, 1, 8, 8))
    assert len(seen) > 20
    assert all(seen)
    assert exact.float32() == lowered
