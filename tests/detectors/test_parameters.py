"""Hyper-parameters that are no number, or none that will do, are refused in one line that names them."""

import pytest

import oodbench
from oodbench.errors import UsageError

NAN, INFINITY = float("nan"), float("inf")
WRONG = [
    ("duq", "epochs", 1.5, "a whole number of at least 1"),
    ("duq", "batch_size", True, "a whole number of at least 1"),
    ("duq", "embedding_size", "wide", "a whole number of at least 1"),
    ("duq", "lr", INFINITY, "a finite number above 0"),
    ("duq", "length_scale", None, "a finite number above 0"),
    ("duq", "penalty", NAN, "a finite number of at least 0"),
    ("duq", "gamma", "high", "a finite number from 0 to 1"),
    ("introspective", "batch_size", 0.5, "a whole number of at least 1"),
    ("introspective", "lr", "fast", "a finite number above 0"),
    ("introspective", "temperature", [1000], "a finite number above 0"),
    ("introspective", "epsilon", 10**400, "a finite number of at least 0"),
    ("introspective", "epsilon", NAN, "a finite number of at least 0"),
    ("ensemble", "epochs", 1.5, "a whole number of at least 1"),
    ("ensemble", "lr", INFINITY, "a finite number above 0"),
    ("gradcon", "epochs", "a\nb", "a whole number of at least 1"),
    ("gradcon", "alpha", "x", "a finite number of at least 0"),
    ("gradcon-vae", "beta", INFINITY, "a finite number of at least 0"),
    ("purview", "label", "abc", "a finite number from 0 to 1"),
    ("purview", "label", True, "a finite number from 0 to 1"),
    ("mc-dropout", "passes", 2.5, "a whole number from 2 to 1000"),
    ("mc-dropout", "passes", 10**9, "a whole number from 2 to 1000"),
    ("mc-dropout", "p", "x", "a finite number between 0 and 1"),
    ("mc-dropout", "seed", 2**32, "a whole number from 0 to 4294967295"),
    ("energy", "temperature", NAN, "a finite number above 0"),
    ("gen", "gamma", 0, "a finite number above 0"),
    ("gen", "top", 1.5, "a whole number of at least 1"),
    ("adascale", "least", 0, "a finite number between 0 and 100"),
    ("weiper", "bins", 1, "a whole number from 2 to 10000"),
    ("weiper", "distance", 0, "a finite number above 0"),
    ("nnguide", "k", 0, "a whole number of at least 1"),
    ("nnguide", "size", 1.5, "a whole number of at least 1"),
    ("nnguide", "seed", -1, "a whole number from 0 to 4294967295"),
    ("neco", "dimension", 0, "a whole number of at least 1"),
    ("neco", "max_logit", 1, "true or false, or leave it out"),
    ("kpca", "variance", 1, "a finite number between 0 and 1"),
    ("kpca", "mapped", 10**9, "a whole number from 2 to 16384"),
    ("nci", "alpha", -1, "a finite number of at least 0"),
    ("dice", "percentile", 0, "a finite number between 0 and 100"),
    ("vra", "low", "x", "a finite number between 0 and 100"),
    ("ash-s", "percentile", 100, "a finite number between 0 and 100"),
    ("ash", "percentile", 100, "a finite number between 0 and 100"),
    ("scale", "percentile", "85", "a finite number between 0 and 100"),
    ("react", "percentile", NAN, "a finite number between 0 and 100"),
    ("knn", "k", True, "a whole number of at least 1"),
    ("vim", "dimension", 0.5, "a whole number of at least 1"),
    ("gram", "powers", 0, "a whole number from 1 to 100"),
    ("gram", "powers", 10**9, "a whole number from 1 to 100"),
    ("lid", "k", "20", "a whole number of at least 2"),
    ("lid", "size", 99.5, "a whole number of at least 2"),
    ("lid", "seed", -1, "a whole number from 0 to 4294967295"),
    ("lid", "seed", 0.5, "a whole number from 0 to 4294967295"),
]


@pytest.mark.parametrize(("detector", "name", "value", "remedy"), WRONG)
def test_what_is_no_such_number_is_refused_by_name(detector, name, value, remedy):
    with pytest.raises(UsageError) as caught:
        oodbench.load_detector(detector, **{name: value})
    family = detector.removesuffix("-vae")
    assert str(caught.value) == f"{family}: {name} = {value!r}; give {remedy}"
    assert "\n" not in str(caught.value)


def test_the_ends_of_ranges_are_taken():
    for detector, parameters in (
        ("duq", {"gamma": 1, "penalty": 0, "weight_decay": 0, "embedding_size": 1}),
        ("introspective", {"epsilon": 0, "lr": 1, "epochs": 1}),
        ("gradcon", {"epochs": 1, "alpha": 0, "beta": 0.0}),
        ("purview", {"label": 0}),
        ("gram", {"powers": 100}),
        ("mc-dropout", {"passes": 1000}),
        ("mc-dropout", {"passes": 2, "seed": 2**32 - 1}),
        ("lid", {"k": 2, "size": 3, "seed": 2**32 - 1}),
    ):
        assert oodbench.load_detector(detector, **parameters).parameters().items() >= parameters.items()


@pytest.mark.parametrize("name", ["odin", "mahalanobis-p", "mahalanobis-pfe"])
@pytest.mark.parametrize("epsilons", [[], 0.1, [0.1, 0.1], [0.1, -0.1], [0.1, float("nan")], ["a"]])
def test_a_grid_is_a_list_of_different_numbers(name, epsilons):
    with pytest.raises(UsageError, match=r"epsilons(\[\d\])? = .*; give a"):
        oodbench.load_detector(name, epsilons=epsilons)


@pytest.mark.parametrize(
    ("name", "grid", "wrong"),
    [(name, "percentiles", wrong) for name in ("ash", "scale", "react") for wrong in ([], 90, [90, 90], [0], [50, 100], ["a"])]
    + [(name, grid, wrong) for name, grid in (("knn", "ks"), ("vim", "dimensions")) for wrong in ([], 5, [5, 5], [0], [1.5])],
)
def test_every_other_grid_is_checked_too(name, grid, wrong):
    with pytest.raises(UsageError, match=rf"{name}: {grid}(\[\d\])? = .*; give a"):
        oodbench.load_detector(name, **{grid: wrong})


def test_hyper_parameters_span_the_grid():
    small = oodbench.load_detector("odin", temperatures=[1, 1000], epsilons=[0, 0.002])
    assert small.shift_settings == [{"temperature": t, "epsilon": e} for t in (1.0, 1000.0) for e in (0.0, 0.002)]
    assert small.non_default()["temperatures"] == [[1.0, 1000.0], (1.0, 10.0, 100.0, 1000.0)]
    assert oodbench.load_detector("mahalanobis-pfe", epsilons=[0]).grid == [{"epsilon": 0.0}]
    assert oodbench.load_detector("knn", ks=[5, 1]).grid == [{"k": 1}, {"k": 5}]
    assert oodbench.load_detector("scale", percentiles=[85, 65]).grid == [{"percentile": 65.0}, {"percentile": 85.0}]
