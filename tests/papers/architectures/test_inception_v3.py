"""Inception-v3: published sizes, torchvision and timm as oracles, torch's own label smoothing, and the claims at smoke scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.layers import watching
from assay.nn.measure import macs, parameters
from assay.papers.architectures import inception_v3 as paper
from assay.papers.architectures.inception_v3 import (
    AuxiliaryLoss,
    inception_net,
    inception_v3,
    label_smoothing,
    load_pretrained,
    paper_training,
    small,
    small_inception,
    smoothed_cross_entropy,
)
from assay.recipe import Recipe, per_example
from assay.train.loop import fit


def randomised(model: nn.Module) -> nn.Module:
    """Weights, running averages, scales and shifts that are not at their start, so that mixing them up would show."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight, 0.6), (module.bias, -0.2)):
                assert value is not None
                value.data.copy_(torch.rand(value.shape, generator=generator) * 0.5 + low)
    return model


def torchvision_net(aux: bool) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    made: nn.Module = torchvision.models.inception_v3(weights=None, aux_logits=aux, init_weights=False)
    return randomised(made)


def timm_net(aux: bool) -> nn.Module:
    timm = pytest.importorskip("timm")
    made: nn.Module = timm.create_model("inception_v3", aux_logits=aux)
    return randomised(made)


@pytest.mark.parametrize("peer", [torchvision_net, timm_net])
def test_outputs_equal_those_of_others_with_their_weights(peer: object) -> None:
    torch.manual_seed(0)
    theirs = peer(False).eval()  # type: ignore[operator]
    ours = load_pretrained(inception_v3(aux=False), theirs.state_dict()).eval()
    images = torch.randn(2, 3, 123, 139)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-4


def test_both_classifiers_equal_torchvisions_in_training() -> None:
    theirs = torchvision_net(True).double()
    theirs.dropout.p = 0.0
    ours = load_pretrained(inception_v3(dropout=0.0).double(), theirs.state_dict()).train()
    images = torch.randn(2, 3, 299, 299, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = ours.with_aux(images), theirs.train()(images)
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.1
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


def test_an_auxiliary_classifier_that_is_not_there_is_left_out_of_the_weights() -> None:
    with torch.device("meta"):
        assert parameters(inception_v3()) == 27_161_264
        assert parameters(inception_v3(aux=False)) == 23_834_568
    theirs = torchvision_net(True).state_dict()
    tuned = inception_v3(num_classes=5, aux=False)
    before = tuned.head.fc.weight.clone()
    load_pretrained(tuned, theirs, head=False)
    assert torch.equal(tuned.head.fc.weight, before)
    assert torch.equal(tuned.stages[2][1][1][1][0].conv.weight, theirs["Mixed_7b.branch3x3_2a.conv.weight"])
    with pytest.raises(AssayError, match=r"\(1000, 2048\) instead of \(5, 2048\)"):
        load_pretrained(tuned, theirs)
    with pytest.raises(AssayError, match="build the network that they are of"):
        load_pretrained(inception_v3(), {name: value for name, value in theirs.items() if "Aux" not in name})


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
def test_label_smoothing_is_torchs(eps: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.arange(6) % 4
    shares = torch.rand(6, 4, dtype=torch.float64).softmax(dim=1)
    for target in (labels, shares):
        expected = F.cross_entropy(logits, target, label_smoothing=eps)
        found = smoothed_cross_entropy(logits, target, eps)
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (found, expected)]
        torch.testing.assert_close(*slopes)
        torch.testing.assert_close(smoothed_cross_entropy(logits, target, eps, (0.25,) * 4), expected)


def test_label_smoothing_with_a_prior_is_cross_entropy_with_the_mixed_target() -> None:
    torch.manual_seed(0)
    logits, labels, prior = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0]), (0.6, 0.3, 0.1)
    target = 0.8 * F.one_hot(labels, 3) + 0.2 * torch.tensor(prior)
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.2, prior), F.cross_entropy(logits, target))


def test_label_smoothing_as_a_treatment() -> None:
    plain = Recipe(pictures(), model=partial(mlp, 144, 3))
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    found = label_smoothing(plain, eps=0.3).loss(logits, labels)  # type: ignore[operator]
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, label_smoothing=0.3))
    prior = [0.5, 0.3, 0.2]
    found = label_smoothing(plain, eps=0.3, prior=prior).loss(logits, labels)  # type: ignore[operator]
    torch.testing.assert_close(found, F.cross_entropy(logits, 0.7 * F.one_hot(labels, 3) + 0.3 * torch.tensor(prior)))


@pytest.mark.parametrize("aux", ["normalized", "plain", None])
@pytest.mark.parametrize(("size", "channels", "stride"), [(28, 1, 2), (15, 3, 2), (7, 1, 1), (8, 1, 1), (64, 3, 2)])
def test_small_networks_take_any_size(size: int, channels: int, stride: int, aux: str | None) -> None:
    net = small_inception(7, channels, 0.5, aux=aux, stride=stride).train()  # type: ignore[arg-type]
    images = torch.rand(2, channels, size, size)
    assert net(images).shape == (2, 7)
    if aux is None:
        with pytest.raises(ValueError, match="no auxiliary classifier"):
            net.with_aux(images)
    else:
        assert [logits.shape for logits in net.with_aux(images)] == [(2, 7), (2, 7)]


def test_sizes_of_the_small_networks() -> None:
    with torch.device("meta"):
        sizes = {form: macs(small_inception(filters=form), (1, 28, 28)) for form in ("full", "factorized", "linear")}  # type: ignore[arg-type]
        assert sizes["factorized"] == sizes["linear"] < 0.5 * sizes["full"]
        assert parameters(small_inception()) == 14_170
        assert parameters(small(10, 1)) < 100_000
        assert macs(small(10, 1), (1, 28, 28)) < 10_000_000


def test_arms_differ_in_one_thing_alone() -> None:
    nets = []
    for form, aux in (("factorized", None), ("linear", None), ("factorized", "plain")):
        torch.manual_seed(3)
        nets.append(small_inception(filters=form, aux=aux))  # type: ignore[arg-type]
    plain, linear, aided = (net.state_dict() for net in nets)
    assert plain.keys() == linear.keys()
    for name, value in plain.items():
        assert torch.equal(value, linear[name]), name
        assert torch.equal(value, aided[name]), name
    relus = [sum(isinstance(module, nn.ReLU) for module in net.modules()) for net in nets]
    assert relus[0] - relus[1] == 3  # three filters of 7x7 were taken apart


def test_the_auxiliary_loss_sees_the_auxiliary_logits() -> None:
    torch.manual_seed(0)
    net, images, labels = small_inception(aux="plain"), torch.rand(8, 1, 28, 28), torch.arange(8)
    loss = AuxiliaryLoss(weight=0.3, eps=0.2)
    with watching(net, loss.watches) as layers:
        logits = net(images)
        found = loss(logits, labels, layers)
    main, side = net.with_aux(images)
    expected = F.cross_entropy(main, labels, label_smoothing=0.2) + 0.3 * F.cross_entropy(side, labels, label_smoothing=0.2)
    torch.testing.assert_close(found, expected)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with watching(net.eval(), loss.watches) as layers:
        net(images)
        assert not layers  # in evaluation it does not run
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def pictures(task: str = "classification", size: int = 12) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(40, 1, size, size, generator=generator), torch.arange(40) % 3
    whole = Split(inputs, labels.float() if task == "regression" else labels)
    return Dataset("x", task, whole, whole, whole, () if task == "regression" else ("a", "b", "c"))


def test_a_recipe_trains_both_classifiers() -> None:
    plain = Recipe(pictures(), model=partial(small_inception, 3, 1, stride=1, aux="normalized"), epochs=1, batch_size=20)
    aided = fit(label_smoothing(plain.replace(loss=per_example(AuxiliaryLoss))), seed=0).model
    alone = fit(label_smoothing(plain), seed=0).model
    start = partial(small_inception, 3, 1, stride=1, aux="normalized")
    torch.manual_seed(0)
    assert torch.equal(alone.aux.fc.weight, start().aux.fc.weight)  # nothing asked for it
    assert not torch.equal(alone.aux.fc.weight, aided.aux.fc.weight)
    assert not torch.equal(alone.stem[0].conv.weight, aided.stem[0].conv.weight)


@pytest.mark.parametrize("size", [8, 28])
def test_treatment_keeps_the_size_and_all_else(size: int) -> None:
    plain = Recipe(pictures(size=size), model=partial(mlp, size * size, 3, (64,)))
    treated = inception_net(plain)
    assert treated == plain.replace(model=treated.model)
    net = treated.model()
    assert net(plain.data.train.inputs[:2]).shape == (2, 3)  # type: ignore[index]
    assert parameters(net) == pytest.approx(parameters(plain.model()), rel=0.25)


def test_treatment_refuses_what_has_no_images_or_no_classes(table: Dataset) -> None:
    for data, net in ((table, partial(mlp, 8, 2)), (pictures("regression"), partial(mlp, 144, 1))):
        with pytest.raises(AssayError, match="Inception networks are for classes of images"):
            inception_net(Recipe(data, model=net))
    with pytest.raises(AssayError, match="smaller than 7x7"):
        inception_net(Recipe(pictures(size=6), model=partial(mlp, 36, 3)))


def test_the_papers_training_runs() -> None:
    plain = Recipe(pictures(), model=partial(small_inception, 3, 1, 0.5, stride=1), epochs=2, batch_size=20, watch=())
    trained = fit(paper_training(plain), seed=0)
    assert trained.history["train_loss"][-1] < 1.3
    optimizer = paper_training(plain).optimizer([torch.zeros(1, requires_grad=True)])
    assert {name: optimizer.defaults[name] for name in ("lr", "alpha", "eps", "momentum")} == {
        "lr": 0.045,
        "alpha": 0.9,
        "eps": 1.0,
        "momentum": 0,
    }
    assert paper_training(plain).clip_norm == 2.0
    logits, labels = torch.randn(4, 3), torch.arange(4) % 3
    smoothed = paper_training(plain).loss(logits, labels)  # type: ignore[operator]
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.1))
    schedule = paper_training(plain).schedule
    assert schedule is not None
    falling = schedule(optimizer, 100)
    for _ in range(100):
        optimizer.step()
        falling.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.045 * 0.94**50)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(small_inception, filters="whole"), "'factorized', 'linear' or 'full'"),
        (partial(small_inception, aux="yes"), "'normalized', 'plain' or None"),
        (partial(small_inception, stride=3), "stride 1 or 2"),
    ],
)
def test_what_there_is_not_is_refused(make: partial[nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        make()


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    for measure, arms in (
        (paper.factorized_same_accuracy_cheaper, 3),
        (paper.relu_between_the_factors, 2),
        (paper.label_smoothing_helps, 4),
        (paper.auxiliary_classifier_is_a_regularizer, 6),
    ):
        assert len(measure(lab)) == arms


def test_compiles_in_one_graph_with_both_classifiers() -> None:
    model, images = small_inception(aux="normalized").train(), torch.randn(2, 1, 28, 28)
    torch.compile(model, fullgraph=True, backend="eager")(images).sum().backward()
    assert model.stem[0].conv.weight.grad is not None
