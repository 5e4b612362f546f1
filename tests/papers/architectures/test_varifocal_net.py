"""Varifocal networks: zooming by hand, stages that leave each other alone, dispatch, and the claims at smoke scale."""

from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.committee import dispatch
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import ConvNet
from assay.nn.measure import macs
from assay.papers.architectures.resnet import residual_net
from assay.papers.architectures.varifocal_net import (
    Answers,
    FixedBox,
    Localiser,
    Look,
    PulledBoxes,
    Stages,
    VarifocalNet,
    both_questions_at_once,
    cases,
    dispatch_helps,
    dispatch_helps_where_cases_are_abnormal,
    enclosing_box,
    in_stages,
    on_canvases,
    paper_training,
    residual_trunk,
    second_look,
    separate,
    small,
    staged,
    varifocal,
    varifocal_net,
    zoom,
    zoom_helps,
)
from assay.papers.labels.elr import elr
from assay.papers.training.compute_efficient.methods import layer_freezing
from assay.papers.training.deeply_supervised import deeply_supervised
from assay.recipe import Corrected, Recipe
from assay.train.hooks import Run
from assay.train.loop import fit, with_weights
from assay.train.schedules import cosine


def images(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(0))


def test_all_of_the_image_is_the_image() -> None:
    x = images()
    torch.testing.assert_close(zoom(x, torch.full((3, 3), 0.5)), x)


def test_a_quarter_is_that_quarter_at_twice_the_size() -> None:
    """A box on whole pixels: the crop, enlarged by torch's own bilinear interpolation, but for the outermost row."""
    x = images()
    seen = zoom(x, torch.tensor([[0.25, 0.75, 0.25]] * 3))
    crop = F.interpolate(x[:, :, 8:, :8], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[:, :, 1:-1, 1:-1], crop[:, :, 1:-1, 1:-1])


def test_zoom_is_a_spatial_transformer_and_has_its_gradient() -> None:
    x = images().double()
    boxes = torch.tensor(
        [[0.4137, 0.5871, 0.2913], [0.5129, 0.3673, 0.2117], [0.6317, 0.4519, 0.3079]], dtype=torch.float64, requires_grad=True
    )
    theta = torch.zeros(3, 2, 3, dtype=torch.float64)
    theta[:, 0, 0] = theta[:, 1, 1] = 2 * boxes[:, 2]
    theta[:, :, 2] = 2 * boxes[:, :2] - 1
    theirs = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    torch.testing.assert_close(zoom(x, boxes), theirs)
    assert torch.autograd.gradcheck(partial(zoom, x), (boxes,), eps=1e-7, atol=1e-3)


def test_a_step_against_the_gradient_moves_a_box_to_the_object() -> None:
    """A bright disc right of and below the middle: more light in the box, when its centre goes there and it shrinks."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = torch.exp(-((rows - 20) ** 2 + (columns - 18) ** 2) / 50.0)[None, None]
    box = torch.tensor([[0.5, 0.5, 0.4]], requires_grad=True)
    (slope,) = torch.autograd.grad(zoom(disc, box).mean(), box)
    assert slope[0, 1] > slope[0, 0] > 0 > slope[0, 2]


def test_the_smallest_square_around_the_evidence() -> None:
    evidence = torch.zeros(4, 8, 8)
    evidence[0, 2:4, 1:5] = torch.tensor([0.6, 0.6, 1.0, 0.7])
    evidence[0, 7, 7] = 0.4  # less than half of the largest
    evidence[1, 0, 7] = 3.0
    evidence[2] = -torch.ones(8, 8)
    evidence[2, 4, 4] = -0.5
    evidence[3] = 1.0
    wanted = [[3 / 8, 3 / 8, 2 / 8], [7 / 8, 1 / 8, 1 / 8], [4.5 / 8, 4.5 / 8, 1 / 8], [0.5, 0.5, 0.5]]
    torch.testing.assert_close(enclosing_box(evidence), torch.tensor(wanted))


def test_proposals_begin_in_the_middle_and_stay_inside() -> None:
    torch.manual_seed(0)
    localiser = Localiser(5, least=0.2)
    maps = 30 * torch.randn(200, 5, 7, 7)
    torch.testing.assert_close(localiser(maps), torch.tensor([0.5, 0.5, 0.35]).expand(200, 3))
    nn.init.normal_(localiser.net[-1].weight, std=3.0)
    x, y, half = localiser(maps).unbind(dim=1)
    assert half.min() >= 0.2
    assert half.max() <= 0.5
    for centre in (x, y):
        assert (centre - half).min() >= -1e-6
        assert (centre + half).max() <= 1 + 1e-6


@pytest.mark.parametrize("hidden", [None, 6])
def test_a_joint_answer_is_two_answers(hidden: int | None) -> None:
    """Cross-entropy of joint labels is the sum of both cross-entropies, and both distributions come back."""
    torch.manual_seed(0)
    answers = Answers(7, 4, 3, hidden).eval()
    features, types, aux = torch.randn(9, 7), torch.arange(9) % 4, torch.arange(9) % 3
    joint = answers(features)
    first, second = answers.types(features), answers.aux(features)
    torch.testing.assert_close(
        F.cross_entropy(joint, 3 * types + aux), F.cross_entropy(first, types) + F.cross_entropy(second, aux)
    )
    torch.testing.assert_close(separate(joint, 3), (first.log_softmax(1), second.log_softmax(1)))
    assert Answers(7, 4).aux is None


def test_evidence_adds_up_to_the_logit() -> None:
    torch.manual_seed(0)
    look = Look(residual_trunk(2, 4, stride=1), 16, 5)
    maps = look.trunk(images())
    logits = look(images())
    torch.testing.assert_close(look.evidence(maps).mean(dim=(1, 2)) + look.answers.types.bias[logits.argmax(1)], logits.amax(1))


def dots(count: int = 120) -> Dataset:
    """One bright dot of three shapes anywhere on 32x32; shape and half of the picture make six classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    inputs = 0.05 * torch.rand(count, 1, 32, 32, generator=generator)
    shapes = (torch.eye(5), torch.eye(5).flip(0), torch.ones(5, 5))
    for place in range(count):
        top, left = torch.randint(27, (2,), generator=generator).tolist()
        inputs[place, 0, top : top + 5, left : left + 5] += shapes[labels[place]]
    cut = [slice(0, count - 40), slice(0, 0), slice(count - 40, count)]
    return Dataset("dots", "classification", *(Split(inputs[part], labels[part]) for part in cut), ("down", "up", "full"))


def recipe(data: Dataset, epochs: int = 5) -> Recipe:
    return Recipe(
        data,
        model=partial(varifocal_net, 3, 1, 1, 4, 1),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        schedule=cosine,
        epochs=epochs,
        batch_size=20,
        watch=(),
    )


def test_a_stage_changes_its_own_part_alone() -> None:
    torch.manual_seed(0)
    net = varifocal_net(3, 2, 1, 4, 1)
    x, labels = torch.rand(20, 1, 32, 32), torch.arange(20) % 6
    own = {"global": ("glance",), "local": ("localiser", "closer"), "both": ("both",)}
    for part, parts in own.items():
        before = {name: value.clone() for name, value in net.state_dict().items()}
        net.learn(part)
        net.train()
        net.zero_grad()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
        changed = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == set(parts), part


def test_stages_come_in_their_order_each_with_the_whole_schedule() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    schedule = in_stages(optimizer, 10, cosine, (0.4, 0.4, 0.2))
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    down = [0.4, 0.4 * (0.5 + 0.5**1.5), 0.2, 0.4 * (0.5 - 0.5**1.5)]
    assert rates == pytest.approx([*down, *down, 0.4, 0.2])
    with pytest.raises(AssayError, match="no varifocal network"):
        fit(recipe(dots()).replace(model=partial(ConvNet, 1, 3, 32), hooks=(Stages(),)), 0)


def test_whose_turn_it_is() -> None:
    """Of twenty steps 8 are the global half's, 8 the local half's (the first 4 of them with squares pulled), 4 the last net's."""
    net, hook, turns, memory = varifocal_net(3, 1, 1, 4, 1), Stages((0.4, 0.4, 0.2), warm=0.5), [], {}
    for step in range(20):
        hook.before_forward(cast("Run", SimpleNamespace(model=net, step=step, steps_per_epoch=4, epochs=5, memory=memory)))
        turns.append((net.part, net.pulled))
    assert turns == [("global", False)] * 8 + [("local", True)] * 4 + [("local", False)] * 4 + [("both", False)] * 4
    hook.before_forward(cast("Run", SimpleNamespace(model=net, step=0, steps_per_epoch=4, epochs=5, memory=memory)))
    hook.after_epoch(cast("Run", SimpleNamespace(model=net, epoch=4, epochs=5)))
    assert net.part == "global"
    hook.after_epoch(cast("Run", SimpleNamespace(model=net, epoch=5, epochs=5)))
    assert net.part == "both"


def test_in_the_warm_part_squares_are_pulled_and_then_left_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(varifocal_net(3, 1, 1, 4, 1))
    loss = PulledBoxes(net, weight=2.0)
    assert loss.watches == ("0.localiser", "0.pointer")
    assert not list(loss.parameters())
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    layers = {"0.localiser": torch.full((4, 3), 0.5), "0.pointer": torch.full((4, 3), 0.8)}
    torch.testing.assert_close(loss(logits, labels, layers), F.cross_entropy(logits, labels))
    net[0].pulled = True
    torch.testing.assert_close(loss(logits, labels, layers), F.cross_entropy(logits, labels) + 2 * 0.25)


def test_training_in_stages_finds_the_dots_and_comes_back_from_its_weights() -> None:
    data = dots(280)
    trained = fit(staged(recipe(data, epochs=12)), 0)
    assert isinstance(trained.model, VarifocalNet)
    assert trained.model.part == "both"
    boxes = trained.model.boxes(data.test.inputs).detach()
    light = data.test.inputs[:, 0] > 0.5
    at = (torch.arange(32) + 0.5) / 32
    middle = torch.stack([(light.sum(1) * at).sum(1), (light.sum(2) * at).sum(1)], dim=1) / light.sum((1, 2))[:, None]
    apart = torch.corrcoef(torch.cat([boxes[:, :2], middle], dim=1).T)
    assert apart[0, 2] > 0.7
    assert apart[1, 3] > 0.7
    again = with_weights(trained.recipe, 0, torch.device("cpu"), trained.model.state_dict())
    torch.testing.assert_close(again(data.test.inputs), trained.logits())


def test_the_treatment_is_as_large_as_what_it_replaces_and_says_what_does_not_fit(table: Dataset) -> None:
    plain = recipe(dots()).replace(model=partial(ConvNet, 1, 3, 32))
    treated = varifocal(plain)
    ours, theirs = (sum(p.numel() for p in one.model().parameters()) for one in (treated, plain))
    assert abs(ours / theirs - 1) < 0.2
    assert fit(treated.replace(epochs=1), 0).logits().shape == (40, 3)
    with pytest.raises(AssayError, match="already"):
        varifocal(treated)
    for both in (elr(varifocal(plain)), varifocal(elr(plain))):
        assert isinstance(both.loss, Corrected)
        assert fit(both.replace(epochs=1), 0).logits().isfinite().all()
    with pytest.raises(AssayError, match="nothing to zoom into"):
        varifocal(plain.replace(data=table))
    with pytest.raises(AssayError, match="another method took its place"):
        fit(residual_net(treated, depth=8), 0)


def test_who_looks_into_layers_is_told_that_they_do_not_always_run() -> None:
    for both in (deeply_supervised(staged(recipe(dots()))), staged(deeply_supervised(recipe(dots())))):
        with pytest.raises(AssayError, match="Another method looks into the layer"):
            fit(both, 0)


def test_layers_are_frozen_by_the_stages_alone() -> None:
    for both in (layer_freezing(staged(recipe(dots()))), staged(layer_freezing(recipe(dots())))):
        with pytest.raises(AssayError, match="freezes layers"):
            fit(both, 0)


def test_the_small_one_and_half_precision() -> None:
    net = small(10)
    assert sum(p.numel() for p in net.parameters()) < 100_000
    assert macs(net, (1, 28, 28)) < 10_000_000
    x = torch.rand(2, 1, 28, 28)
    half = small(10).eval().to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    trained = fit(paper_training(recipe(dots(), epochs=1)).replace(precision="bfloat16"), 0)
    assert trained.logits().isfinite().all()


def test_exports_and_compiles() -> None:
    torch.manual_seed(0)
    net = varifocal_net(3, 2, 1, 4, 1).eval()
    x = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        said = net(x)
        dynamic = ({0: torch.export.Dim("batch", min=2, max=64)},)
        program = torch.export.export(net, (x[:3],), dynamic_shapes=dynamic).module()
        torch.testing.assert_close(program(x), said)
        torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), said)
    assert varifocal_net().to("meta")(torch.empty(2, 1, 256, 256, device="meta")).shape == (2, 48)


def test_canvases_by_hand() -> None:
    """A white square keeps its area and its place; one that is turned is the other way up."""
    half = torch.zeros(40, 1, 28, 28)
    half[:, :, :14] = 1  # the upper half is white
    made = on_canvases(half, seed=3, strokes=0)
    canvases, turned = made["images"], made["turned"]
    area = canvases.sum(dim=(1, 2, 3))
    assert 10**2 / 2 * 0.9 < area.min() < 100
    assert 200 < area.max() < 24**2 / 2 * 1.1
    rows = torch.arange(48) + 0.5
    assert canvases.max() <= 1
    assert 5 < turned.sum() < 35
    mixed = torch.zeros(40, 1, 28, 28)
    mixed[:, :, :14], mixed[:, :, 14:] = 1.0, 0.5
    canvases = on_canvases(mixed, seed=3, strokes=0)["images"]
    white = ((canvases > 0.9).sum(dim=(1, 3)) * rows).sum(1) / (canvases > 0.9).sum(dim=(1, 2, 3))
    grey = (((canvases > 0.4) & (canvases < 0.6)).sum(dim=(1, 3)) * rows).sum(1) / ((canvases > 0.4) & (canvases < 0.6)).sum(
        dim=(1, 2, 3)
    )
    assert torch.equal(white > grey, turned.bool())
    assert on_canvases(torch.zeros(5, 1, 28, 28), seed=0)["images"].sum(dim=(1, 2, 3)).min() > 4  # the stroke


def test_cases_hold_two_of_each_and_dispatch_restores_them() -> None:
    labels = torch.arange(70) % 7
    rows, more = cases(labels, 4, 2, 14, torch.Generator().manual_seed(0))
    assert rows.unique().numel() == 56
    assert len(more) == 14
    assert not set(rows.flatten().tolist()) & set(more.tolist())
    assert (F.one_hot(labels[rows], 7).sum(dim=1) == 2).all()
    probs = torch.rand(4, 14, 7, generator=torch.Generator().manual_seed(1)).softmax(dim=2)
    answers = dispatch(probs, capacity=2)
    assert (F.one_hot(answers, 7).sum(dim=1) == 2).all()
    greedy = dispatch(probs, capacity=2, method="greedy")
    likely = [probs.log().gather(2, one[..., None]).sum(dim=(1, 2)) for one in (answers, greedy)]
    assert (likely[0] >= likely[1] - 1e-5).all()
    assert torch.equal(dispatch(probs, capacity=14), probs.argmax(dim=2))
    with pytest.raises(AssayError, match="too many"):
        cases(labels, 5, 2, 1, torch.Generator())


def test_the_control_always_looks_at_the_same_place() -> None:
    start = second_look(second_look({**varifocal_net(7, 2, width=8).glance.state_dict()}).glance.state_dict(), box=0.5)
    assert isinstance(start.localiser, FixedBox)
    torch.testing.assert_close(start.boxes(torch.rand(2, 1, 48, 48)), torch.full((2, 3), 0.5))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert {"one look, type", "no zoom, type", "zoom, type", "zoom, polarity"} <= set(zoom_helps(lab))
    assert set(both_questions_at_once(lab)) == {f"{how}, {what}" for how in ("at once", "apart") for what in ("type", "polarity")}
    assert "gain, global half" in dispatch_helps(lab)
    assert "extra noticed, dispatch" in dispatch_helps_where_cases_are_abnormal(lab)
