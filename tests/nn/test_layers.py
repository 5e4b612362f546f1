"""Outputs of hidden layers are what the layers give, and nothing of the watching stays behind."""

import pytest
import torch
from torch import nn

from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.nn.audio import AudioCNN
from assay.nn.layers import hidden_blocks, output_shapes, watching
from assay.nn.text import BiLSTM
from assay.own.networks import TableNet
from assay.papers.architectures.resnet import cifar_resnet, half_size, resnet18
from assay.papers.architectures.wide_resnet import WideResNet
from assay.papers.signals.tsc_baselines import FCN
from assay.papers.text.text_cnn import TextCNN


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


IMAGE, IDS = torch.rand(1, 3, 16, 16), torch.tensor([[3, 4, 5, 6, 7, 8, 0, 0]])


@pytest.mark.parametrize(
    ("make", "example", "expected"),
    [
        (lambda: lenet(3, 10, 16), IMAGE, ["relu1", "relu2"]),
        (lambda: mlp(8, 2), torch.rand(1, 8), ["2"]),
        (lambda: mlp(8, 2, (5,)), torch.rand(1, 8), ["2"]),  # the only hidden layer
        (lambda: mlp(8, 2, (5,) * 12), torch.rand(1, 8), ["2", "4", "6", "10", "12", "14", "18", "20"]),
        (lambda: WideResNet(10, 1), IMAGE, ["stem", "groups.0.0", "groups.1.0"]),
        (lambda: cifar_resnet(20, width=4), IMAGE, ["stem.relu", "stages.0", "stages.1"]),
        (lambda: half_size(lambda: cifar_resnet(8, width=4)), IMAGE, ["1.stem.relu", "1.stages.0.0", "1.stages.1.0"]),
        (resnet18, torch.rand(1, 3, 64, 64), ["stem.1", *(f"stages.{i}.{j}" for i in range(3) for j in range(2)), "stages.3.0"]),
        (lambda: FCN(2, 3), torch.rand(1, 2, 50), ["blocks.3", "blocks.6"]),
        (lambda: AudioCNN(40, 3), torch.rand(1, 40, 60), ["features.2", "features.5", "features.8"]),
        (lambda: BiLSTM(10, 2), IDS, ["embedding"]),  # an LSTM gives more than a tensor
        (lambda: TableNet(10, 2, ((0, 3), (3, 6))), torch.rand(1, 10), ["embeddings.1", "perceptron.2"]),
    ],
)
def test_main_blocks_of_networks(make: object, example: torch.Tensor, expected: list[str]) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert hidden_blocks(model, example) == expected
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_networks_without_hidden_blocks() -> None:
    for model, example in ((torch.nn.Linear(3, 2), torch.rand(1, 3)), (TextCNN(10, 2), IDS)):
        with pytest.raises(AssayError, match="no hidden layer"):
            hidden_blocks(model, example)
