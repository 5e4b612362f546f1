"""The methods of assay.explain against captum: the same network and images, largest difference and processor time.

    python benchmarks/explain.py    measures and prints the table of docs/explaining.md

A LeNet and 64 images of 28 x 28, one thread; the sides take turns, medians over five rounds count. For DeepLIFT the network has
average pooling: with a ReLU beside a max pooling, captum's attributions miss the difference of the scores.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from captum import attr
from captum.attr._utils import lrp_rules
from torch import Tensor, nn

from assay import explain

ROUNDS = 5


def network(pool: type[nn.Module]) -> nn.Sequential:
    """A LeNet of modules, each used once; no biases, which captum's rules of LRP treat in their own way."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 5, padding=2, bias=False),
        nn.ReLU(),
        pool(2),
        nn.Conv2d(16, 32, 5, padding=2, bias=False),
        nn.ReLU(),
    ]
    layers += [pool(2), nn.Flatten(), nn.Linear(32 * 49, 128, bias=False), nn.ReLU(), nn.Linear(128, 10, bias=False)]
    return nn.Sequential(*layers).eval()


def captum_lrp(model: nn.Sequential, images: Tensor, target: Tensor, rule: Callable[[], object]) -> Tensor:
    """LRP needs a rule on each module, and takes it off again."""
    for part in model:
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.rule = rule()
        if isinstance(part, nn.Flatten):
            part.rule = lrp_rules.EpsilonRule(1e-12)
    return attr.LRP(model).attribute(images, target)


def jobs() -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """name -> our side and captum's."""
    plain, smooth = network(nn.MaxPool2d), network(nn.AvgPool2d)
    images = torch.rand(64, 1, 28, 28)
    target = plain(images).argmax(dim=1)
    start = torch.zeros_like(images[:1])
    layer = plain[3]
    return {
        "gradient": (
            lambda: explain.gradient(plain, images, target),
            lambda: attr.Saliency(plain).attribute(images.clone(), target, abs=False),
        ),
        "deconvnet": (
            lambda: explain.deconvnet(plain, images, target),
            lambda: attr.Deconvolution(plain).attribute(images.clone(), target),
        ),
        "guided backpropagation": (
            lambda: explain.guided_backprop(plain, images, target),
            lambda: attr.GuidedBackprop(plain).attribute(images.clone(), target),
        ),
        "DeepLIFT": (
            lambda: explain.deeplift(smooth, images, target),
            lambda: attr.DeepLift(smooth).attribute(images.clone(), start, target).detach(),
        ),
        "LRP, epsilon": (
            lambda: explain.lrp(plain, images, target, rule=explain.Epsilon(1e-6)),
            lambda: captum_lrp(plain, images.clone(), target, lambda: lrp_rules.EpsilonRule(1e-6)).detach(),
        ),
        "LRP, gamma": (
            lambda: explain.lrp(plain, images, target, rule=explain.Gamma(0.25, 1e-9)),
            lambda: captum_lrp(plain, images.clone(), target, lambda: lrp_rules.GammaRule(0.25)).detach(),
        ),
        "Grad-CAM": (
            lambda: explain.grad_cam(plain, images, target, layer=layer, upsample=False),
            lambda: attr.LayerGradCam(plain, layer).attribute(images, target, relu_attributions=True).detach(),
        ),
        "occlusion, 7 x 7, stride 7": (
            lambda: explain.occlusion(plain, images, target, window=7),
            lambda: attr.Occlusion(plain).attribute(images, (1, 7, 7), strides=(1, 7, 7), target=target),
        ),
    }


def seconds(do: Callable[[], Tensor]) -> float:
    """Processor time."""
    began = time.process_time()
    do()
    return time.process_time() - began


def main() -> None:
    """Measure, print."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| method | largest difference, relative | ours, ms | captum, ms | captum / ours |\n|---|---|---|---|---|")
    for name, (ours, peer) in jobs().items():
        expected = peer()
        away = ((ours() - expected).abs().max() / expected.abs().max()).item()
        pairs = [(seconds(ours), seconds(peer)) for _ in range(ROUNDS)]
        ratio = statistics.median(theirs / own for own, theirs in pairs)
        own, theirs = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"| {name} | {away:.0e} | {own:.1f} | {theirs:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
