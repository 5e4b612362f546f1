"""Each method against what it must leave alone, prices and speed-ups by hand, and the claims at smoke scale."""

import time
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.measure import macs
from assay.papers.labels.elr import elr
from assay.papers.training.compute_efficient import (
    Benchmark,
    Point,
    averaged_weights,
    benchmark,
    budgeted,
    chosen,
    data_pruning,
    finish_the_schedule,
    label_smoothing,
    layer_freezing,
    price_at,
    progressive_resizing,
    selective_backprop,
    size_at,
    small_net,
    superconvergence,
    training_flops,
    where_time_goes,
    which_speedups_pay,
)
from assay.recipe import Recipe
from assay.train.hooks import BestEpoch, Hook, InputHook, Run
from assay.train.loop import fit


class Noting(InputHook):
    """Keeps, for every step, what is asked for; a plain class, since tests look at it from outside."""

    def __init__(self, look: object) -> None:
        self.look, self.seen = look, []  # type: ignore[var-annotated]

    def before_forward(self, run: Run) -> None:
        self.seen.append(self.look(run))  # type: ignore[operator]


class NotingSteps(Hook):
    """The same after every step."""

    def __init__(self, look: object) -> None:
        self.look, self.seen = look, []  # type: ignore[var-annotated]

    def after_step(self, run: Run) -> None:
        self.seen.append(self.look(run))  # type: ignore[operator]


@pytest.fixture
def images() -> Dataset:
    """Bars, standing or lying, in noise: 160 images of 16 x 16."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 2
    pictures = 0.3 * torch.rand(160, 1, 16, 16, generator=generator)
    pictures[labels == 0, :, :, 6:9] += 0.7
    pictures[labels == 1, :, 6:9, :] += 0.7
    split = [Split(pictures[a:b], labels[a:b]) for a, b in ((0, 96), (96, 128), (128, 160))]
    return Dataset("bars", "classification", split[0], split[1], split[2], classes=("standing", "lying"))


def recipe(data: Dataset, epochs: int = 4, **more: object) -> Recipe:
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return Recipe(data, partial(small_net, 1, 2), optimizer=optimizer, epochs=epochs, batch_size=32, **more)


def weights(made: Recipe, seed: int = 0) -> dict[str, Tensor]:
    return fit(made, seed).model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------------------------------- single methods


def test_sizes_grow_to_the_whole_and_stay() -> None:
    assert [size_at(done, 28, 0.5, 0.6, 4) for done in (0, 0.15, 0.3, 0.45, 0.59, 0.6, 0.9)] == [16, 16, 20, 24, 28, 28, 28]
    assert [size_at(done, 32, 0.25, 1.0, 1) for done in (0, 0.5, 0.999)] == [8, 20, 32]
    assert size_at(0, 3, 0.5) == 3  # never more than there is
    assert size_at(0, 30, 1.0) == size_at(0, 30, 0.5, until=0) == 30


def test_small_images_first_whole_ones_last(images: Dataset) -> None:
    noting = Noting(lambda run: run.inputs.shape[-1])
    plain = recipe(images)
    made = progressive_resizing(plain)
    fit(made.replace(hooks=(*made.hooks, noting)), 0)
    assert noting.seen == [8, 8, *[12] * 4, *[16] * 6]  # (0.5 + 0.5 t / 7.2) * 16 in fours, t = 0 to 11
    assert same(weights(progressive_resizing(plain, smallest=1.0)), weights(plain))
    with pytest.raises(AssayError, match="one size only"):
        progressive_resizing(plain.replace(model=partial(lenet, 1, 2, 16)))


def test_resizing_needs_a_size_and_shrinks_series_too(table: Dataset) -> None:
    with pytest.raises(AssayError, match="neither images nor series"):
        progressive_resizing(Recipe(table, partial(mlp, 8, 2)))
    from assay.papers.training.compute_efficient.methods import ProgressiveResizing

    line = torch.arange(8.0).expand(2, 3, 8)
    torch.testing.assert_close(ProgressiveResizing().resized(line, 0.0), torch.tensor([0.5, 2.5, 4.5, 6.5]).expand(2, 3, 4))


def test_hard_examples_are_chosen_with_the_power_of_their_rank() -> None:
    """Ten thousand draws for ten losses: frequencies (r - 1/2)^2 / 10^2 within four standard errors."""
    losses = torch.tensor([3.0, 1.0, 2.0, 9.0, 5.0, 4.0, 0.5, 8.0, 7.0, 6.0])
    generator = torch.Generator().manual_seed(0)
    kept = torch.stack([chosen(losses, 2.0, generator) for _ in range(10_000)]).double().mean(0)
    expected = ((losses.argsort().argsort() + 0.5) / 10) ** 2
    assert ((kept - expected).abs() < 4 * (expected * (1 - expected) / 10_000).sqrt() + 1e-3).all()
    assert all(chosen(losses, 1e9, generator).tolist() == (losses == 9).tolist() for _ in range(5))  # never none


def test_selective_backprop_without_beta_is_the_baseline_and_else_saves(images: Dataset) -> None:
    plain = recipe(images)
    assert same(weights(selective_backprop(plain, beta=0)), weights(plain))
    noting = Noting(lambda run: (len(run.inputs), len(run.labels), len(run.index)))
    made = selective_backprop(plain, beta=2)
    trained = fit(made.replace(hooks=(*made.hooks, noting)), 0)
    counts = [count for count, *_ in noting.seen]
    assert all(len(set(seen)) == 1 for seen in noting.seen)
    assert 0.2 < sum(counts) / (12 * 32) < 0.47
    assert 0 <= trained.history["train_accuracy"][-1] <= 1
    assert trained.accuracy() > 0.9
    assert fit(elr(made), 0).accuracy() > 0.5  # a loss with memory sees the rows that were kept
    with pytest.raises(AssayError, match="no classes"):
        selective_backprop(plain.replace(data=_numbers(images)))


def _numbers(data: Dataset) -> Dataset:
    splits = [Split(split.inputs, split.labels.float()) for split in (data.train, data.valid, data.test)]
    return Dataset("numbers", "regression", *splits)


def test_pruning_drops_the_easiest_for_good(images: Dataset) -> None:
    """The dropped ones are those with the smallest error vector of the network as it was when it was time."""
    noting = Noting(lambda run: (run.epoch, run.index.tolist()))
    at_half = fit(recipe(images, epochs=2).replace(schedule=None), 0)
    probs = at_half.logits("train").softmax(1)
    scores = (probs - F.one_hot(images.train.labels, 2)).norm(dim=1)
    easiest = set(scores.argsort()[: int(0.4 * 96)].tolist())
    made = data_pruning(recipe(images), share=0.4, after=0.5)
    fit(made.replace(hooks=(*made.hooks, noting)), 0)
    seen = [{i for epoch, rows in noting.seen if epoch == e for i in rows} for e in range(4)]
    assert len(seen[0]) == len(seen[1]) == 96
    assert seen[2] == seen[3] == set(range(96)) - easiest
    assert same(weights(data_pruning(recipe(images), share=0.0)), weights(recipe(images)))


def test_frozen_layers_have_no_gradient_and_do_not_move(images: Dataset) -> None:
    def look(run: Run) -> tuple[float, list[bool], list[Tensor]]:
        parameters = list(run.model.parameters())
        return run.step / 12, [p.grad is None for p in parameters], [p.detach().clone() for p in parameters]

    noting = NotingSteps(look)
    made = layer_freezing(recipe(images), share=0.67, begin=0.25, end=0.5)
    trained = fit(made.replace(hooks=(*made.hooks, noting)), 0)
    first = sum(1 for name, _ in trained.model.named_parameters() if name.startswith(("0.0.", "0.1.")))  # conv and its norm
    both = sum(1 for name, _ in trained.model.named_parameters() if name.startswith(("0.0.", "0.1.", "0.4.", "0.5.")))
    frozen = [sum(without) for _, without, _ in noting.seen]
    assert frozen == [0, 0, 0, *[first] * 3, *[both] * 6]
    for (_, _, before), (_, without, after) in zip(noting.seen, noting.seen[1:], strict=False):
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert not any(moves and still for moves, still in zip(moved, without, strict=True))
        assert any(moved)
    assert all(parameter.requires_grad for parameter in trained.model.parameters())
    assert trained.parameters == sum(p.numel() for p in trained.model.parameters())
    fit(layer_freezing(recipe(images), share=1.0, begin=0.0, end=0.0), 0)  # the last layer learns whatever is asked
    with pytest.raises(AssayError, match="frozen"):
        layer_freezing(recipe(images).replace(model=_half_frozen))


def _half_frozen() -> nn.Module:
    net = small_net(1, 2)
    net[0].requires_grad_(False)
    return net


def test_averaged_weights_by_hand(images: Dataset) -> None:
    """The exponential average of the weights after each step, begun at the first one."""
    noting = NotingSteps(lambda run: [p.detach().clone() for p in run.model.parameters()])
    plain = recipe(images)
    fit(plain.replace(hooks=(noting,)), 0)
    decay = 0.5 ** (1 / (0.25 * 12))
    expected = noting.seen[0]
    for state in noting.seen[1:]:
        expected = [decay * mean + (1 - decay) * now for mean, now in zip(expected, state, strict=True)]
    averaged = fit(averaged_weights(plain, half_life=0.25), 0)
    for mine, theirs in zip(averaged.model.parameters(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not averaged.memory
    with pytest.raises(AssayError, match="best epoch"):
        averaged_weights(plain.replace(hooks=(BestEpoch(),)))


def test_schedules_end_with_the_training(images: Dataset) -> None:
    for treat, first, last in ((budgeted, 0.05, 0.05 / 12), (superconvergence, 0.05 / 25, 0.0)):
        rates = NotingSteps(lambda run: run.optimizer.param_groups[0]["lr"])
        at = Noting(lambda run: run.optimizer.param_groups[0]["lr"])
        made = treat(recipe(images))
        fit(made.replace(hooks=(rates, at)), 0)
        assert at.seen[0] == pytest.approx(first)
        assert at.seen[-1] == pytest.approx(last, abs=2e-3)
        assert max(at.seen) == pytest.approx(0.05, rel=0.1)
        assert rates.seen[-1] < 1e-3
    fit(superconvergence(recipe(images).replace(optimizer=partial(torch.optim.SGD, lr=0.05))), 0)  # nothing to cycle


def test_smoothing_composes_and_all_methods_go_together(images: Dataset) -> None:
    assert label_smoothing(recipe(images)).loss.keywords == {"label_smoothing": 0.1}
    made = recipe(images)
    for treat in (data_pruning, selective_backprop, layer_freezing, averaged_weights, progressive_resizing, label_smoothing):
        made = treat(made)
    assert len(made.hooks) == 5
    assert fit(elr(made), 0).accuracy() >= 0.4


def test_bad_settings_are_refused(images: Dataset) -> None:
    plain = recipe(images)
    for wrong in (
        lambda: data_pruning(plain, share=1.5),
        lambda: selective_backprop(plain, beta=-1),
        lambda: layer_freezing(plain, begin=0.8, end=0.2),
        lambda: averaged_weights(plain, half_life=0),
        lambda: progressive_resizing(plain, smallest=0),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()


# ------------------------------------------------------------------------------------------------------ the benchmark


def test_operations_of_a_training_are_counted_forwards_and_backwards(images: Dataset) -> None:
    """A perceptron: 2 operations a weight forwards and 4 backwards, but no gradient for the pictures (closed form)."""
    net = partial(mlp, 256, 2, (10,))
    plain = Recipe(images, net, epochs=3, batch_size=32)
    per_example = 2 * (2 * 256 * 10) + 3 * (2 * 10 * 2)
    assert training_flops(plain, examples=64) == pytest.approx(3 * 96 * per_example, rel=0.02)
    assert 2 * macs(net(), (1, 16, 16)) == 2 * (256 * 10 + 10 * 2)
    with FlopCounterMode(display=False) as counter:  # torch's own counter, over the whole training
        fit(plain.replace(watch=()), 0)
    assert training_flops(plain, examples=32) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("treat", "low", "high"),
    [
        (selective_backprop, 0.55, 0.85),  # one forward pass for all, all three for about a third
        (partial(data_pruning, share=0.5, after=0.5), 0.82, 0.84),  # 3/4 of the examples, and scoring: 1 pass of 12
        (averaged_weights, 1.0, 1.0),
        (partial(progressive_resizing, until=1.0), 0.3, 0.7),
        (partial(layer_freezing, begin=0.0, end=0.0), 0.4, 0.8),
    ],
)
def test_what_methods_save(treat: object, low: float, high: float, images: Dataset) -> None:
    plain = recipe(images)
    ratio = training_flops(treat(plain), 96) / training_flops(plain, 96)  # type: ignore[operator]
    assert low - 0.01 <= ratio <= high + 0.01


def test_the_bottleneck_is_found(images: Dataset) -> None:
    """A part that is made slow takes most of the time, whichever it is."""
    plain = recipe(images)
    slow = {
        "data": plain.replace(augment=_slowly),
        "forward": plain.replace(model=_Slow),
        "backward": plain.replace(loss=_slow_loss),
        "optimizer": plain.replace(optimizer=_SlowSGD),
    }
    for name, made in slow.items():
        shares = where_time_goes(made)
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=shares.__getitem__) == name
    with pytest.raises(AssayError, match="single batch"):
        where_time_goes(plain.replace(batch_size=96))
    with pytest.raises(AssayError, match="accumulate"):
        where_time_goes(plain.replace(accumulate=2))


def _work() -> None:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass


def _slowly(inputs: Tensor, generator: torch.Generator) -> Tensor:
    _work()
    return inputs


def _slow_loss(logits: Tensor, labels: Tensor) -> Tensor:
    _work()
    return F.cross_entropy(logits, labels)


class _Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net(1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        _work()
        return self.net(inputs)


class _SlowSGD(torch.optim.SGD):
    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, lr=0.01)  # type: ignore[arg-type]

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        _work()
        super().step()


def test_a_price_is_read_between_the_lengths() -> None:
    prices, reached = [1.0, 4.0, 16.0], [0.5, 0.7, 0.8]
    assert price_at(prices, reached, 0.6) == (pytest.approx(2.0), "")  # half way on the line over the logarithm
    assert price_at(prices, reached, 0.7) == (pytest.approx(4.0), "")
    assert price_at(prices, reached, 0.5) == (pytest.approx(1.0), "")
    assert price_at(prices, reached, 0.4) == (pytest.approx(1.0), "<")
    assert price_at(prices, reached, 0.9) == (pytest.approx(16.0), ">")
    assert price_at([16.0, 1.0, 4.0], [0.7, 0.5, 0.75], 0.7) == (pytest.approx(4.0**0.8), "")  # the longest counts for nothing
    dip = price_at([1.0, 4.0, 16.0, 64.0], [0.5, 0.75, 0.7, 0.8], 0.78)
    assert dip == (pytest.approx(16 * 4**0.6), "")  # from the 0.75 that was there already


def test_speedups_by_hand() -> None:
    def points(method: str, prices: tuple[float, ...], reached: tuple[float, ...]) -> list[Point]:
        return [
            Point(method, 0, epochs, 0.1, price, price / 2, 0.0, quality)
            for epochs, price, quality in zip((2, 4, 8), prices, reached, strict=True)
        ]

    found = Benchmark(
        (
            *points("baseline", (2.0, 4.0, 8.0), (0.6, 0.7, 0.8)),
            *points("half the price", (1.0, 2.0, 4.0), (0.6, 0.7, 0.8)),
            *points("better", (2.0, 4.0, 8.0), (0.7, 0.8, 0.9)),
            *points("worse", (1.0, 2.0, 5.0), (0.1, 0.2, 0.3)),
            *points("much better", (2.0, 4.0, 8.0), (0.75, 0.8, 0.9)),
            *points("the same again", (2.0, 4.0, 8.0), (0.6, 0.7, 0.8)),
        )
    )
    for method in ("baseline", "the same again"):
        for epochs in (None, 2, 4, 8):
            assert found.speedup(method, 0, epochs=epochs) == (pytest.approx(1.0), "")
    with pytest.raises(AssayError, match="2 epochs"):
        found.speedup("better", 0, epochs=1)
    assert found.speedup("half the price", 0) == (pytest.approx(2.0), "")
    assert found.speedup("better", 0) == (pytest.approx(2.0), "")
    assert found.speedup("worse", 0) == (pytest.approx(0.8), "<")
    assert found.speedup("much better", 0) == (pytest.approx(2.0), ">")
    assert found.speedup("half the price", 0, epochs=8) == (pytest.approx(2.0), "")
    assert found.saved("half the price", 0) == 0.5
    assert found.saved("worse", 0, "flops") == pytest.approx(3 / 8)
    shown = found.table()
    assert shown.loc["better", "gain"] == pytest.approx(0.1)
    assert shown.loc["worse", "bounded"] == 1.0
    assert shown.index[-1] == "worse"
    # Where a longer training of the baseline reaches no more than a shorter one, that is nobody's gain.
    for reached in ((0.7, 0.7, 0.8), (0.7, 0.6, 0.8)):
        flat = Benchmark((*points("baseline", (2.0, 4.0, 8.0), reached), *points("the same again", (2.0, 4.0, 8.0), reached)))
        assert flat.speedup("the same again", 0) == flat.speedup("baseline", 0) == (pytest.approx(1.0), "")


def test_a_benchmark_on_own_data(images: Dataset) -> None:
    plain = budgeted(recipe(images))
    found = benchmark(plain, {"pruned": data_pruning}, epochs=(2, 4), rates=(0.01, 0.1), seeds=(0, 1))
    assert found.methods == ("baseline", "pruned")
    assert len(found.points) == 2 * 2 * 2
    assert {point.rate for point in found.of("pruned", 1)} <= {0.01, 0.1}
    assert found.saved("pruned", 0, "flops") > 0.1
    assert set(found.table().index) == {"baseline", "pruned"}
    with pytest.raises(AssayError, match="two lengths"):
        benchmark(plain, {}, epochs=(4,))
    with pytest.raises(AssayError, match="held out"):
        benchmark(recipe(_without_valid(images)), {}, epochs=(1, 2))


def _without_valid(data: Dataset) -> Dataset:
    return Dataset(
        "bars", "classification", data.train, data.valid.take(torch.tensor([], dtype=torch.int64)), data.test, data.classes
    )


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(finish_the_schedule(lab)) == {"full length", "quarter, schedule finished", "quarter, stopped"}
    arms = which_speedups_pay(lab)
    assert arms["baseline"].number == pytest.approx(1.0)  # type: ignore[union-attr]
    assert arms["hard examples only, operations saved"] > 0.2
