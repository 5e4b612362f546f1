"""Deep kernel machines: positive matrices in every layer; layers against closed forms, sampling, a kernel computed outright."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

from assay.errors import Diverged
from assay.lab import Lab
from assay.lab.verdict import judge as verdict
from assay.papers.architectures import conv_dkm as paper
from assay.papers.architectures.conv_dkm import (
    ArcCosKernel,
    ConvDKM,
    ConvDKMClassifier,
    ConvMix,
    GPOutput,
    GramLayer,
    GramNorm,
    GramState,
    NystromGAP,
    PatchGram,
    Posterior,
    Residual,
    Whitening,
    arc_cosine,
    condition,
    divergence,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def state_of(points, places, penalty=0.0):
    """The state of features: points (P, D), places (..., D)."""
    return GramState(points @ points.T, places @ points.T, places.square().sum(dim=-1), torch.tensor(penalty).double())


def random_state(points=5, places=(3, 4, 4), features=9):
    return state_of(doubles(points, features), doubles(*places, features))


def assert_positive(state, where=""):
    """The matrix of the inducing points and any one place has no negative eigenvalue."""
    ti, t = state.ti.flatten(0, -2), state.t.flatten()
    joint = torch.cat(
        [
            torch.cat([state.ii.expand(len(t), -1, -1), ti[:, :, None]], dim=2),
            torch.cat([ti, t[:, None]], dim=1)[:, None],
        ],
        dim=1,
    )
    assert torch.linalg.eigvalsh(joint).min() > -1e-10, where


@pytest.mark.parametrize("test", ["none", "global", "local", "image", "location"])
def test_positive_after_every_layer(test):
    net = ConvDKM((2, 9, 8), 3, blocks=(6, 7), chunks=2, inducing="local" if test == "local" else "global", test=test)
    images = doubles(40, 2, 9, 8)
    net.start_(images)
    with torch.no_grad():
        for weights in net.parameters():  # as training might leave it, weight variances above 1 + bias variance among them
            weights.add_(0.3 * torch.randn_like(weights))
    seen = []

    def look(layer, _, out):
        if isinstance(out, GramState):
            seen.append(type(layer).__name__)
            assert_positive(out, seen[-1])

    for layer in net.modules():
        layer.register_forward_hook(look)
    for training in (True, False):
        posterior = net.train(training)(images[:4])  # inverts matrices of inducing points where they have to be definite
        assert posterior.mean.shape == (4, 3)
        assert bool((posterior.variance > 0).all())
    assert {"PatchGram", "ArcCosKernel", "ConvMix", "GramLayer", "GramNorm", "Residual", "NystromGAP"} <= set(seen)


def test_pinned_gram_layer_changes_and_costs_nothing():
    state = random_state()._replace(penalty=torch.tensor(2.0).double())
    layer = GramLayer(5, dof=3.0)
    layer.pin_(state.ii)
    for before, after in zip(state, layer(state), strict=True):
        torch.testing.assert_close(after, before)


def test_gram_layer_by_the_formulas():
    state, layer = random_state(), GramLayer(5, dof=3.0)
    with torch.no_grad():
        layer.factor.copy_(doubles(5, 5))
        layer.log_scale.fill_(0.4)
    gram = layer.factor @ layer.factor.T / 5 * math.exp(0.4)
    a = state.ti @ torch.linalg.inv(state.ii)
    found = layer(state)
    torch.testing.assert_close(found.ii, gram)
    torch.testing.assert_close(found.ti, a @ gram)
    own = torch.einsum("...i,ij,...j->...", a, gram, a) + state.t - (a * state.ti).sum(dim=-1)
    torch.testing.assert_close(found.t, own)
    zero = torch.zeros(5, dtype=torch.float64)
    price = kl_divergence(MultivariateNormal(zero, gram), MultivariateNormal(zero, state.ii))
    torch.testing.assert_close(found.penalty, 3 * price)
    assert price > 1


def test_divergence_takes_any_root():
    gram, kernel = (m @ m.T + 0.1 * torch.eye(4).double() for m in (doubles(4, 6), doubles(4, 6)))
    roots = torch.linalg.cholesky(gram), torch.linalg.eigh(gram)
    inverse = torch.linalg.inv(torch.linalg.cholesky(kernel))
    symmetric = roots[1].eigenvectors * roots[1].eigenvalues.sqrt() @ roots[1].eigenvectors.T
    torch.testing.assert_close(divergence(inverse @ roots[0]), divergence(inverse @ symmetric))


def test_arc_cosine_is_the_kernel_of_relu_units():
    u, v = doubles(6, 3), doubles(4, 3)
    found = arc_cosine(u @ v.T, v.square().sum(dim=1), u.square().sum(dim=1))
    cosine = u @ v.T / (u.norm(dim=1)[:, None] * v.norm(dim=1))  # Cho and Saul, the kernel of degree 1
    angle = cosine.acos()
    closed = u.norm(dim=1)[:, None] * v.norm(dim=1) * (angle.sin() + (math.pi - angle) * cosine) / math.pi
    torch.testing.assert_close(found, closed)
    units = doubles(3, 1_000_000)
    sampled = 2 * F.relu(u @ units) @ F.relu(v @ units).T / units.shape[1]
    torch.testing.assert_close(found, sampled, rtol=0.01, atol=0.01)


def test_arc_cosine_slopes():
    u, v = doubles(2, 3, 5), doubles(4, 5)
    given = ((u @ v.T).requires_grad_(), v.square().sum(dim=1).requires_grad_(), u.square().sum(dim=2).requires_grad_())
    assert torch.autograd.gradcheck(arc_cosine, given)
    own = torch.tensor([2.0]).double().requires_grad_()  # a vector with itself: the angle's own slope is infinite
    arc_cosine(own[None], own, own).sum().backward()
    assert own.grad.item() == pytest.approx(1)


def numbers_of(images):
    """All 3x3 patches that lie inside, (N, H - 2, W - 2, C * 9)."""
    return images.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)


def test_with_all_patches_as_inducing_points_it_is_the_kernel_of_the_infinite_network():
    """Two convolutions: with weights that pick, new inducing points are places; then nothing is approximated."""
    images = doubles(2, 2, 7, 7)
    patches = numbers_of(images)  # (2, 5, 5, 18)
    relu, mix = ArcCosKernel(bias=0.3, weight=1.7, jitter=0.0), ConvMix(50, 18)
    position = torch.arange(50).view(2, 5, 5)
    centres = position[:, 1:4, 1:4].flatten()  # places with all neighbours inside
    with torch.no_grad():
        mix.weights.zero_()
        for row in range(3):
            for column in range(3):
                neighbours = position[:, row : row + 3, column : column + 3].flatten()
                mix.weights[torch.arange(18), neighbours, row, column] = math.sqrt(50)
    first = PatchGram(patches.reshape(50, 2, 3, 3))
    state = mix(relu(first(images)))

    def kernel(gram):
        each = gram.diagonal().sqrt()
        angle = (gram / (each[:, None] * each)).clamp(-1, 1).acos()
        return 1.7 * each[:, None] * each * (angle.sin() + (math.pi - angle) * angle.cos()) / math.pi + 0.3

    flat = patches.flatten(0, 2)
    one = kernel(flat @ flat.T / 18).view(2, 5, 5, 2, 5, 5)
    two = sum(one[:, r : r + 3, c : c + 3, :, r : r + 3, c : c + 3] for r in range(3) for c in range(3)) / 9
    two = two.reshape(18, 18)
    torch.testing.assert_close(state.ii, two)
    inside = state.ti[:, 2:5, 2:5].flatten(0, 2)
    torch.testing.assert_close(inside, two)
    torch.testing.assert_close(state.t[:, 2:5, 2:5].flatten(), two.diagonal())
    active = ArcCosKernel(bias=0.3, weight=1.7, jitter=0.0)(state)
    torch.testing.assert_close(active.ti[:, 2:5, 2:5].flatten(0, 2), kernel(two))
    _, _, rest = condition(active)
    assert rest[:, 2:5, 2:5].abs().max() < 1e-8 < rest[:, 0, 0].min()  # elsewhere something is left open
    assert len(centres) == 18


def test_patches_at_the_border():
    images, patches = doubles(2, 3, 5, 4), doubles(4, 3, 3, 3)
    state = PatchGram(patches, stride=2)(images)
    assert state.ti.shape == (2, 3, 2, 4)
    corner = images[:, :, :2, :2]
    torch.testing.assert_close(state.t[:, 0, 0], corner.square().mean(dim=(1, 2, 3)))  # only what is there
    torch.testing.assert_close(state.ti[:, 0, 0], torch.einsum("bchw,pchw->bp", corner, patches[:, :, 1:, 1:]) / 27)
    torch.testing.assert_close(state.ii, torch.einsum("pchw,qchw->pq", patches, patches) / 27)


def test_average_over_places():
    points, seen, own = doubles(4, 4), doubles(2, 3, 3, 4), doubles(2, 3, 3)  # own: a part that no other place shares
    state = state_of(points, seen)
    state = state._replace(t=state.t + own.square())
    found = NystromGAP()(state)
    mean = seen.mean(dim=(1, 2))
    torch.testing.assert_close(found.ti, mean @ points.T)
    torch.testing.assert_close(found.t, mean.square().sum(dim=1) + own.square().sum(dim=(1, 2)) / 81)


def test_norm():
    state, norm = random_state(), GramNorm("global", "location", (4, 4), momentum=1.0)
    found = norm(state)
    assert found.ii.diagonal().mean().item() == pytest.approx(1)
    torch.testing.assert_close(found.t.mean(dim=0), torch.ones(4, 4).double())
    scale = found.t.sqrt()[..., None] * found.ii.diagonal().sqrt()
    before = state.t.sqrt()[..., None] * state.ii.diagonal().sqrt()
    torch.testing.assert_close(found.ti / scale, state.ti / before)  # correlations stay
    alone = norm.eval()(GramState(state.ii, state.ti[:1], state.t[:1], state.penalty))
    torch.testing.assert_close(alone.t, found.t[:1])  # by what was seen while training, whatever the batch
    image = GramNorm("local", "image")(state)
    torch.testing.assert_close(image.t.mean(dim=(1, 2)), torch.ones(3).double())
    torch.testing.assert_close(image.ii.diagonal(), torch.ones(5).double())
    torch.testing.assert_close(GramNorm("none", "local")(state).t, torch.ones(3, 4, 4).double())
    with pytest.raises(ValueError, match="global"):
        GramNorm("batch", "global")


def test_residual_pays_for_the_layers_below_once():
    state, layer = random_state()._replace(penalty=torch.tensor(5.0).double()), GramLayer(5, dof=1.0)
    found = Residual(layer, nn.Sequential())(state)
    torch.testing.assert_close(found.penalty, layer(state).penalty)
    torch.testing.assert_close(found.ti, (state.ti + layer(state).ti) / 2)


def test_output_by_the_formulas():
    state, layer = random_state(places=(6,)), GPOutput(5, 3)
    found = layer(state)
    spread = layer.factor @ layer.factor.T / 5
    a = state.ti @ torch.linalg.inv(state.ii)
    torch.testing.assert_close(found.mean, a @ layer.mean)
    torch.testing.assert_close(found.variance, state.t - (a * state.ti).sum(dim=1) + torch.einsum("bi,ij,bj->b", a, spread, a))
    prior = MultivariateNormal(torch.zeros(5).double(), state.ii)
    prices = [kl_divergence(MultivariateNormal(layer.mean[:, c], spread), prior) for c in range(3)]
    torch.testing.assert_close(found.penalty, torch.stack(prices).mean())


def test_whitening():
    images = doubles(500, 2, 3, 3).cumsum(dim=3) + 2
    layer = Whitening((2, 3, 3), floor=0.0)
    layer.fit_(images)
    flat = layer(images).flatten(1)
    torch.testing.assert_close(flat.T @ flat / 500, torch.eye(18).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(layer(images).mean(dim=(0, 2, 3)), torch.zeros(2).double(), atol=1e-8, rtol=0)


def test_loss_and_probabilities():
    net = ConvDKM((1, 6, 6), 3, blocks=(4,), chunks=1).eval()
    images, labels = doubles(20, 1, 6, 6), torch.randint(0, 3, (20,))
    net.start_(images)
    with torch.no_grad():
        posterior = net(images)
        losses = [net.loss(images, labels, n, 20_000, torch.Generator().manual_seed(1)) for n in (100, 200)]
        torch.testing.assert_close(losses[0] - losses[1], posterior.penalty / 200)
        noise = np.random.default_rng(0).standard_normal((20_000, 20, 3))
        drawn = softmax(posterior.mean.numpy() + posterior.variance.sqrt().numpy()[:, None] * noise, axis=2)
        likely = np.log(drawn[:, np.arange(20), labels.numpy()]).mean()
    assert losses[0].item() == pytest.approx(posterior.penalty.item() / 100 - likely, abs=0.02)
    assert net.predict_proba(images, 20_000).numpy() == pytest.approx(drawn.mean(axis=0), abs=0.02)


def test_sure_posterior_is_a_softmax():
    posterior = Posterior(doubles(4, 3), torch.zeros(4).double(), torch.zeros(()).double())
    torch.testing.assert_close(posterior.samples(doubles(7, 1, 3)), posterior.mean.expand(7, -1, -1))


def test_the_network_of_the_paper():
    net = ConvDKM((3, 32, 32), 10, scale=2)
    layers = [module for module in net.modules() if isinstance(module, GramLayer)]
    assert [len(layer.factor) for layer in layers] == [32] * 7 + [64] * 6 + [128] * 6
    assert sum(isinstance(module, ConvMix) and module.weights.shape[-1] == 1 for module in net.modules()) == 3
    free = ConvDKM((3, 32, 32), 10, scale=2, dof=math.inf)
    assert not any(isinstance(module, GramLayer) for module in free.modules())
    grams = sum(len(layer.factor) ** 2 + 1 for layer in layers)
    assert sum(map(torch.numel, net.parameters())) - sum(map(torch.numel, free.parameters())) == grams
    with pytest.raises(ValueError, match="dof"):
        ConvDKM((3, 32, 32), 10, dof=-1.0)


def test_infinite_dof_is_where_training_starts():
    """The same draws: until something is learnt, a machine that may learn is the one that may not."""
    images = doubles(30, 1, 8, 8)
    found = []
    for dof in (0.1, math.inf):
        torch.manual_seed(3)
        net = ConvDKM((1, 8, 8), 4, dof=dof, blocks=(5, 6), chunks=1)
        net.start_(images, torch.Generator().manual_seed(0))
        found.append(net.train()(images))
    for free, fixed in zip(*found, strict=True):
        torch.testing.assert_close(free, fixed)


def test_classifier_learns_digits():
    images, labels = load_digits(return_X_y=True)
    names = np.array([f"digit {label}" for label in labels])
    machine = ConvDKMClassifier(blocks=(16,), learning_rate=0.1, epochs=6, batch_size=50, stride=2, random_state=0)
    machine.fit(images[:600], names[:600])
    said = machine.predict_proba(images[600:])
    assert (machine.predict(images[600:]) == names[600:]).mean() > 0.65
    assert said.sum(axis=1) == pytest.approx(1)
    assert machine.loss_curve_[-1] < machine.loss_curve_[0] - 0.5
    assert machine.predict_proba(images[600:605]) == pytest.approx(said[:5], abs=1e-9)  # whatever stands beside an image


def test_classifier_in_other_shapes_and_errors():
    generator = np.random.default_rng(0)
    images, labels = generator.random((30, 2, 6, 6)), np.arange(30) % 3
    machine = ConvDKMClassifier(blocks=(4,), epochs=2, batch_size=10, random_state=1)
    first = machine.fit(images, labels).predict_proba(images)
    assert first.shape == (30, 3)
    again = clone(machine).set_params(image_shape=(2, 6, 6)).fit(images.reshape(30, -1), labels)
    assert (again.predict_proba(images.reshape(30, -1)) == first).all()
    with pytest.raises(ValueError, match="image_shape"):
        machine.fit(images.reshape(30, -1), labels)
    with pytest.raises(ValueError, match="1 class"):
        machine.fit(images, np.zeros(30))
    with pytest.raises(Diverged, match="learning_rate below 100000"):
        clone(machine).set_params(learning_rate=1e5, dof=0.0).fit(images, labels)


def test_augmentation_is_asked_for_every_batch():
    seen = []

    def augment(images, generator):
        seen.append(len(images))
        return images

    images = np.random.default_rng(0).random((20, 6, 6))
    ConvDKMClassifier(blocks=(4,), epochs=1, batch_size=8, augment=augment, random_state=0).fit(images, np.arange(20) % 2)
    assert seen == [8, 8, 4]


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    for claim in (
        paper.learning_gram_beats_nngp,
        paper.pull_helps_likelihood,
        paper.more_inducing_points_help,
        paper.norm_matters,
    ):
        assert verdict(claim.expect, {0: claim(lab)}).seeds == 1


def test_a_failed_training_guesses(home, monkeypatch):
    def fail(*_):
        raise Diverged("no more")

    monkeypatch.setattr(ConvDKMClassifier, "_train", fail)
    data = Lab(seed=0, scale="smoke").data("mnist5k").subset(train=100, test=50).holdout(0.2, seed=0)
    found = paper.judge(data, 0, 4, blocks=(4,), stride=3)
    assert found["failed"] == 1
    assert found["test accuracy"].item() == pytest.approx(0.1, abs=0.03)
    assert found["test likelihood"].item() == pytest.approx(-math.log(10), abs=0.05)
