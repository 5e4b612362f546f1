"""Outputs of hidden layers are what the layers give, and nothing of the watching stays behind."""

import pytest
import torch
from torch import nn

from assay.errors import AssayError
from assay.nn.layers import output_shapes, watching


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def test_outputs_are_those_of_the_layers() -> None:
    model, images = net(), torch.rand(3, 1, 8, 8)
    with watching(model, ["0", "4"]) as outputs:
        logits = model(images)
    assert torch.equal(outputs["0"], model[0](images))
    assert outputs["4"] is logits
    assert not any(module._forward_hooks for module in model.modules())


def test_shapes_leave_the_network_as_it_was() -> None:
    model = net().train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert output_shapes(model, torch.rand(1, 1, 8, 8), ["1", "4"]) == {"1": (1, 4, 6, 6), "4": (1, 2)}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True, True]


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(AssayError, match="'block9'; it has 0, 1"), watching(net(), ["block9"]):
        pass
