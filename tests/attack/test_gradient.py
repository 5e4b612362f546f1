"""Gradient attacks: closed forms on affine classifiers, and at least as strong as foolbox and torchattacks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack import fgsm, margins, pgd
from assay.attack.balls import into_ball, somewhere, uphill
from assay.attack.worst import classified

NORMS = [2, math.inf]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def affine(classes: int = 2, features: int = 12) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        return nn.Linear(features, classes).double()


def size(away: Tensor, norm: float) -> Tensor:
    return away.flatten(1).norm(p=norm, dim=1)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", NORMS)
def test_affine_classifier_falls_exactly_where_its_boundary_lies_within_eps(norm, loss):
    """|f_0 - f_1| / ||w_0 - w_1||_q is the distance to the boundary."""
    model, inputs = affine(), torch.randn(200, 12, dtype=torch.float64, generator=seeded())
    logits = model(inputs)
    labels = logits.argmax(dim=1)
    distance = (logits[:, 0] - logits[:, 1]).abs() / (model.weight[0] - model.weight[1]).norm(p=2 if norm == 2 else 1)
    eps = distance.median().item()
    moved = pgd(model, inputs, labels, eps=eps, norm=norm, steps=30, step_size=eps, loss=loss, generator=seeded())
    fooled = model(moved).argmax(dim=1) != labels
    sure = (distance - eps).abs() > 1e-7
    assert torch.equal(fooled[sure], (distance < eps)[sure])
    assert (size(moved - inputs, norm) <= eps * (1 + 1e-9)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_highest_loss_in_the_ball_of_an_affine_classifier(norm):
    """Kept to the end, every input reaches the corner (or the pole) of its ball."""
    model, inputs = affine(), torch.randn(20, 12, dtype=torch.float64, generator=seeded())
    labels = torch.randint(2, (20,), generator=seeded())
    moved = pgd(model, inputs, labels, eps=0.3, norm=norm, steps=30, step_size=0.3, until_fooled=False, generator=seeded())
    slope = model.weight[1 - labels] - model.weight[labels]
    reached = margins(model(moved), labels) - margins(model(inputs), labels)
    expected = 0.3 * slope.norm(p=2 if norm == 2 else 1, dim=1)
    torch.testing.assert_close(reached, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", NORMS)
def test_points_stay_in_ball_and_range(trained, norm, loss):
    model, images, labels = trained
    eps = 0.1 if norm == math.inf else 1.0
    for moved in (
        pgd(model, images, labels, eps=eps, norm=norm, loss=loss, clip=(0, 1), restarts=2, generator=seeded()),
        fgsm(model, images, labels, eps=eps, norm=norm, loss=loss, clip=(0, 1)),
    ):
        assert (size(moved - images, norm) <= eps + 1e-5).all()
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert not moved.requires_grad


def test_range_may_differ_by_channel(trained):
    model, images, labels = trained
    low, high = images.amin(dim=0, keepdim=True), images.amax(dim=0, keepdim=True)
    moved = pgd(model, images, labels, eps=0.2, clip=(low, high), generator=seeded())
    assert ((moved >= low) & (moved <= high)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_as_strong_as_foolbox(trained, norm):
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = trained
    kind = foolbox.attacks.L2ProjectedGradientDescentAttack if norm == 2 else foolbox.attacks.LinfPGD
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    for eps in (0.2, 0.4) if norm == 2 else (0.02, 0.04):  # with which many stand and many fall, however the training rounded
        attack = kind(steps=20, abs_stepsize=2.5 * eps / 20, random_start=False)
        peer = attack(wrapped, images, labels, epsilons=eps)[1]
        ours = pgd(model, images, labels, eps=eps, norm=norm, random_start=False, clip=(0, 1))
        accuracy = [classified(model, moved, labels).double().mean() for moved in (ours, peer)]
        assert 0 < accuracy[1] < 1
        assert accuracy[0] <= accuracy[1]
        # The same steps: those that neither fools end at the same point, unless an earlier one had a higher loss.
        whole = pgd(model, images, labels, eps=eps, norm=norm, random_start=False, clip=(0, 1), until_fooled=False)
        losses = [F.cross_entropy(model(moved), labels, reduction="none") for moved in (whole, peer)]
        assert (losses[0] >= losses[1] - 1e-4).all()
        assert (losses[0] - losses[1]).median() < 1e-3


def test_as_strong_as_torchattacks(trained):
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = trained
    for eps in (0.02, 0.04):
        peer = torchattacks.PGD(model, eps=eps, alpha=2.5 * eps / 20, steps=20, random_start=False)(images, labels)
        ours = pgd(model, images, labels, eps=eps, random_start=False, clip=(0, 1))
        found = [classified(model, moved, labels) for moved in (ours, peer)]
        assert 0 < found[1].double().mean() < 1
        assert found[0].double().mean() <= found[1].double().mean()
    eps = 0.05
    peer = torchattacks.FGSM(model, eps=eps)(images, labels)
    pixels = images.clone().requires_grad_()
    slope = torch.autograd.grad(F.cross_entropy(model(pixels), labels, reduction="sum"), pixels)[0].abs()
    sure = slope > 1e-3 * slope.median()  # of all others the sign is a matter of rounding
    assert sure.double().mean() > 0.95
    torch.testing.assert_close(fgsm(model, images, labels, eps=eps, clip=(0, 1))[sure], peer[sure])


def test_fgsm_in_l2_agrees_with_foolbox(trained):
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = trained
    attack = foolbox.attacks.L2FastGradientAttack(random_start=False)
    peer = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=0.5)[1]
    torch.testing.assert_close(fgsm(model, images, labels, eps=0.5, norm=2, clip=(0, 1)), peer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_targeted_reaches_the_wanted_class(trained, loss):
    model, images, labels = trained
    wanted = (labels + 3) % 8
    moved = pgd(model, images, wanted, eps=0.3, loss=loss, steps=40, clip=(0, 1), targeted=True, generator=seeded())
    assert classified(model, moved, wanted).double().mean() > 0.9
    near = pgd(model, images, wanted, eps=0.01, loss=loss, clip=(0, 1), targeted=True, generator=seeded())
    assert classified(model, near, wanted).double().mean() < 0.1


def test_finished_inputs_leave_the_batch(trained):
    model, images, labels = trained
    sizes = []
    with torch.no_grad():
        hook = model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
        pgd(model, images, labels, eps=0.05, clip=(0, 1), random_start=False)
    hook.remove()
    sizes = sizes[1:]  # the first call tries the layout
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.7 * sizes[0]
    fresh = pgd(model, images, (labels + 1) % 8, eps=0.05, clip=(0, 1))
    wrong = model(images).argmax(dim=1) != (labels + 1) % 8
    assert torch.equal(fresh[wrong], images[wrong])  # they are fooled where they stand


def test_restarts_never_hurt_and_keep_the_best(trained):
    model, images, labels = trained
    one, five = (pgd(model, images, labels, eps=0.035, steps=3, restarts=count, generator=seeded()) for count in (1, 5))
    fooled = [~classified(model, moved, labels) for moved in (one, five)]
    assert (fooled[1] | ~fooled[0]).all()
    assert fooled[1].sum() > fooled[0].sum()
    same = ~fooled[1]
    losses = [F.cross_entropy(model(moved), labels, reduction="none")[same] for moved in (one, five)]
    assert (losses[1] >= losses[0] - 1e-5).all()


def test_margin_sees_what_cross_entropy_does_not(trained):
    """Of a network that is too sure, cross-entropy is flat in float32; its margin is not."""
    model, images, labels = trained

    class Sure(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return 1e4 * model(inputs)

    found = {loss: pgd(Sure(), images, labels, eps=0.06, loss=loss, clip=(0, 1), random_start=False) for loss in ("ce", "margin")}
    right = {loss: classified(model, moved, labels).double().mean() for loss, moved in found.items()}
    assert right["margin"] < right["ce"] - 0.2


def test_network_and_inputs_are_left_as_they_were(trained):
    model, images, labels = trained
    model.train()
    before = [(p.requires_grad, p.stride(), p.data_ptr(), p.grad) for p in model.parameters()]
    kept = images.clone()
    pgd(model, images, labels, eps=0.05)
    fgsm(model, images, labels, eps=0.05)
    assert model.training
    assert [(p.requires_grad, p.stride(), p.data_ptr(), p.grad) for p in model.parameters()] == before
    assert torch.equal(images, kept)
    model.eval()


def test_same_generator_same_points(trained):
    model, images, labels = trained
    one, two = (pgd(model, images, labels, eps=0.03, generator=seeded(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_no_inputs(trained):
    model, images, labels = trained
    assert pgd(model, images[:0], labels[:0], eps=0.1).shape == (0, 1, 12, 12)
    assert fgsm(model, images[:0], labels[:0], eps=0.1).shape == (0, 1, 12, 12)


def test_network_without_gradients_is_no_error(trained):
    model, images, labels = trained

    class Rounded(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return model((inputs > 0.5).to(inputs.dtype))

    moved = pgd(Rounded(), images, labels, eps=0.1, clip=(0, 1), random_start=False)
    assert torch.equal(moved, images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": 1}, "norm must be"),
        ({"eps": -0.1}, "eps must be"),
        ({"eps": math.inf}, "eps must be"),
        ({"steps": 0}, "steps and restarts"),
        ({"loss": "hinge"}, "loss must be"),
        ({"clip": (0.4, 0.6)}, "outside clip"),
    ],
)
def test_what_cannot_be_meant_is_refused(trained, changes, message):
    model, images, labels = trained
    with pytest.raises(ValueError, match=message):
        pgd(model, images, labels, **{"eps": 0.1, **changes})


@pytest.mark.parametrize("norm", NORMS)
def test_balls(norm):
    inputs = torch.rand(500, 3, 4, generator=seeded())
    drawn = somewhere(inputs, 0.5, norm, seeded())
    lengths = size(drawn - inputs, norm)
    assert (lengths <= 0.5 + 1e-6).all()
    # The radius of a point drawn evenly from a ball in D dimensions, to the power of D, is even on [0, 1].
    assert ((lengths / 0.5) ** 12).mean() == pytest.approx(0.5, abs=0.05)
    far = inputs + 3 * torch.randn(inputs.shape, generator=seeded(1))
    inside = into_ball(far, inputs, 0.5, norm, (0, 1))
    assert (size(inside - inputs, norm) <= 0.5 + 1e-6).all()
    assert ((inside >= 0) & (inside <= 1)).all()
    tiny = torch.full((2, 5), 1e-30)
    tiny[1] = 0
    step = uphill(tiny, norm)
    assert size(step, norm).tolist() == pytest.approx([1.0, 0.0])
