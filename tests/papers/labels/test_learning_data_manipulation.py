"""Weights against the authors' way to get them (a copy and a step for every example), closed forms, and the claims."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.data.aside import set_aside
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.text import BiLSTM
from assay.own.baselines import baseline
from assay.papers.architectures.resnet import cifar_resnet
from assay.papers.labels.elr import elr
from assay.papers.labels.inducing_neural_collapse import inducing_neural_collapse
from assay.papers.labels.learning_data_manipulation import (
    LearnedWeighting,
    directional_derivatives,
    helps_with_unequal_classes,
    helps_with_unequal_photos,
    learned_weighting,
    lookahead_gradient,
    normalised,
    weighed_by,
    wrong_labels_lose_weight,
)
from assay.papers.text.text_cnn import TextCNN
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.train.mixing import Mixing, RepeatedAugmentation
from assay.train.optim import lamb

Made = Callable[..., torch.optim.Optimizer]


def scene(make: Made, steps: int = 3, net: Callable[[], nn.Module] | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small network in double precision whose optimizer has taken a few steps."""
    torch.manual_seed(0)
    model = (net() if net else nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))).double()
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 4).double()), torch.randint(3, (8,))).backward()
        optimizer.step()
    return model, optimizer


def batches() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs, dev = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (5, 9))
    labels, answers = (torch.randint(3, (n,), generator=generator) for n in (5, 9))
    return inputs, labels, dev, answers


def by_copies(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """The authors' way: for every example a copy of network and optimizer makes a step; then autograd through the sum of steps.

    Returns the gradient and the dev loss as a function of the weights.
    """
    inputs, labels, dev, answers = batches()
    steps: list[dict[str, torch.Tensor]] = []
    for row in range(len(inputs)):
        other = copy.deepcopy(model)
        alone = type(optimizer)(
            other.parameters(), **{k: v for k, v in optimizer.defaults.items() if k != "decoupled_weight_decay"}
        )
        alone.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        alone.zero_grad()
        F.cross_entropy(other(inputs[row : row + 1]), labels[row : row + 1]).backward()
        alone.step()
        now = dict(model.named_parameters())
        steps.append({name: (value - now[name]).detach() for name, value in other.named_parameters()})

    def dev_loss(w: torch.Tensor) -> torch.Tensor:
        moved = {
            name: value.detach() + sum(w[row] * step[name] for row, step in enumerate(steps))
            for name, value in model.named_parameters()
        }
        return F.cross_entropy(functional_call(model, moved, (dev,)), answers)

    leaf = weights.clone().requires_grad_()
    return torch.autograd.grad(dev_loss(leaf), leaf)[0], dev_loss


SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
    "dampened": {"momentum": 0.8, "dampening": 0.3},
}


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("settings", SGD)
def test_gradient_equals_that_of_a_copy_and_a_step_for_every_example(settings: str, steps: int) -> None:
    model, optimizer = scene(partial(torch.optim.SGD, lr=0.3, **SGD[settings]), steps)
    weights = torch.tensor([1.0, 0.2, 0.0, 2.0, 0.5], dtype=torch.float64)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    found = lookahead_gradient(model, optimizer, *batches()[:2], weights, *batches()[2:])
    wanted, dev_loss = by_copies(model, optimizer, weights)
    torch.testing.assert_close(found, wanted)
    for row in range(5):  # and finite differences of the dev loss
        way = 1e-6 * torch.eye(5, dtype=torch.float64)[row]
        assert found is not None
        assert found[row].item() == pytest.approx(((dev_loss(weights + way) - dev_loss(weights - way)) / 2e-6).item(), rel=1e-5)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before)


ADAMS = {
    "adam": partial(torch.optim.Adam, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, weight_decay=0.1),
    "amsgrad": partial(torch.optim.AdamW, amsgrad=True),
}


@pytest.mark.parametrize("kind", ADAMS)
def test_adam_agrees_where_one_example_cannot_change_its_second_moment(kind: str) -> None:
    model, optimizer = scene(partial(ADAMS[kind], lr=0.3, betas=(0.9, 0.9999999)))
    for state in optimizer.state.values():
        state["step"].fill_(1e9)
        state["exp_avg_sq"].uniform_(1e-4, 1.0)
        if "max_exp_avg_sq" in state:
            state["max_exp_avg_sq"].copy_(2 * state["exp_avg_sq"])
    weights = torch.tensor([1.0, 0.2, 0.0, 2.0, 0.5], dtype=torch.float64)
    found = lookahead_gradient(model, optimizer, *batches()[:2], weights, *batches()[2:])
    torch.testing.assert_close(found, by_copies(model, optimizer, weights)[0], rtol=1e-3, atol=1e-6)


def test_adam_is_near_the_authors_formula_after_some_steps_and_knows_nothing_before_the_first() -> None:
    model, optimizer = scene(partial(torch.optim.Adam, lr=1e-3), steps=200)
    weights = torch.ones(5, dtype=torch.float64)
    found = lookahead_gradient(model, optimizer, *batches()[:2], weights, *batches()[2:])
    assert found is not None
    wanted = by_copies(model, optimizer, weights)[0]
    assert torch.corrcoef(torch.stack([found, wanted]))[0, 1] > 0.99
    model, optimizer = scene(partial(torch.optim.Adam, lr=1e-3), steps=0)
    assert lookahead_gradient(model, optimizer, *batches()[:2], weights, *batches()[2:]) is None
    shares = LearnedWeighting(5).double()(model, optimizer, *batches()[:2], torch.arange(5), *batches()[2:])
    assert shares.tolist() == [0.2] * 5


def test_other_optimizers_are_refused() -> None:
    weights = torch.ones(5, dtype=torch.float64)
    for make in (torch.optim.RMSprop, partial(torch.optim.SGD, lr=0.1, maximize=True)):
        model, optimizer = scene(make, steps=0)
        with pytest.raises(ValueError, match="weights"):
            lookahead_gradient(model, optimizer, *batches()[:2], weights, *batches()[2:])
    model, _ = scene(torch.optim.SGD, steps=0)
    with pytest.raises(ValueError, match="hold"):
        lookahead_gradient(model, torch.optim.SGD([torch.zeros(1)]), *batches()[:2], weights, *batches()[2:])


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "residual": (partial(cifar_resnet, 8, width=4, num_classes=3), lambda: torch.randn(6, 3, 8, 8)),
    "text_cnn": (partial(TextCNN, 20, 3, dim=5, maps=4), lambda: torch.randint(20, (6, 9))),
    "lstm": (partial(BiLSTM, 20, 3, dim=5, hidden=4), lambda: torch.randint(1, 20, (6, 9))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("net", NETS)
def test_directional_derivatives_equal_products_with_each_examples_gradient(net: str, dtype: torch.dtype) -> None:
    """Also where an operation has no forward derivative: in text_cnn, and in the LSTM in single precision."""
    torch.manual_seed(0)
    make, draw = NETS[net]
    model, inputs, labels = make().eval().to(dtype), draw(), torch.randint(3, (6,))
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    direction = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    wanted = []
    for row in range(6):
        loss = F.cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        wanted.append(sum((g * w).sum() for g, w in zip(gradients, direction.values(), strict=True)))
    close = {"rtol": 1e-3, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 1e-7, "atol": 1e-7}
    found = directional_derivatives(model, inputs, labels, direction)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.stack(wanted), **close)


def test_batch_statistics_and_modes_stay_as_they_are() -> None:
    model = cifar_resnet(8, width=4, num_classes=3).train()
    model.stem.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    inputs, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    lookahead_gradient(model, optimizer, inputs, labels, torch.ones(4), inputs, labels)
    torch.testing.assert_close(model.state_dict(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_follow_the_published_update() -> None:
    model, optimizer = scene(partial(torch.optim.SGD, lr=0.3, momentum=0.9))
    weighting = LearnedWeighting(8, w_init=0.7, w_decay=2.0).double()
    index = torch.tensor([6, 1, 0, 3, 4])
    gradient = by_copies(model, optimizer, torch.full((5,), 0.7, dtype=torch.float64))[0]
    shares = weighting(model, optimizer, *batches()[:2], index, *batches()[2:])
    wanted = (0.35 - gradient).clamp_min(1e-5)
    torch.testing.assert_close(weighting.weights[index], wanted)
    torch.testing.assert_close(shares, wanted / wanted.sum())
    assert weighting.weights[[2, 5, 7]].tolist() == pytest.approx([0.7] * 3)


def test_without_memory_it_is_learning_to_reweight() -> None:
    """Ren et al. 2018: relu of minus the gradient at w = 0, over its sum; with plain SGD that is <grad dev, grad of example>."""
    model, optimizer = scene(partial(torch.optim.SGD, lr=0.3), steps=0)
    inputs, labels, dev, answers = batches()
    steer = torch.autograd.grad(F.cross_entropy(model(dev), answers), list(model.parameters()))
    along = []
    for row in range(5):
        own = torch.autograd.grad(F.cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1]), list(model.parameters()))
        along.append(sum((a * b).sum() for a, b in zip(steer, own, strict=True)))
    wanted = torch.stack(along).relu()
    assert 0 < (wanted > 0).sum() < 5
    shares = LearnedWeighting(5, remember=False).double()(model, optimizer, inputs, labels, torch.arange(5), dev, answers)
    torch.testing.assert_close(shares, wanted / wanted.sum())


def test_without_steps_and_decay_weights_stay_and_the_same_example_weighs_the_same() -> None:
    inputs, labels, dev, answers = batches()
    model, optimizer = scene(partial(torch.optim.SGD, lr=0.0), steps=0)
    weighting = LearnedWeighting(5, w_decay=1.0).double()
    weighting(model, optimizer, inputs, labels, torch.arange(5), dev, answers)
    assert weighting.weights.tolist() == [1.0] * 5
    model, optimizer = scene(partial(torch.optim.SGD, lr=0.3), steps=0)
    twice = torch.tensor([0, 1, 0, 2, 1])
    shares = weighting(model, optimizer, inputs[twice], labels[twice], torch.arange(5), dev, answers)
    torch.testing.assert_close(shares[[0, 1]], shares[[2, 4]])
    assert shares[0] != shares[1]


def test_a_look_too_far_ahead_changes_nothing() -> None:
    inputs, labels, dev, answers = batches()
    model, optimizer = scene(partial(torch.optim.SGD, lr=1e200), steps=0)
    weighting = LearnedWeighting(5, w_decay=1.0).double()
    shares = weighting(model, optimizer, inputs, labels, torch.arange(5), dev * 1e200, answers)
    assert weighting.weights.tolist() == [1.0] * 5
    assert shares.tolist() == [0.2] * 5


def test_norms() -> None:
    weights = torch.tensor([1.0, 3.0, -2.0])
    assert normalised(weights).tolist() == [0.25, 0.75, 0.0]
    assert normalised(-weights.abs()).tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(normalised(weights, "softmax", 10.0), (weights / 10).softmax(0))
    for wrong in ({"w_decay": 0.5}, {"norm": "max"}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="must"):
            LearnedWeighting(3, **wrong)


def test_training_steps_are_made_on_the_weighted_loss(table: Dataset) -> None:
    """One epoch of the loop against the same steps by hand."""
    dev = table.test.take(torch.arange(10))
    net = partial(mlp, 8, 2, (4,))
    plain = Recipe(table, net, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), epochs=2, batch_size=40, shuffle=False)
    trained = fit(weighed_by(plain, dev), 0)
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weighting = LearnedWeighting(400)
    for rows in torch.arange(400).split(40) * 2:
        inputs, labels = table.train.inputs[rows], table.train.labels[rows]
        weights = weighting(model, optimizer, inputs, labels, rows, dev.inputs, dev.labels)
        optimizer.zero_grad()
        (weights * F.cross_entropy(model(inputs), labels, reduction="none")).sum().backward()
        optimizer.step()
    torch.testing.assert_close(trained.memory["example weights"], weighting.weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trained.model.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-5)


def made(inputs: torch.Tensor | tuple[str, ...], classes: int) -> Dataset:
    labels = torch.arange(len(inputs)) % classes
    split = Split(inputs, labels)
    return Dataset("made", "classification", split, split.take(torch.arange(0)), split, tuple("abcdef"[:classes]))


KINDS = {
    "images": made(torch.rand(36, 1, 12, 12), 3),
    "table": made(torch.rand(36, 5), 2),
    "text": made(tuple(f"word{n % 3} is not word{n}" for n in range(36)), 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_treatment_works_on_every_kind_of_data(kind: str) -> None:
    plain = baseline(KINDS[kind]).replace(epochs=2, batch_size=12)
    treated = learned_weighting(plain, per_class=2)
    assert len(treated.data.train) == len(plain.data.train) - 2 * plain.data.num_classes
    first, second = fit(treated, 0), fit(treated, 0)
    assert first.history == second.history
    weights = first.memory["example weights"]
    assert len(weights) == len(treated.data.train)
    assert len(weights.unique()) > 3


@pytest.mark.parametrize("other", [elr, inducing_neural_collapse])
def test_it_goes_together_with_other_losses(table: Dataset, other: Callable[[Recipe], Recipe]) -> None:
    plain = Recipe(table, partial(mlp, 8, 2, (16,)), epochs=2, batch_size=50)
    one, two = fit(other(learned_weighting(plain)), 0), fit(learned_weighting(other(plain)), 0)
    assert one.history == two.history
    for alone in (learned_weighting(plain), other(plain.replace(data=learned_weighting(plain).data))):
        assert one.history["train_loss"] != fit(alone, 0).history["train_loss"]


def test_settings_arrive(table: Dataset) -> None:
    plain = Recipe(table, partial(mlp, 8, 2, (4,)))
    given = {"w_init": 0.25, "w_decay": 3.0, "norm": "softmax", "temperature": 7.0, "remember": False}
    treated = learned_weighting(plain, per_class=3, seed=5, **given)
    (hook,) = treated.hooks
    assert {name: getattr(hook, name) for name in given} == given
    assert torch.equal(hook.inputs, set_aside(table, 3, seed=5)[1].inputs)
    assert torch.equal(hook.labels, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert treated.data.history[-1] == "set_aside(per_class=3, seed=5)"


def test_batches_may_be_changed_before_examples_are_weighed_and_not_after(table: Dataset) -> None:
    plain = Recipe(table, partial(mlp, 8, 2, (4,)), epochs=1, batch_size=50, watch=())
    for other in (Mixing(), RepeatedAugmentation(lambda inputs, generator: inputs, 3)):
        before = learned_weighting(plain.replace(hooks=(other,)))
        assert fit(before, 0).history["train_loss"] != fit(before.replace(hooks=(other,)), 0).history["train_loss"]
        after = learned_weighting(plain)
        with pytest.raises(AssayError, match="put learned_weighting behind it"):
            fit(after.replace(hooks=(*after.hooks, other)), 0)


def test_what_does_not_fit_is_refused(table: Dataset) -> None:
    weighed = learned_weighting(Recipe(table, partial(mlp, 8, 2, (4,)), epochs=1))
    with pytest.raises(AssayError, match="has Lamb"):  # another method brought it afterwards
        fit(weighed.replace(optimizer=lamb), 0)
    plain = Recipe(table, partial(mlp, 8, 2, (4,)))
    with pytest.raises(AssayError, match="RMSprop"):
        learned_weighting(plain.replace(optimizer=torch.optim.RMSprop))
    with pytest.raises(AssayError, match="texts"):
        weighed_by(plain, Split(("a", "b"), torch.tensor([0, 1])))
    split = Split(torch.rand(4, 2), torch.rand(4))
    with pytest.raises(AssayError, match="none"):
        learned_weighting(Recipe(Dataset("n", "regression", split, split, split), partial(mlp, 2, 1)))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert list(helps_with_unequal_classes(lab))[-2:] == ["Ren et al.", "learned weights"]
    found = wrong_labels_lose_weight(lab)
    assert len(found["wrong labels"].y) == 2
    assert found["wrong labels"].number != found["right labels"].number


def test_claim_on_photos_at_smoke_scale(home: object) -> None:
    assert len(helps_with_unequal_photos(Lab(scale="smoke"))) == 3
