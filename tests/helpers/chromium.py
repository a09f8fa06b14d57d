"""Where Chromium is, for tests of the site."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Chromium refuses to run as root with its sandbox, and containers often lack a large /dev/shm.
OPTIONS = ["--disable-dev-shm-usage", *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]


def require_chromium() -> str:
    """Its path. Without it, a test skips; where $CI is set it fails, so that CI cannot lose these tests unnoticed."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        why = f"no browser: install Chromium, so that one of {', '.join(NAMES)} is on PATH"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return path
