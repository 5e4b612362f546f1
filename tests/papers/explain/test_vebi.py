"""Selected filters: the lasso by its conditions and scikit-learn's other solver, the way back without a grid, flowers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import NeuronGuidedBackprop
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.explain.backward import explained
from assay.lab import Lab
from assay.nn import lenet
from assay.papers.explain import vebi as module
from assay.papers.explain.vebi import (
    NearestBack,
    average_patch,
    explain,
    filter_layers,
    flowers,
    grid_share,
    responses,
    select,
    strided_net,
)


@pytest.fixture(scope="module")
def garden() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    images, labels, masks = flowers(120, size=32, seed=1)
    return strided_net(size=32), images, labels, masks


def test_responses_are_lengths_of_rectified_maps_in_each_layer() -> None:
    torch.manual_seed(0)
    net, images = lenet(1, 10, 12), torch.rand(3, 1, 12, 12)
    found = responses(net, images, chunk=2)
    assert list(found) == filter_layers(net)
    first = filter_layers(net)[0]
    maps = dict(net.named_modules())[first](images).relu()
    lengths = maps.square().sum(dim=(2, 3)).sqrt()
    torch.testing.assert_close(found[first], lengths / lengths.norm(dim=1, keepdim=True))
    for values in found.values():
        torch.testing.assert_close(values.norm(dim=1), torch.ones(3))


def test_selection_is_the_lasso_with_a_bound(garden: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    """Within the bound, and no weight could be moved for the better: all used filters have one correlation, no other has more."""
    net, images, labels, _ = garden
    mu = 2.0
    chosen = select(net, images, labels, 6, mu=mu)
    table = torch.cat(list(responses(net, images).values()), dim=1).double()
    table = table - table.mean(dim=0)
    for label in range(6):
        weights = chosen.weights[label].double()
        assert float(weights.abs().sum()) == pytest.approx(mu, rel=1e-4)
        wanted = (labels == label).double()
        residual = wanted - wanted.mean() - table @ weights
        pull = table.T @ residual
        used = weights != 0
        assert 0 < int(used.sum()) < len(weights) / 2
        alpha = float(pull[used].abs().mean())
        torch.testing.assert_close(pull[used], alpha * weights[used].sign(), rtol=1e-3, atol=1e-5)
        assert float(pull[~used].abs().max()) <= alpha * 1.001
        solver = Lasso(alpha=alpha / len(table), fit_intercept=False, tol=1e-10, max_iter=100_000)
        theirs = solver.fit(table.numpy(), (wanted - wanted.mean()).numpy())
        np.testing.assert_allclose(theirs.coef_, weights.numpy(), atol=2e-3)
    ranked = chosen.of(0)
    assert [abs(weight) for *_, weight in ranked] == sorted((abs(weight) for *_, weight in ranked), reverse=True)
    with pytest.raises(AssayError, match="leaves no filter"):
        select(net, images, labels, 6, mu=0)


def test_without_strides_the_way_back_is_guided_backpropagation() -> None:
    """captum's, from a single unit of a hidden layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 2)
    )
    images = torch.randn(2, 3, 8, 8)
    theirs = NeuronGuidedBackprop(net, net[3]).attribute(images.clone(), (2, 3, 4))
    with explained(net, images) as (leaf,):
        with NearestBack():
            out = net[:4](leaf)
        ours = torch.autograd.grad(out[:, 2, 3, 4].sum(), leaf)[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stride", [2, 3])
def test_strided_layers_repeat_signals_in_place(stride: int) -> None:
    """A constant signal comes back constant, where the plain way leaves a grid; the sum stays, and nothing moves aside."""
    layer = nn.Conv2d(1, 1, stride, stride=stride, bias=False)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 1  # sees one pixel of each window: the plain way back is a grid of points
    images = torch.rand(1, 1, 4 * stride, 4 * stride)
    back = {}
    for name, rules in {"nearest": NearestBack(), "plain": module.Rectified(guided=True)}.items():
        with explained(layer, images) as (leaf,):
            with rules:
                out = layer(leaf)
            back[name] = torch.autograd.grad(out.sum(), leaf)[0]
    assert int((back["plain"] > 0).sum()) == 16
    inner = back["nearest"][0, 0, :-stride, :-stride]
    torch.testing.assert_close(inner, torch.full_like(inner, 1 / stride**2))
    assert (
        grid_share(back["nearest"][:, 0, : 2 * stride, : 2 * stride], stride).item()
        < grid_share(back["plain"][:, 0], stride).item()
    )


def test_pooling_goes_back_to_the_whole_window() -> None:
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        images = torch.rand(1, 1, 6, 6)
        with explained(pool, images) as (leaf,):
            with NearestBack():
                out = pool(leaf)
            signal = torch.arange(9.0).view(1, 1, 3, 3)
            found = torch.autograd.grad(out, leaf, signal)[0]
        torch.testing.assert_close(found, F.interpolate(signal, (6, 6), mode="nearest") / 4)


def test_grid_share_of_a_grid_and_of_a_wave() -> None:
    grid = torch.zeros(1, 16, 16)
    grid[:, ::2, ::2] = 1
    wave = torch.cos(2 * torch.pi * torch.arange(16) / 16).expand(1, 16, 16)
    assert grid_share(grid).item() == pytest.approx(1)
    assert grid_share(wave).item() == pytest.approx(0, abs=1e-6)


def test_explanations_use_the_filters_of_the_class(garden: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    net, images, labels, _ = garden
    chosen = select(net, images, labels, 6, mu=2.0)
    found = explain(net, images[:5], chosen, k=3)
    said = net(images[:5]).argmax(dim=1)
    strength = torch.cat(list(responses(net, images[:5]).values()), dim=1)
    for row in range(5):
        own = chosen.weights[said[row]] * strength[row]
        for place in found.chosen[row].tolist():
            assert place == -1 or own[place] > 0
        assert found.chosen[row, 0].item() in (int(own.argmax()), -1)
    assert found.heat.shape == (5, 1, 32, 32)
    assert (found.maps.flatten(2).amax(dim=2)[found.chosen >= 0] > 0.999).all()
    assert (found.maps[found.chosen < 0] == 0).all()
    alone = explain(net, images[2:3], chosen, k=3)
    torch.testing.assert_close(alone.heat, found.heat[2:3], rtol=1e-3, atol=1e-4)


def test_average_patch_finds_what_a_filter_looks_for() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(400, 2))
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])
    with torch.no_grad():
        net[0].weight.copy_(cross - 0.5)
    images = 0.1 * torch.rand(30, 1, 20, 20)
    for image in images[:20]:
        row, column = torch.randint(2, 15, (2,)).tolist()
        image[0, row : row + 3, column : column + 3] = cross
    patch = average_patch(net, images, "0", 0, side=3, top=20)
    torch.testing.assert_close(patch[0], cross)


def test_flowers_tell_their_class_by_one_part() -> None:
    for part in ("petals", "centre", "stem"):
        images, labels, masks = flowers(60, part=part, seed=3)  # type: ignore[arg-type]
        assert images.shape == (60, 3, 48, 48)
        inside = torch.stack([image[:, mask].mean(dim=1) for image, mask in zip(images, masks, strict=True)])
        means = torch.stack([inside[labels == label].mean(dim=0) for label in range(6)])
        assert (torch.cdist(inside, means).argmin(dim=1) == labels).all()
        assert 0.005 < masks.float().mean() < 0.3
    again = flowers(60, part="stem", seed=3)
    torch.testing.assert_close(again[0], images, rtol=0, atol=0)


def test_the_probe(garden: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    from assay.view import View

    net, images, labels, _ = garden
    target = net(images[:4]).argmax(dim=1)
    view = View(net, images[:4], target, None, images[4:], labels[4:], "images", tuple("abcdef"))
    seen = module.selected_filters(view, mu=2.0)
    assert seen.attributions["selected filters"].shape == (4, 1, 32, 32)
    with pytest.raises(AssayError, match="for images"):
        module.selected_filters(View(net, images[:4], target, None, images[4:], None, "table", tuple("abcdef")))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert {"selected", "random", "selected, other classes"} <= set(module.selected_filters_matter(lab))
    assert {"selected filters", "guided backpropagation", "Grad-CAM", "gradient"} <= set(module.hits_true_part(lab))
    assert len(module.nearest_removes_grid(lab)) == 4
