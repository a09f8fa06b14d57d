"""float32 that is not TF32 or bfloat16, and how it was is restored."""

import threading

import pytest
import torch

import oodbench
from oodbench.models import exact

CPU = torch.device("cpu")


def by_operation():
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = torch.backends.mkldnn.conv.fp32_precision = "bf16"


def for_all():
    torch.backends.fp32_precision = "tf32"


def by_the_older_interface():
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")


def off():
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(params=[by_operation, for_all, by_the_older_interface, off, lambda: None], ids=lambda way: way.__name__)
def lowered(request):
    """What a user has set."""
    before = exact.float32()
    request.param()
    yield exact.float32()
    exact.set_float32(before)
    assert exact.float32() == before


def is_exact() -> bool:
    found = exact.float32()
    return (found.cudnn, found.matmul) == (False, "highest") and set(found.parts) <= {"ieee", "none"}


def test_before_pytorch_2_9_the_older_interface_is_used(monkeypatch):
    monkeypatch.setattr(exact, "_places", list)
    before = exact.float32()
    assert before == (True, "highest", ())
    by_the_older_interface()
    with exact.exact(CPU):
        assert exact.float32() == (False, "highest", ())
    assert exact.float32() == (True, "medium", ())
    exact.set_float32(before)


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
