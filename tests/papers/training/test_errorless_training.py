"""Errorless training: the floor against a count by hand, the path's ends, what is left where labels contradict; its claims."""

import dataclasses
from collections import Counter, defaultdict
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.training.errorless_training import (
    Continuation,
    clone_misclassified,
    contradict,
    descend,
    errorless_training,
    fewer_errors_in_a_small_network,
    fewer_errors_on_wrong_labels,
    hybrid,
    label_conflict_floor,
    label_conflicts,
    no_run_beats_the_floor,
    predictions,
    stand_ins,
    train_as_usual,
    train_on,
    tunnel_train,
    zero_errors_cost_on_wrong_labels,
)
from assay.recipe import Recipe
from assay.train.hooks import Run
from assay.train.loop import fit
from assay.view import Collection


def spirals(count: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes that a linear model cannot tell apart, in the plane."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    radius = torch.rand(count, generator=generator)
    angle = 2 * radius + y * 2 * torch.pi / 3
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1) * 3, y


def started(X: torch.Tensor, y: torch.Tensor, hidden: int = 30, steps: int = 12) -> nn.Module:
    torch.manual_seed(0)
    model = mlp(X[0].numel(), 3, (hidden,))
    descend(model, X, y, torch.optim.Adam(model.parameters(), lr=0.01), steps, generator=torch.Generator().manual_seed(1))
    return model


# ---------------------------------------------------------------------------------------------------- the floor


@pytest.mark.parametrize("kind", ["table", "images", "tokens", "half"])
def test_the_floor_equals_a_count_by_hand(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    X = torch.randint(3, (200, 1, 2, 2), generator=generator)
    y = torch.randint(4, (200,), generator=generator)
    X = {"table": X.flatten(1).float(), "images": X / 7, "tokens": X.flatten(1), "half": X.bfloat16()}[kind]
    labels: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for row, label in zip(X.flatten(1).tolist(), y.tolist(), strict=True):
        labels[tuple(row)].append(label)
    right = sum(max(Counter(group).values()) for group in labels.values())
    floor = label_conflict_floor(X, y)
    assert floor.best_accuracy == pytest.approx(right / 200)
    assert floor.errors == 200 - right
    assert int(floor.groups.max()) + 1 == len(labels)
    by_hand = [len(set(labels[tuple(row)])) > 1 for row in X.flatten(1).tolist()]
    assert (floor.agreement < 1).tolist() == by_hand
    shares = [
        labels[tuple(row)].count(label) / len(labels[tuple(row)])
        for row, label in zip(X.flatten(1).tolist(), y.tolist(), strict=True)
    ]
    assert floor.agreement.tolist() == pytest.approx(shares)


def test_nearly_the_same_is_not_the_same_and_minus_zero_is_zero() -> None:
    X = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1e-30, 1.0]])
    floor = label_conflict_floor(X, torch.tensor([0, 1, 1]))
    assert floor.groups[0] == floor.groups[1]
    assert floor.groups[0] != floor.groups[2]
    assert floor.errors == 1
    assert label_conflict_floor(X, torch.tensor([1, 1, 0])).best_accuracy == 1


def test_a_network_at_the_floor_errs_in_contradictions_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(120, 30, generator=generator), torch.randint(3, (120,), generator=generator)
    X, y = contradict(X, y, 0.1, 3, generator)
    floor = label_conflict_floor(X, y)
    assert floor.errors == 12
    model = started(X, y)
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    arrived, _ = descend(model, X, y, adam, 1000, enough=floor.errors, generator=generator)
    assert arrived
    wrong = predictions(model, X) != y
    assert int(wrong.sum()) == floor.errors
    assert (floor.agreement[wrong] < 1).all()
    assert (floor.agreement == 1).any()


# ---------------------------------------------------------------------------------------------------- the path


@pytest.mark.parametrize("match", ["nearest", "random"])
def test_the_auxiliary_data_have_no_errors(match: str) -> None:
    X, y = spirals()
    model = started(X, y)
    right = predictions(model, X) == y
    assert 0.3 < right.double().mean() < 0.95
    source = clone_misclassified(model, X, y, match, torch.Generator().manual_seed(0))
    assert torch.equal(y[source], y)
    assert right[source].all()
    assert torch.equal(source[right], torch.arange(len(y))[right])
    assert (predictions(model, X[source]) == y).all()
    if match == "nearest":
        for place in (~right).nonzero().flatten().tolist():
            allowed = (right & (y == y[place])).nonzero().flatten()
            assert source[place] == allowed[(X[allowed] - X[place]).norm(dim=1).argmin()]


def test_tokens_stand_in_by_the_positions_that_differ() -> None:
    X = torch.tensor([[1, 2, 3, 900], [1, 2, 9, 9], [4, 4, 4, 901], [1, 2, 3, 7]])
    source = stand_ins(X, torch.tensor([0, 0, 0, 1]), torch.tensor([False, True, True, True]))
    assert source.tolist() == [1, 1, 2, 3]


def test_a_class_without_a_right_example_is_named() -> None:
    X, y = spirals(30)
    model = nn.Linear(2, 3)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="no example of class 1"):
        clone_misclassified(model, X, y)
    assert torch.equal(stand_ins(X, y, y == 0), torch.arange(30))


def test_the_ends_of_the_path() -> None:
    generator = torch.Generator().manual_seed(0)
    real, clones = torch.randn(2, 50, 3, generator=generator)
    assert torch.equal(hybrid(real, clones, 0.0), clones)
    assert torch.equal(hybrid(real, clones, 1.0), real)
    torch.testing.assert_close(hybrid(real, clones, 0.25), 0.75 * clones + 0.25 * real)
    words, others = torch.randint(1000, (2, 5, 40), generator=generator)
    assert torch.equal(hybrid(words, others, 0.0), others)
    assert torch.equal(hybrid(words, others, 1.0), words)
    shares = [(hybrid(words, others, lam) == words).double().mean().item() for lam in (0.2, 0.5, 0.8)]
    assert shares == pytest.approx([0.2, 0.5, 0.8], abs=0.15)
    before, after = (hybrid(words, others, lam) == words for lam in (0.3, 0.6))
    assert after[before].all()


def test_the_tunnel_ends_without_errors_and_takes_the_steps_it_says() -> None:
    """Labels drawn at random in 30 dimensions: nothing to be learnt but by heart, and room to do so."""
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(120, 30, generator=generator), torch.randint(3, (120,), generator=generator)
    model = started(X, y)
    stood = int((predictions(model, X) != y).sum())
    assert stood > 10
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = []
    walk = tunnel_train(model, X, y, optimizer, batch_size=40, generator=generator, watch=seen.append)
    assert walk.lam == 1
    assert int((predictions(model, X) != y).sum()) == 0 == walk.history[-1].errors
    assert seen == walk.history
    assert walk.history[0].errors == stood
    lams = [point.lam for point in walk.history]
    assert lams == sorted(lams)  # no stage failed, so that all steps stand in the optimizer
    assert walk.steps == walk.history[-1].steps == int(next(iter(optimizer.state.values()))["step"])


def test_a_stage_that_fails_is_taken_back_and_halved() -> None:
    """With no steps to speak of nothing can be learnt: lambda comes only as far as the untrained network stays right."""
    X, y = spirals()
    model = started(X, y)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    walk = tunnel_train(model, X, y, frozen, min_step=0.01, inner_steps=3, batch_size=200)
    assert 0 <= walk.lam < 1
    tried = [point.lam for point in walk.history]
    assert max(tried) > walk.lam
    grains = torch.tensor(tried, dtype=torch.float64) / 0.1 * 2**4  # steps were halved, and halved alone
    torch.testing.assert_close(grains, grains.round())
    source = clone_misclassified(model, X, y)
    assert (predictions(model, hybrid(X, X[source], walk.lam)) == y).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # On the last lambda, half the step that failed would be below the least.
    failed = min(lam for lam in tried if lam > walk.lam)
    assert failed - walk.lam < 2 * 0.01 + 1e-9

    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)  # wild: what it breaks has to be undone
    walk = tunnel_train(model, X, y, optimizer, min_step=0.05, inner_steps=2, batch_size=200)
    assert (predictions(model, hybrid(X, X[source], walk.lam)) == y).all()


def test_the_tunnel_arrives_where_contradictions_leave_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(60, 30, generator=generator), torch.randint(3, (60,), generator=generator)
    X, y = contradict(X, y, 0.1, 3, generator)
    model = started(X, y)
    walk = tunnel_train(model, X, y, torch.optim.Adam(model.parameters(), lr=0.01), batch_size=66, min_step=0.01)
    assert walk.lam == 1
    assert int((predictions(model, X) != y).sum()) == 6 == label_conflict_floor(X, y).errors


def test_steps_have_an_end_and_bad_settings_are_refused() -> None:
    X, y = spirals()
    model = started(X, y)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)
    assert tunnel_train(model, X, y, adam, max_steps=7, inner_steps=5, batch_size=50).steps <= 7
    for wrong in ({"step": 0.0}, {"min_step": 0.2}, {"inner_steps": 0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="steps must be positive"):
            tunnel_train(model, X, y, adam, **wrong)


def test_one_step_of_descent_is_that_of_the_loss() -> None:
    X, y = spirals(60)
    X, model = X.double(), started(X, y).double()
    twin = mlp(2, 3, (30,)).double()
    twin.load_state_dict(model.state_dict())
    wrong = predictions(model, X) != y
    assert wrong.any()
    for emphasis in (1.0, 10.0):
        weights = 1 + (emphasis - 1) * wrong.double()
        twin.load_state_dict(model.state_dict())
        sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
        descend(twin, X, y, sgd, 1, batch_size=60, emphasis=emphasis, generator=torch.Generator().manual_seed(0))
        loss = (F.cross_entropy(model(X), y, reduction="none") * weights).sum() / weights.sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for moved, stood, gradient in zip(twin.parameters(), model.parameters(), gradients, strict=True):
            torch.testing.assert_close(moved, stood - 0.1 * gradient)


def test_where_nothing_is_wrong_there_is_nothing_to_do() -> None:
    """Token ids too, of which none has to change over."""
    words = torch.randint(20, (30, 12), generator=torch.Generator().manual_seed(0))
    model = _Bag(20, 2)
    labels = predictions(model, words)
    walk = tunnel_train(model, words, labels, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (walk.lam, walk.steps) == (1, 0)
    assert {point.errors for point in walk.history} == {0}


def test_rounding_leaves_no_stage_just_short_of_the_real_data() -> None:
    X, y = spirals()
    model = started(X, y)
    step = (1 - 1e-12) / 3  # and twice that: a hair less than 1
    walk = tunnel_train(model, X, predictions(model, X), torch.optim.SGD(model.parameters(), lr=0.1), step=step)
    assert [point.lam for point in walk.history] == [step, 1.0]


# ---------------------------------------------------------------------------------------------------- in a recipe


class Spy(Continuation):
    """Keeps what the network is shown."""

    def before_forward(self, run: Run) -> None:
        super().before_forward(run)
        if "continuation.source" in run.memory:
            own = run.data.train.inputs
            assert isinstance(own, torch.Tensor)
            source = run.memory["continuation.source"][run.index]
            moved = source != run.index
            toward = own[run.index] - own[source]
            share = ((run.inputs - own[source]) * toward)[moved].sum() / toward[moved].square().sum()
            run.memory["share"] = torch.cat([run.memory.get("share", torch.empty(0)), share[None]])
            assert torch.equal(run.inputs[~moved], own[run.index][~moved])


def test_the_recipe_goes_evenly_from_the_stand_ins_to_the_real_ones(table: Dataset) -> None:
    hard = table.flip_labels(0.3, seed=0)
    plain = Recipe(hard, model=partial(mlp, 8, 2, (16,)), epochs=10, batch_size=40, watch=())
    treated = errorless_training(plain)
    assert treated.replace(hooks=()) == plain
    assert errorless_training(plain.replace(hooks=(Continuation(0.5, 0.6),))).hooks[0] == Continuation()
    trained = fit(plain.replace(hooks=(Spy(),)), seed=0)
    shares = trained.memory["share"]
    assert len(shares) == 7 * 10
    torch.testing.assert_close(shares[:60], torch.arange(60) / 60, atol=1e-4, rtol=0)
    torch.testing.assert_close(shares[60:], torch.ones(10), atol=1e-5, rtol=0)
    assert fit(treated, 0).history["train_loss"][3:] != fit(plain, 0).history["train_loss"][3:]
    assert fit(treated, 0).history["train_loss"][:3] == fit(plain, 0).history["train_loss"][:3]


def test_a_class_of_which_nothing_is_right_is_led_from_the_nearest_to_it(table: Dataset) -> None:
    """A network that says "below" of everything, and less so the larger the first column is."""
    plain = Recipe(table, model=_Below, optimizer=partial(torch.optim.SGD, lr=0.0), epochs=2, watch=())
    source = fit(errorless_training(plain), 0).memory["continuation.source"]
    X, y = table.train.inputs, table.train.labels
    assert isinstance(X, torch.Tensor)
    nearest = torch.where(y == 1, X[:, 0], -torch.inf).argmax()
    assert torch.equal(source, torch.where(y == 1, nearest, torch.arange(400)))


class _Below(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 2)
        with torch.no_grad():
            self.weight.zero_()[1, 0] = 1.0
            self.bias.copy_(torch.tensor([10.0, 0.0]))


def test_the_recipe_takes_texts_and_refuses_numbers(table: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(20, (200, 12), generator=generator)
    split = Split(words, (words < 5).sum(dim=1).clamp_max(3) % 2)
    texts = dataclasses.replace(table, train=split, test=split, valid=split.take(torch.arange(0)))
    net = partial(_Bag, 20, 2)
    assert fit(errorless_training(Recipe(texts, model=net, epochs=5)), 0).memory["continuation.source"].shape == (200,)
    number = Split(table.test.inputs, table.test.labels.float())
    regression = dataclasses.replace(table, task="regression", classes=(), train=number, test=number, valid=number)
    with pytest.raises(AssayError, match="one right class"):
        errorless_training(Recipe(regression, model=net))
    with pytest.raises(AssayError, match="begin < end"):
        errorless_training(Recipe(table, model=net), begin=0.9, end=0.5)


class _Bag(nn.Module):
    def __init__(self, words: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(words, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def test_the_probe_names_the_contradicted() -> None:
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [3.0, 4.0], [1.0, 2.0], [1.0, 2.0]])
    data = Collection(inputs, torch.tensor([0, 1, 1, 0, 0, 1]), partial(nn.Linear, 2, 2), "table", ("a", "b"))
    seen = label_conflicts(data)
    assert seen.each["agreement"].tolist() == pytest.approx([2 / 3, 1 / 2, 1, 1 / 2, 2 / 3, 1 / 3])
    assert seen.each["copies"].tolist() == [3, 2, 1, 2, 3, 3]
    assert seen.lists["contradicted, copies side by side"].tolist() == [0, 4, 5, 1, 3]
    assert seen.numbers == {"highest possible accuracy": pytest.approx(4 / 6), "unavoidable errors": 2}
    with pytest.raises(AssayError, match="for classes"):
        label_conflicts(dataclasses.replace(data, classes=()))


def test_every_way_starts_from_the_same_weights() -> None:
    data = load("digits").subset(train=600, test=100, seed=0)
    weights = train_as_usual(data, 10, steps=100, seed=0)["weights"]
    kept = weights.clone()
    runs = [
        train_on(data, 10, weights, way, rate=1e-2, steps=20, seed=0)
        for way in ("continuation", "training on", "errors weigh more")
    ]
    assert torch.equal(weights, kept)
    for name in ("errors", "accuracy"):
        assert len({float(run[name][0]) for run in runs}) == 1
    assert all(run["errors"].min() < run["errors"][0] for run in runs)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(fewer_errors_on_wrong_labels(lab)) > {"continuation", "training on", "errors weigh more"}
    assert 0 <= fewer_errors_in_a_small_network(lab)["continuation, lambda at its end"] <= 1
    assert no_run_beats_the_floor(lab)["highest accuracy, above the ceiling"] <= 1e-9
    assert "a tenth wrong, before" in zero_errors_cost_on_wrong_labels(lab)
