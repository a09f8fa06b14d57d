"""The suites of the papers, each run whole on a few images in the official layouts of its sets, with a small network."""

import pickle

import numpy as np
import pytest
from image_files import save_image
from scipy.io import savemat

import oodbench
from oodbench.datasets.name import CHALLENGES
from oodbench.datasets.odin_sets import CATALOGUE
from oodbench.leaderboard.comparison.beside_recognition import beside_recognition
from oodbench.leaderboard.published import recognition_figures
from oodbench.leaderboard.recognition import each_once
from oodbench.models import train as training
from oodbench.results.study import run_folders
from oodbench.suites.load import load_study, suite_names, suite_text
from oodbench.suites.tasks import DETECTION, task_of

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SMALL = "resnet8-digits"
QUICK = {
    "gradcon": {"epochs": 1},
    "gradcon-vae": {"epochs": 1},
    "introspective": {"epochs": 2},
    "lid": {"size": 20, "k": 10},
    "knn": {"k": 5},
    "odin": {"temperatures": [1, 1000], "epsilons": [0, 0.0014]},
    "mahalanobis-p": {"epsilons": [0, 0.0014]},
    "mahalanobis-pfe": {"epsilons": [0, 0.0014]},
}
SKIPPED = {  # sets without files, and why cells of others have no figures
    "introspective-recognition": {"cifar10c", "cifar10+misclassified"},
    "purview-adversarial": {"cifar10+"},
}


def colours(labels, seed, side=32):
    """Images of noise, uint8 (N, 3, side, side), with a colour that tells their class."""
    generator = np.random.default_rng(seed)
    colour = np.stack([labels * 23 % 256, labels * 67 % 256, labels * 151 % 256], axis=1)
    noise = generator.integers(-25, 26, (len(labels), 3, side, side))
    return np.clip(colour[:, :, None, None] + noise, 0, 255).astype(np.uint8)


def batches(folder, files, names, key, meta):
    folder.mkdir(parents=True)
    for file, (images, labels) in files.items():
        content = {b"data": images.reshape(len(images), -1), key: labels.tolist()}
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [name.encode() for name in names]}, protocol=2))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    ten = np.repeat(np.arange(10), 8)
    many = np.tile(ten, 4)  # as many of each class as a detector of one class needs
    cifar = {"data_batch_1": (colours(many, 0), many), "test_batch": (colours(ten, 1), ten)}
    batches(root / "cifar-10-batches-py", cifar, NAMES, b"labels", ("batches.meta", b"label_names"))
    hundred = np.arange(0, 100, 2)
    names = [f"thing {number}" for number in range(100)]
    files = {"test": (colours(hundred, 2), hundred)}
    batches(root / "cifar-100-python", files, names, b"fine_labels", ("meta", b"fine_label_names"))
    (root / "svhn").mkdir()
    for seed, split in enumerate(("train", "test"), 3):
        content = {"X": colours(ten + 40, seed).transpose(2, 3, 1, 0), "y": np.where(ten == 0, 10, ten)[:, None]}
        savemat(root / "svhn" / f"{split}_32x32.mat", content)
    for name in ("tinyimagenet-resize", "lsun-resize", "lsun-crop"):
        for number, image in enumerate(colours(np.arange(30) + 90, len(name))):
            save_image(root / CATALOGUE[name].downloads[0].paths[0] / f"{number}.png", image)
    for folder in ("test_256", "dtd/images/banded", "dtd/images/woven", "mnist"):
        for number, image in enumerate(colours(np.arange(15) + 30, len(folder))):
            save_image(root / folder / f"{number}.png", image)
    words = ["n01443537", "n01629819", "n01641577"]
    (root / "tiny-imagenet-200").mkdir()
    (root / "tiny-imagenet-200" / "wnids.txt").write_text("\n".join(words))
    (root / "tiny-imagenet-200" / "words.txt").write_text("".join(f"{word}\tfish\n" for word in words))
    lines = []
    for number, image in enumerate(colours(np.arange(15) + 70, 9, 64)):
        save_image(root / "tiny-imagenet-200" / "val" / "images" / f"val_{number}.JPEG", image)
        lines.append(f"val_{number}.JPEG\t{words[number % 3]}\t0\t0\t62\t62\n")
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("".join(lines))
    fog = np.concatenate([colours(ten, 20 + level) for level in range(5)])
    (root / "CIFAR-10-C").mkdir()
    np.save(root / "CIFAR-10-C" / "fog.npy", fog.transpose(0, 2, 3, 1))
    np.save(root / "CIFAR-10-C" / "labels.npy", np.tile(ten, 5).astype(np.uint8))
    signs = np.tile(np.arange(14), 4)
    folders = ["Real_Train/ChallengeFree", "Real_Test/ChallengeFree"]
    folders += [f"Real_Test/{name}-{level}" for name in CHALLENGES for level in range(1, 6)]
    for seed, folder in enumerate(folders):
        code, level = (0, 0) if "Free" in folder else (CHALLENGES.index(folder[10:-2]) + 1, int(folder[-1]))
        few = signs if seed < 2 else signs[:28]
        for number, (sign, image) in enumerate(zip(few, colours(few, 50 + seed, 28), strict=True)):
            save_image(root / "CURE-TSR" / folder / f"01_{sign + 1:02d}_{code:02d}_{level:02d}_{number:04d}.bmp", image)
    lists = root / "benchmark_imglist" / "imagenet"
    lists.mkdir(parents=True)
    shifted = ("imagenet_c", "imagenet_r", "imagenet_v2")
    listed = dict.fromkeys(("train_imagenet", "test_imagenet", *(f"test_{name}" for name in shifted)), True)
    listed |= dict.fromkeys(f"test_{name}" for name in ("ssb_hard", "ninco", "inaturalist", "textures", "openimage_o", "own"))
    for seed, (name, labelled) in enumerate(listed.items(), 80):
        labels = ten if labelled else np.arange(30) + 40
        lines = []
        for number, (label, image) in enumerate(zip(labels, colours(labels, seed, 40), strict=True)):
            save_image(root / "images_largescale" / name / f"{number}.png", image)
            lines.append(f"{name}/{number}.png {label if labelled else -1}")
        (lists / f"{name}.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def weights(root):
    """A small network for each in-distribution set, three for CIFAR-10."""
    (root / "models").mkdir()
    for name in ("cifar10", "svhn", "curetsr", "imagenet"):
        images = oodbench.load_dataset(name, data=root, split="train", size=32)
        for seed in range(3 if name == "cifar10" else 1):
            out = root / "models" / f"small-{name}{f'-s{seed}' if seed else ''}.safetensors"
            training.train(SMALL, images, out=out, epochs=3, lr=0.05, seed=seed, batch_size=16, progress=False)
    return "small-{in_distribution}.safetensors"


OTHERS = ("digits", "cifar10", "introspective-plugin")  # the last has a test of its own, because it names its networks
PAPERS = [name for name in suite_names() if name not in OTHERS and task_of(name) == DETECTION]


@pytest.mark.parametrize("name", PAPERS)
def test_a_suite_of_the_papers_runs_on_official_layouts(root, weights, tmp_path, name):
    study = load_study(name)
    listed = {detector for one in study.runs.values() for detector in one.detectors}
    files = [weights, *(f"small-cifar10-s{seed}.safetensors" for seed in (1, 2) if name == "openood-cifar10")]
    network = {"model": SMALL, "weights": files} if study.first.model else {}
    few = tmp_path / f"{name}.toml"
    text = suite_text(name).replace("validation = 1000", "validation = 20").replace("[1, 2, 3, 4, 5]", "[1, 5]")
    few.write_text(text, encoding="utf-8")
    done = oodbench.run(
        few,
        **network,
        data=root,
        out=tmp_path / "run",
        limit=30,
        parameters={detector: values for detector, values in QUICK.items() if detector in listed},
        measure_costs=False,
    )
    frame = done.frame()
    lacking = frame[frame["status"] != "ok"]
    assert not (lacking["status"] == "failed").any(), lacking["reason"].unique()
    allowed = tuple(SKIPPED.get(name, ("\0",)))
    assert [text for text in lacking["dataset"].unique() if not text.startswith(allowed)] == [], lacking["reason"].unique()
    assert set(frame["detector"].str.partition(":")[0]) == listed
    assert (frame["status"] == "ok").groupby(frame["detector"]).any().all()
    assert len(run_folders(done.path)) == {"openood-cifar10": 3}.get(name, len(study.runs) // len(models_of(study)))


def test_the_plug_in_runs_on_networks_by_recipe(root, tmp_path):
    """Networks of one architecture that were trained in other ways have rows of their own, and absent ones are left out."""
    images = oodbench.load_dataset("cifar10", data=root, split="train", size=32)
    made = {"standard": f"{SMALL}-cifar10", "augmix": f"{SMALL}-cifar10-augmix", "noise": f"{SMALL}-cifar10-noise"}
    for recipe, file in made.items():
        out = tmp_path / "models" / f"{file}.safetensors"
        training.train(SMALL, images, out=out, recipe=recipe, epochs=2, batch_size=16, progress=False)
    few = tmp_path / "plugin.toml"
    text = suite_text("introspective-plugin").replace("validation = 1000", "validation = 20")
    few.write_text(text.replace("[1, 2, 3, 4, 5]", "[1]"), encoding="utf-8")
    parameters = {"introspective": QUICK["introspective"]}
    options = {"data": [root, tmp_path], "limit": 20, "parameters": parameters, "measure_costs": False}
    study = oodbench.run(few, model=SMALL, datasets=["cifar10+noise@1", "cifar10+haze@1"], out=tmp_path / "run", **options)
    assert sorted(folder.path.name for folder in run_folders(study.path)) == ["augmix", "denoised", "noise", "standard"]
    assert all(oodbench.verify(folder.path).ok for folder in run_folders(study.path))
    frame = study.frame(table="recognition")
    names = {SMALL, f"denoised:{SMALL}", f"{SMALL} (augmix)", f"{SMALL} (noise)"}
    assert set(frame["model"]) == names
    assert set(study.frame()["model"]) == names
    rows = beside_recognition(each_once(frame), recognition_figures())
    shown = rows[(rows["status"] == "ok") & (rows["source"] == "introspective")]
    published = dict(zip(shown["model"], shown["published"], strict=True))
    assert published == pytest.approx(dict(zip(sorted(names), (0.6886, 0.714, 0.8989, 0.7798), strict=True)))


def models_of(study):
    return {one.model for one in study.runs.values()}
