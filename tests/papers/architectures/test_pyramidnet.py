"""Pyramidal networks: published sizes, the paper written out as arithmetic, exact identities, and the claims at smoke scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.measure import macs, parameters
from assay.papers.architectures import pyramidnet as paper
from assay.papers.architectures.pyramidnet import (
    PyramidBlock,
    PyramidNet,
    answers_without,
    block_deletion,
    imagenet_pyramidnet,
    load_pretrained,
    pyramid_widths,
    pyramidal_net,
    pyramidnet,
    small,
    staircase,
)
from assay.papers.architectures.resnet import cifar_resnet
from assay.papers.architectures.wide_resnet import WideResNet
from assay.recipe import Recipe
from assay.view import View

#: Depth, alpha, bottleneck -> parameters with 100 classes, of the authors' code.
HUNDRED = {
    (110, 48, False): 1_778_556,
    (110, 84, False): 3_913_536,
    (110, 270, False): 28_511_307,
    (164, 270, True): 27_319_071,
    (200, 240, True): 26_844_952,
    (236, 220, True): 27_054_096,
    (272, 200, True): 26_288_692,
}


@pytest.mark.parametrize(("depth", "alpha", "bottleneck"), HUNDRED)
def test_parameters_with_a_hundred_classes(depth: int, alpha: int, bottleneck: bool) -> None:
    with torch.device("meta"):
        assert parameters(pyramidnet(depth, alpha, 100, bottleneck)) == HUNDRED[depth, alpha, bottleneck]


def test_widths() -> None:
    assert pyramid_widths(8, 4) == [18, 20, 22, 24]
    assert pyramid_widths(48, 54)[:5] == [17, 18, 19, 20, 20]  # 16 + 8k/9: to round every step up or down would end elsewhere
    assert pyramid_widths(48, 54)[-1] == 64
    assert pyramid_widths(4, 4, growth="mul") == [23, 32, 45, 64]
    assert pyramid_widths(0, 3) == pyramid_widths(1, 3, growth="mul") == [16, 16, 16]


#: The authors' names of a block's layers.
LAYERS = {
    False: (("conv1", 3, 1), ("conv2", 3, 1)),
    True: (("conv1", 1, 1), ("conv2", 3, 1), ("conv3", 1, 4)),
}


def authors_state(groups: list[list[int]], start: int, channels: int, classes: int, narrow: bool, side: int) -> dict[str, Tensor]:
    """Random weights under the authors' names, their shapes from the paper's description."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def norm(name: str, planes: int) -> None:
        for part, low in (("weight", 0.5), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.5)):
            state[f"{name}.{part}"] = torch.rand(planes, generator=generator) * 0.5 + low

    def conv(name: str, planes: int, wide: int, side: int) -> None:
        state[f"{name}.weight"] = torch.randn(wide, planes, side, side, generator=generator) / (planes * side * side) ** 0.5

    conv("conv1", channels, start, side)
    norm("bn1", start)
    planes = start
    for number, group in enumerate(groups, start=1):
        for block, width in enumerate(group):
            name = f"layer{number}.{block}"
            norm(f"{name}.bn1", planes)
            for place, (layer, kernel, factor) in enumerate(LAYERS[narrow], start=2):
                conv(f"{name}.{layer}", planes, width * factor, kernel)
                planes = width * factor
                norm(f"{name}.bn{place}", planes)
    norm("bn_final", planes)
    state["fc.weight"] = torch.randn(classes, planes, generator=generator)
    state["fc.bias"] = torch.randn(classes, generator=generator)
    return state


def written_out(state: dict[str, Tensor], x: Tensor, groups: list[list[int]], narrow: bool, large: bool) -> Tensor:
    """The network as arithmetic on the authors' weights, in evaluation mode, from the paper's description."""

    def norm(name: str, value: Tensor) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, var, scale, shift = (part[None, :, None, None] for part in parts)
        return (value - mean) / (var + 1e-5).sqrt() * scale + shift

    def conv(name: str, value: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(value, weight, stride=stride, padding=weight.shape[2] // 2)

    x = norm("bn1", conv("conv1", x, 2 if large else 1))
    if large:
        x = F.max_pool2d(x.clamp_min(0), 3, 2, padding=1)
    for number, group in enumerate(groups, start=1):
        for block in range(len(group)):
            name = f"layer{number}.{block}"
            halves = number > 1 and block == 0
            out = norm(f"{name}.bn1", x)
            for place, (layer, *_) in enumerate(LAYERS[narrow], start=1):
                at = 2 if narrow else 1
                out = conv(f"{name}.{layer}", out if place == 1 else out.clamp_min(0), 2 if halves and place == at else 1)
                out = norm(f"{name}.bn{place + 1}", out)
            if halves:
                x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
            out[:, : x.shape[1]] += x
            x = out
    return norm("bn_final", x).clamp_min(0).mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("narrow", [False, True])
def test_equals_the_paper_written_out(narrow: bool) -> None:
    groups = [[5, 7], [8, 9], [11, 12]]  # 4 + 8k/6
    depth = 20 if narrow else 14
    state = authors_state(groups, 4, 2, 7, narrow, 3)
    model = load_pretrained(pyramidnet(depth, 8, 7, narrow, in_channels=2, start=4), state).eval()
    images = torch.randn(3, 2, 16, 16)
    with torch.no_grad():
        found, expected = model(images), written_out(state, images, groups, narrow, large=False)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4


def test_large_networks_equal_the_paper_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(paper.IMAGENET, 14, (1, 1, 1, 1))
    groups = [[66], [68], [70], [72]]
    state = authors_state(groups, 64, 3, 5, True, 7)
    parallel = {f"module.{name}": value for name, value in state.items()}
    model = load_pretrained(imagenet_pyramidnet(14, 8, 5), parallel).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = model(images), written_out(state, images, groups, True, large=True)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4 * float(expected.abs().max())


def test_weights_of_other_networks_are_refused_and_heads_left_out() -> None:
    groups = [[5, 7], [8, 9], [11, 12]]
    state = authors_state(groups, 4, 2, 7, False, 3)
    tuned = pyramidnet(14, 8, 3, in_channels=2, start=4)
    before = tuned.get_submodule("head.fc").weight.clone()  # type: ignore[operator]
    load_pretrained(tuned, state, head=False)
    assert torch.equal(tuned.get_submodule("head.fc").weight, before)  # type: ignore[arg-type]
    assert torch.equal(tuned.state_dict()["head.norm.weight"], state["bn_final.weight"])
    with pytest.raises(AssayError, match="instead of"):
        load_pretrained(tuned, state)
    with pytest.raises(AssayError, match="build the network that they are of"):
        load_pretrained(pyramidnet(20, 8, 7, in_channels=2, start=4), state)


@pytest.mark.parametrize("make", [paper.basic, partial(paper.basic, first_relu=True, last_norm=False), paper.bottleneck])
@pytest.mark.parametrize(("stride", "size"), [(1, 6), (2, 6), (2, 7)])
def test_a_block_without_its_branch_is_its_shortcut(make: partial[PyramidBlock], stride: int, size: int) -> None:
    torch.manual_seed(0)
    block = make(6, 8, stride)
    x = torch.randn(2, 6, size, size)
    last = list(block.body.children())[-1]
    assert isinstance(last, nn.BatchNorm2d | nn.Conv2d)
    nn.init.zeros_(last.weight)
    out = block(x)
    kept = x if stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True)
    assert torch.equal(out[:, :6], kept)  # negative numbers too: no ReLU follows
    assert not out[:, 6:].any()
    assert not list(block.shortcut.parameters())


def test_the_four_blocks() -> None:
    kinds = {
        (relu, norm): [name.rstrip("123") for name, _ in paper.basic(4, 6, 1, relu, norm).body.named_children()]
        for relu in (False, True)
        for norm in (False, True)
    }
    assert kinds[False, True] == ["bn", "conv", "bn", "relu", "conv", "bn"]
    assert kinds[False, False] == ["bn", "conv", "bn", "relu", "conv"]
    assert kinds[True, True] == ["bn", "relu", "conv", "bn", "relu", "conv", "bn"]
    assert kinds[True, False] == ["bn", "relu", "conv", "bn", "relu", "conv"]


def test_initial_weights_and_layout() -> None:
    torch.manual_seed(0)
    model = pyramidnet(14, 48)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.out_channels * module.kernel_size[0] ** 2
            if module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.04)
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [4, 14, 28, 33])
def test_any_size(size: int) -> None:
    assert small(5, 3)(torch.rand(2, 3, size, size)).shape == (2, 5)


def test_exports_for_any_number_of_examples() -> None:
    torch.manual_seed(0)
    model, images = small(in_channels=3).eval(), torch.randn(2, 3, 15, 15)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(exported.module()(images), model(images))
    assert exported.module()(torch.randn(5, 3, 15, 15)).shape == (5, 10)


def test_the_small_form_is_small() -> None:
    assert parameters(small()) <= 100_000
    assert macs(small(), (1, 28, 28)) <= 10_000_000


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(pyramidnet, 111), r"6n \+ 2 \(8, 14, 20"),
        (partial(pyramidnet, 100, bottleneck=True), r"9n \+ 2 \(11, 20, 29"),
        (partial(pyramidnet, 2), r"6n \+ 2"),
        (partial(imagenet_pyramidnet, 50), "101, 152, 200"),
        (partial(pyramidnet, growth="steps"), "'add' or 'mul'"),
        (partial(pyramidnet, alpha=-1), "at least 0"),
        (partial(pyramidnet, alpha=0.5, growth="mul"), "at least 1"),
    ],
)
def test_what_there_is_not_is_refused(make: partial[PyramidNet], words: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        make()


def test_deleting_a_block_is_going_without_its_branch() -> None:
    torch.manual_seed(0)
    model, images = small(in_channels=3).eval(), torch.randn(40, 3, 12, 12)
    for module in model.modules():  # shortcuts alone would say the same of every image
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = answers_without(model, images, chunk=7)
    assert len(said) == 6
    halving = [name.startswith(("stages.1.0.", "stages.2.0.")) for name in said]
    assert halving == [False, False, True, False, True, False]  # which the claim counts on
    stages = model.get_submodule("stages")
    blocks = [(group, place) for group in range(3) for place in range(2)]
    differs = 0
    for (group, place), found in zip(blocks, said.values(), strict=True):
        whole = stages[group][place]  # type: ignore[index]
        stages[group][place] = whole.shortcut  # type: ignore[index]
        assert torch.equal(found, model(images).argmax(dim=1))
        stages[group][place] = whole  # type: ignore[index]
        differs += int((found != model(images).argmax(dim=1)).any())
    assert differs > 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert len(answers_without(cifar_resnet(8, width=4), torch.rand(2, 3, 8, 8))) == 3
    with pytest.raises(AssayError, match="adds no branch"):
        answers_without(mlp(4, 2), torch.rand(2, 4))


def test_the_probe_names_the_block_that_is_missed_most() -> None:
    torch.manual_seed(0)
    model, images = small(3).eval(), torch.randn(30, 1, 12, 12)
    last = model.get_submodule("stages.2.1.body.bn3")
    nn.init.normal_(last.bias, std=3.0)  # type: ignore[arg-type]
    target = model(images).argmax(dim=1)
    view = View(model, images, target, target, images[:0], target[:0], "images", ("a", "b", "c"))
    seen = block_deletion(view)
    assert seen.numbers["accuracy"] == 1.0
    without = answers_without(model, images)
    shares = {name: float((said == target).double().mean()) for name, said in without.items()}
    worst = min(shares, key=shares.__getitem__)
    assert seen.numbers["lowest accuracy without a block"] == pytest.approx(shares[worst])
    assert seen.numbers["mean accuracy without a block"] == pytest.approx(sum(shares.values()) / 6)
    assert worst in seen.notes[0]
    assert seen.each["share of the blocks it can do without"].mean().item() == pytest.approx(sum(shares.values()) / 6)


def pictures(task: str = "classification") -> Dataset:
    inputs, labels = torch.rand(40, 1, 12, 12), torch.arange(40) % 3
    whole = Split(inputs, labels.float() if task == "regression" else labels)
    return Dataset("x", task, whole, whole, whole, () if task == "regression" else ("a", "b", "c"))


@pytest.mark.parametrize(
    "net",
    [partial(WideResNet, 10, 2, 3, 1), partial(lenet, 1, 3, 12), partial(cifar_resnet, 8, width=8, in_channels=1, num_classes=3)],
)
def test_treatment_keeps_the_size_and_all_else(net: partial[nn.Module]) -> None:
    plain = Recipe(pictures(), model=net)
    treated = pyramidal_net(plain)
    assert treated == plain.replace(model=treated.model)
    made = treated.model()
    assert sum(isinstance(module, PyramidBlock) for module in made.modules()) == 9
    assert made(plain.data.train.inputs[:2]).shape == (2, 3)  # type: ignore[index]
    assert parameters(made) == pytest.approx(parameters(plain.model()), rel=0.2)
    with pytest.raises(AssayError, match="a pyramidal one already"):
        pyramidal_net(treated)


def test_treatment_refuses_what_has_no_images_or_no_classes(table: Dataset) -> None:
    for data, net in ((table, partial(mlp, 8, 2)), (pictures("regression"), partial(mlp, 144, 1))):
        with pytest.raises(AssayError, match="pyramidal networks are for classes of images"):
            pyramidal_net(Recipe(data, model=net))


@pytest.mark.parametrize(
    ("depth", "alpha", "start", "first_relu", "last_norm"),
    [(14, 24, 8, False, True), (14, 24, 8, True, False), (110, 48, 16, False, True)],
)
def test_the_control_is_as_large_and_as_deep(depth: int, alpha: int, start: int, first_relu: bool, last_norm: bool) -> None:
    with torch.device("meta"):
        pyramid = pyramidnet(depth, alpha, 10, in_channels=1, start=start, first_relu=first_relu, last_norm=last_norm)
        control = staircase(depth, alpha, start, 10, 1, first_relu, last_norm)
    assert parameters(control) == pytest.approx(parameters(pyramid), rel=0.03)
    both = [[len(group) for group in net.get_submodule("stages")] for net in (pyramid, control)]  # type: ignore[arg-type]
    assert both[0] == both[1]
    planes = [group[0].body.conv1.out_channels for group in control.get_submodule("stages")]  # type: ignore[union-attr]
    assert planes[1] / planes[0] == pytest.approx(2, abs=0.1)
    assert planes[2] / planes[1] == pytest.approx(2, abs=0.1)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    for measure, arms in ((paper.gradual_width_beats_steps, 3), (paper.fewer_relus_and_final_bn, 4)):
        assert len(measure(lab)) == arms
    found = paper.robust_to_block_deletion(lab)
    assert [len(arm.y) for arm in found.values()] == [3, 3, 3]
