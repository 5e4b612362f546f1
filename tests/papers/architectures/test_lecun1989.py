"""LeCun 1989: the published counts, the wiring, and a hand-written trainer that agrees with autograd."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from assay.errors import AssayError
from assay.papers.architectures.lecun1989 import (
    LeCun1989,
    draws,
    ladder_halves_error,
    loss_swap_only_fits,
    modern_habits,
    more_data_less_than_recipe,
    shift_by_pixels,
    time_travel,
    train_replicas,
)
from assay.recipe import Recipe

READS = [[*range(8)], [*range(4, 12)], [*range(4), *range(8, 12)]]


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 16, 16, generator=generator) * 2 - 1, torch.randint(10, (count,), generator=generator)


def networks(stage, seeds):
    return [stage.model(torch.Generator().manual_seed(seed)) for seed in seeds]


def test_counts_are_the_published_ones():
    net = LeCun1989()
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in (net.h1, net.h2, net.h3, net.output)]
    assert sizes == [1068, 2592, 5790, 310]
    assert sum(sizes) == 9760
    units = net.h1.bias.numel() + net.h2.bias.numel() + 30 + 10
    assert units + 256 == 1256
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, 16, 16))
    products = counter.get_total_flops() // 2
    assert products == 63_660
    assert products + units == 64_660  # connections: each unit has one more, from its bias


def test_h2_is_a_dense_convolution_with_a_fixed_mask():
    torch.manual_seed(0)
    net, h1 = LeCun1989(), torch.randn(3, 12, 8, 8)
    dense = torch.zeros(12, 12, 5, 5)
    for plane in range(12):
        dense[plane, READS[plane // 4]] = net.h2.weight[plane].detach()
    expected = F.conv2d(F.pad(h1, (2, 2, 2, 2), value=-1.0), dense, stride=2) + net.h2.bias
    torch.testing.assert_close(net.h2(h1), expected, rtol=0, atol=1e-5)


def test_the_frame_is_background_and_each_unit_has_its_bias():
    torch.manual_seed(0)
    net = LeCun1989()
    sums = net.h1(torch.full((1, 1, 16, 16), -1.0))[0]  # (12, 8, 8)
    torch.testing.assert_close(sums, -net.h1.weight.sum((1, 2, 3))[:, None, None].expand(12, 8, 8), rtol=0, atol=1e-5)
    with torch.no_grad():
        net.h1.bias[3, 2, 5] += 1.0
    moved = net.h1(torch.full((1, 1, 16, 16), -1.0))[0] - sums
    assert (moved != 0).nonzero().tolist() == [[3, 2, 5]]


def test_first_weights_are_uniform_within_the_published_bound():
    net = LeCun1989(generator=torch.Generator().manual_seed(0))
    for layer, fan_in in ((net.h1, 25), (net.h2, 200), (net.h3, 192), (net.output, 30)):
        bound = 2.4 / fan_in**0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.std() / bound - 3**-0.5) < 0.05
    assert not any(layer.bias.any() for layer in (net.h1, net.h2, net.h3))
    assert (net.output.bias == -1).all()
    assert not LeCun1989(head="linear").output.bias.any()


def test_outputs_and_activations():
    torch.manual_seed(0)
    x, _ = images(4)
    assert LeCun1989()(x).abs().max() < 1
    relu = LeCun1989("relu", "linear", dropout=0.25)
    hidden = torch.relu(relu.h2(torch.relu(relu.h1(x)))).flatten(1)
    expected = relu.output(torch.relu(relu.h3(hidden)))
    torch.testing.assert_close(relu.eval()(x), expected)
    assert not torch.equal(relu.train()(x), expected)


def test_the_ladder():
    stages = [time_travel(rung) for rung in range(5)]
    assert [stage.passes for stage in stages] == [23, 23, 46, 60, 80]
    assert [stage.head for stage in stages] == ["tanh", "linear", "linear", "linear", "linear"]
    assert [stage.optimizer for stage in stages] == ["sgd", "sgd", "adamw", "adamw", "adamw"]
    assert [stage.shift for stage in stages] == [0, 0, 0, 1, 1]
    assert [stage.dropout for stage in stages] == [0, 0, 0, 0, 0.25]
    assert [stage.activation for stage in stages] == ["tanh"] * 4 + ["relu"]
    assert stages[0].rate(10) == 0.03
    assert stages[1].rate(10) == 0.01
    assert stages[4].rate(0) == pytest.approx(3e-4)
    assert stages[4].rate(79) == pytest.approx(1e-4)
    assert stages[2].rate(1, passes=3) == pytest.approx(2e-4)
    outputs, labels = torch.tensor([[0.5] * 10]), torch.tensor([3])
    assert stages[0].loss(outputs, labels).item() == pytest.approx((0.5**2 + 9 * 1.5**2) / 10)
    assert stages[1].loss(outputs, labels).item() == pytest.approx(np.log(10))
    with pytest.raises(ValueError, match="0 to 4"):
        time_travel(5)


def plain_loop(stage, seed, x, labels, passes):
    """The same training through autograd, one example a step."""
    net = stage.model(torch.Generator().manual_seed(seed))
    optimizer = stage.make_optimizer(net)
    generator = np.random.default_rng(seed)
    squash = torch.tanh if stage.activation == "tanh" else torch.relu
    for done in range(passes):
        optimizer.param_groups[0]["lr"] = stage.rate(done, passes)
        for start in range(0, len(x), 128):
            portion = x[start : start + 128]
            shifts, factors = draws(generator, len(portion), stage)
            for k in range(len(portion)):
                image = torch.roll(portion[k : k + 1], shifts[k].tolist(), (2, 3))
                hidden = squash(net.h2(squash(net.h1(image)))).flatten(1) * torch.from_numpy(factors[k])
                out = net.output(squash(net.h3(hidden)))
                out = torch.tanh(out) if stage.head == "tanh" else out
                optimizer.zero_grad()
                stage.loss(out, labels[start + k : start + k + 1]).backward()
                optimizer.step()
    return net


@pytest.mark.parametrize("rung", range(5))
def test_training_together_agrees_with_autograd(rung):
    # A higher rate for AdamW than the ladder's: 300 steps must lead far from where they began.
    stage = time_travel(rung) if rung < 2 else replace(time_travel(rung), rates=(3e-3, 1e-3))
    x, labels = images(150)
    nets = networks(stage, (5, 6))
    train_replicas(nets, x, labels, stage, (5, 6), passes=2)
    reference = plain_loop(stage, 6, x, labels, passes=2)
    fresh = stage.model(torch.Generator().manual_seed(6))
    # AdamW makes steps of equal length of gradients that are nothing but rounding errors.
    within = 1e-5 if stage.optimizer == "sgd" else 1e-4
    for mine, theirs, first in zip(nets[1].parameters(), reference.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=within)
        assert (mine - theirs).abs().mean() < 1e-5
        assert (theirs - first).abs().max() > 1e-3


def test_a_replica_does_not_notice_its_neighbours():
    stage, (x, labels) = time_travel(4), images(40)
    together, alone = networks(stage, (1, 2, 3)), networks(stage, (2,))
    train_replicas(together, x, labels, stage, (1, 2, 3), passes=2)
    train_replicas(alone, x, labels, stage, (2,), passes=2)
    for mine, theirs in zip(together[1].parameters(), alone[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    other = networks(stage, (2,))
    train_replicas(other, x, labels, stage, (9,), passes=2)  # same weights, other shifts and masks
    assert not torch.equal(other[0].h3.weight, alone[0].h3.weight)


def test_draws_cover_all_shifts_and_keep_the_mean():
    shifts, factors = draws(np.random.default_rng(0), 2000, time_travel(4))
    values, counts = np.unique(shifts, axis=0, return_counts=True)
    assert len(values) == 9
    assert counts.min() > 150
    assert set(np.unique(factors)) == {np.float32(0), np.float32(1 / 0.75)}
    assert factors.mean() == pytest.approx(1.0, abs=0.01)


def test_the_caller_sees_the_weights_after_each_pass():
    stage, (x, labels) = time_travel(0), images(10)
    nets, seen = networks(stage, (0,)), []
    train_replicas(nets, x, labels, stage, (0,), passes=3, after_pass=lambda done: seen.append((done, nets[0].h3.weight.clone())))
    assert [done for done, _ in seen] == [1, 2, 3]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[2][1], nets[0].h3.weight)
    assert torch.tensor([1e-40]).mul(1).item() > 0  # small numbers are what they were


def test_it_learns_digits():
    from assay.data import load

    data, stage = load("digits16").subset(train=600, test=300), time_travel(0)
    nets = networks(stage, (0, 1))
    train_replicas(nets, data.train.inputs, data.train.labels, stage, (0, 1), passes=8)
    for net in nets:
        assert (net(data.test.inputs).argmax(1) == data.test.labels).double().mean() > 0.8


def test_wrong_shapes_are_refused():
    stage, (x, labels) = time_travel(0), images(4)
    with pytest.raises(ValueError, match="16, 16"):
        train_replicas(networks(stage, (0,)), x[:, :, 1:], labels, stage, (0,))
    with pytest.raises(ValueError, match="N labels"):
        train_replicas(networks(stage, (0,)), x, labels[1:], stage, (0,))
    with pytest.raises(ValueError, match="one seed for each"):
        train_replicas(networks(stage, (0,)), x, labels, stage, (0, 1))
    with pytest.raises(ValueError, match="not those of the stage"):
        train_replicas(networks(stage, (0,)), x, labels, time_travel(4), (0,))


def test_shifting_rolls_each_image_by_its_own_pixels():
    x = torch.rand(50, 3, 6, 5)
    out = shift_by_pixels(x, torch.Generator().manual_seed(0))
    ways = {(dy, dx): torch.roll(x, (dy, dx), (2, 3)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    found = [{way for way, rolled in ways.items() if torch.equal(rolled[k], out[k])} for k in range(50)]
    assert all(len(ways) == 1 for ways in found)
    assert len(set.union(*found)) == 9


def test_modern_habits_change_the_training_and_nothing_else(table):
    from assay.data import load

    before = Recipe(load("digits16").subset(train=100, test=50), model=partial(LeCun1989, head="linear"), epochs=7, batch_size=10)
    after = modern_habits(before, rate=1e-3)
    optimizer = after.optimizer(nn.Linear(2, 2).parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    schedule = after.schedule(optimizer, 30)
    for _ in range(30):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 3)
    assert after.replace(loss=before.loss, optimizer=before.optimizer, schedule=None, augment=None) == before
    assert not torch.equal(after.augment(before.data.test.inputs, torch.Generator().manual_seed(0)), before.data.test.inputs)
    with pytest.raises(AssayError, match="images"):
        modern_habits(Recipe(table, model=LeCun1989))


def test_claims_measure_every_arm(home):
    from assay.lab import Lab

    told: list[tuple[object, ...]] = []
    lab = Lab(scale="smoke", seeds=(0, 1), report=lambda *words: told.append(words))
    for claim in (ladder_halves_error, loss_swap_only_fits, more_data_less_than_recipe):
        measured = claim(lab)
        assert set(measured) == {0, 1}
        wanted = {name for expected in claim.expect for name in (expected.arm, getattr(expected, "than", expected.arm))}
        assert wanted <= set(measured[0])
        assert measured[0] != measured[1]
    assert told
    curve = ladder_halves_error(lab)[0]["modern recipe"]
    assert curve.cost.parameters == 9760
    assert 0 <= curve.number <= 1
