"""Adaptive clipping: timm's as oracle, the bound as an invariant, and the same through an optimizer and through the loop."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from assay.data import Dataset
from assay.nn import lenet, mlp
from assay.recipe import Recipe
from assay.train.clip import AGC, AdaptiveClipping, adaptive_clip_, all_but_last_layer, unit_norms
from assay.train.loop import fit


def net_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv1d(8, 6, 3), nn.Linear(70, 5))
    nn.init.zeros_(net[0].bias)
    for place, parameter in enumerate(net.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** (-place)  # some long, some short
    net[3].bias.grad = None
    return net


@pytest.mark.parametrize("clip", [0.01, 0.3])
def test_equals_timm(clip: float) -> None:
    theirs = pytest.importorskip("timm.utils.agc").adaptive_clip_grad
    ours = net_with_gradients()
    peer, before = copy.deepcopy(ours), copy.deepcopy(ours)
    for mine, other in zip(ours.parameters(), peer.parameters(), strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    kept = [None if p.grad is None else p.grad.clone() for p in ours.parameters()]
    adaptive_clip_(ours.parameters(), clip)
    theirs(peer.parameters(), clip)
    for mine, other in zip(ours.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=0)
    changed = [not torch.equal(p.grad, g) for p, g in zip(ours.parameters(), kept, strict=True) if g is not None]  # type: ignore[arg-type]
    assert True in changed
    assert False in changed
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), before.parameters(), strict=True))


def test_no_unit_is_above_its_bound_and_directions_stay() -> None:
    net = net_with_gradients()
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    adaptive_clip_(net.parameters(), clip=0.05, eps=1e-2)
    for name, parameter in net.named_parameters():
        if parameter.grad is None:
            continue
        bound = 0.05 * unit_norms(parameter.detach()).clamp_min(1e-2)
        assert (unit_norms(parameter.grad) <= bound * (1 + 1e-6)).all()
        short = (unit_norms(before[name]) < bound).expand_as(parameter)
        assert torch.equal(parameter.grad[short], before[name][short])
        angle = torch.cosine_similarity(parameter.grad.flatten(), before[name].flatten(), dim=0)
        assert angle > 0.2  # each unit's own direction; units are shortened by different factors


def test_vectors_are_clipped_as_a_whole() -> None:
    assert unit_norms(torch.ones(4, 9)).tolist() == [[3.0]] * 4
    assert unit_norms(torch.full((4, 1, 1, 1), 2.0)).item() == 4
    assert unit_norms(torch.full((1, 4), 2.0)).item() == 4
    assert unit_norms(torch.tensor(-3.0)).item() == 3
    gain = nn.Parameter(torch.ones(4, 1, 1, 1))
    gain.grad = torch.tensor([3.0, 0, 4, 0]).view(4, 1, 1, 1)
    adaptive_clip_(gain, clip=0.5)  # the gain's length is 2, the gradient's 5
    torch.testing.assert_close(gain.grad.flatten(), torch.tensor([0.6, 0, 0.8, 0]))


def test_settings_and_gradients_that_make_no_sense() -> None:
    for arguments in ({"clip": 0.0}, {"eps": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            adaptive_clip_([], **arguments)
        with pytest.raises(ValueError, match="must be positive"):
            AdaptiveClipping(**arguments)
    words = nn.Embedding(5, 3, sparse=True)
    words(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        adaptive_clip_(words.parameters())


def test_before_every_step_of_an_optimizer_but_for_what_is_skipped() -> None:
    net = net_with_gradients()
    twin = copy.deepcopy(net)
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    optimizer, plain = (torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9) for one in (net, twin))
    clipping = AGC(optimizer, clip=0.02, skip=net[3].parameters())
    optimizer.step()
    adaptive_clip_(all_but_last_layer(twin), clip=0.02)
    plain.step()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="without one"):
        optimizer.step(lambda: 0.0)
    clipping.remove()
    net[0].weight.grad = torch.full_like(net[0].weight, 1e3)
    optimizer.step()
    assert net[0].weight.grad.max() == 1e3


def test_all_but_the_last_linear_layer() -> None:
    net = lenet()
    left = {id(parameter) for parameter in all_but_last_layer(net)}
    assert {name for name, p in net.named_parameters() if id(p) not in left} == {"head.weight", "head.bias"}
    assert len(all_but_last_layer(nn.Conv2d(1, 1, 1))) == 2


def test_the_hook_trains_as_one_would_by_hand(table: Dataset) -> None:
    recipe = Recipe(
        table,
        model=partial(mlp, 8, 2, (16,)),
        optimizer=partial(torch.optim.SGD, lr=2.0, fused=False),
        hooks=(AdaptiveClipping(0.03),),
        epochs=1,
        batch_size=400,
        shuffle=False,
        watch=(),
    )
    torch.manual_seed(3)
    net = recipe.model()
    nn.functional.cross_entropy(net(table.train.inputs), table.train.labels).backward()
    adaptive_clip_([p for name, p in net.named_parameters() if name.startswith("1.")], 0.03)
    torch.optim.SGD(net.parameters(), lr=2.0).step()
    trained = fit(recipe, seed=3).model
    for one, other in zip(trained.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other)
