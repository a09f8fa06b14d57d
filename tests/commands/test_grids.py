"""Suite files that are grids of runs: what they expand to, and what is wrong with them."""

import pytest

from oodbench.errors import UsageError
from oodbench.suites.grid import MOST_RUNS
from oodbench.suites.load import chosen_study, load_suite, read_study

REST = 'detectors = ["msp"]\n'
SETS = '[[sets]]\nname = "uniform"\n'


def grid(text, sets=SETS, **axes):
    return read_study(text + REST + sets, "grid.toml", **axes)


def test_a_suite_without_lists_is_one_run():
    study = grid('in_distribution = "digits"\nseed = 4\nweights = "a.pth"\n')
    assert list(study.runs) == [""]
    assert (study.first.seed, study.first.weights) == (4, "a.pth")


def test_every_combination_is_a_run_named_after_what_differs():
    study = grid('in_distribution = "digits"\nmodels = ["resnet18", "timm:vit"]\nweights = ["{model}-a.pth"]\nseeds = [0, 7]\n')
    assert list(study.runs) == ["resnet18_seed-0", "resnet18_seed-7", "timm-vit_seed-0", "timm-vit_seed-7"]
    runs = [(one.model, one.weights, one.seed) for one in study.runs.values()]
    assert runs[1] == ("resnet18", "resnet18-a.pth", 7)
    assert runs[2] == ("timm:vit", "timm:vit-a.pth", 0)


def test_checkpoints_of_one_name_take_their_folders():
    study = grid('in_distribution = "digits"\nmodel = "resnet18"\nweights = ["x/a/best.pth", "y/a/best.pth", "last.pth"]\n')
    assert list(study.runs) == ["x-a-best", "y-a-best", "last"]


def test_a_class_in_turn_is_against_the_others():
    sets = '[[sets]]\nname = "digits:not-{normal_class}"\nkind = "anomaly"\n'
    study = grid('in_distribution = "digits"\nnormal_class = [3, 4]\n', sets)
    assert list(study.runs) == ["3", "4"]
    assert [one.in_distribution for one in study.runs.values()] == ["digits:3", "digits:4"]
    assert [list(one.each_set()) for one in study.runs.values()] == [["digits:not-3"], ["digits:not-4"]]


def test_no_set_is_against_itself_and_of_chooses_runs():
    sets = (
        '[[sets]]\nname = "svhn"\n[[sets]]\nname = "cifar10"\n[[sets]]\nname = "textures"\nof = "svhn"\n'
        '[[sets]]\nname = "{in_distribution}+noise"\nlevels = [1, 2]\n'
    )
    study = grid('in_distribution = ["cifar10", "svhn"]\n', sets)
    assert [list(one.each_set()) for one in study.runs.values()] == [
        ["svhn", "cifar10+noise@1", "cifar10+noise@2"],
        ["cifar10", "textures", "svhn+noise@1", "svhn+noise@2"],
    ]
    asked = study.override(datasets=["svhn", "uniform"], detectors=["knn"])
    assert [list(one.each_set()) for one in asked.runs.values()] == [["svhn", "uniform"], ["uniform"]]
    assert list(study.override(datasets="svhn").runs) == ["cifar10"]


def test_tables_of_parameters_are_an_axis():
    more = "[[parameters]]\n[[parameters]]\nmsp = { a = 1 }\n"
    study = grid('in_distribution = "digits"\n', SETS + more)
    assert {label: one.parameters for label, one in study.runs.items()} == {
        "parameters-1": {},
        "parameters-2": {"msp": {"a": 1}},
    }


NETWORKS = """
[[networks]]
name = "standard"
model = "{model}"
weights = "{model}.safetensors"
[[networks]]
name = "denoised"
model = "denoised:{model}"
weights = "{model}.safetensors"
"""


def test_networks_are_named_pairs_of_a_model_and_its_weights():
    text = 'in_distribution = "digits"\nmodel = "resnet18"\n'
    study = grid(text, NETWORKS + SETS)
    pairs = {label: (one.model, one.weights) for label, one in study.runs.items()}
    assert pairs == {
        "standard": ("resnet18", "resnet18.safetensors"),
        "denoised": ("denoised:resnet18", "resnet18.safetensors"),
    }
    other = grid(text, NETWORKS + SETS, models=["resnet34"])
    assert [one.model for one in other.runs.values()] == ["resnet34", "denoised:resnet34"]
    assert list(grid(text, NETWORKS + SETS, models=["resnet18", "resnet34"]).runs) == [
        "resnet18_standard", "resnet18_denoised", "resnet34_standard", "resnet34_denoised",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="each table of networks names its weights; leave out weights, and --weights"):
        grid(text, NETWORKS + SETS, weights=["a.safetensors"])


def test_a_model_that_no_network_takes_is_refused():
    with pytest.raises(UsageError, match=r"no table of networks has {model} as its model; leave out model, and --model"):
        grid('in_distribution = "digits"\n', NETWORKS.replace("{model}", "resnet34") + SETS, models=["resnet18"])


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        (
            '[[networks]]\nname = "a"\nmodel = "b"\n',
            "networks: weights takes a text in quotes; each table needs the keys name,",
        ),
        ('[networks]\nname = "a"\nmodel = "b"\nweights = 1\n', "networks: weights takes a text in quotes"),
        ('[[networks]]\nname = ""\nmodel = "b"\nweights = "c"\n', "networks: name takes a text in quotes"),
        ('[[networks]]\nname = "a"\nmodel = "b"\nweights = "c"\nfoo = 1\n', "networks: foo is unknown"),
        (
            "".join(f'[[networks]]\nname = "{name}"\nmodel = "b"\nweights = "c"\n' for name in "xy"),
            "networks: x and y are one network; leave one out",
        ),
        (f'[[networks]]\nname = "{"a" * 61}"\nmodel = "b"\nweights = "c"\n', "a name has 61 letters; give it at most 60"),
        (NETWORKS + NETWORKS, "networks names standard twice"),
        (NETWORKS, "the suite has no model; give it one"),
    ],
)
def test_wrong_networks_are_one_line(networks, says):
    with pytest.raises(UsageError, match=says):
        grid('in_distribution = "digits"\n', networks + SETS)


def test_options_replace_lists_and_other_models_drop_the_weights():
    text = 'in_distribution = "digits"\nmodels = ["a", "b"]\nweights = ["{model}.pth"]\nseeds = [0, 1]\n'
    assert list(grid(text, seeds=[5]).runs) == ["a", "b"]
    alone = grid(text, models=["c"], seeds=[5])
    assert (list(alone.runs), alone.first.weights, alone.first.seed) == ([""], None, 5)
    assert grid(text, models=["a", "b"], seeds=[5]).first.weights == "a.pth"
    assert list(grid(text, models=["c"], weights=["x.pth", "y.pth"], seeds=[5]).runs) == ["x", "y"]
    with pytest.raises(UsageError, match="seeds names 5 twice; leave one out"):
        grid(text, models=["c"], seeds=[5, 5])


def test_one_in_distribution_set_of_a_suite_can_be_chosen():
    study = chosen_study("purview-ood", "svhn")
    assert (list(study.runs), study.first.in_distribution, study.first.weights) == ([""], "svhn", "resnet18-svhn.safetensors")
    with pytest.raises(UsageError, match="takes the place of a suite"):
        chosen_study("purview-ood", "gtsrb")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seeds = []\n", "seeds is empty, so there is nothing to run"),
        ("seeds = 3\n", "seeds takes a list; write seed = … for one value"),
        ("seed = 1\nseeds = [1]\n", "has both seed and seeds; keep one"),
        ("seeds = [1, 2, 1]\n", "seeds names 1 twice"),
        ("seeds = [1, -2]\n", "seed takes at least 0, not -2"),
        ('models = ["a", "b"]\nweights = ["a.pth", "b.pth"]\n', "several models cannot share a file"),
        ('weights = ["a.pth", "a.safetensors"]\n', "two of its runs would be called a; rename a network or a file"),
        ('weights = ["a.pth", 3]\n', "weights takes a text in quotes, not 3"),
        (f"seeds = {list(range(MOST_RUNS + 1))}\n", "is a grid of 1,001 runs; list fewer values"),
        ("sedes = [1]\n", "unknown key 'sedes'; did you mean 'seeds'?"),
    ],
)
def test_a_wrong_grid_is_one_line(text, says):
    with pytest.raises(UsageError) as caught:
        grid(f'in_distribution = "digits"\n{text}')
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_run_needs_a_set():
    with pytest.raises(UsageError, match="no set is left to test against uniform; add one"):
        grid('in_distribution = ["digits", "uniform"]\n')


def test_a_placeholder_needs_a_value():
    with pytest.raises(
        UsageError, match=r"digits:not-\{normal_class\}: the suite has no normal_class; give it one, or leave out"
    ):
        grid('in_distribution = "digits"\n', '[[sets]]\nname = "digits:not-{normal_class}"\n')


def test_of_names_a_set_that_the_suite_runs_on():
    with pytest.raises(UsageError, match="set uniform: of is mnist, but the suite runs on digits"):
        grid('in_distribution = "digits"\n', '[[sets]]\nname = "uniform"\nof = "mnist"\n')


def test_a_grid_is_not_one_suite(tmp_path):
    file = tmp_path / "two.toml"
    file.write_text(f'in_distribution = "digits"\nseeds = [0, 1]\n{REST}{SETS}')
    with pytest.raises(UsageError, match="is a grid of 2 runs: seed-0, seed-1; load it with load_study"):
        load_suite(file)
