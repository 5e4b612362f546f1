"""SimpleNet: the authors' sizes, the network written out as arithmetic under their names, and the claims at smoke scale."""

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
from assay.papers.architectures import simplenet as paper
from assay.papers.architectures.resnet import cifar_resnet
from assay.papers.architectures.simplenet import (
    SMALL_PICTURES,
    SimpleNet,
    imagenet_simplenet,
    load_pretrained,
    paper_training,
    simple_net,
    simplenet,
    small,
)
from assay.papers.architectures.wide_resnet import WideResNet
from assay.recipe import Recipe
from assay.train.loop import fit

#: (places in the authors' row of layers, planes, filter, stride) of a small network of 10 layers and one for large pictures.
ROWS: dict[str, list[tuple[int, int, int, int] | str]] = {
    "4 6 M 6 8 M 8k1 5": [(0, 4, 3, 1), (4, 6, 3, 1), "M", (9, 6, 3, 1), (13, 8, 3, 1), "M", (18, 8, 1, 1), (22, 5, 3, 1)],
    "large": [
        *((0, 4, 3, 2), (4, 8, 3, 2), (8, 8, 3, 1), (12, 8, 3, 2), (16, 8, 3, 1), (20, 8, 3, 1), "M"),
        *((26, 16, 3, 1), (30, 16, 3, 1), (34, 16, 3, 1), (38, 32, 3, 1), "M", (44, 128, 1, 1), (48, 16, 1, 1), (52, 16, 3, 1)),
    ],
}


def authors_state(row: list[tuple[int, int, int, int] | str], channels: int, classes: int) -> dict[str, Tensor]:
    """Random weights under the authors' names: places of convolutions, and of the normalisations behind them."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for entry in row:
        if isinstance(entry, str):
            continue
        place, planes, kernel, _ = entry
        shape = (planes, channels, kernel, kernel)
        state[f"features.{place}.weight"] = torch.randn(shape, generator=generator) * 1.4 / (channels * kernel**2) ** 0.5
        state[f"features.{place}.bias"] = torch.randn(planes, generator=generator)
        for part, low in (("weight", 0.5), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.5)):
            state[f"features.{place + 1}.{part}"] = torch.rand(planes, generator=generator) * 0.5 + low
        channels = planes
    state["classifier.weight"] = torch.randn(classes, channels, generator=generator)
    state["classifier.bias"] = torch.randn(classes, generator=generator)
    return state


def written_out(state: dict[str, Tensor], x: Tensor, row: list[tuple[int, int, int, int] | str], padded: bool) -> Tensor:
    """The network as arithmetic on the authors' weights, in evaluation mode."""
    for entry in row:
        if isinstance(entry, str):
            x = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(dim=0)
            continue
        place, _, kernel, stride = entry
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        around = 1 if padded else kernel // 2
        x = F.conv2d(F.pad(x, (around,) * 4), weight, bias, stride)
        parts = (state[f"features.{place + 1}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, var, scale, shift = (part[None, :, None, None] for part in parts)
        x = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp_min(0)
    return x.amax(dim=(2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.mark.parametrize("padded", [False, True])
def test_small_networks_equal_the_one_written_out(padded: bool) -> None:
    line = "4 6 M 6 8 M 8k1 5"
    state = authors_state(ROWS[line], 2, 7)
    model = load_pretrained(simplenet(line, 7, 2, padded=padded, drop=0.3), state).eval()
    images = torch.randn(3, 2, 16, 16)
    with torch.no_grad():
        found, expected = model(images), written_out(state, images, ROWS[line], padded)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("padded", [False, True])
def test_large_networks_equal_the_one_written_out(padded: bool) -> None:
    state = authors_state(ROWS["large"], 3, 5)
    parallel = {f"module.{name}": value for name, value in state.items()}
    model = load_pretrained(imagenet_simplenet(num_classes=5, width=1 / 16, padded=padded), parallel).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = model(images), written_out(state, images, ROWS["large"], padded)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4 * float(expected.abs().max())


def test_weights_of_2018_are_put_where_their_layers_stand_now() -> None:
    line, row = "4 6 M 8 M 8k1 5", [(0, 4, 3, 1), (3, 6, 3, 1), "M", (8, 8, 3, 1), "M", (13, 8, 1, 1), (16, 5, 3, 1)]
    state = {f"module.{name}": value for name, value in authors_state(row, 2, 7).items()}
    model = load_pretrained(simplenet(line, 7, 2), state).eval()
    images = torch.randn(3, 2, 16, 16)
    with torch.no_grad():
        found, expected = model(images), written_out(authors_state(row, 2, 7), images, row, padded=False)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4
    with pytest.raises(AssayError, match="build the network that they are of"):
        load_pretrained(simplenet("4 6 M 8 M 8k1 M 5", 7, 2), state)


def test_sizes_that_the_authors_state() -> None:
    with torch.device("meta"):
        assert parameters(simplenet(num_classes=100)) == 5_521_508
        # "652M" operations in the paper's table: its 1x1 convolutions have no zeros around their input.
        assert macs(simplenet(), (3, 32, 32)) == 652_151_296
        assert macs(simplenet(padded=True), (3, 32, 32)) > 680_000_000
        assert len([module for module in simplenet().modules() if isinstance(module, nn.Conv2d)]) == 13


@pytest.mark.parametrize("mode", [1, 2, 3, 4])
def test_the_later_the_strides_the_more_work(mode: int) -> None:
    with torch.device("meta"):
        net = imagenet_simplenet(mode=mode, width=0.25)
        assert net.get_submodule("features")(torch.empty(1, 3, 224, 224)).shape == (1, 64, 7, 7)  # 1x1 filters grow no maps
        if mode > 1:
            assert macs(net, (3, 224, 224)) > macs(imagenet_simplenet(mode=mode - 1, width=0.25), (3, 224, 224))


def test_weights_of_other_networks_are_refused_and_heads_left_out() -> None:
    line = "4 6 M 6 8 M 8k1 5"
    state = authors_state(ROWS[line], 2, 7)
    tuned = simplenet(line, 3, 2)
    before = tuned.get_submodule("classifier").weight.clone()  # type: ignore[operator]
    load_pretrained(tuned, state, head=False)
    assert torch.equal(tuned.get_submodule("classifier").weight, before)  # type: ignore[arg-type]
    assert torch.equal(tuned.state_dict()["features.22.weight"], state["features.22.weight"])
    with pytest.raises(AssayError, match="instead of"):
        load_pretrained(tuned, state)
    with pytest.raises(AssayError, match="build the network that they are of"):
        load_pretrained(simplenet("4 6 M 6 8 M 8k1 M 5", 7, 2), state)


def test_initial_weights_layout_and_normalisation() -> None:
    torch.manual_seed(0)
    for module in simplenet("310k").modules():
        if isinstance(module, nn.Conv2d):
            fan_in, fan_out = (planes * module.kernel_size[0] ** 2 for planes in (module.in_channels, module.out_channels))
            bound = 2**0.5 * (6 / (fan_in + fan_out)) ** 0.5
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.05


def test_dropout_leaves_out_whole_planes_but_not_before_maxima() -> None:
    torch.manual_seed(0)
    kinds = [type(module).__name__ for module in simplenet("8 8 M 8k1", drop=0.5).get_submodule("features").children()]
    layer = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*layer, "Dropout2d", *layer, "MaxPool2d", "Dropout2d", *layer]
    drop = simplenet("8 8", drop=0.5).get_submodule("features.3").train()
    planes = drop(torch.ones(64, 8, 3, 3)).flatten(2)
    assert set(planes.flatten().tolist()) == {0.0, 2.0}
    assert (planes == planes[:, :, :1]).all()
    model, images = simplenet("8 8 M 8", 3, 1, drop=0.5), torch.rand(4, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("size", [1, 9, 14, 28, 33])
def test_any_size(size: int) -> None:
    assert small(5, 3).eval()(torch.rand(2, 3, size, size)).shape == (2, 5)


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
        (partial(simplenet, "4m"), "'4m' is no layer"),
        (partial(simplenet, "64 P 64"), "'P' is no layer"),
        (partial(imagenet_simplenet, "310k"), "'5m' or '9m'"),
        (partial(imagenet_simplenet, mode=5), "mode 1, 2, 3 or 4"),
    ],
)
def test_what_there_is_not_is_refused(make: partial[SimpleNet], words: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        make()


def pictures(task: str = "classification") -> Dataset:
    inputs, labels = torch.rand(40, 1, 12, 12), torch.arange(40) % 3
    whole = Split(inputs, labels.float() if task == "regression" else labels)
    return Dataset("x", task, whole, whole, whole, () if task == "regression" else ("a", "b", "c"))


@pytest.mark.parametrize("net", [partial(WideResNet, 10, 2, 3, 1), partial(lenet, 1, 3, 12)])
def test_treatment_keeps_the_size_and_all_else(net: partial[nn.Module]) -> None:
    plain = Recipe(pictures(), model=net)
    treated = simple_net(plain)
    assert treated == plain.replace(model=treated.model)
    made = treated.model()
    assert made(plain.data.train.inputs[:2]).shape == (2, 3)  # type: ignore[index]
    assert parameters(made) == pytest.approx(parameters(plain.model()), rel=0.25)
    with pytest.raises(AssayError, match="a SimpleNet already"):
        simple_net(treated)


def test_treatment_refuses_what_has_no_images_or_no_classes(table: Dataset) -> None:
    for data, net in ((table, partial(mlp, 8, 2)), (pictures("regression"), partial(mlp, 144, 1))):
        with pytest.raises(AssayError, match="SimpleNets are for classes of images"):
            simple_net(Recipe(data, model=net))


def test_the_papers_training_runs_and_drops_its_rate() -> None:
    plain = Recipe(pictures(), model=partial(simplenet, "4 M 4", 3, 1), epochs=2)
    treated = paper_training(plain)
    assert fit(treated, seed=0).history["train_loss"][-1] > 0
    weight = nn.Parameter(torch.zeros(1))
    optimizer = treated.optimizer([weight])
    assert treated.schedule is not None
    schedule = treated.schedule(optimizer, 540)
    rates = []
    for _ in range(540):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates.index(rate) for rate in sorted(set(rates), reverse=True)] == [0, 100, 190, 306, 390, 440]


def test_arms_have_the_same_parameters() -> None:
    lines = [SMALL_PICTURES["310k"], paper._first_maximum_after(1), paper._first_maximum_after(2), paper._with_strides()]
    assert paper._first_maximum_after(4) == lines[0]
    nets = [simplenet(line, in_channels=1, width=1 / 4) for line in lines]
    assert len({parameters(net) for net in nets}) == 1
    shapes = [net.get_submodule("features")(torch.rand(2, 1, 28, 28)).shape for net in nets]
    assert len(set(shapes)) == 1  # equally many halvings
    work = [macs(net, (1, 28, 28)) for net in nets]
    assert work[1] < work[2] < work[0]
    control = paper.residual()
    assert parameters(control) == parameters(cifar_resnet(20)) == 269_722


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    for measure, arms in ((paper.plain_matches_residual, 2), (paper.late_downsampling, 3), (paper.max_pool_beats_stride, 2)):
        assert len(measure(lab)) == arms
