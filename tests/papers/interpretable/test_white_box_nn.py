"""The white-box network: its published size, layers against SciPy and a literal writing of the paper's, attacks of others."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from assay.data import Dataset, Split, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.verdict import judge
from assay.nn import mlp
from assay.papers.interpretable import white_box_nn as paper
from assay.papers.interpretable.white_box_nn import (
    AffineTemplates,
    BestOfOwn,
    RotatedConv,
    SemanticFeatureClassifier,
    SemanticFeatureNet,
    TwoStep,
    noisy,
    two_classes,
    white_box_nn,
)
from assay.recipe import Recipe
from assay.train.loop import fit


def test_size_of_the_paper():
    net = SemanticFeatureNet()
    assert sum(part.numel() for part in net.parameters()) == 8 + 2 * 25 + 8 * 400 + 8 * 32 * 6 + 2 * 8 == 4810
    assert net(torch.rand(3, 1, 28, 28)).shape == (3, 2)


def literal_steps(x, a0, a1, t0, t1, widths):
    """One brightness, the four branches one after the other."""
    x, t0, t1 = 2 * x - 1, 2 * t0 - 1, 2 * t1 - 1

    def bent(u, s):
        return u / (s + abs(u))

    if x < t0:
        return bent(x - t0, widths[0]) / bent(1 - t0, widths[0]) * (1 - a0) - a0
    if x < 0:
        return a0 * (bent(x - t0, widths[1]) + bent(t0, widths[1])) / abs(bent(t0, widths[1]))
    if x < t1:
        return a1 * (bent(x - t1, widths[2]) + bent(t1, widths[2])) / abs(bent(t1, widths[2]))
    return bent(x - t1, widths[3]) / bent(1 + t1, widths[3]) * (1 - a1) + a1


def test_two_steps():
    layer = TwoStep().double()
    with torch.no_grad():
        layer.plateaus.copy_(torch.tensor([0.4, 0.7]))
        layer.thresholds.copy_(torch.tensor([0.2, 0.8]))
        layer.widths.copy_(torch.tensor([0.1, 0.2, 0.3, 0.05]))
    x = torch.linspace(0, 1, 101).double()
    expected = [literal_steps(value, 0.4, 0.7, 0.2, 0.8, [0.1, 0.2, 0.3, 0.05]) for value in x.tolist()]
    assert layer(x).tolist() == pytest.approx(expected, abs=1e-6)
    even = TwoStep()
    y = even(x.float())
    assert torch.allclose(y, -y.flip(0), atol=1e-5)  # odd
    assert bool((y.diff() >= 0).all())
    assert -1 <= y.min() <= y.max() <= 1
    assert even(torch.tensor(0.75)).item() == pytest.approx(0.5)
    slope = y.diff() * 100
    assert slope[20:30].max() > 5 * slope[45:55].max()  # steep at the threshold, flat between
    with torch.no_grad():
        even.thresholds.fill_(0.6)
    even.normalise_()
    assert even.thresholds.tolist() == pytest.approx([0.49, 0.6])


def test_filters_turn_as_scipys():
    torch.manual_seed(0)
    layer = RotatedConv(kernels=1, poses=8)
    kernel = layer.kernels.detach()[0].numpy()
    variants = layer.variants().detach().view(8, 5, 5)
    torch.testing.assert_close(variants.flatten(1).norm(dim=1), torch.ones(8))
    for pose in range(8):
        turned = [ndimage.rotate(kernel, sign * 45 * pose, reshape=False, order=1) for sign in (1, -1)]
        near = [np.corrcoef(t[1:4, 1:4].ravel(), variants[pose, 1:4, 1:4].numpy().ravel())[0, 1] for t in turned]
        assert max(near) > 0.999
    quarter = np.rot90(kernel) / np.linalg.norm(kernel)
    assert np.allclose(variants[2], quarter, atol=1e-5) or np.allclose(variants[6], quarter, atol=1e-5)


def test_the_best_filter_answers_everywhere():
    torch.manual_seed(0)
    layer, x = RotatedConv(), torch.randn(2, 1, 9, 9)
    weights = layer.variants().view(-1, 1, 5, 5)
    expected = F.relu(F.conv2d(x, weights, padding=2).amax(dim=1, keepdim=True) / 5)
    torch.testing.assert_close(layer(x), expected)
    wanted = torch.autograd.grad(expected.square().sum(), layer.kernels)[0]
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), layer.kernels)[0], wanted, rtol=1e-4, atol=1e-5)


def test_templates_move_as_their_poses_say():
    torch.manual_seed(0)
    layer = AffineTemplates(templates=2, poses=3)
    with torch.no_grad():
        layer.poses.copy_(torch.eye(2, 3))
        layer.poses[:, 1, :, 2] = torch.tensor([3.0, -2.0])  # looks 3 pixels to the right and 2 up
    variants = layer.variants().detach().view(2, 3, 28, 28)
    plain = F.pad(layer.templates.detach().view(2, 20, 20), (4, 4, 4, 4))
    plain = plain / plain.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(variants[:, 0], plain, atol=1e-5)
    assert torch.allclose(variants[:, 1], plain.roll((2, -3), dims=(1, 2)), atol=1e-5)
    torch.testing.assert_close(layer.variants().norm(dim=2), torch.ones(2, 3))
    x = torch.randn(4, 1, 28, 28)
    expected = F.relu(torch.einsum("bhw,tphw->btp", x[:, 0], variants).amax(dim=2))
    torch.testing.assert_close(layer(x), expected)
    assert bool((layer(x) <= x.flatten(1).norm(dim=1, keepdim=True) + 1e-4).all())


def test_head_is_the_best_of_four_rolled_vectors():
    torch.manual_seed(0)
    head, z = BestOfOwn(), torch.rand(6, 8)
    torch.nn.init.normal_(head.weights)
    for row in range(6):
        for label in range(2):
            h = head.weights.detach()[label].flatten()
            own = slice(4 * label, 4 * label + 4)
            tried = []
            for roll in range(4):
                half = h[own].roll(roll)
                kept = torch.where(half == half.max(), half, 0.0)
                whole = h.clone()
                whole[own] = kept
                tried.append((z[row] @ whole).item())
            assert head(z)[row, label].item() == pytest.approx(max(tried), rel=1e-5)


def test_noise_is_on_the_stated_share():
    images = torch.full((4000, 1, 4, 4), 0.5)
    changed = noisy(images, torch.Generator().manual_seed(0))
    touched = (changed != images).flatten(1).any(dim=1)
    assert touched.double().mean().item() == pytest.approx(0.7, abs=0.03)
    assert (changed[touched] - 0.5).mean().item() == pytest.approx(0.05, abs=0.01)
    assert 0 <= changed.min() <= changed.max() <= 1


@pytest.fixture(scope="module")
def threes_and_fives():
    return two_classes(load("mnist5k"), 3, 5)


@pytest.fixture(scope="module")
def learnt(threes_and_fives):
    train = threes_and_fives.train
    return SemanticFeatureClassifier(poses=8, epochs=4, batch_size=25, learning_rate=1e-2, random_state=0).fit(
        train.inputs[:500].flatten(1).numpy(), np.array(["three", "five"])[train.labels[:500]]
    )


def test_learns_explains_and_draws(threes_and_fives, learnt):
    test = threes_and_fives.test
    x, y = test.inputs.flatten(1).numpy(), np.array(["three", "five"])[test.labels]
    assert learnt.score(x, y) > 0.85
    lengths = learnt.net_.templates.templates.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    fits = learnt.explain(x[0])
    assert fits[0].label == learnt.predict(x[:1])[0]
    with torch.no_grad():
        units = learnt.net_.templates(learnt.net_.lines(learnt.net_.pixel(test.inputs[:1])))[0]
    assert [fit.response for fit in fits] == pytest.approx([units[fit.template].item() for fit in fits], rel=1e-5)
    assert {fit.template // 4 for fit in fits} == {0, 1}
    root = ElementTree.fromstring(learnt.picture(x[0]))
    assert len(root.findall("{http://www.w3.org/2000/svg}image")) == 5
    with pytest.raises(ValueError, match="no square image"):
        learnt.fit(x[:, :700], y)
    with pytest.raises(ValueError, match="between 0"):
        learnt.fit(2 * x, y)


def test_treatment_composes_noise_and_refuses_other_images(threes_and_fives):
    small = threes_and_fives.subset(train=60, test=20)
    plain = Recipe(small, model=partial(mlp, 784, 2), epochs=1, optimizer=partial(torch.optim.Adam, lr=3e-3), augment=shifted)
    recipe = white_box_nn(plain, per_class=2, poses=4)
    trained = fit(recipe, seed=0)
    assert isinstance(trained.model, SemanticFeatureNet)
    assert trained.model.head.weights.shape == (2, 2, 2)
    lengths = trained.model.templates.templates.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    before = recipe.augment(torch.zeros(50, 1, 4, 4), torch.Generator().manual_seed(0))
    assert before.median() >= 0.5
    with pytest.raises(AssayError, match="grey square images"):
        white_box_nn(plain.replace(data=load("wine")))
    with pytest.raises(AssayError, match="from 0 to 1"):
        white_box_nn(plain.replace(data=small.normalise()))


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images + 0.5


def test_two_classes_are_kept_in_their_order():
    split = Split(torch.arange(6.0).view(6, 1), torch.tensor([0, 1, 2, 0, 1, 2]))
    data = Dataset("three", "classification", split, split.take(torch.arange(0)), split, ("a", "b", "c"))
    two = two_classes(data, 2, 0)
    assert two.classes == ("c", "a")
    assert two.train.inputs.flatten().tolist() == [0, 2, 3, 5]
    assert two.train.labels.tolist() == [1, 0, 1, 0]


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    for claim in (paper.robust_without_attacks, paper.steps_and_poses_needed, paper.gradients_are_not_masked):
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
