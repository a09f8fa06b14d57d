"""Costs on a busy machine: repeats that differ are measured again, and figures that nobody should rely on are marked."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from heard import Heard

import oodbench
from oodbench.engine import timing
from oodbench.leaderboard import COLUMNS
from oodbench.leaderboard.brief import brief, brief_costs
from oodbench.leaderboard.formats import render
from oodbench.leaderboard.text_table import NOISY_COST
from oodbench.results.facts import mark

IMAGES = torch.rand(32, 3, 8, 8)


@pytest.fixture
def clock(monkeypatch):
    """clock(name=seconds of each repeat, …) -> the costs, and what was timed in order; a bare pass takes a second."""

    def measure(repeats=timing.REPEATS, **seconds):
        order, scripts = [], {name: iter(values) for name, values in seconds.items()}
        jobs = {name: timing.Job(oodbench.load_detector("msp"), {"name": name}) for name in seconds if name != "bare"}

        def timed(work, device):
            name = work.args[1][0]["name"] if work.func is timing._statistics else "bare"
            order.append(name)
            return next(scripts[name]) if name in scripts else 1.0

        monkeypatch.setattr(timing, "_time", timed)
        monkeypatch.setattr(timing, "peak_memory", lambda work, device: None)
        heard = Heard()
        costs = timing.standalone_costs(
            jobs, oodbench.Classifier(torch.nn.Flatten()), IMAGES, repeats, on_step=lambda: heard.advance(1)
        )
        return costs, order, heard.done

    return measure


def test_the_spread_is_the_interquartile_range_over_the_median():
    assert timing.relative_spread([4, 1, 3, 2, 5]) == (4 - 2) / 3
    assert timing.relative_spread([2.0]) == 0
    random = np.random.default_rng(0).random(101)
    assert timing.relative_spread(random) == pytest.approx(timing.relative_spread(1e-6 * random))  # whatever the unit


def test_repeats_that_agree_are_enough(clock):
    costs, order, steps = clock(quiet=[2.0] * 9 + [9.0] * 2)
    assert steps == order.count("quiet") == order.count("bare") == 11
    assert costs["quiet"] == {
        "ms_per_image": 2000 / 32, "overhead": 2, "peak_memory_mb": None, "ms_per_image_spread": 0, "overhead_spread": 0,
    }  # fmt: skip


def test_only_what_differs_is_measured_again_and_not_for_ever(clock):
    costs, order, steps = clock(quiet=[2.0] * 99, calms=[1.0, 9.0] * 5 + [2.0] * 99, noisy=[1.0, 9.0, 5.0] * 33)
    assert order.count("quiet") == 11
    assert 11 < order.count("calms") < 33
    assert order.count("noisy") == steps == 33
    assert costs["quiet"]["overhead_spread"] == 0
    assert costs["calms"]["overhead"] == 2
    assert costs["calms"]["overhead_spread"] <= 0.5 < costs["noisy"]["overhead_spread"]
    assert [mark(costs[name], "overhead") for name in costs] == ["", "", "~"]


def test_a_disturbance_that_returns_regularly_does_not_always_hit_the_same_side(clock):
    """Every second piece of work takes four times as long, so with one order all repeats would agree on 4 or on ¼."""
    ticks = iter([1.0, 4.0] * 99)
    costs, order, _ = clock(msp=ticks, bare=ticks)
    assert order[:4] == ["bare", "msp", "msp", "bare"]
    assert mark(costs["msp"], "overhead") == "~"


def test_a_figure_is_marked_by_its_own_repeats_and_an_older_one_not_at_all():
    cost = {"ms_per_image": 1.0, "overhead": 2.0, "ms_per_image_spread": 0.51, "overhead_spread": 0.5}
    assert (mark(cost, "ms_per_image"), mark(cost, "overhead")) == ("~", "")
    assert mark({"ms_per_image": 1.0, "overhead": None}, "ms_per_image") == ""
    assert mark({"overhead": None, "overhead_spread": None}, "overhead") == ""


def frame(**spreads):
    of = {"model": "net", "in_distribution": "digits", "protocol": "unsupervised", "kind": "far-ood", "seed": 0, "auroc": 0.5}
    of |= {"status": "ok", "reason": "", "ms_per_image": 2.0, "overhead": 1.5, "ms_per_image_spread": 0.1}
    rows = [of | {"detector": name, "dataset": "a", "overhead_spread": spread} for name, spread in spreads.items()]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


@pytest.mark.parametrize(
    ("format", "marked", "note"),
    [("table", "~1.50×", "~: an"), ("md", r"\~1.50×", r"\~: an"), ("tex", r"\textasciitilde{}1.50$\times$", r"ciitilde{}: an")],
)
def test_tables_mark_what_is_unreliable_and_say_so(format, marked, note):
    text = render(frame(msp=0.6, knn=0.4), format, width=None)
    assert text.count(marked) == text.count(note) == 1
    assert text.count("2.00") == 2
    assert "1.50" in text.replace(marked, "")  # the other detector's
    for quiet in (frame(msp=0.4), frame(msp=0.6).drop(columns=["ms_per_image_spread", "overhead_spread"])):
        assert "unreliable" not in render(quiet, format, width=None)
        assert marked not in render(quiet, format, width=None)


def test_one_set_with_an_unreliable_cost_marks_the_row():
    cells = pd.concat([frame(msp=0.1), frame(msp=0.9).assign(dataset="b"), frame(msp=0.1).assign(dataset="c")])
    assert "~1.50×" in render(cells, width=None)
    assert "~" not in render(cells, width=None, columns=["sets"])  # no cost is shown


def test_spreads_are_the_last_columns_for_programs():
    assert COLUMNS[-5:-2] == ("ms_per_image_spread", "overhead_spread", "checkpoint")
    (row,) = json.loads(render(frame(msp=0.6), "json"))
    assert (row["overhead"], row["overhead_spread"]) == (1.5, 0.6)


def test_the_end_of_a_run_marks_and_explains_too():
    text = brief(frame(msp=0.6, knn=0.4))
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(("msp", "knn"))] == ["1.50×", "~1.50×"]
    assert NOISY_COST in " ".join(text.split())
    assert "~" not in brief(frame(msp=0.4))


def test_costs_in_few_lines_the_cheapest_first():
    cells = frame(**{"odin": 0.1, "odin:other": 0.1, "msp": 0.9}).assign(overhead=[4.0, 4.0, 1.0])
    assert brief_costs(cells, width=200).splitlines() == [
        "Cost of each detector alone, in multiples of a bare forward pass: msp ~1.00×, odin 4.00×",
        NOISY_COST,
    ]
    without = cells.assign(overhead=None, ms_per_image=[3.0, 3.0, 0.25])
    assert brief_costs(without, width=200) == "Cost of each detector alone, in ms per image: msp 0.25, odin 3.00\n"
    assert brief_costs(without.assign(ms_per_image=None)) == ""
    many = brief_costs(frame(**{f"a-detector-with-a-name-{n}": 0.9 for n in range(60)})).splitlines()
    assert len(many) <= 6
    assert max(map(len, many)) <= 80
    assert " more" in many[-3]


def test_costs_of_an_earlier_oodbench_stay_and_new_ones_say_their_spread(tmp_path):
    options = {"datasets": ["photos"], "limit": 30, "protocols": ["unsupervised"], "out": tmp_path / "run"}
    folder = oodbench.run(detectors=["msp"], **options)
    path = folder.path / "costs.json"
    (old,) = ({key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}).values()
    assert old.keys() == {"ms_per_image", "overhead", "peak_memory_mb", "ms_per_image_spread", "overhead_spread"}
    key = next(iter(folder.costs()))
    path.write_text(json.dumps({key: {"ms_per_image": 2.0, "overhead": 1.5, "peak_memory_mb": None}}))
    found = oodbench.run(detectors=["msp", "pixels"], **options).frame().set_index("detector")
    assert found.loc["msp", "overhead"] == 1.5
    assert np.isnan(found.loc["msp", "overhead_spread"])
    assert found.loc["pixels", "overhead_spread"] >= 0
