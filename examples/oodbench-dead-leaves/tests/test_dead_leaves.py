"""dead-leaves keeps the contract of oodbench's data sets, takes part in a run, and is what it says."""

import numpy as np
import pytest
from oodbench_dead_leaves import COUNT, SIZE, TINT

import oodbench
from oodbench.conformance import check

OUTCOMES = [*check("dead-leaves", "datasets"), *check("dead-leaves/grey", "datasets")]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.check)
def test_it_keeps_the_contract(outcome):
    if outcome.outcome == "skip":
        pytest.skip(outcome.reason)
    assert outcome.outcome == "pass", outcome.reason


def test_it_takes_part_in_a_run(tmp_path):
    results = oodbench.run(
        "digits",
        detectors=["msp", "pixels"],
        datasets=["dead-leaves/grey"],
        protocols=["unsupervised"],
        limit=100,
        measure_costs=False,
        out=tmp_path / "run",
    )
    assert set(results.frame()["status"]) == {"ok"}


def test_it_is_the_same_on_every_machine():
    assert oodbench.load_dataset("dead-leaves").fingerprint == "f5df4a31c01ca4b5"
    assert oodbench.load_dataset("dead-leaves/grey").fingerprint == "9f58ab198bf3c7f2"


def test_colour_is_grey_with_a_tint():
    colour, grey = (oodbench.load_dataset(name).images.numpy().astype(int) for name in ("dead-leaves", "dead-leaves/grey"))
    assert colour.shape == grey.shape == (COUNT, 3, SIZE, SIZE)
    assert 0 < np.abs(colour - grey).max() <= TINT
    assert (grey == grey[:, :1]).all()


def test_its_spectrum_is_that_of_natural_images():
    """Power falls with the square of the frequency, as in photographs (Field, JOSA A 1987); that of noise is flat."""
    images = oodbench.load_dataset("dead-leaves/grey").images[:, 0].numpy().astype(float)
    window = np.hanning(SIZE)
    power = (np.abs(np.fft.fft2((images - images.mean((1, 2), keepdims=True)) * window[:, None] * window)) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    band = (frequency > 2 / SIZE) & (frequency < 0.4)
    slope, _ = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)
    assert -2.5 < slope < -1.5


@pytest.mark.parametrize(
    ("name", "says"), [("dead-leaves/red", "has no part 'red'"), ("dead-leaves/grey@2", "has no part 'grey@2'")]
)
def test_there_are_no_other_parts(name, says):
    with pytest.raises(oodbench.OodbenchError, match=says):
        oodbench.load_dataset(name)
