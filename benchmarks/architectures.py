"""Standard networks against those of torchvision and timm: parameters, outputs with the same random weights, processor time.

    python benchmarks/architectures.py [NAME ...]    measures and prints the table of docs/architectures.md

One thread; both sides take turns on 32 pictures of 64 x 64 and on 32 of 224 x 224, and the median of three ratios counts.
All of it takes an hour of one core.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "jobs"))
import _networks

LIBRARY = torch.library.Library("torchvision", "DEF")  # torchvision's import fails beside a CPU build for want of these two
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

ROUNDS = 3
SHAPES = ((32, 3, 64, 64), (32, 3, 224, 224))
LARGE = ((32, 3, 96, 96), SHAPES[1])  # for networks that get nothing through from 64 x 64


@dataclass(frozen=True)
class Pair:
    """Our network and the peer's."""

    peer: Callable[[], nn.Module]
    ours: Callable[[Mapping[str, Tensor]], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = SHAPES


def pairs() -> dict[str, Pair]:
    """Call -> both sides; ours is filled with the peer's weights."""
    import timm
    import torchvision

    from assay.papers.architectures import inception_resnet, inception_v3, nfnet, resnet, vgg, wide_resnet

    def of(make: Callable[[], Any], load: Callable[[Any, Any], nn.Module]) -> Callable[[Mapping[str, Tensor]], nn.Module]:
        return lambda weights: load(make(), weights)

    def filled(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        net.load_state_dict(weights)
        return net

    models, create = torchvision.models, timm.create_model

    def inception() -> nn.Module:
        net: nn.Module = models.inception_v3(aux_logits=False, init_weights=False)
        return net

    def long_filters(net: nn.Module) -> nn.Module:
        """timm adds its eps to variances and the authors raise them to it, which is the same for filters that are not tiny."""
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data *= 1000
        return net

    return {
        "resnet18()": Pair(models.resnet18, of(resnet.resnet18, resnet.load_pretrained)),
        "resnet50()": Pair(models.resnet50, of(resnet.resnet50, resnet.load_pretrained)),
        "wide_resnet50_2()": Pair(models.wide_resnet50_2, of(wide_resnet.wide_resnet50_2, resnet.load_pretrained)),
        "vgg16()": Pair(models.vgg16, of(vgg.vgg16, filled), SHAPES[1:]),
        "vgg16_bn()": Pair(models.vgg16_bn, of(vgg.vgg16_bn, filled), SHAPES[1:]),
        "inception_v3(aux=False)": Pair(
            inception, of(lambda: inception_v3.inception_v3(aux=False), inception_v3.load_pretrained), LARGE
        ),
        "inception_v4()": Pair(
            lambda: create("inception_v4"), of(inception_resnet.inception_v4, inception_resnet.load_pretrained), LARGE
        ),
        "inception_resnet_v2()": Pair(
            lambda: create("inception_resnet_v2"),
            of(inception_resnet.inception_resnet_v2, inception_resnet.load_pretrained),
            LARGE,
        ),
        "nf_resnet50()": Pair(lambda: long_filters(create("nf_resnet50")), of(nfnet.nf_resnet50, nfnet.load_pretrained)),
        "nfnet_f0()": Pair(lambda: long_filters(create("dm_nfnet_f0")), of(nfnet.nfnet_f0, nfnet.load_pretrained)),
    }


def seconds(do: Callable[[], object]) -> float:
    """Processor time."""
    began = time.process_time()
    do()
    return time.process_time() - began


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """With the moments of a batch as running averages: the signals of a fresh network die out, and only biases are left."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    for module in norms:
        module.momentum = 0.1
    return net


def apart(ours: nn.Module, peer: nn.Module, images: Tensor) -> float:
    """The largest difference of outputs over the largest output, in double precision.

    With random weights single precision alone is up to 1e-3 off in the deepest of these networks, theirs as ours.
    """
    with torch.no_grad():
        found, expected = (copy.deepcopy(net).double().eval()(images.double()) for net in (ours, peer))
    return ((found - expected).abs().max() / expected.abs().max()).item()


def ratio(ours: Callable[[], object], peer: Callable[[], object]) -> float:
    """Median of peer / ours."""
    ours(), peer()
    return statistics.median([1 / (seconds(ours) / seconds(peer)) for _ in range(ROUNDS)])


def main(wanted: list[str]) -> None:
    """Measure, print."""
    torch.set_num_threads(1)
    print(
        "| network | parameters | the peer's | largest difference | forward | forward and backward |\n|---|---|---|---|---|---|"
    )
    for name, pair in pairs().items():
        if wanted and not any(part in name for part in wanted):
            continue
        torch.manual_seed(0)
        images = torch.randn(pair.shapes[0])
        peer = settled(pair.peer(), images)
        ours = pair.ours(peer.state_dict())
        sizes = [sum(p.numel() for p in net.parameters()) for net in (ours, peer)]
        away = apart(ours, peer, images[:8])
        forwards, steps = (
            " and ".join(f"{ratio(kind(ours, (shape,)), kind(peer, (shape,))):.2f}" for shape in pair.shapes)
            for kind in (_networks.forward, _networks.forward_and_backward)
        )
        print(f"| `{name}` | {sizes[0]:,} | {sizes[1]:,} | {away:.0e} | {forwards} | {steps} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
