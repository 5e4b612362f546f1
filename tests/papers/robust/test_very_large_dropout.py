"""Large dropout against plain heads and expectations over masks, where it may stand, pre-trained starts, and the claims."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from assay.data import Dataset, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.collapse import last_layer
from assay.papers.labels.elr import elr
from assay.papers.robust.very_large_dropout import (
    LargeDropoutHead,
    _Dropping,
    as_good_as_an_ensemble,
    better_elsewhere,
    domains,
    dropping,
    features_are_redundant,
    not_from_random_weights,
    pretrained,
    very_large_dropout,
)
from assay.recipe import Recipe
from assay.train.loop import fit


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def test_without_training_it_is_a_plain_head(inputs: Tensor) -> None:
    body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    model = LargeDropoutHead(body, 32, 3).eval()
    assert torch.equal(model(inputs), model.head(body(inputs)))


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_masked_logits_are_right_on_average_and_as_spread_as_the_formula_says(inputs: Tensor, rate: float) -> None:
    """Var = p / (1 - p) * sum_j (w_j phi_j)^2, for independent masks of every feature and example."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
    model = LargeDropoutHead(body, 32, 3, rate)
    with torch.no_grad():
        drawn = torch.stack([model(inputs) for _ in range(20_000)])  # (T, B, C)
        expected = model.eval()(inputs)
        spread = rate / (1 - rate) * body(inputs).square() @ model.head.weight.square().T
    assert torch.allclose(drawn.var(dim=0), spread, rtol=0.1)
    error = (drawn.mean(dim=0) - expected) / (spread / len(drawn)).sqrt()
    assert error.abs().max() < 4.5
    together = torch.corrcoef(drawn[:, :2, 0].T)[0, 1]  # examples have masks of their own
    assert together.abs() < 0.05


def test_gradients_reach_the_backbone_through_kept_features_alone(inputs: Tensor) -> None:
    torch.manual_seed(0)
    body = nn.Linear(8, 200)
    model = LargeDropoutHead(body, 200, 3)
    model(inputs[:1]).sum().backward()
    assert body.bias.grad is not None
    assert 0 < (body.bias.grad != 0).sum() < 60  # about 20 of 200


def test_a_rate_of_zero_trains_as_without(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2), epochs=1)
    weights, same = (fit(recipe, seed=0).model.state_dict() for recipe in (plain, very_large_dropout(plain, 0.0)))
    assert list(weights) == list(same)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_only_the_last_linear_layer_drops() -> None:
    model = dropping(mlp(8, 2))
    assert [type(module) for module in model.modules() if isinstance(module, nn.Linear)][-1] is _Dropping
    assert sum(isinstance(module, _Dropping) for module in model.modules()) == 1
    single = dropping(nn.Linear(4, 2, bias=False))
    assert list(single.state_dict()) == ["weight"]
    assert single.eval()(torch.ones(1, 4)).shape == (1, 2)
    with pytest.raises(AssayError, match="no linear layer"):
        dropping(nn.Conv2d(1, 1, 3))
    for rate in (-0.1, 1.0):
        with pytest.raises(AssayError, match="rate of a dropout"):
            dropping(mlp(8, 2), rate)


def test_others_still_find_the_last_layer_and_what_goes_into_it(inputs: Tensor) -> None:
    """Losses and probes look for the last linear layer; without this they would silently take the one before."""
    torch.manual_seed(0)
    plain = mlp(8, 2, (16,))
    before, state = last_layer(plain, inputs), torch.get_rng_state()
    model = dropping(plain)
    assert torch.equal(torch.get_rng_state(), state)
    seen = last_layer(model, inputs)
    assert seen.name == before.name
    assert torch.equal(seen.features, before.features)
    assert torch.equal(seen.weight, before.weight)
    again = dropping(model, 0.5)
    assert [module.rate for module in again.modules() if isinstance(module, _Dropping)] == [0.5]


def test_it_works_beside_other_treatments(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (256,)), epochs=2)
    for both in (elr(very_large_dropout(plain)), very_large_dropout(elr(plain))):
        assert fit(both, seed=0).accuracy() > 0.7
        assert both.loss != plain.loss
        assert any(isinstance(module, _Dropping) for module in both.model().modules())


def test_a_pretrained_start_keeps_all_but_the_new_layers() -> None:
    torch.manual_seed(0)
    old = mlp(8, 5, (16,))
    last = list(old.state_dict())[-2].rpartition(".")[0]
    new = pretrained(partial(mlp, 8, 5, (16,)), old.state_dict(), (f"{last}.",))
    for name, value in new.state_dict().items():
        assert torch.equal(value, old.state_dict()[name]) != name.startswith(last)


@pytest.fixture
def collections(home: object) -> None:
    for name in ("usps", "cbsd68", "fashion-mnist"):
        try:
            load(name)
        except AssayError as error:
            pytest.skip(str(error))


@pytest.mark.usefixtures("collections")
def test_manners_of_digits_share_no_digit() -> None:
    found = domains(Lab(seed=0, scale="smoke"))
    assert {split.inputs.shape for split in found.values()} == {(60, 1, 16, 16)}  # type: ignore[union-attr]
    assert all(split.inputs.min() >= 0 and split.inputs.max() <= 1 for split in found.values())  # type: ignore[union-attr]
    ink, negative = found["ink"].inputs, found["negative"].inputs
    assert isinstance(ink, Tensor)
    assert isinstance(negative, Tensor)
    assert (ink[:, None] - (1 - negative)[None]).abs().amax(dim=(2, 3, 4)).min() > 0.1


@pytest.mark.usefixtures("collections")
def test_claims_run() -> None:
    lab = Lab(seed=0, scale="smoke")
    for claim in (better_elsewhere, as_good_as_an_ensemble, not_from_random_weights, features_are_redundant):
        arms = claim(lab)
        assert {expected.arm for expected in claim.expect} <= set(arms)
