"""DeepFool: closed forms on affine classifiers, the algorithm image by image, and agreement with foolbox."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import lenet
from assay.papers.robust import deepfool as module
from assay.papers.robust.deepfool import deepfool, robustness

SLACK = 1e-4  # how much further than the linearised boundary each step goes


def affine(classes: int, features: int = 12) -> nn.Linear:
    torch.manual_seed(classes)
    return nn.Linear(features, classes).double()


def points(count: int, features: int = 12) -> Tensor:
    return torch.randn(count, features, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """A small network that has learnt to tell eight noisy patterns apart, and images of them."""
    torch.manual_seed(0)
    patterns = torch.rand(8, 1, 12, 12)
    labels = torch.randint(8, (600,))
    images = (0.5 + 0.4 * (patterns[labels] - 0.5) + 0.15 * torch.randn(600, 1, 12, 12)).clamp(0, 1)
    model = lenet(1, 8, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(15):
        for part in torch.randperm(500).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    model.eval()
    assert (model(images[500:]).argmax(dim=1) == labels[500:]).double().mean() > 0.9
    return model, images[500:]


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("classes", [2, 5])
def test_affine_classifier_is_crossed_at_its_distance(classes, norm):
    """min over k of |f_k - f_label| / ||w_k - w_label||_q, with 1/p + 1/q = 1, reached in one step."""
    model, inputs = affine(classes), points(40)
    logits = model(inputs)
    label = logits.argmax(dim=1)
    gap = (logits - logits.gather(1, label[:, None])).abs()
    width = (model.weight[None] - model.weight[label][:, None]).norm(p=2 if norm == 2 else 1, dim=2)
    distance = torch.where(F.one_hot(label, classes).bool(), math.inf, gap / width).amin(dim=1)

    found = deepfool(model, inputs, norm=norm)
    torch.testing.assert_close(found.perturbation.norm(p=norm, dim=1), 1.02 * (distance + SLACK), rtol=0, atol=1e-9)
    assert found.iterations.tolist() == [1] * 40
    assert torch.equal(found.label, label)
    assert torch.equal(found.new_label, model(found.adversarial).argmax(dim=1))
    assert (found.new_label != label).all()


def test_overshoot_is_a_share_of_the_whole():
    model, inputs = affine(3), points(10)
    lengths = [deepfool(model, inputs, overshoot=share).perturbation.norm(dim=1) for share in (0.02, 0.5)]
    torch.testing.assert_close(lengths[1] / lengths[0], torch.full((10,), 1.5 / 1.02, dtype=torch.float64))


def one_by_one(model: nn.Module, image: Tensor, candidates: int, overshoot: float, limit: int) -> tuple[np.ndarray, int]:
    """Algorithm 2 for one image, in numpy and loops."""

    def look(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        leaf = torch.from_numpy(at).view_as(image).requires_grad_()
        logits = model(leaf[None])[0]
        rows = [torch.autograd.grad(logits[k], leaf, retain_graph=True)[0].numpy().ravel() for k in range(len(logits))]
        return logits.detach().numpy(), np.array(rows)

    start = image.numpy().ravel()
    total, steps = np.zeros_like(start), 0
    logits, gradients = look(start)
    order = np.argsort(-logits)[:candidates]
    while steps < limit and logits.argmax() == order[0]:
        best = (math.inf, None, None)
        for k in order[1:]:
            w, f = gradients[k] - gradients[order[0]], logits[k] - logits[order[0]]
            best = min(best, (abs(f) / np.linalg.norm(w), k, w), key=lambda found: found[0])
        total = total + (best[0] + SLACK) * best[2] / np.linalg.norm(best[2])
        steps += 1
        logits, gradients = look(start + (1 + overshoot) * total)
    return (1 + overshoot) * total, steps


@pytest.mark.parametrize("candidates", [3, 8])
def test_batch_agrees_with_one_image_at_a_time(trained, candidates):
    model, images = trained
    found = deepfool(model, images[:20], num_classes=candidates)
    for place, image in enumerate(images[:20]):
        expected, steps = one_by_one(model, image, candidates, overshoot=0.02, limit=50)
        np.testing.assert_allclose(found.perturbation[place].numpy().ravel(), expected, rtol=0, atol=1e-4)
        assert found.iterations[place] == steps
    assert len(set(found.iterations.tolist())) > 1  # images left the batch at different times


@pytest.mark.parametrize("norm", [2, math.inf])
def test_agrees_with_foolbox(trained, norm):
    foolbox = pytest.importorskip("foolbox")
    model, images = trained
    kind = foolbox.attacks.L2DeepFoolAttack if norm == 2 else foolbox.attacks.LinfDeepFoolAttack
    attack = kind(steps=50, candidates=10, overshoot=0.02, loss="logits")
    label = model(images).argmax(dim=1)
    peer = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, label, epsilons=None)[1]
    found = deepfool(model, images, norm=norm, clip=(0, 1))
    ours, theirs = ((x - images).flatten(1).norm(p=norm, dim=1) for x in (found.adversarial, peer))
    assert ours.median() == pytest.approx(theirs.median().item(), rel=1e-2)
    assert ((ours - theirs).abs() < 1e-4).double().mean() > 0.95
    assert (found.new_label != label).all()


def test_result_is_consistent(trained):
    model, images = trained
    found = deepfool(model, images, clip=(0.1, 0.9))
    assert found.adversarial.aminmax() == (pytest.approx(0.1), pytest.approx(0.9))
    torch.testing.assert_close(found.perturbation, found.adversarial - images)
    assert torch.equal(found.label, model(images).argmax(dim=1))
    assert (found.new_label != found.label).all()
    fresh = model(found.adversarial).argmax(dim=1)
    assert (fresh == found.new_label).double().mean() > 0.98  # one at the boundary may round the other way


def test_chunks_change_nothing(trained, monkeypatch):
    model, images = trained
    expected = deepfool(model, images)
    monkeypatch.setattr(module, "_CHUNK", 7)
    torch.testing.assert_close(deepfool(model, images).perturbation, expected.perturbation, rtol=0, atol=1e-4)


def test_only_likely_classes_are_candidates():
    model, inputs = affine(6), points(60)
    ranked = model(inputs).argsort(dim=1, descending=True)
    aimed = deepfool(model, inputs, num_classes=2)
    free = deepfool(model, inputs, num_classes=6)
    assert (aimed.perturbation.norm(dim=1) >= free.perturbation.norm(dim=1) - 1e-9).all()
    assert (free.new_label != ranked[:, 1]).any()
    direction = model.weight[ranked[:, 1]] - model.weight[ranked[:, 0]]
    similar = F.cosine_similarity(aimed.perturbation, direction)
    torch.testing.assert_close(similar, torch.ones(60, dtype=torch.float64))


def test_failure_is_reported():
    """A network that always says the same cannot be fooled; neither can one whose gradients are zero."""

    class Stubborn(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return 0 * inputs[:, :3] + torch.tensor([0.0, 2.0, 1.0])

    inputs = torch.rand(4, 5)
    found = deepfool(Stubborn(), inputs, max_iter=3)
    assert found.new_label.tolist() == found.label.tolist() == [1] * 4
    assert found.iterations.tolist() == [3] * 4
    assert torch.equal(found.adversarial, inputs)


def test_no_images(trained):
    assert deepfool(trained[0], torch.empty(0, 1, 12, 12)).perturbation.shape == (0, 1, 12, 12)


def test_network_is_left_as_it_was(trained):
    model, images = trained
    model.train()
    model.conv1.weight.requires_grad_(False)
    before = [(p.requires_grad, p.stride(), p.data_ptr()) for p in model.parameters()]
    deepfool(model, images[:3])
    assert model.training
    assert [(p.requires_grad, p.stride(), p.data_ptr()) for p in model.parameters()] == before
    assert not images.requires_grad
    model.conv1.weight.requires_grad_(True)
    model.eval()


def test_robustness_is_the_mean_relative_norm(trained):
    model, images = trained
    for norm in (2, math.inf):
        push = deepfool(model, images, norm=norm).perturbation
        ratios = [r.flatten().norm(p=norm) / x.flatten().norm(p=norm) for r, x in zip(push, images, strict=True)]
        assert robustness(model, images, norm=norm) == pytest.approx(float(np.mean(ratios)), rel=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [({"norm": 1}, "norm must be"), ({"num_classes": 1}, "two classes")])
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        deepfool(affine(3), points(2), **arguments)


# ---- the controls of the claims


def test_controls_find_the_boundary_of_an_affine_classifier():
    model, inputs = affine(2), points(30)
    difference = model.weight[0] - model.weight[1]
    gap = (model(inputs)[:, 0] - model(inputs)[:, 1]).abs()
    near = gap / difference.abs().sum() < 1  # where the grid of sign steps reaches
    inputs, gap = inputs[near], gap[near]
    assert len(inputs) > 5
    fgsm = module._smallest_fgsm(model, inputs)
    torch.testing.assert_close(fgsm.abs().amax(dim=1), gap / difference.abs().sum(), rtol=0, atol=2e-4)
    radius = module._smallest_pgd(model, inputs, high=fgsm.norm(dim=1))
    torch.testing.assert_close(radius, gap / difference.norm(), rtol=0.02, atol=0.02)
    assert (radius >= gap / difference.norm()).all()
