"""Maps against captum, losses against their formulas and closed forms, second derivatives, and the claims at smoke scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.layers import watching
from assay.papers.explain.model_guidance import (
    GuidanceLoss,
    attribution,
    box_iou,
    box_masks,
    dilate,
    energy_fixes_shortcut,
    energy_focuses_object,
    energy_loss,
    few_boxes_suffice,
    guided,
    l1_loss,
    last_maps,
    ppce_loss,
    rrr_loss,
    small_net,
)
from assay.papers.labels.elr import elr
from assay.recipe import Recipe
from assay.train.augment import flip_and_crop
from assay.train.loop import fit
from assay.train.losses import multi_label_loss


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.Softplus(), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(5 * 36, 3)).double().eval()


def maps_of(model: nn.Module, images: torch.Tensor, classes: torch.Tensor, layer: str, method: str) -> torch.Tensor:
    with watching(model, (layer,)) as outputs:
        logits = model(images)
        return attribution(logits, outputs[layer], classes, method=method)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["ixg", "gradcam"])
def test_maps_are_those_of_captum(method: str) -> None:
    attr = pytest.importorskip("captum.attr")
    model, images = net(), torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 2, 1, 1])
    ours = maps_of(model, images, classes, "3", method)
    if method == "gradcam":
        theirs = attr.LayerGradCam(model, model[3]).attribute(images, classes, relu_attributions=True).squeeze(1)
    else:
        theirs = attr.LayerGradientXActivation(model, model[3]).attribute(images, classes).sum(dim=1)
        inputs = images.clone().requires_grad_()
        first = attribution(model(inputs), inputs, classes)
        torch.testing.assert_close(first, attr.InputXGradient(model).attribute(inputs, classes).sum(dim=1))
    torch.testing.assert_close(ours, theirs)


def test_losses_in_closed_form() -> None:
    mask = box_masks(torch.tensor([[1.0, 2, 5, 6]]), 8, 8)
    assert int(mask.sum()) == 16
    assert bool((mask[0, 2:6, 1:5] == 1).all())
    inside, everywhere, outside = mask * 3.0, torch.ones(1, 8, 8), 1 - mask
    assert energy_loss(inside, mask).item() == pytest.approx(0)
    assert energy_loss(everywhere, mask).item() == pytest.approx(1 - 16 / 64)
    assert energy_loss(outside - 5 * mask, mask).item() == pytest.approx(1)  # what speaks against the class does not count
    assert energy_loss(torch.zeros(1, 8, 8), mask).item() == pytest.approx(1)
    assert l1_loss(inside, mask).item() == pytest.approx(0)
    assert l1_loss(everywhere, mask).item() == pytest.approx(48 / 64)
    assert rrr_loss(inside, mask).item() == pytest.approx(0)
    assert rrr_loss(-2 * outside, mask).item() == pytest.approx(48)  # both signs count
    assert ppce_loss(inside + outside, mask).item() == pytest.approx(0, abs=1e-6)
    assert ppce_loss(0.5 * mask + outside, mask).item() == pytest.approx(0.6931, abs=1e-3)
    assert box_iou(inside, mask).item() == 1
    assert box_iou(everywhere - 0.4 * mask + 0.4, mask).item() == 0


def test_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    mask = (torch.rand(3, 5, 5, generator=generator) < 0.4).double()
    for one in range(3):
        a, m = maps[one], mask[one]
        plus, scaled = a.clamp(min=0), a / a.abs().max()
        expected = {
            energy_loss: 1 - (plus * m).sum() / plus.sum(),
            l1_loss: (plus / a.abs().max() - m).abs().mean(),
            rrr_loss: (scaled[m == 0] ** 2).sum(),
        }
        for loss, value in expected.items():
            torch.testing.assert_close(loss(maps, mask)[one], value)


def test_dilation_stays_in_the_picture() -> None:
    boxes = torch.tensor([[4.0, 4, 8, 12], [0, 0, 6, 6]])
    assert dilate(boxes, 0.5, 12, 20).tolist() == [[3, 2, 9, 12], [0, 0, 7.5, 7.5]]
    assert torch.equal(dilate(boxes, 0.0, 12, 20), boxes)


def test_second_derivatives() -> None:
    """The gradient of the localisation loss with respect to the weights, against finite differences."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.Conv2d(2, 2, 3, padding=1), nn.Softplus(), nn.Flatten()
    )
    model = nn.Sequential(*model, nn.Linear(2 * 16, 2)).double()
    images, classes = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1])
    mask = box_masks(torch.tensor([[0.0, 0, 2, 3], [1, 1, 4, 4]]), 4, 4).double()
    weight = model[2].weight

    def loss(moved: torch.Tensor) -> torch.Tensor:
        state = {"2.weight": moved}
        hidden = torch.func.functional_call(model[:4], state, images)
        return energy_loss(attribution(model[5](model[4](hidden)), hidden, classes), mask).sum()

    assert torch.autograd.gradcheck(loss, (weight.detach().clone().requires_grad_(),))


def pictures() -> tuple[Dataset, torch.Tensor]:
    """A bright or dark square somewhere tells the class, and so does a stripe at the top, more easily."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    images = 0.1 * torch.rand(120, 1, 16, 16, generator=generator)
    corner = torch.randint(4, 10, (120, 2), generator=generator)
    boxes = torch.cat([corner, corner + 6], dim=1).float()
    for image, (left, top, right, bottom), label in zip(images, boxes.long().tolist(), labels.tolist(), strict=True):
        image[:, top:bottom, left:right] = 0.4 + 0.2 * label
        image[:, :2] = float(label)
    split = Split(images, labels)
    return Dataset("stripes", "classification", split, split.take(torch.arange(0)), split, ("dark", "bright")), boxes


def test_guidance_moves_the_evidence_into_the_box() -> None:
    data, boxes = pictures()
    plain = Recipe(data, model=partial(small_net, 2), optimizer=partial(torch.optim.Adam, lr=1e-2), epochs=8, batch_size=30)
    share = {}
    for name, recipe in {"plain": plain, "guided": guided(plain, boxes, weight=0.3)}.items():
        model, images = fit(recipe, 0).model, data.test.inputs
        maps = maps_of(model, images, data.test.labels, last_maps(model, images[:1]), "ixg")  # type: ignore[arg-type]
        small = box_masks(boxes / 4, *maps.shape[1:])
        share[name] = float((1 - energy_loss(maps.detach(), small)).mean())
    assert share["guided"] > share["plain"] + 0.2


@pytest.mark.parametrize("seed", [0, 1])
def test_evidence_survives_a_large_weight(seed: int) -> None:
    """Every class needs a positive logit of its own, and nothing but its map gives one: no evidence at all is no way out."""
    data, boxes = pictures()
    plain = Recipe(data, model=partial(small_net, 2), optimizer=partial(torch.optim.Adam, lr=1e-2), epochs=8, batch_size=30)
    trained = fit(guided(plain.replace(loss=multi_label_loss), boxes, weight=3.0), seed)
    model, images = trained.model, data.test.inputs
    maps = maps_of(model, images, data.test.labels, last_maps(model, images[:1]), "ixg")  # type: ignore[arg-type]
    torch.testing.assert_close(maps.sum(dim=(1, 2)), trained.logits().gather(1, data.test.labels[:, None]).squeeze(1))
    small = box_masks(boxes / 4, *maps.shape[1:])
    assert float((1 - energy_loss(maps.detach(), small)).mean()) > 0.6


def test_without_boxes_or_weight_it_is_the_plain_loss() -> None:
    data, boxes = pictures()
    plain = Recipe(data, model=partial(small_net, 2), epochs=1, batch_size=30)
    reference = fit(plain, 0).logits()
    for changed in (guided(plain, torch.zeros_like(boxes)), guided(plain, boxes, weight=0.0)):
        torch.testing.assert_close(fit(changed, 0).logits(), reference)


def test_a_frozen_network_is_not_guided() -> None:
    _, boxes = pictures()
    loss = GuidanceLoss(boxes, small_net(2), torch.zeros(1, 1, 16, 16))
    logits, labels = torch.randn(4, 2, requires_grad=True), torch.tensor([0, 1, 1, 0])
    frozen = {loss.watches[0]: torch.rand(4, 32, 4, 4)}
    value = loss(logits, labels, torch.arange(4), frozen)
    torch.testing.assert_close(value, nn.functional.cross_entropy(logits, labels))


def test_it_stands_beside_another_loss_and_refuses_what_cannot_work(table: Dataset) -> None:
    data, boxes = pictures()
    plain = Recipe(data, model=partial(small_net, 2), epochs=1, batch_size=30)
    first, second = (fit(recipe, 0).logits() for recipe in (elr(guided(plain, boxes)), guided(elr(plain), boxes)))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)
    assert fit(guided(plain), 0).accuracy() >= 0  # without boxes: the middle
    with pytest.raises(AssayError, match="as many boxes"):
        guided(plain, boxes[:5])
    with pytest.raises(AssayError, match="augmentation"):
        guided(plain.replace(augment=flip_and_crop), boxes)
    with pytest.raises(AssayError, match="picture"):
        guided(Recipe(table, model=partial(mlp, 8, 2)), boxes)
    with pytest.raises(AssayError, match="no layer with maps"):
        last_maps(mlp(256, 2), data.test.inputs[:1])  # type: ignore[index]
    with pytest.raises(ValueError, match="term"):
        GuidanceLoss(boxes, small_net(2), torch.zeros(1, 1, 16, 16), term="l3")  # type: ignore[arg-type]


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    try:
        lab.data("cbsd68")
    except AssayError:
        pytest.skip("the photos are not here")
    assert {"no guidance", "energy", "energy: EPG"} <= set(energy_fixes_shortcut(lab))
    assert {"0 %", "1 %", "10 %", "100 %", "halfway"} <= set(few_boxes_suffice(lab))
    arms = energy_focuses_object(lab)
    assert {"L1: IoU", "RRR*: EPG", "PPCE: on the object", "L1: lost by large boxes"} <= set(arms)
