"""The layer that makes a network's answer is found where an auxiliary classifier is registered behind it, too."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from assay.data import Dataset, Split
from assay.nn import lenet, mlp
from assay.nn.ending import last_linear
from assay.papers.architectures.frame_vote import fine_tuning
from assay.papers.architectures.inception_v3 import small_inception
from assay.papers.robust.very_large_dropout import dropping
from assay.recipe import Recipe, per_example
from assay.train.clip import all_but_last_layer
from assay.train.loop import fit


def with_aux() -> nn.Module:
    torch.manual_seed(0)
    return small_inception(aux="normalized")


def test_the_layer_is_the_one_behind_the_answer() -> None:
    for net in (mlp(8, 2), lenet(), with_aux()):
        found = last_linear(net)
        assert found is not None
        given: list[Tensor] = []
        found[1].register_forward_hook(lambda *seen, given=given: given.append(seen[2]))
        images = torch.randn(2, 8) if isinstance(net, nn.Sequential) else torch.randn(2, 1, 28, 28)
        assert torch.equal(net.eval()(images), given[0])
    assert last_linear(nn.Conv2d(1, 1, 1)) is None
    alone = nn.Linear(3, 2)
    assert last_linear(alone) == ("", alone)
    only = nn.ModuleDict({"aux_classifier": alone})
    assert last_linear(only) == ("aux_classifier", alone)


def test_clipping_fine_tuning_and_dropout_take_it_too() -> None:
    net = with_aux()
    left = {id(parameter) for parameter in all_but_last_layer(net)}
    assert {name for name, one in net.named_parameters() if id(one) not in left} == {"head.fc.weight", "head.fc.bias"}
    fine_tuning(net, 3, 0.1)
    assert net.eval()(torch.randn(2, 1, 28, 28)).shape == (2, 3)
    dropped = dropping(with_aux(), 0.5)
    images = torch.randn(2, 1, 28, 28)
    dropped.get_submodule("head").train()
    assert not torch.equal(dropped(images), dropped(images))


class Widths(nn.Module):
    """Cross-entropy that notes how wide the features are that it is given."""

    seen: ClassVar[set[int]] = set()

    def forward(self, logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        self.seen.add(features.shape[1])
        return nn.functional.cross_entropy(logits, labels)


def test_losses_of_features_get_those_of_the_network_and_not_of_its_auxiliary_classifier() -> None:
    whole = Split(torch.rand(32, 1, 8, 8), torch.arange(32) % 10)
    data = Dataset("x", "classification", whole, whole, whole, tuple("abcdefghij"))
    make = partial(small_inception, aux="normalized", stride=1)
    Widths.seen.clear()
    fit(Recipe(data, model=make, loss=per_example(Widths), epochs=1, watch=()), seed=0)
    layer = last_linear(make())
    assert layer is not None
    assert Widths.seen == {layer[1].in_features}
    assert layer[1].in_features != make().get_submodule("aux.fc").in_features
