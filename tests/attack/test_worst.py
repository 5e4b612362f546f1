"""The worst case over attacks, the order of what is proved, attacked and clean, and signs of masking."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from assay.attack import certified, pgd, robust_accuracy, signs_of_masking
from assay.attack.worst import classified
from assay.nn import mlp
from assay.papers.architectures.resnet import cifar_resnet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_worst_case_is_one_of_the_attacks_for_each_input(trained, norm):
    model, images, labels = trained
    eps = 0.035 if norm == math.inf else 0.3
    found = robust_accuracy(model, images, labels, eps=eps, norm=norm, queries=50, clip=(0, 1), generator=seeded())
    assert set(found.withstood) == {"PGD, cross-entropy", "PGD, margin", "Square"}
    assert found.worst <= min(found.under(attack) for attack in found.withstood) <= found.clean
    assert 0 < found.worst < found.clean
    assert torch.equal(found.standing, torch.stack([found.right, *found.withstood.values()]).all(dim=0))
    assert torch.equal(classified(model, found.adversarial, labels), found.standing)
    fooled = found.right & ~found.standing
    assert torch.equal(found.adversarial[~fooled], images[~fooled])
    assert ((found.adversarial - images).flatten(1).norm(p=norm, dim=1) <= eps + 1e-5).all()


def networks(trained: tuple[nn.Module, Tensor, Tensor]) -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "trained LeNet": trained[0],
            "fresh perceptron": mlp(144, 8, hidden=(20, 20)),
            "fresh linear": nn.Sequential(nn.Flatten(), nn.Linear(144, 8)),
            "fresh residual network": cifar_resnet(8, num_classes=8, in_channels=1),
        }


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.003, 0.03])
@pytest.mark.parametrize("name", ["trained LeNet", "fresh perceptron", "fresh linear", "fresh residual network"])
def test_proved_below_attacked_below_clean(trained, name, eps):
    images = trained[1][:30]
    model = networks(trained)[name].eval()
    # What a fresh network says counts as right, so that there is something to attack.
    labels = model(images).argmax(dim=1) if "fresh" in name else trained[2][:30]
    proved = certified(model, images, labels, eps=eps, clip=(0, 1))
    found = robust_accuracy(model, images, labels, eps=eps, queries=20, steps=10, clip=(0, 1), generator=seeded())
    assert not (proved & ~found.standing).any()  # nothing that is proved is fooled
    assert proved.double().mean() <= found.worst <= found.clean
    if eps <= 1e-4 and "residual" not in name:  # whose depth multiplies what rounding may be off
        assert proved.any()


def test_linear_network_is_certified_exactly_where_no_attack_succeeds():
    """On a linear network interval bounds are exact, and so is gradient ascent with two classes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Linear(10, 2).double()
    inputs = torch.randn(200, 10, dtype=torch.float64, generator=seeded())
    labels = model(inputs).argmax(dim=1)
    proved = certified(model, inputs, labels, eps=0.3)
    stood = classified(model, pgd(model, inputs, labels, eps=0.3, generator=seeded()), labels)
    assert torch.equal(proved, stood)
    assert 20 < proved.sum() < 180


class Before(nn.Module):
    """A network whose inputs are changed first."""

    def __init__(self, change, model: nn.Module) -> None:
        super().__init__()
        self.change, self.model = change, model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(self.change(inputs))


def test_plain_network_shows_no_sign_of_masking(trained):
    model, images, labels = trained
    for eps in (0.03, 0.06):
        assert signs_of_masking(model, images, labels, eps=eps, queries=30, clip=(0, 1), generator=seeded()).signs == ()
    found = signs_of_masking(model, images, labels, eps=0.3, norm=2, queries=60, clip=(0, 1), generator=seeded())
    assert found.signs == ()
    assert found.numbers["after gradient ascent"] <= found.numbers["after Square"] <= found.numbers["accuracy"]


def test_rounded_inputs_are_found(trained):
    model, images, labels = trained
    found = signs_of_masking(
        Before(lambda inputs: (inputs * 16).round() / 16, model),
        images,
        labels,
        eps=0.1,
        queries=60,
        clip=(0, 1),
        generator=seeded(),
    )
    text = "; ".join(found.signs)
    assert "Square, which needs no gradient, fools" in text
    assert "stay right in a ball that reaches every input" in text
    assert "the gradient is zero at 100% of the examples: something in the network is rounded or saturated" in text


def test_saturated_inputs_are_found(trained):
    model, images, labels = trained
    saturated = Before(lambda inputs: torch.sigmoid(1e4 * (inputs - 0.5)), model)
    found = signs_of_masking(saturated, images, labels, eps=0.2, queries=60, clip=(0, 1), generator=seeded())
    assert any("Square" in sign for sign in found.signs)


def test_too_sure_a_network_is_told_to_be_attacked_by_its_margin(trained):
    model, images, labels = trained
    sure = nn.Sequential(model, Before(lambda logits: 1e4 * logits, nn.Identity()))
    found = signs_of_masking(sure, images, labels, eps=0.03, queries=60, clip=(0, 1), generator=seeded())
    assert any("gradient of cross-entropy is zero" in sign for sign in found.signs)
    assert not any("something in the network is rounded" in sign for sign in found.signs)


def test_nothing_right_nothing_masked(trained):
    model, images, _ = trained
    wrong = (model(images).argmax(dim=1) + 1) % 8
    assert signs_of_masking(model, images, wrong, eps=0.1).signs == ()
    assert robust_accuracy(model, images, wrong, eps=0.1, queries=5).worst == 0
