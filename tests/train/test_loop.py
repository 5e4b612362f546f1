"""The training loop: right, repeatable bit for bit, resumable in the middle, and clear when it goes wrong."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import ConvNet, mlp
from assay.recipe import Recipe, per_example
from assay.train.hooks import Hook, InputHook, Run
from assay.train.loop import Loop, fit
from assay.train.schedules import cosine, linear, one_cycle, steps_at, warmup_cosine


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def jitter(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_equals_a_plain_loop_written_by_hand(table: Dataset) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=3, batch_size=64, optimizer=partial(torch.optim.SGD, lr=0.1))
    trained = fit(recipe, seed=5)

    torch.manual_seed(5)
    model = mlp(8, 2, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    order = torch.Generator().manual_seed(5)
    assert isinstance(table.train.inputs, Tensor)
    for _ in range(3):
        for rows in torch.randperm(400, generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(table.train.inputs[rows]), table.train.labels[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(weights(trained.model), weights(model), atol=1e-6, rtol=1e-5)


def test_learns_and_tells_its_history_and_price(table: Dataset) -> None:
    trained = fit(Recipe(table, model=partial(mlp, 8, 2), epochs=8, batch_size=32), seed=0)
    assert trained.accuracy() > 0.9
    assert trained.accuracy() == trained.history["test_accuracy"][-1]
    assert trained.accuracy().cost.parameters == sum(p.numel() for p in trained.model.parameters())
    assert len(trained.history["train_loss"]) == 8
    assert trained.history["train_loss"][-1] < trained.history["train_loss"][0]
    assert not trained.model.training
    # multiply and add of three matrices: 2 (8 x 256 + 256 x 256 + 256 x 2)
    assert trained.flops == 2 * (8 * 256 + 256 * 256 + 256 * 2)


def test_same_seed_same_bits_other_seed_other_bits(table: Dataset) -> None:
    recipe = Recipe(table, model=net, epochs=2, augment=jitter, schedule=cosine)
    first, again, other = (weights(fit(recipe, seed).model) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_leaves_the_callers_random_stream_alone(table: Dataset) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(Recipe(table, model=net, epochs=1), seed=9)
    assert torch.equal(torch.rand(2), expected)


class Interrupted(Exception):
    pass


@dataclass(frozen=True)
class MeanOfLosses(Hook):
    """Keeps something on the way, as hooks of papers do."""

    def on_start(self, run: Run) -> None:
        run.memory["total"] = torch.zeros(())

    def after_step(self, run: Run) -> None:
        run.memory["total"] += run.loss.detach()


class Remembers(nn.Module):
    """A loss with memory per example."""

    seen: Tensor

    def __init__(self, num_examples: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(num_examples))

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        self.seen[index] += 1
        return (F.cross_entropy(logits, labels, reduction="none") / self.seen[index].sqrt()).mean()


def interrupting(limit: int, checkpoint: Path, recipe: Recipe) -> None:
    """Train until step ``limit`` has been checkpointed, then fall over like a killed process would."""

    @dataclass(frozen=True)
    class Fall(Hook):
        def after_step(self, run: Run) -> None:
            if run.step > limit:
                raise Interrupted

    with pytest.raises(Interrupted):
        fit(recipe.replace(hooks=(*recipe.hooks, Fall())), seed=4, checkpoint=checkpoint, checkpoint_seconds=0.0)


@pytest.mark.parametrize("limit", [1, 6, 7, 13])
def test_resumes_in_the_middle_bit_for_bit(table: Dataset, tmp_path: Path, limit: int) -> None:
    recipe = Recipe(
        table,
        model=net,
        loss=per_example(Remembers),
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        schedule=warmup_cosine,
        augment=jitter,
        hooks=(MeanOfLosses(),),
        epochs=3,
        batch_size=64,
    )
    straight = fit(recipe, seed=4)
    checkpoint = tmp_path / "training.checkpoint"
    interrupting(limit, checkpoint, recipe)
    assert checkpoint.exists()
    resumed = fit(recipe, seed=4, checkpoint=checkpoint)
    assert torch.equal(weights(resumed.model), weights(straight.model))
    assert resumed.history == straight.history
    assert torch.equal(resumed.memory["total"], straight.memory["total"])


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(table: Dataset) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=2, batch_size=64)
    whole, parts = fit(recipe, 0), fit(recipe.replace(accumulate=3), 0)
    torch.testing.assert_close(weights(whole.model), weights(parts.model), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(whole.history["train_loss"]), torch.tensor(parts.history["train_loss"]))


def test_names_the_step_at_which_the_loss_is_not_finite(table: Dataset) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2), optimizer=partial(torch.optim.SGD, lr=1e30), epochs=3, batch_size=100)
    with pytest.raises(AssayError, match=r"not finite .* epoch 1, step [234] of 4 .*lower the learning rate"):
        fit(recipe, seed=0)


def test_hooks_see_their_moments_in_order(table: Dataset) -> None:
    seen: list[str] = []

    @dataclass(frozen=True)
    class Watch(Hook):
        def on_start(self, run: Run) -> None:
            seen.append("start")

        def before_loss(self, run: Run) -> None:
            assert run.logits.shape == (len(run.index), 2)
            seen.append("loss")

        def after_backward(self, run: Run) -> None:
            assert all(p.grad is not None for p in run.model.parameters())
            seen.append("backward")

        def after_step(self, run: Run) -> None:
            seen.append("step")

        def after_epoch(self, run: Run) -> None:
            assert len(run.history["train_loss"]) == run.epoch
            seen.append("epoch")
            run.stop = True

    fit(Recipe(table, model=net, epochs=5, batch_size=200, hooks=(Watch(),)), seed=0)
    assert seen == ["start", "loss", "backward", "step", "loss", "backward", "step", "epoch"]


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (cosine, 0.0),
        (linear, 0.0),
        (partial(linear, final=0.1), 0.1),
        (partial(steps_at, at=(0.5,), gamma=0.2), 0.2),
        (warmup_cosine, 0.0),
    ],
)
def test_schedules_end_where_they_say(schedule: object, last: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, 20)  # type: ignore[operator]
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(last, abs=1e-9)


def images(count: int = 64) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    pictures = torch.rand(count, 3, 8, 8, generator=generator) * 0.3
    pictures[:, 0] += labels[:, None, None]
    split = Split(pictures, labels)
    return Dataset("reds", "classification", split, Split(pictures[:0], labels[:0]), split, ("dark", "red"))


def test_channels_last_and_bfloat16_change_the_layout_not_the_result() -> None:
    recipe = Recipe(images(), model=partial(ConvNet, 3, 2, 8, (4, 8), 16), epochs=6, batch_size=16)
    trained = fit(recipe, 0)
    assert trained.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    torch.manual_seed(0)
    model = ConvNet(3, 2, 8, (4, 8), 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    data = recipe.data.train
    assert isinstance(data.inputs, Tensor)
    for _ in range(6):
        for rows in torch.randperm(64, generator=order).split(16):
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs[rows]), data.labels[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(weights(trained.model), weights(model), atol=1e-4, rtol=1e-3)
    assert fit(recipe.replace(precision="bfloat16"), 0).accuracy() == trained.accuracy() == 1.0


def test_streams_what_does_not_fit_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(images(), model=partial(ConvNet, 3, 2, 8, (4, 8), 16), epochs=2, batch_size=16)
    resident = fit(recipe, 0)
    monkeypatch.setattr("assay.train.loop.RESIDENT_BYTES", 0)
    assert torch.equal(weights(fit(recipe, 0).model), weights(resident.model))


def test_texts_must_be_encoded_first(table: Dataset) -> None:
    words = Split(("a good one", "a bad one"), torch.tensor([1, 0]))
    data = Dataset("words", "classification", words, Split((), torch.empty(0, dtype=torch.int64)), words, ("bad", "good"))
    with pytest.raises(AssayError, match="encode them"):
        fit(Recipe(data, model=net), 0)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"precision": "float16"}, {"accumulate": 999}]
)
def test_refuses_impossible_recipes(table: Dataset, wrong: dict[str, object]) -> None:
    with pytest.raises(AssayError, match="Recipe"):
        Recipe(table, model=net).replace(**wrong)


def test_what_the_loop_computes_is_what_the_protocol_says() -> None:
    """If this changes, raise assay.fingerprint.PROTOCOL: remembered trainings would no longer be what a recipe gives."""
    recipe = Recipe(images(), model=partial(ConvNet, 3, 2, 8, (2, 2), 4), epochs=2, batch_size=16, schedule=cosine)
    losses = torch.tensor(fit(recipe, 0).history["train_loss"])
    torch.testing.assert_close(losses, torch.tensor(PINNED), atol=2e-4, rtol=2e-4)


PINNED = [0.71552, 0.70677]


class SeesMore(nn.Module):
    """Cross-entropy that is told everything, and has a centre for each class to learn."""

    seen: ClassVar[list[tuple[int, tuple[int, ...], int]]] = []

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(num_classes, feature_dim))

    def forward(self, logits: Tensor, labels: Tensor, features: Tensor, epoch: int) -> Tensor:
        self.seen.append((epoch, tuple(features.shape), len(logits)))
        return F.cross_entropy(logits, labels) + (features - self.centres[labels]).square().mean()


def test_a_loss_sees_the_features_it_asks_for(table: Dataset) -> None:
    SeesMore.seen.clear()
    recipe = Recipe(table, model=partial(mlp, 8, 2, (16,)), loss=per_example(SeesMore), epochs=2, batch_size=200)
    assert recipe.loss.wants == ("features", "epoch")
    trained = fit(recipe, seed=0)
    assert SeesMore.seen == [(0, (200, 16), 200)] * 2 + [(1, (200, 16), 200)] * 2
    assert not trained.model[-1]._forward_pre_hooks  # nothing of the loop stays behind


def test_features_move_the_weights_and_centres_are_learnt(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=2, batch_size=200)
    with_centres = fit(plain.replace(loss=per_example(SeesMore)), seed=0)
    assert not torch.equal(with_centres.model[1].weight, fit(plain, seed=0).model[1].weight)
    with pytest.raises(AssayError, match="no linear layer"):
        fit(plain.replace(model=partial(nn.Conv1d, 8, 2, 1), loss=per_example(SeesMore)), seed=0)


class Companion(nn.Module):
    """A head of its own on a hidden layer, and the inputs by heart."""

    watches = ("1",)
    decays = False

    def __init__(self, num_classes: int, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            self.head = nn.Linear(model[:2](example).shape[1], num_classes)

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor, layers: dict[str, Tensor]) -> Tensor:
        assert len(inputs) == len(labels)
        return F.cross_entropy(logits, labels) + F.cross_entropy(self.head(layers["1"]), labels)


def test_a_loss_may_watch_layers_and_size_itself_by_the_network(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=2, batch_size=200)
    watched = fit(plain.replace(loss=per_example(Companion)), seed=0)
    assert not torch.equal(watched.model[1].weight, fit(plain, seed=0).model[1].weight)
    assert not any(module._forward_hooks for module in watched.model.modules())
    with pytest.raises(AssayError, match="layer '1'"):
        fit(plain.replace(model=partial(_Named, 8), loss=per_example(Companion)), seed=0)


class Recurrent(nn.Module):
    """An LSTM on a table, one column after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 4, batch_first=True)
        self.last = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.lstm(inputs[..., None])[0][:, -1])


class SeesStates(nn.Module):
    watches = ("lstm",)

    def forward(self, logits: Tensor, labels: Tensor, layers: dict[str, tuple[Tensor, object]]) -> Tensor:
        return F.cross_entropy(logits, labels) + layers["lstm"][0].float().square().mean()


def test_a_recurrent_layer_may_be_watched_in_half_precision(table: Dataset) -> None:
    recipe = Recipe(table, model=Recurrent, loss=per_example(SeesStates), epochs=1, batch_size=200, precision="bfloat16")
    assert fit(recipe, seed=0).history["train_loss"][0] < 10


class _Named(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.only = nn.Linear(width, 2)

    def __getitem__(self, _: slice) -> nn.Module:
        return self.only

    def forward(self, inputs: Tensor) -> Tensor:
        return self.only(inputs)


def test_weights_of_a_loss_may_be_spared_weight_decay(table: Dataset) -> None:
    optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0.5)
    recipe = Recipe(table, model=partial(mlp, 8, 2, (16,)), loss=per_example(Companion), optimizer=optimizer, epochs=1)
    loop = Loop(recipe, 0, torch.device("cpu"))
    decay = {id(p): group["weight_decay"] for group in loop.optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in loop.model.parameters()} == {0.5}
    assert {decay[id(p)] for p in loop.loss.parameters()} == {0.0}


@dataclass(frozen=True)
class Mixes(InputHook):
    """Each example is half of itself and half of another one."""

    def before_forward(self, run: Run) -> None:
        other = torch.randperm(len(run.inputs), generator=run.generator)
        shares = F.one_hot(run.labels, 2).float()
        run.inputs, run.labels = (run.inputs + run.inputs[other]) / 2, (shares + shares[other]) / 2


def test_a_hook_may_mix_the_batch_before_the_network_sees_it(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=1, batch_size=200)
    mixed = fit(plain.replace(hooks=(Mixes(),)), seed=0)
    assert mixed.history["train_loss"] != fit(plain, seed=0).history["train_loss"]
    assert 0 <= mixed.history["train_accuracy"][0] <= 1  # of the examples' own labels


@dataclass(frozen=True)
class LeavesOut(InputHook):
    """The second half of every batch, and of the second batch all but one, is left out."""

    def before_forward(self, run: Run) -> None:
        keep = slice(0, 1 if run.step % 2 else len(run.inputs) // 2)
        run.inputs, run.labels, run.index = run.inputs[keep], run.labels[keep], run.index[keep]


def test_a_hook_may_leave_examples_out_of_a_batch(table: Dataset) -> None:
    """As if the batches had been smaller; the training accuracy is that of the examples that were seen, each in its place."""
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=1, batch_size=200, shuffle=False)
    trained = fit(plain.replace(hooks=(LeavesOut(),)), seed=0)
    torch.manual_seed(0)
    model = mlp(8, 2, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    right = []
    for rows in (slice(0, 100), slice(200, 201)):
        inputs, labels = table.train.inputs[rows], table.train.labels[rows]
        outputs = model(inputs)
        right += (outputs.argmax(1) == labels).tolist()
        optimizer.zero_grad()
        F.cross_entropy(outputs, labels).backward()
        optimizer.step()
    torch.testing.assert_close(weights(trained.model), weights(model))
    assert trained.history["train_accuracy"] == [pytest.approx(sum(right) / 101)]


def test_one_cycle_goes_up_and_down_and_is_over_with_the_training() -> None:
    for kind, of in ((partial(torch.optim.SGD, momentum=0.9), "momentum"), (torch.optim.Adam, "betas"), (torch.optim.SGD, None)):
        optimizer = kind([nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = one_cycle(optimizer, 100, warmup=0.3)
        rates, momenta = [], []
        for _ in range(100):
            group = optimizer.param_groups[0]
            rates.append(group["lr"])
            momenta.append(group[of][0] if of == "betas" else group[of] if of else 0.0)
            optimizer.step()
            scheduler.step()
        assert rates[0] == pytest.approx(0.1 / 25)
        assert max(rates) == pytest.approx(0.1, rel=1e-3)
        assert rates.index(max(rates)) in (29, 30)
        assert rates[-1] < 1e-4
        if of:
            assert (momenta[0], min(momenta), momenta[-1]) == (0.95, pytest.approx(0.85, abs=1e-3), pytest.approx(0.95, abs=1e-3))
