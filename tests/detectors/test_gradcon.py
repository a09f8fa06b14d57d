"""GradCon: its training against a plain one, its batched scores against one image at a time."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from heard import Heard

from oodbench.detector import load_detector
from oodbench.detectors import gradcon
from oodbench.detectors._autoencoders import Autoencoder, VariationalAutoencoder, resized
from oodbench.detectors.gradcon import GradCon, GradConVAE, Reference, cosines, step
from oodbench.errors import BadData, OodbenchError, Unsuitable, UsageError
from oodbench.models.checkpoint import Checkpoint
from oodbench.probe import Probe
from oodbench.progress import Progress
from oodbench.training_set import TrainingSet

NAMES = ["gradcon", "gradcon-vae"]
NETWORKS = [Autoencoder, VariationalAutoencoder]


pytestmark = pytest.mark.usefixtures("one_thread")


def random_images(count, channels=3, side=16, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def network(kind, channels=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(channels).double()


def training_set(count=40, channels=1, seed=0, side=8):
    held_out = np.arange(count) % 10 == 0
    return TrainingSet((random_images(count, channels, side) * 255).byte(), None, held_out, seed)


def trained(name, train_set=None, **parameters):
    detector = load_detector(name, **{"epochs": 2, **parameters})
    detector.prepare(training_set() if train_set is None else train_set, None, Progress())
    return detector


def statistics(detector, images):
    probe = Probe(None, images, detector.signals)
    with probe.mode():
        return detector.statistics(probe)


def reconstruction_loss(module, outputs, images):
    """Of a batch, as the papers write it."""
    return (
        F.binary_cross_entropy(outputs, images) if isinstance(module, VariationalAutoencoder) else F.mse_loss(outputs, images)
    )


def plain_cosines(module, images, reference):
    """One image, one backward pass and one cosine at a time, by ``backward`` into ``.grad``."""
    rows = []
    for image in images:
        module.zero_grad()
        reconstruction_loss(module, module(image[None]), image[None]).backward()
        weights = [part.weight for part in module.decoder if hasattr(part, "weight")]
        rows.append(
            torch.stack(
                [F.cosine_similarity(w.grad.flatten(), r.flatten(), 0) for w, r in zip(weights, reference, strict=True)]
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_networks_are_the_papers(kind, channels):
    module, images = network(kind, channels), random_images(2, channels, 28).double()
    sides, x = [], images
    for part in module.encoder:
        x = part(x)
        sides.append(x.shape[-1])
    assert sides[::2] == [15, 8, 5, 3]
    assert x.shape[1] == 64
    sides = []
    for part in module.decoder:
        x = part(x)
        sides.append(x.shape[-1])
    assert sides[::2] == [4, 8, 14, 28]
    assert x.shape == images.shape
    assert [w.shape[:2] for w in module.decoder_weights().values()] == [(64, 64), (64, 32), (32, 32), (32, channels)]
    assert all(dict(module.named_parameters())[name] is w for name, w in module.decoder_weights().items())
    assert module(images).shape == images.shape


def test_images_are_resized_to_28_and_stay_in_range():
    images = torch.cat([torch.zeros(1, 1, 40, 30), torch.ones(1, 1, 40, 30), random_images(1, 1, 40)[..., :30]])
    found = resized(images)
    assert found.shape == (3, 1, 28, 28)
    assert (found[0] == 0).all()
    assert torch.allclose(found[1], torch.ones(()))
    assert found.max() <= 1
    # With antialias a bright pixel anywhere counts, however far the image is reduced.
    spot = torch.zeros(1, 1, 280, 280)
    spot[0, 0, 133, 133] = 1
    assert resized(spot).sum() == pytest.approx(0.01, rel=1e-3)


def test_the_latent_loss_is_the_divergence_from_a_standard_normal():
    module, images = network(VariationalAutoencoder), random_images(3, side=28).double()
    mean, log_variance = module._encode(images)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum(1) / (3 * 28 * 28)
    assert torch.allclose(module.latent_loss(images), expected)
    assert torch.allclose(module.loss(images), F.binary_cross_entropy(module(images), images) + expected.mean())
    drawn = [module.loss(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("kind", NETWORKS)
def test_batched_cosines_equal_one_image_at_a_time(kind):
    module, images = network(kind), random_images(70, side=28).double()  # more than one chunk
    images[0], images[1], images[2] = 0, 1, 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = [torch.randn_like(weight) * 10.0**-place for place, weight in enumerate(module.decoder_weights().values())]
    found = cosines(module.requires_grad_(False), images, reference)
    expected = plain_cosines(module.requires_grad_(True), images, reference)
    assert found.shape == (70, 4)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_without_a_gradient_there_is_no_alignment():
    module = network(Autoencoder)
    with torch.no_grad():
        module.decoder[6].weight.zero_()
        module.decoder[6].bias.zero_()
    images = torch.full((2, 3, 28, 28), 0.5).double()  # reconstructed exactly: sigmoid(0) = 1/2
    images[1] = 0.25
    reference = [torch.ones_like(weight) for weight in module.decoder_weights().values()]
    found = cosines(module, images, reference)
    assert (found[0] == 0).all()
    assert (found[1, :3] == 0).all()
    assert found[1, 3] != 0
    assert (cosines(module, images, [torch.zeros_like(part) for part in reference]) == 0).all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_training_steps_are_those_of_a_plain_implementation(kind):
    alpha, batches = 0.5, random_images(24, side=28).double().split(8)
    module = network(kind)
    plain, optimizer, reference = copy.deepcopy(module), torch.optim.Adam(module.parameters(), 1e-3), Reference()
    found = [
        step(module, batch, reference, alpha, optimizer, torch.Generator().manual_seed(number))
        for number, batch in enumerate(batches)
    ]

    optimizer, sums, expected = torch.optim.Adam(plain.parameters(), 1e-3), [0.0] * 4, []
    for number, batch in enumerate(batches):
        if kind is VariationalAutoencoder:
            code = plain.encoder(batch).flatten(1)
            mean, log_variance = plain.mean(code), plain.log_variance(code)
            noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(number)).double()
            z = mean + noise * log_variance.exp().sqrt()
            outputs = plain.decoder(plain.back(z).view(-1, 64, 3, 3))
            divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
            value = (F.binary_cross_entropy(outputs, batch, reduction="sum") + divergence) / batch.numel()
        else:
            outputs = plain(batch)
            value = F.mse_loss(outputs, batch)
        part = reconstruction_loss(plain, outputs, batch)
        constraint = 0.0
        for place in range(4) if number else ():
            gradient = torch.autograd.grad(part, plain.decoder[2 * place].weight, create_graph=True)[0]
            average = sums[place] / number
            constraint = constraint - (gradient * average).sum() / gradient.norm() / average.norm() / 4
        value = value + alpha * constraint
        optimizer.zero_grad()
        value.backward()
        sums = [total + plain.decoder[2 * place].weight.grad.clone() for place, total in enumerate(sums)]
        optimizer.step()
        expected.append(value.detach())

    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-9, atol=0)
    torch.testing.assert_close(list(module.parameters()), list(plain.parameters()), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(reference.means, [total / 3 for total in sums], rtol=1e-7, atol=1e-14)
    assert reference.count == 3


def test_the_constraint_aligns_gradients():
    images = random_images(64, 1, 28)
    reached = []
    for alpha in (0.0, 1.0):
        module, reference = network(Autoencoder, 1).float(), Reference()
        optimizer = torch.optim.Adam(module.parameters(), 1e-3)
        for _ in range(6):
            for batch in images.split(16):
                step(module, batch, reference, alpha, optimizer)
        reached.append(cosines(module, images, reference.means).mean())
    assert reached[1] > reached[0] + 0.05


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_recon_and_alignment(name):
    detector, images = trained(name), random_images(5, 1, 8).double()
    found = statistics(detector, images)
    assert found.dtype == torch.float64
    assert found.shape == (5, 1 + len(detector.variants))
    module = network(detector.network, 1)
    torch.nn.utils.vector_to_parameters(torch.cat([part.double().flatten() for part in detector.weights_]), module.parameters())
    small = resized(images)
    alignment = plain_cosines(module, small, [part.double() for part in detector.reference_]).mean(1)
    recon = torch.stack([reconstruction_loss(module, module(image[None]), image[None]) for image in small]).detach()
    columns = dict(zip(["score", *detector.variants], found.T, strict=True))
    torch.testing.assert_close(columns["grad"], -alignment, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(columns["recon"], recon, rtol=1e-10, atol=0)
    torch.testing.assert_close(columns["score"], recon - 0.12 * alignment, rtol=1e-8, atol=1e-12)
    if "latent" in columns:
        torch.testing.assert_close(columns["latent"], module.latent_loss(small).detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_no_column_depends_on_the_batch_in_float32_and_all_are_finite(name):
    detector, images = trained(name), random_images(6, 1, 8)
    images[0], images[1], images[2] = 0, 1, 0.5
    images[3] = (images[3] > 0.5).float()
    together = statistics(detector, images)
    alone = torch.cat([statistics(detector, image[None]) for image in images])
    assert together.dtype == torch.float64
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)


def test_a_saturated_network_scores_finitely():
    detector = trained("gradcon-vae")
    detector.weights_ = [*detector.weights_[:15], detector.weights_[15] + 1e4, *detector.weights_[16:]]  # the last bias: all 1

    assert torch.isfinite(statistics(detector, torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)]))).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unlike_the_training_images_is_more_anomalous(name):
    widths, brightness = torch.arange(30) % 3 + 2, 0.7 + 0.05 * (torch.arange(30) % 7)
    bars = (torch.arange(8) < widths[:, None]) * brightness[:, None]  # (30, 8)
    images = bars[:, None, None, :].repeat(1, 1, 8, 1)
    detector = trained(name, TrainingSet((images[:20] * 255).byte(), None, np.arange(20) % 10 == 0), epochs=40)
    inside, outside = statistics(detector, images[20:]), statistics(detector, random_images(10, 1, 8))
    for column in (0, 1, -1):  # score, recon, grad
        assert outside[:, column].min() > inside[:, column].max()


@pytest.mark.parametrize("name", NAMES)
def test_training_is_deterministic_under_the_seed(name):
    torch.manual_seed(1)
    one = trained(name)
    before = torch.get_rng_state()
    again = trained(name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    statistics(again, random_images(2, 1, 8))
    other = trained(name, training_set(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(one.weights_ + one.reference_, again.weights_ + again.reference_, strict=True))
    assert not torch.equal(one.weights_[0], other.weights_[0])


def test_it_needs_no_classifier_and_leaves_one_alone(classifier):
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    one, two = load_detector("gradcon", epochs=1), load_detector("gradcon", epochs=1)
    one.prepare(training_set(channels=3), None, Progress())
    two.prepare(training_set(channels=3), classifier, Progress())
    assert all(torch.equal(a, b) for a, b in zip(one.weights_, two.weights_, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in classifier.module.state_dict().items())


def test_the_best_epoch_is_kept_with_its_own_reference(monkeypatch):
    losses = iter([0.3, 0.1])
    monkeypatch.setattr(GradCon, "_validated", lambda self, *_: next(losses))
    short = trained("gradcon", epochs=2)
    losses = iter([0.3, 0.1, float("nan"), 0.2])
    long = trained("gradcon", epochs=4)
    assert all(
        torch.equal(a, b) for a, b in zip(short.weights_ + short.reference_, long.weights_ + long.reference_, strict=True)
    )
    losses = iter([0.3, 0.1, 0.2, 0.0])
    assert not torch.equal(trained("gradcon", epochs=4).reference_[0], short.reference_[0])
    losses = iter([float("nan")] * 2)
    with pytest.raises(OodbenchError, match="diverged"):
        trained("gradcon")


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_goes_on_from_its_checkpoint(name, monkeypatch):
    whole = trained(name, epochs=4)
    monkeypatch.setattr(gradcon, "CHECKPOINT_SECONDS", -1.0)
    store, kept = Checkpoint.store, []

    def store_and_stop(self, epochs):
        store(self, epochs)
        kept.append(self.path)
        if epochs == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "store", store_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained(name, epochs=4)
    assert kept[-1].exists()
    torch.rand(3)  # what else happened in the process must not matter
    validated, epochs = type(whole)._validated, []
    monkeypatch.setattr(type(whole), "_validated", lambda self, *given: (epochs.append(1), validated(self, *given))[1])
    resumed = trained(name, epochs=4)
    assert len(epochs) == 2
    for a, b in zip(whole.weights_ + whole.reference_, resumed.weights_ + resumed.reference_, strict=True):
        assert torch.equal(a, b)
    assert not kept[-1].exists()


def test_a_damaged_checkpoint_is_reported_and_training_starts_again(monkeypatch):
    whole, said = trained("gradcon", epochs=2), []
    monkeypatch.setattr(gradcon, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(Progress, "say", lambda self, line: said.append(line))
    store = Checkpoint.store

    def store_damaged_and_stop(self, epochs):
        store(self, epochs)
        content = bytearray(self.path.read_bytes())
        content[len(content) // 2] ^= 1
        self.path.write_bytes(content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "store", store_damaged_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained("gradcon", epochs=2)
    again = trained("gradcon", epochs=2)
    (line,) = said
    assert ".checkpoint is not a checkpoint, or damaged (its content does not match its digest); training from the" in line
    assert all(map(torch.equal, whole.weights_, again.weights_))


def test_where_nothing_can_be_written_training_goes_on(monkeypatch):
    def fail(self, epochs):
        raise OodbenchError("cannot write there; free space")

    monkeypatch.setattr(gradcon, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(Checkpoint, "store", fail)
    detector = load_detector("gradcon", epochs=2)
    heard = Heard()
    detector.prepare(training_set(10), None, heard)
    assert heard.lines == ["gradcon: training continues, but cannot be resumed later: cannot write there; free space"]
    assert len(detector.reference_) == 4


def test_progress_tells_of_all_images_and_of_some_epochs():
    told, detector = Heard(), load_detector("gradcon", epochs=41)
    detector.prepare(training_set(5), None, told)
    assert told.expected == told.done == 41 * 3  # of 5, one is held out and one validates
    assert told.stages[0] == "gradcon: epoch 1 of 41"
    assert told.stages[1].startswith("gradcon: epoch 4 of 41, loss 0.")
    assert len(told.stages) <= 20


def test_what_cannot_work_says_so():
    with pytest.raises(UsageError, match="epochs = 0; give a whole number"):
        GradCon(epochs=0)
    with pytest.raises(UsageError, match="beta = -1; give"):
        GradConVAE(beta=-1)
    with pytest.raises(Unsuitable, match="at least 2 images to train on, has 1"):
        trained("gradcon", training_set(2))
    with pytest.raises(BadData, match="images have 3 channels, but gradcon was trained on 1"):
        statistics(trained("gradcon", epochs=1), random_images(1, 3, 8))
