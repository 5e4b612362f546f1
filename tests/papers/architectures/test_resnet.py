"""Residual networks: published sizes, torchvision and timm as oracles, exact identities, and the claims at smoke scale."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.measure import macs, parameters
from assay.papers.architectures import resnet as paper
from assay.papers.architectures.resnet import (
    ResidualBlock,
    ResNet,
    ZeroPadded,
    cifar_resnet,
    load_pretrained,
    residual_net,
    resnet,
    resnet18,
    resnet50,
    responses,
)
from assay.papers.architectures.wide_resnet import WideResNet, wide_resnet50_2
from assay.recipe import Recipe

#: Depth -> parameters (millions) of Table 6, and multiply-adds (billions) of Table 1.
TABLE_6 = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}
TABLE_1 = {18: 1.8, 34: 3.6, 50: 3.8, 101: 7.6, 152: 11.3}


def randomised(model: nn.Module) -> nn.Module:
    """Running averages, scales and shifts that are not at their start, so that mixing them up would show."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight, 0.5), (module.bias, -0.2)):
                assert value is not None
                value.data.copy_(torch.rand(value.shape, generator=generator) * 0.5 + low)
    return model


@pytest.mark.parametrize("depth", TABLE_6)
def test_small_networks_are_as_large_as_published(depth: int) -> None:
    with torch.device("meta"):
        sizes = {option: parameters(cifar_resnet(depth, option)) for option in ("A", "B")}
        plain = parameters(cifar_resnet(depth, residual=False))
    assert sizes["A"] / 1e6 == pytest.approx(TABLE_6[depth], abs=0.03)
    assert sizes["B"] - sizes["A"] == 2752
    assert plain == sizes["A"]


def test_the_net_of_1202_layers() -> None:
    with torch.device("meta"):
        assert parameters(cifar_resnet(1202)) == 19_421_274


@pytest.mark.parametrize("depth", TABLE_1)
def test_multiply_adds_are_as_published_with_the_stride_where_the_paper_has_it(depth: int) -> None:
    with torch.device("meta"):
        count = macs(resnet(depth, stride_at=1), (3, 224, 224))
    assert count / 1e9 == pytest.approx(TABLE_1[depth], rel=0.025)


def torchvision_net(depth: int) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    made: nn.Module = getattr(torchvision.models, f"resnet{depth}")()
    return made


def timm_net(depth: int) -> nn.Module:
    timm = pytest.importorskip("timm")
    made: nn.Module = timm.create_model(f"resnet{depth}")
    return made


@pytest.mark.parametrize("peer", [torchvision_net, timm_net])
@pytest.mark.parametrize("depth", [18, 50])
def test_outputs_equal_those_of_others_with_their_weights(peer: object, depth: int) -> None:
    torch.manual_seed(0)
    theirs = randomised(peer(depth)).eval()  # type: ignore[operator]
    ours = load_pretrained(resnet(depth), theirs.state_dict()).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4


def test_wide_bottlenecks_equal_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = randomised(pytest.importorskip("torchvision").models.wide_resnet50_2()).eval()
    ours = load_pretrained(wide_resnet50_2(), theirs.state_dict()).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("depth", [18, 50])
def test_gradients_equal_torchvisions(depth: int) -> None:
    torch.manual_seed(0)
    theirs = randomised(torchvision_net(depth)).double().train()
    ours = load_pretrained(resnet(depth).double(), theirs.state_dict()).train()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for net in (theirs, ours):
        F.cross_entropy(net(images), torch.arange(4)).backward()
    first, second = ours.get_submodule("stem.0.conv").weight.grad, theirs.conv1.weight.grad  # type: ignore[union-attr]
    assert (first - second).norm() < 1e-6 * second.norm()  # type: ignore[operator, union-attr]


def test_weights_from_files_and_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision_net(18).state_dict()
    save_file(theirs, tmp_path / "own.safetensors")
    torch.save(theirs, tmp_path / "own.pth")
    folder = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(theirs, folder / "snapshots" / "abc" / "model.safetensors")
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for source in (tmp_path / "own.safetensors", str(tmp_path / "own.pth"), "timm/resnet18.a1_in1k"):
        model = load_pretrained(resnet18(), source)
        assert torch.equal(model.state_dict()["stages.3.1.body.1.conv.weight"], theirs["layer4.1.conv2.weight"])
        assert torch.equal(model.head.fc.weight, theirs["fc.weight"])
    tuned = resnet18(num_classes=5)
    before = tuned.head.fc.weight.clone()
    load_pretrained(tuned, tmp_path / "own.safetensors", head=False)
    assert torch.equal(tuned.head.fc.weight, before)
    assert torch.equal(tuned.stem[0].conv.weight, theirs["conv1.weight"])
    with pytest.raises(AssayError, match=r"head\.fc\.weight.*\(1000, 512\) instead of \(5, 512\)"):
        load_pretrained(tuned, theirs)
    with pytest.raises(AssayError, match="build the network that they are of"):
        load_pretrained(resnet(34), theirs)
    with pytest.raises(AssayError, match="not in the hub's cache"):
        load_pretrained(resnet18(), "timm/resnet18.other")


@pytest.mark.parametrize(
    ("option", "kind", "stride", "planes"),
    [("A", paper.basic, 2, 16), ("B", paper.basic, 2, 16), ("C", paper.bottleneck, 1, 8), ("A", paper.bottleneck, 1, 8)],
)
def test_a_block_without_its_last_scale_is_its_shortcut(option: str, kind: object, stride: int, planes: int) -> None:
    torch.manual_seed(0)
    block: ResidualBlock = kind(8, planes, stride, option)  # type: ignore[operator]
    x = torch.randn(2, 8, 6, 6)
    assert block.shortcut is not None
    assert not torch.equal(block(x), F.relu(block.shortcut(x)))
    nn.init.zeros_(block.body[-1].norm.weight)
    assert torch.equal(block(x), F.relu(block.shortcut(x)))


def test_shortcut_a_takes_every_other_pixel_and_adds_zeros() -> None:
    x = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    out = ZeroPadded(2, 4)(x)
    assert out.shape == (2, 7, 3, 3)
    assert torch.equal(out[:, :3], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert not out[:, 3:].any()
    assert isinstance(paper.shortcut_of("A", 8, 8, 1), nn.Identity)
    assert isinstance(paper.shortcut_of("B", 8, 8, 1), nn.Identity)
    assert not isinstance(paper.shortcut_of("C", 8, 8, 1), nn.Identity)


def written_out(state: dict[str, Tensor], x: Tensor, blocks: int, residual: bool) -> Tensor:
    """The small network as arithmetic on its weights, in evaluation mode, from the paper's description."""

    def layer(name: str, value: Tensor, stride: int = 1) -> Tensor:
        value = F.conv2d(value, state[f"{name}.conv.weight"], stride=stride, padding=1)
        parts = (state[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, var, scale, shift = (part[None, :, None, None] for part in parts)
        return (value - mean) / (var + 1e-5).sqrt() * scale + shift

    x = layer("stem", x).clamp_min(0)
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            name = f"stages.{stage}.{block}.body"
            out = layer(f"{name}.1", layer(f"{name}.0", x, stride).clamp_min(0))
            if residual:
                if stride == 2:
                    x = F.pad(F.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 0, x.shape[1]))
                out = out + x
            x = out.clamp_min(0)
    return x.mean(dim=(2, 3)) @ state["head.fc.weight"].T + state["head.fc.bias"]


@pytest.mark.parametrize("residual", [True, False])
def test_equals_the_paper_written_out(residual: bool) -> None:
    torch.manual_seed(0)
    model = randomised(cifar_resnet(14, residual=residual, width=4, in_channels=2, num_classes=7)).eval()
    images = torch.randn(3, 2, 16, 16)
    torch.testing.assert_close(model(images), written_out(model.state_dict(), images, 2, residual), atol=1e-5, rtol=1e-4)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = resnet50(zero_init_residual=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 50_000:
            fan = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
        if isinstance(module, ResidualBlock):
            assert not module.body[2].norm.weight.any()
            assert (module.body[0].norm.weight == 1).all()
    for net in (cifar_resnet(8), cifar_resnet(8, residual=False, zero_init_residual=True)):
        assert (net.stages[0][0].body[1].norm.weight == 1).all()


def test_layout_type_and_device() -> None:
    model = resnet18(num_classes=4, width=16)
    assert model.stages[1][0].body[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64)
    assert model.stages(model.stem(images)).is_contiguous(memory_format=torch.channels_last)
    model.eval()
    expected = model(images)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-4)
    half = model.to(torch.bfloat16)(images.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)
    with torch.device("meta"):
        assert resnet(152)(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize("make", [partial(resnet, 18, width=8, num_classes=3), partial(cifar_resnet, 8, width=4, num_classes=3)])
def test_exports_and_compiles_in_one_graph(make: partial[ResNet]) -> None:
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(images), expected)
    assert exported.module()(torch.randn(5, 3, 32, 32)).shape == (5, 3)
    compiled = torch.compile(model.train(), fullgraph=True, backend="eager")
    compiled(images).sum().backward()
    assert model.stem.get_submodule("conv" if "conv" in dict(model.stem.named_children()) else "0.conv").weight.grad is not None


@pytest.mark.parametrize("size", [8, 20, 28, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_networks_take_any_size(size: int, channels: int) -> None:
    assert cifar_resnet(8, width=4, in_channels=channels)(torch.rand(2, channels, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(resnet, 20), "depth must be one of 18, 34"),
        (partial(cifar_resnet, 18), r"6n \+ 2"),
        (partial(cifar_resnet, 2), r"6n \+ 2"),
        (partial(cifar_resnet, shortcut="D"), "'A', 'B' or 'C'"),
        (partial(resnet, shortcut="a"), "'A', 'B' or 'C'"),
        (partial(resnet, stride_at=2), "stride_at must be 1 or 3"),
        (partial(paper.shortcut_of, "A", 8, 4, 1), "can only add planes"),
    ],
)
def test_what_there_is_not_is_refused(make: partial[ResNet], words: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        make()


def pictures(task: str = "classification") -> Dataset:
    inputs, labels = torch.rand(40, 1, 12, 12), torch.arange(40) % 3
    whole = Split(inputs, labels.float() if task == "regression" else labels)
    return Dataset("x", task, whole, whole, whole, () if task == "regression" else ("a", "b", "c"))


def test_treatment_keeps_the_size_and_all_else() -> None:
    plain = Recipe(pictures(), model=partial(WideResNet, 10, 2, 3, 1))
    treated = residual_net(plain)
    assert treated == plain.replace(model=treated.model)
    net = treated.model()
    assert sum(isinstance(module, ResidualBlock) for module in net.modules()) == 9
    assert net(plain.data.train.inputs[:2]).shape == (2, 3)  # type: ignore[index]
    assert parameters(net) == pytest.approx(parameters(plain.model()), rel=0.25)
    with pytest.raises(AssayError, match="20 layers or more already"):
        residual_net(treated)


def test_treatment_refuses_what_has_no_images_or_no_classes(table: Dataset) -> None:
    for data, net in ((table, partial(mlp, 8, 2)), (pictures("regression"), partial(mlp, 144, 1))):
        with pytest.raises(AssayError, match="residual networks are for classes of images"):
            residual_net(Recipe(data, model=net))


def test_responses_are_measured_before_the_addition() -> None:
    torch.manual_seed(0)
    model, images = cifar_resnet(8, width=4).eval(), torch.randn(64, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = responses(model, images)
    assert found == pytest.approx([1.0] * 7, abs=0.01)  # every 3x3 convolution, normalised over these images
    nn.init.constant_(model.stages[1][0].body[1].norm.weight, 3.0)
    assert responses(model, images)[4] == pytest.approx(3.0, abs=0.03)
    nn.init.ones_(model.stages[1][0].body[1].norm.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    for measure, arms in (
        (paper.degradation_of_plain_nets, 2),
        (paper.no_rate_rescues_plain_nets, 3),
        (paper.identity_shortcuts_suffice, 3),
        (paper.depth_pays_with_shortcuts, 4),
        (paper.small_responses, 4),
    ):
        assert len(measure(lab)) == arms


def test_arms_differ_in_the_shortcut_alone() -> None:
    lab = Lab(scale="smoke")
    plain, residual = (paper._recipe(lab, 14, residual) for residual in (False, True))
    assert residual.replace(model=plain.model).epochs == plain.epochs
    torch.manual_seed(3)
    first = plain.model()
    torch.manual_seed(3)
    second = residual.model()
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
