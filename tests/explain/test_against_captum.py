"""Every method gives what captum gives, where captum has it."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import Tensor, nn

from assay import explain
from assay.papers.explain.integrated_gradients import integrated_gradients

attr = pytest.importorskip("captum.attr")
rules = pytest.importorskip("captum.attr._utils.lrp_rules")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of captum: that it sets hooks, and asks for gradients
EXACT = {"rtol": 1e-7, "atol": 1e-9}


def ready(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, inputs = networks.ALL[name]()
    return model, inputs, torch.arange(len(inputs)) % 5


@pytest.mark.parametrize("name", networks.ALL)
def test_gradients(name):
    model, inputs, target = ready(name)
    saliency = attr.Saliency(model).attribute(inputs.clone(), target, abs=False)
    torch.testing.assert_close(explain.gradient(model, inputs, target), saliency, **EXACT)
    product = attr.InputXGradient(model).attribute(inputs.clone(), target)
    torch.testing.assert_close(explain.input_x_gradient(model, inputs, target), product, **EXACT)
    path = attr.IntegratedGradients(model).attribute(inputs.clone(), target=target, n_steps=20)
    torch.testing.assert_close(integrated_gradients(model, inputs, target, steps=20), path, **EXACT)
    torch.testing.assert_close(explain.integrated_gradients(model, inputs, target, steps=20), path, **EXACT)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "transformer"])
@pytest.mark.parametrize(("ours", "peer"), [("deconvnet", "Deconvolution"), ("guided_backprop", "GuidedBackprop")])
def test_rectified(name, ours, peer):
    model, inputs, target = ready(name)
    if name == "transformer":
        model, inputs = networks.transformer(nn.ReLU())  # captum sees modules only
    expected = getattr(attr, peer)(model).attribute(inputs.clone(), target)
    found = getattr(explain, ours)(model, inputs, target)
    torch.testing.assert_close(found, expected, **EXACT)
    assert (found - explain.gradient(model, inputs, target)).abs().max() > 1e-3


def pooled() -> tuple[nn.Module, Tensor]:
    """Max pooling with no ReLU beside it: with one, captum's attributions miss the difference of the scores."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(150, 8), nn.ReLU(), nn.Linear(8, 5))
    return net.double().eval(), torch.rand(6, 3, 12, 12).double()


DEEPLIFT = {
    "mlp": networks.perceptron,
    "cnn": lambda: networks.cnn(nn.AvgPool2d),
    "max pooling": pooled,
    "resnet": networks.resnet,
}


@pytest.mark.parametrize("name", DEEPLIFT)
@pytest.mark.parametrize("start", ["zero", "one for each"])
def test_deeplift(name, start):
    model, inputs = DEEPLIFT[name]()
    target = torch.arange(len(inputs)) % 5
    torch.manual_seed(9)
    baseline = torch.zeros_like(inputs[:1]) if start == "zero" else torch.rand_like(inputs)
    expected = attr.DeepLift(model).attribute(inputs.clone(), baselines=baseline, target=target)
    torch.testing.assert_close(explain.deeplift(model, inputs, target, baseline=baseline), expected, **EXACT)


def test_deeplift_with_several_references():
    model, inputs = networks.cnn(nn.AvgPool2d)
    target = torch.arange(len(inputs)) % 5
    references = torch.rand(3, *inputs.shape[1:], dtype=torch.float64)
    expected = attr.DeepLiftShap(model).attribute(inputs.clone(), baselines=references, target=target)
    found = explain.deeplift(model, inputs, target, baseline=references, average=True)
    torch.testing.assert_close(found, expected, **EXACT)


CAPTUM_RULES = {
    "epsilon": (lambda: rules.EpsilonRule(0.05), explain.Epsilon(0.05)),
    "lrp-0": (lambda: rules.EpsilonRule(1e-9), explain.Epsilon(1e-9)),
    "z-plus": (lambda: rules.Alpha1_Beta0_Rule(), explain.AlphaBeta(1, 0, epsilon=1e-9)),
    "gamma": (lambda: rules.GammaRule(0.25), explain.Gamma(0.25, epsilon=1e-9)),
}


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("rule", CAPTUM_RULES)
def test_lrp(name, rule):
    """captum leaves biases as they are and asks for no signs of inputs and sums: the same where there is nothing to ask."""
    model, inputs, target = ready(name)
    inputs = inputs.abs()
    for part in model:
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.zeros_(part.bias)
            part.rule = CAPTUM_RULES[rule][0]()
        if isinstance(part, nn.Flatten):
            part.rule = rules.EpsilonRule(1e-12)  # captum has none for it
    model = nn.Sequential(*[nn.ReLU() if isinstance(part, nn.Tanh) else part for part in model])
    target = model(inputs).argmax(dim=1)
    assert (model(inputs).amax(dim=1) > 0).all()
    expected = attr.LRP(model).attribute(inputs.clone(), target)
    for part in model:
        part.__dict__.pop("rule", None)
    torch.testing.assert_close(explain.lrp(model, inputs, target, rule=CAPTUM_RULES[rule][1]), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam(name, relu):
    model, inputs, target = ready(name)
    layer = model[3]
    peer = attr.LayerGradCam(model, layer)
    expected = peer.attribute(inputs.clone(), target, relu_attributions=relu)
    found = explain.grad_cam(model, inputs, target, layer=layer, relu=relu, upsample=False)
    torch.testing.assert_close(found, expected, **EXACT)
    large = attr.LayerAttribution.interpolate(expected, inputs.shape[2:], "bilinear")
    torch.testing.assert_close(explain.grad_cam(model, inputs, target, layer="3", relu=relu), large, **EXACT)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize(("window", "stride"), [((4, 4), (2, 2)), ((5, 3), (4, 3)), ((8, 8), (1, 1))])
def test_occlusion_of_images(name, window, stride):
    model, inputs, target = ready(name)
    peer = attr.Occlusion(model)
    expected = peer.attribute(inputs.clone(), (3, *window), strides=(3, *stride), target=target, baselines=0.3)
    for chunk in (256, 7):
        found = explain.occlusion(model, inputs, target, window=window, stride=stride, fill=0.3, chunk=chunk)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)  # captum adds in single precision


def test_occlusion_of_sequences():
    """What stands behind the first dimension are the places: here the entries of all vectors at once."""
    model, inputs, target = ready("transformer")
    expected = attr.Occlusion(model).attribute(inputs.clone(), (6, 4), strides=(6, 3), target=target)
    found = explain.occlusion(model, inputs, target, window=4, stride=3)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)


def test_occlusion_of_tables():
    model, inputs, target = ready("mlp")
    expected = attr.Occlusion(model).attribute(inputs.clone(), (3,), strides=(2,), target=target)
    found = explain.occlusion(model, inputs, target, window=3, stride=2)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)
