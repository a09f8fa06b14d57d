"""A browser, and small sites: one with levels and all protocols, one of two networks with names that attack it, one of three
tasks, and one of image quality alone, with names that attack it.
"""

import functools
import http.server
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest
from chromium import OPTIONS, require_chromium
from filelock import FileLock
from hostile import MARKUP, TEXT
from new_process import oodbench
from playwright.sync_api import sync_playwright

PLUGINS = f"""
    import torch
    import oodbench


    class Markup(oodbench.Detector):
        {TEXT!r}

        name = {MARKUP!r}
        variants = ({TEXT!r}, "__proto__", "=1+1")
        signals = ("images", "base")  # sets without twins are skipped

        def statistics(self, probe):
            return torch.stack([probe.images.mean((1, 2, 3)) - probe.base.images.mean((1, 2, 3)) * k for k in range(4)], 1)


    class Fails(oodbench.Detector):
        "Fails."

        def statistics(self, probe):
            raise ValueError({TEXT!r})


    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))
    """
SUITE = """
    model = "resnet8-digits"
    in_distribution = "digits"
    protocols = ["unsupervised", "per-shift", "transfer"]
    transfer_from = "uniform"
    detectors = ["msp", "energy", "knn", "vim", "gram", "odin", "pixels"]
    sets = [
      { name = "digits-heldout", kind = "near-ood" },
      { name = "photos", kind = "far-ood" },
      { name = "uniform", kind = "far-ood" },
      { name = "digits+noise", kind = "corruption", levels = [1, 3, 5] },
      { name = "digits+grey-level" },
    ]
    """
ACTIVE = """
    task = "active-learning"
    model = "resnet8-digits"
    in_distribution = "digits"
    test_sets = ["digits", "digits+noise@3"]
    strategies = ["random", "margin"]
    features = ["feed-forward"]
    protocol = "gauss"
    start = 32
    query = 32
    rounds = 1
    batch_size = 16
    until = 0.5
    seeds = [0, 1]
    """
QUALITY = """
    task = "quality"
    metrics = ["all"]
    databases = ["scores:<b>table.csv"]
    """
ATTACKED = [
    *("--model", "resnet8-digits", "--model", "plugins_of_a_test:net", "--seed", 0, "--seed", 1, "--limit", 30, "--no-costs"),
    *("--dataset", "photos", "--dataset", "digits+noise@3", "--protocol", "unsupervised", "--no-report"),
    *("--detector", "msp", "--detector", "pixels"),
    *("--plugin", "plugins_of_a_test:Markup", "--plugin", "plugins_of_a_test:Fails"),
]


@pytest.fixture(scope="session")
def browser():
    """Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require_chromium(), args=OPTIONS)
        yield browser
        browser.close()


def table_of_scores(path):
    """Scores of 1200 images, more than are drawn, and values of metrics: a good one, one that attacks, and a bad one."""
    random = np.random.default_rng(0)
    score = random.uniform(1, 7, 1200)
    values = {"fine": score + random.normal(0, 1, 1200), MARKUP: score + random.normal(0, 2, 1200), "=1+1": random.random(1200)}
    pd.DataFrame({"mos": score, **values}).to_csv(path, index=False)


def command(folder, *arguments, code=0):
    done = oodbench(*arguments, cwd=folder, OODBENCH_CACHE=str(folder / "cache"), OODBENCH_PLUGINS="", OMP_NUM_THREADS="1")
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def sites(tmp_path_factory) -> Path:
    """A folder with the sites ``small``, ``attacked``, ``tasks`` and ``quality``, and small.json, the first one's leaderboard.

    The first worker that needs it makes it, and the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "sites"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "quality").exists():
            folder.mkdir()
            (folder / "suite.toml").write_text(dedent(SUITE))
            (folder / "plugins_of_a_test.py").write_text(dedent(PLUGINS))
            command(folder, "run", "suite.toml", "--limit", 60, "--no-report", "--out", "run")
            command(folder, "leaderboard", "run", "--format", "json", "--out", "small.json")
            command(folder, "publish", "run", "--out", "small")
            command(folder, "run", *ATTACKED, "--out", "<b>run", code=1)  # because cells fail
            command(folder, "publish", "<b>run", "--out", "attacked", "--title", MARKUP)
            for name, suite in (("active", ACTIVE), ("scores", QUALITY)):
                (folder / f"{name}.toml").write_text(dedent(suite))
            table_of_scores(folder / "<b>table.csv")
            command(folder, "run", "active.toml", "--limit", 60, "--no-report", "--out", "study")
            command(folder, "run", "scores.toml", "--data", ".", "--no-report", "--out", "<i>scores")
            command(folder, "publish", "<i>scores", "study", "run", "--out", "tasks")
            command(folder, "publish", "<i>scores", "--out", "quality")
    return folder


@pytest.fixture(scope="session")
def addresses(sites):
    """The address of the folder of sites, from disk and from a server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=sites)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"disk": sites.as_uri(), "server": f"http://127.0.0.1:{server.server_port}"}
        server.shutdown()


@pytest.fixture
def visit(browser, addresses):
    """visit(PATH, …) opens a page and closes it. It fails where the page reports an error or asks for anything of others."""

    @contextmanager
    def visit(path, start="disk", width=1280, allowed=(), **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page, wrong = context.new_page(), []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
        base = addresses[start]
        page.on("request", lambda request: request.url.startswith((base, "data:,")) or wrong.append(request.url))
        page.goto(f"{base}/{path}")
        if options.get("java_script_enabled", True) and page.locator("#board").count():
            page.wait_for_selector("#status:not(:empty)")
        yield page
        context.close()
        assert [text for text in wrong if not any(part in text for part in allowed)] == []

    return visit
