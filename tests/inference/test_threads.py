"""A fitted detector is called from many threads, and each call gives what it gives alone, bit for bit."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

import oodbench
from oodbench import standalone
from oodbench.inference import thresholds

THREADS = 8
# Together they use hooks on layers, maps, features, dropout and the head, a graph, a grid, and no network.
NAMES = ["mahalanobis-v", "gram", "knn", "mc-dropout", "purview", "odin", "pixels", "untrained"]


@pytest.fixture(scope="module")
def images():
    return oodbench.load_dataset("digits").images


@pytest.fixture(scope="module")
def network():
    return oodbench.load_model("resnet8-digits")


def fit(name):
    return thresholds.fit(name, model="resnet8-digits", dataset="digits")


def in_threads(calls):
    """What each call gives, from many threads at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda call: call(), calls))


def test_eight_threads_of_500_calls(images):
    fitted = fit("mahalanobis-fe")
    serial = [fitted(images[row : row + 1]) for row in range(500)]
    found = in_threads([partial(fitted, images[row : row + 1]) for row in range(500)] * THREADS)
    for (scores, flagged), (expected, verdict) in zip(found, serial * THREADS, strict=True):
        assert scores == expected
        assert flagged == verdict


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_read_a_network(name, images):
    fitted = fit(name)
    serial = [fitted(images[row : row + 1])[0] for row in range(20)]
    found = in_threads([partial(fitted, images[row : row + 1]) for row in range(20)] * THREADS)
    assert [float(scores[0]) for scores, _ in found] == [float(scores[0]) for scores in serial * THREADS]


def test_detectors_and_a_service_that_share_one_network(images, network):
    """The service calls the network itself, without a lock, while detectors have hooks on it."""
    train = oodbench.load_dataset("digits", split="train")
    names = ("mahalanobis-v", "purview", "mc-dropout", "ash")
    detectors = [oodbench.load_detector(name).fit(network, train.images, train.labels) for name in names]
    floats = [images[row : row + 1].float() / 255 for row in range(20)]

    def logits(one):
        with torch.no_grad():
            return network(one).numpy().squeeze()

    calls = [partial(logits, one) for one in floats]
    calls += [partial(detector.score, network, one) for one in floats for detector in detectors]
    serial = [call() for call in calls]
    for found, expected in zip(in_threads(calls * THREADS), serial * THREADS, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_while_a_thread_scores_can_score(images, network):
    train = oodbench.load_dataset("digits", split="train")
    detector = oodbench.load_detector("mahalanobis-v").fit(network, train.images, train.labels)
    expected = detector.score(network, images[:1])
    lock = standalone.lock_of(detector, network)
    held, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        if not (child := os.fork()):
            os._exit(int(standalone.lock_of(detector, network) is lock))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        done.set()
        thread.join()
    np.testing.assert_array_equal(detector.score(network, images[:1]), expected)
