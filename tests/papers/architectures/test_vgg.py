"""VGG: published sizes, torchvision and timm as oracles, dense evaluation, and the claims at smoke scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn.convnet import plain_layers
from assay.nn.measure import depth, parameters
from assay.papers.architectures import vgg as paper
from assay.papers.architectures.vgg import VGG, dense_predict, plain_net, vgg
from assay.papers.architectures.wide_resnet import WideResNet
from assay.recipe import Recipe

#: Parameters with batch normalisation and 1000 classes.
NORMALISED = {"A": 132_868_840, "B": 133_053_736, "D": 138_365_992, "E": 143_678_248}
TORCHVISION = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}


@pytest.mark.parametrize("config", NORMALISED)
def test_parameters_with_batch_normalisation(config: str) -> None:
    with torch.device("meta"):
        assert parameters(vgg(config, batch_norm=True)) == NORMALISED[config]


@pytest.mark.parametrize("config", TORCHVISION)
@pytest.mark.parametrize("normed", [False, True])
def test_names_and_shapes_are_torchvisions(config: str, normed: bool) -> None:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        theirs = getattr(models, TORCHVISION[config] + ("_bn" if normed else ""))().state_dict()
        ours = vgg(config, batch_norm=normed).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


@pytest.mark.parametrize("size", [64, 224])
def test_outputs_equal_torchvisions_with_its_weights(size: int) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    theirs = models.vgg11_bn(num_classes=10).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = vgg("A", num_classes=10, batch_norm=True).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


def narrow(head: str = "fc", config: str = "A") -> VGG:
    torch.manual_seed(0)
    return vgg(config, num_classes=7, width=1 / 16, head=head, in_channels=2).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["fc", "gap"])
def test_dense_evaluation_of_one_crop_is_the_forward_pass(head: str) -> None:
    model = narrow(head)
    for parameter in model.parameters():  # large enough that logits differ
        parameter.data.mul_(3 if parameter.dim() == 2 else 1.2)
    images = torch.randn(2, 2, 224, 224)
    with torch.no_grad():
        logits, scores = model(images), model.score_map(images)
    if head == "fc":
        assert scores.shape == (2, 7, 1, 1)
    assert logits.std() > 1e-3
    torch.testing.assert_close(scores.mean(dim=(2, 3)), logits, atol=1e-4, rtol=1e-4)
    probs = dense_predict(model, images, scales=(224,))
    expected = (logits.softmax(dim=1) + model(images.flip(3)).softmax(dim=1)) / 2
    torch.testing.assert_close(probs, expected, atol=1e-5, rtol=1e-4)


def test_the_score_map_slides_the_classifier_over_the_picture() -> None:
    model = narrow()
    images = torch.randn(1, 2, 256, 288)
    with torch.no_grad():
        scores, maps = model.score_map(images), model.features(images)
        assert scores.shape == (1, 7, 2, 3)
        torch.testing.assert_close(scores[:, :, 1, 2], model.classifier(maps[:, :, 1:8, 2:9].flatten(1)), atol=1e-5, rtol=1e-4)
    probs = dense_predict(model, images, scales=(224, 256))
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(1))


def test_response_normalisation_is_that_of_the_formula() -> None:
    x = torch.rand(1, 6, 2, 2) * 30
    layer = plain_layers("6 LRN", 6)[2]
    squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
    near = torch.stack([squares[:, place : place + 6] for place in range(5)]).sum(dim=0)
    torch.testing.assert_close(layer(x), x / (2 + 1e-4 * near) ** 0.75)


def test_small_filters_see_what_large_ones_do_with_fewer_weights() -> None:
    stacks = {words: plain_layers(words, 16) for words in ("16 16", "16k5", "16 16 16", "16k7")}
    sees = {words: depth(net).sees for words, net in stacks.items()}
    weights = {words: sum(p.numel() for p in net.parameters() if p.dim() == 4) for words, net in stacks.items()}
    assert sees["16 16"] == sees["16k5"] == 5
    assert sees["16 16 16"] == sees["16k7"] == 7
    assert (weights["16 16 16"], weights["16k7"]) == (27 * 256, 49 * 256)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = vgg("A", width=0.25)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            assert module.weight.std().item() == pytest.approx((2 / (9 * module.out_channels)) ** 0.5, rel=0.03)
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.02)
            assert not module.bias.any()


@pytest.mark.parametrize("size", [8, 28, 50])
def test_small_pictures(size: int) -> None:
    assert narrow("gap", "E")(torch.rand(2, 2, size, size)).shape == (2, 7)


def test_exports_and_compiles_in_one_graph() -> None:
    model, images = narrow(), torch.randn(2, 2, 64, 64)
    expected: Tensor = model(images)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), expected)
    assert model.to(torch.bfloat16)(images.bfloat16()).dtype == torch.bfloat16
    assert model.features[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "words"),
    [(partial(vgg, "F"), "'F' is no layer"), (partial(vgg, head="x"), "'fc' or 'gap'"), (partial(vgg, "6k"), "6k")],
)
def test_what_there_is_not_is_refused(make: partial[VGG], words: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        make()


def test_treatment_keeps_the_size_and_all_else() -> None:
    whole = Split(torch.rand(40, 1, 12, 12), torch.arange(40) % 3)
    data = Dataset("x", "classification", whole, whole, whole, ("a", "b", "c"))
    plain = Recipe(data, model=partial(WideResNet, 10, 2, 3, 1))
    treated = plain_net(plain)
    assert treated == plain.replace(model=treated.model)
    assert parameters(treated.model()) == pytest.approx(parameters(plain.model()), rel=0.35)
    assert treated.model()(torch.rand(2, 1, 12, 12)).shape == (2, 3)
    numbers = Dataset("y", "regression", *[Split(whole.inputs, whole.labels.float())] * 3, classes=())
    with pytest.raises(AssayError, match="VGG networks are for classes of images"):
        plain_net(plain.replace(data=numbers))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert len(paper.deeper_is_better(lab)) == 3
    assert len(paper.two_small_filters_beat_a_large_one(lab)) == 2
    assert len(paper.response_normalisation_brings_nothing(lab)) == 2


def test_weights_of_torchvision_and_timm_are_loaded_by_name() -> None:
    models, timm = pytest.importorskip("torchvision").models, pytest.importorskip("timm")
    with torch.device("meta"):
        ours = vgg("A", batch_norm=True)
        for theirs in (models.vgg11_bn(), timm.create_model("vgg11_bn")):
            paper.load_pretrained(ours, theirs.state_dict())
            paper.load_pretrained(vgg("A", 10, batch_norm=True), theirs.state_dict(), head=False)
            paper.load_pretrained(vgg("A", 10, batch_norm=True, head="gap"), theirs.state_dict(), head=False)
            with pytest.raises(AssayError, match="head=False"):
                paper.load_pretrained(vgg("A", 10, batch_norm=True), theirs.state_dict())
            with pytest.raises(AssayError, match="build the network that they are of"):
                paper.load_pretrained(vgg("A"), theirs.state_dict())


def test_outputs_equal_timms_with_its_weights() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("vgg11", num_classes=5).eval()
    ours = paper.load_pretrained(vgg("A", 5), theirs.state_dict()).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-6)
