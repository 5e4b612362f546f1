"""Drop path: which branches it finds, what is left out how often, and that the network itself stays what it was."""

import copy

import pytest
import torch
from torch import Tensor, nn

from assay.errors import AssayError
from assay.nn import lenet, mlp
from assay.nn.drop_path import DropPath, residual_branches, with_drop_path
from assay.nn.text import BiLSTM
from assay.papers.architectures.resnet import cifar_resnet, resnet50
from assay.papers.architectures.wide_resnet import WideResNet


def test_finds_the_branches_of_residual_networks() -> None:
    assert residual_branches(cifar_resnet(14)) == [f"stages.{i}.{j}.body.1.norm" for i in range(3) for j in range(2)]
    assert len(residual_branches(resnet50())) == 16
    assert residual_branches(WideResNet(16, 1)) == [f"groups.{i}.{j}.conv2" for i in range(3) for j in range(2)]
    for net in (lenet(), mlp(4, 2), BiLSTM(10, 2), cifar_resnet(14, residual=False)):
        assert residual_branches(net) == []


def test_finds_the_branches_of_other_peoples_networks() -> None:
    timm = pytest.importorskip("timm")
    vision = pytest.importorskip("torchvision.models")
    assert residual_branches(vision.resnet18()) == [f"layer{i}.{j}.bn2" for i in range(1, 5) for j in range(2)]
    assert len(residual_branches(timm.create_model("resnet26"))) == 8


def test_leaves_out_branches_of_some_examples_deeper_ones_more_often() -> None:
    torch.manual_seed(0)
    net = with_drop_path(lambda: cifar_resnet(14, width=4), 0.6)
    seen: dict[int, Tensor] = {}
    blocks = [block for stage in net.stages for block in stage]
    for place, block in enumerate(blocks):
        block.body.register_forward_hook(lambda _, __, out, place=place: seen.__setitem__(place, out))
    net(torch.randn(500, 3, 8, 8))
    dropped = [(seen[place].flatten(1) == 0).all(dim=1).float().mean().item() for place in range(6)]
    assert dropped == pytest.approx([0, 0.12, 0.24, 0.36, 0.48, 0.6], abs=0.07)
    assert dropped[0] == 0


def test_is_right_in_the_mean_and_nothing_in_evaluation() -> None:
    module = nn.Identity()
    module.register_forward_hook(DropPath(0.25))
    ones = torch.ones(20_000, 2)
    assert abs(module(ones).mean() - 1) < 0.02
    assert sorted(module(ones).unique().tolist()) == [0.0, pytest.approx(1 / 0.75)]
    assert torch.equal(module.eval()(ones), ones)
    with pytest.raises(ValueError, match="rate"):
        DropPath(1.0)


def test_the_network_is_the_same() -> None:
    torch.manual_seed(0)
    plain = cifar_resnet(8, width=4)
    torch.manual_seed(0)
    dropping = with_drop_path(lambda: cifar_resnet(8, width=4), 0.3)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(plain.eval()(images), dropping.eval()(images))
    assert torch.equal(copy.deepcopy(dropping)(images), dropping(images))
    with pytest.raises(AssayError, match="no branch"):
        with_drop_path(lenet, 0.1)
