"""The history of architectures: every network fits its place, and every training is one."""

from __future__ import annotations

import pytest
import torch

from assay.comparisons import architectures
from assay.comparisons.architectures import NETWORKS, OWN, best_rate, measure, signs, traits
from assay.lab import Lab


@pytest.mark.parametrize("arm", NETWORKS)
def test_networks_are_small_and_answer(arm: str) -> None:
    known = traits(arm)
    assert known["parameters"] < 100_000
    assert known["multiply-adds"] < 6_000_000
    with torch.no_grad():
        assert NETWORKS[arm].make().eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_what_is_compared_in_pairs_is_equal_but_for_the_idea() -> None:
    plain, residual, wide = (traits(arm) for arm in ("plain net, 20 layers", "ResNet-20", "wide ResNet-10"))
    assert plain["parameters"] == residual["parameters"]
    assert plain["multiply-adds"] == residual["multiply-adds"]
    assert wide["multiply-adds"] == pytest.approx(residual["multiply-adds"], rel=0.15)
    with torch.device("meta"):
        adder, twin = NETWORKS["AdderNet-8"].make(), NETWORKS["ResNet-8"].make()
    convolutions = [[tuple(p.shape) for p in net.parameters() if p.dim() == 4] for net in (adder, twin)]
    assert convolutions[0] == convolutions[1]


@pytest.mark.parametrize("arm", NETWORKS)
def test_papers_trainings_run(arm: str) -> None:
    lab = Lab(seed=0, scale="smoke")
    assert 0 <= float(measure(lab, OWN, arm)) <= 1


def test_the_rate_is_the_best_on_pictures_set_aside() -> None:
    lab = Lab(seed=0, scale="smoke")
    chosen = best_rate(lab, "LeCun's net")
    valid = {}
    for rate in architectures.RATES:
        recipe = architectures._plain(lab, "LeCun's net", rate, aside=True)
        valid[rate] = float(lab.train(recipe, architectures.CHOOSING).accuracy("valid"))
    assert valid[chosen] == max(valid.values())
    assert len(recipe.data.train) + len(recipe.data.valid) == 200


def test_squared_error_to_signs_by_hand() -> None:
    outputs = torch.tensor([[0.5, -1.0], [0.0, 1.0]])
    assert signs(outputs, torch.tensor([0, 1])).item() == pytest.approx((0.25 + 0 + 1 + 0) / 4)
