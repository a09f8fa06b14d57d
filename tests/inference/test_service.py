"""The service on the page on inference answers as the fitted detector does, from many threads."""

import importlib.util
import io
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import oodbench
from oodbench.inference import thresholds

pytest.importorskip("fastapi", reason="needs fastapi: pip install oodbench[test]")
pytest.importorskip("httpx2", reason="needs httpx2: pip install oodbench[test]")

PAGE = Path(__file__).parents[2] / "docs" / "inference.md"


@pytest.fixture
def service(tmp_path, monkeypatch):
    """The module of the page, which finds its detector in the working folder."""
    thresholds.fit("mahalanobis-fe", model="resnet8-digits", dataset="digits").save(tmp_path / "digits.safetensors")
    code = re.search(r"^```python file=service.py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "service.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = importlib.util.spec_from_file_location("service", tmp_path / "service.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def client(service):
    from fastapi.testclient import TestClient

    return TestClient(service.app)


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def test_answers_of_eight_threads_and_drift(service, client):
    images = oodbench.load_dataset("photos").images[:60]
    judged = [service.fitted.judge(images[row : row + 1]) for row in range(len(images))]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: client.post("/judge", content=png(image)), images))
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.json() for answer in answers] == [
        {"class": int(logits[0].argmax()), "score": float(scores[0]), "anomalous": bool(flagged[0])}
        for scores, flagged, logits in judged
    ]
    report = client.get("/drift").json()
    assert report["images"] == len(images)
    assert report["flagged"] == sum(bool(flagged[0]) for _, flagged, _ in judged)
    assert report["drift"] is True


def deep() -> bytes:
    """An image of 16 bits per channel, which Pillow would clip to white."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(file, "PNG")
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def test_what_is_no_image_is_the_callers_mistake(client):
    whole = png(oodbench.load_dataset("digits").images[0])
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    broken = whole[:8] + chunk(b"IHDR", b"short")  # Pillow raises ValueError, and of other damage SyntaxError or RuntimeError
    gif = io.BytesIO()
    Image.new("RGB", (8, 8)).save(gif, "GIF")
    for content in (b"", b"no image", whole[:60], deep(), large.getvalue(), broken, b"P6 8 8 x", gif.getvalue()):
        answer = client.post("/judge", content=content)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("the image ")
        assert "0x" not in answer.json()["detail"]
    assert client.get("/drift").json()["images"] == 0


def test_every_damaged_byte_is_the_callers_mistake_or_no_mistake(client):
    whole, random = png(oodbench.load_dataset("digits").images[0]), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        assert client.post("/judge", content=bytes(damaged)).status_code in (200, 422)
