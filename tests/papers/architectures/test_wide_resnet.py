"""Wide residual networks: published parameter counts, the function written out again, and the claims at smoke scale."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from assay.lab import Lab
from assay.papers.architectures import wide_resnet as paper
from assay.papers.architectures.wide_resnet import WideResNet, wide_bottleneck, wide_resnet

#: (depth, width) -> parameters with 10 and with 100 classes.
COUNTS = {
    (16, 1): (175_066, 180_916),
    (16, 2): (691_674, 703_284),
    (16, 4): (2_748_890, 2_772_020),
    (16, 8): (10_961_370, 11_007_540),
    (22, 8): (17_158_106, 17_204_276),
    (28, 10): (36_479_194, 36_536_884),
    (40, 1): (563_930, 569_780),
    (40, 2): (2_243_546, 2_255_156),
    (40, 4): (8_949_210, 8_972_340),
    (40, 8): (35_748_314, 35_794_484),
}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("shape", COUNTS)
def test_parameter_counts(shape: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert tuple(count(wide_resnet(*shape, num_classes=classes)) for classes in (10, 100)) == COUNTS[shape]


def test_parameter_counts_of_the_bottleneck_form() -> None:
    with torch.device("meta"):
        assert count(wide_bottleneck(50, 2)) == 68_883_240
        assert count(wide_bottleneck(101, 2)) == 126_886_696
    assert wide_bottleneck(50, 1, num_classes=3)(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def written_out(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """The same network as arithmetic on a dictionary of weights, in evaluation mode, from the paper's description."""

    def norm(name: str, value: Tensor) -> Tensor:
        parts = (state[f"{name}.running_mean"], state[f"{name}.running_var"], state[f"{name}.weight"], state[f"{name}.bias"])
        mean, var, scale, shift = (part[None, :, None, None] for part in parts)
        return (value - mean) / (var + 1e-5).sqrt() * scale + shift

    x = F.conv2d(x, state["stem.weight"], padding=1)
    for group in range(3):
        for block in range(blocks):
            name = f"groups.{group}.{block}"
            stride = 2 if group and not block else 1
            active = norm(f"{name}.bn1", x).clamp_min(0)
            out = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm(f"{name}.bn2", out).clamp_min(0), state[f"{name}.conv2.weight"], padding=1)
            projection = state.get(f"{name}.shortcut.weight")
            x = out + (x if projection is None else F.conv2d(active, projection, stride=stride))
    x = norm("bn", x).clamp_min(0).mean(dim=(2, 3))
    return x @ state["head.weight"].T + state["head.bias"]


def test_equals_the_paper_written_out() -> None:
    torch.manual_seed(0)
    model = WideResNet(16, 2, num_classes=7, in_channels=3, base=4)
    images = torch.randn(8, 3, 16, 16)
    model(images)  # so that the running averages are not at their start
    model.eval()
    torch.testing.assert_close(model(images), written_out(model.state_dict(), images, blocks=2), atol=1e-5, rtol=1e-4)


def test_dropout_is_between_the_convolutions_only() -> None:
    torch.manual_seed(0)
    model = wide_resnet(10, 1, dropout=1.0).train()
    images = torch.randn(4, 3, 8, 8)
    # With everything dropped, the blocks' second convolutions see zeros: what is left is the chain of shortcuts.
    x = model.stem(images)
    for group in model.groups:
        for block in group:
            x = x if block.shortcut is None else block.shortcut(F.relu(block.bn1(x)))
    expected = model.head(F.relu(model.bn(x)).mean(dim=(2, 3)))
    torch.testing.assert_close(model(images), expected)


def test_initial_variance_is_that_of_he() -> None:
    torch.manual_seed(0)
    weight = wide_resnet(10, 8).groups[2][0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[1])) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [8, 11, 4])
def test_impossible_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6N \\+ 4"):
        wide_resnet(depth)


def test_the_networks_compared_are_of_a_size() -> None:
    wide, thin = (count(paper.half_size(*shape)) for shape in (paper._WIDE, paper._SAME_SIZE))
    assert 1.0 <= thin / wide < 1.05


def test_exports_and_compares_at_smoke_scale(home: object) -> None:
    exported = torch.export.export(wide_resnet(10, 1).eval(), (torch.randn(2, 3, 8, 8),))
    assert exported.module()(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    lab = Lab(scale="smoke")
    for claim in (paper.wide_beats_deep_at_equal_time, paper.wide_beats_deep_at_equal_size, paper.dropout_in_blocks_helps):
        assert len(claim(lab)) == 2
