"""One training on two devices (CPU processes): the same training, that resumes, and fails in one clear sentence.

Losses are compared with one process's within 2e-6. They are of order one in float32, whose spacing there is 1e-7; shares are
summed in another order, and dozens of steps with momentum carry such differences on (1e-7 is seen). A reduction that is wrong
(``test_a_wrong_reduction_would_be_seen``) is off by fifty times the tolerance.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.lab import parse_device
from assay.lab.memory import recipe_fingerprint
from assay.nn import ConvNet, mlp
from assay.papers.labels.elr import elr
from assay.recipe import Recipe, per_example
from assay.train.hooks import Hook, Run
from assay.train.loop import Trained, fit
from assay.train.schedules import cosine

TOLERANCE = 2e-6

needs_fabric = pytest.mark.skipif(
    importlib.util.find_spec("lightning_fabric") is None, reason="Lightning Fabric is missing: pip install 'assay[devices]'"
)


def jitter(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


@dataclass(frozen=True)
class Tally(Hook):
    """Keeps which examples were seen, as a hook of a paper might; draws from the stream that it must draw from."""

    def on_start(self, run: Run) -> None:
        run.memory["seen"] = torch.zeros(len(run.data.train))

    def before_loss(self, run: Run) -> None:
        assert len(run.logits) == len(run.index) == len(run.inputs)
        run.memory["seen"][run.index] += 1
        run.logits = run.logits + 0.01 * torch.randn(run.logits.shape, generator=run.generator)

    def after_epoch(self, run: Run) -> None:
        run.stop = run.epoch == 2


@dataclass(frozen=True)
class Fall(Hook):
    """Ends a process, or raises in it."""

    how: str
    step: int = 5

    def after_step(self, run: Run) -> None:
        if run.step == self.step and os.environ["LOCAL_RANK"] == "1":
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("one over none")


@dataclass(frozen=True)
class Drift(Hook):
    """Moves the weights with numbers that every process draws for itself."""

    def after_step(self, run: Run) -> None:
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))


class Neighbourly(nn.Module):
    """A loss that compares the features of a batch with each other, and has a weight of its own."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(feature_dim))

    def forward(self, logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
        alike = F.normalize(features * self.scale, dim=1) @ F.normalize(features, dim=1).T
        return F.cross_entropy(logits, labels) + 0.1 * (alike - (labels[:, None] == labels).float()).square().mean()


class Layered(nn.Module):
    """A loss that compares the outputs of a hidden layer with each other."""

    watches = ("1",)

    def forward(self, logits: Tensor, labels: Tensor, inputs: Tensor, layers: dict[str, Tensor]) -> Tensor:
        hidden = F.normalize(layers["1"] + inputs.mean(), dim=1)
        return F.cross_entropy(logits, labels) + 0.1 * (hidden @ hidden.T).square().mean()


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def half_spaces(count: int = 401) -> Dataset:
    """An odd number of examples: with batches of 25 most shares are unequal, and the last batch is a single example."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count + 100, 8, generator=generator)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
    train, test = Split(inputs[:count], labels[:count]), Split(inputs[count:], labels[count:])
    return Dataset("half-spaces", "classification", train, Split(inputs[:0], labels[:0]), test, ("below", "above"))


def pictures(count: int = 60) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.rand(count, 3, 8, 8, generator=generator) * 0.5
    images[:, 0] += 0.2 * labels[:, None, None]
    split = Split(images, labels)
    return Dataset("reds", "classification", split, Split(images[:0], labels[:0]), split, ("dark", "red"))


def plain(**changes: object) -> Recipe:
    return Recipe(half_spaces(), model=partial(mlp, 8, 2, (16,)), epochs=3, batch_size=25).replace(**changes)


@pytest.fixture(scope="module")
def importable() -> Iterator[None]:
    """What is sent to other processes must be importable there, and this file is part of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        yield


@pytest.fixture(scope="module")
def crew(importable: None) -> Iterator[object]:
    """Two processes for all tests of this file: starting them takes longer than what they do."""
    from assay.train.devices import Crew

    with Crew(2) as two:
        yield two


def close(one: Trained, two: Trained, tolerance: float = TOLERANCE) -> None:
    assert one.history.keys() == two.history.keys()
    for name, values in one.history.items():
        torch.testing.assert_close(torch.tensor(two.history[name]), torch.tensor(values), atol=tolerance, rtol=0, msg=name)


RECIPES = {
    "perceptron, unequal shares": plain(),
    "clipped, in parts, augmented, AdamW": plain(
        clip_norm=0.5, accumulate=3, augment=jitter, optimizer=partial(torch.optim.AdamW, lr=0.01), schedule=cosine
    ),
    "convolutions": Recipe(pictures(), model=partial(ConvNet, 3, 2, 8, (4, 8), 16), epochs=4, batch_size=16),
    "hook": plain(hooks=(Tally(),)),
    "memory per example": elr(plain()),
    "features compared within the batch": plain(loss=per_example(Neighbourly)),
    "two losses, one of which watches a layer": elr(plain(loss=per_example(Layered))),
}


@needs_fabric
@pytest.mark.parametrize("name", RECIPES)
def test_two_devices_give_the_loss_curve_of_one(crew: object, name: str) -> None:
    recipe = RECIPES[name]
    one, two = fit(recipe, 3), crew.fit(recipe.replace(devices=2), 3)  # type: ignore[attr-defined]
    close(one, two)
    assert (two.parameters, two.flops) == (one.parameters, one.flops)
    assert two.accuracy() == two.history["test_accuracy"][-1]
    assert not two.model.training
    for key, value in one.memory.items():
        assert torch.equal(two.memory[key], value)


@needs_fabric
@pytest.mark.parametrize("name", ["perceptron, unequal shares", "clipped, in parts, augmented, AdamW", "convolutions"])
def test_sharded_weights_give_the_same_too(crew: object, name: str) -> None:
    recipe = RECIPES[name]
    close(fit(recipe, 3), crew.fit(recipe.replace(devices=2, strategy="fsdp"), 3))  # type: ignore[attr-defined]


def test_a_wrong_reduction_would_be_seen() -> None:
    """The usual mistake by hand: each process takes the mean over its share, and the gradients of all count alike."""
    recipe = plain()
    torch.manual_seed(3)
    model = recipe.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order, data = torch.Generator().manual_seed(3), recipe.data.train
    assert isinstance(data.inputs, Tensor)
    curve = []
    for _ in range(recipe.epochs):
        losses = []
        for rows in torch.randperm(401, generator=order).split(25):
            optimizer.zero_grad()
            bounds = [len(rows) * rank // 2 for rank in range(3)]
            shares = [rows[start:stop] for start, stop in pairwise(bounds) if stop > start]
            means = [F.cross_entropy(model(data.inputs[share]), data.labels[share]) for share in shares]
            torch.stack(means).mean().backward()
            losses.append(F.cross_entropy(model(data.inputs[rows]), data.labels[rows]).item())
            optimizer.step()
        curve.append(sum(losses) / len(losses))
    right = fit(recipe, 3).history["train_loss"]
    assert max(abs(a - b) for a, b in zip(curve, right, strict=True)) > 50 * TOLERANCE


@needs_fabric
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_resumes_bit_for_bit(crew: object, tmp_path: Path, strategy: str) -> None:
    """Of 39 steps the 30th, in the middle of the third epoch, is the last that leaves a checkpoint."""
    recipe = plain(
        model=dropping, augment=jitter, optimizer=partial(torch.optim.AdamW, lr=0.01), schedule=cosine, batch_size=32
    ).replace(data=half_spaces(400), devices=2, strategy=strategy)
    checkpoint = tmp_path / "training.checkpoint"
    straight = crew.fit(recipe, 4, checkpoint=checkpoint, checkpoint_seconds=0.0)  # type: ignore[attr-defined]
    state = torch.load(checkpoint, weights_only=True)
    assert (state["counts"]["step"], state["counts"]["at"]) == (30, 4)
    assert not torch.equal(*state["streams"]["torch"])  # every process has its own
    resumed = crew.fit(recipe, 4, checkpoint=checkpoint)  # type: ignore[attr-defined]
    assert resumed.history == straight.history
    ours, theirs = resumed.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@needs_fabric
@pytest.mark.parametrize(
    ("hook", "kind", "words"),
    [
        (Fall("raises"), RuntimeError, r"process 1 of the 2 .* crashed:(.|\n)*ZeroDivisionError: one over none"),
        (Fall("dies"), RuntimeError, r"process 1 of the 2 .* died \(signal SIGKILL\)"),
        (Drift(), AssayError, "drifted apart in epoch 1"),
    ],
)
def test_what_goes_wrong_in_one_process_ends_all(importable: None, hook: Hook, kind: type[Exception], words: str) -> None:
    from assay.train.devices import Crew

    with Crew(2) as two:
        with pytest.raises(kind, match=words):
            two.fit(plain(hooks=(hook,)), 0)
        processes = two.processes
    assert all(process.returncode is not None for process in processes)


LONG = """
import torch
from functools import partial
from assay.data import load
from assay.nn import mlp
from assay.recipe import Recipe
from assay.train.loop import fit

recipe = Recipe(load("wine").normalise(), model=partial(mlp, 13, 3), epochs=100_000, devices=2)
fit(recipe, 0, report=lambda done, total, note: print(note, flush=True))
"""


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


@needs_fabric
def test_nobody_is_left_when_the_starting_process_is_killed(tmp_path: Path) -> None:
    """A script without ``if __name__``: it is not started again in the other processes."""
    script = tmp_path / "script.py"
    script.write_text(LONG)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch")
        ranks = children(process.pid)
        assert len(ranks) == 2
        process.kill()
    until = time.monotonic() + 120
    while any(runs(pid) for pid in ranks) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in ranks)


@needs_fabric
def test_what_cannot_be_sent_is_refused_in_a_sentence(crew: object) -> None:
    with pytest.raises(AssayError, match=r"cannot be sent to another process .* top-level function"):
        crew.fit(plain(augment=lambda inputs, generator: inputs, devices=2), 0)  # type: ignore[attr-defined]


def test_devices_that_are_missing_are_named() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(AssayError, match=r"2 CUDA devices .* has 0|needs Lightning Fabric"):
            fit(plain(devices=2), 0, device="cuda")


def test_without_fabric_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.train.devices.installed", lambda: "")
    with pytest.raises(AssayError, match=r"pip install 'assay\[devices\]'"):
        fit(plain(devices=2), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": 0},
        {"devices": 26},
        {"devices": 9, "accumulate": 3},
        {"strategy": "deepspeed"},
        {"devices": 2, "strategy": "fsdp", "hooks": (Tally(),)},
    ],
)
def test_refuses_recipes_that_cannot_be_shared(wrong: dict[str, object]) -> None:
    with pytest.raises(AssayError, match="Recipe"):
        plain(**wrong)


def test_several_devices_are_another_training_and_one_is_the_same_as_ever() -> None:
    """The identity of a training on one device must never change: what was remembered would be lost."""
    cpu = torch.device("cpu")
    one = recipe_fingerprint(plain(), 0, cpu)
    assert recipe_fingerprint(plain(strategy="fsdp"), 0, cpu) == one
    marks = [recipe_fingerprint(plain(devices=n, strategy=s), 0, cpu) for n, s in ((2, "ddp"), (3, "ddp"), (2, "fsdp"))]
    assert len({one, *marks}) == 4


def test_a_lab_of_several_devices_trains_on_them_what_leaves_it_open(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def note(recipe: Recipe, *_: object) -> None:
        asked.append(recipe.devices)

    monkeypatch.setattr("assay.lab.memory.train", note)
    lab = Lab(device="4xcpu")
    assert lab.device == torch.device("cpu")
    lab.train(plain())
    lab.train(plain(devices=2))
    Lab(device="cpu").train(plain())
    assert asked == [4, 2, 1]


@pytest.mark.parametrize(
    ("text", "device", "count"), [("cpu", "cpu", 1), ("4xcuda", "cuda", 4), ("cuda:1", "cuda:1", 1), ("2xcpu", "cpu", 2)]
)
def test_devices_are_written_with_their_number(text: str, device: str, count: int) -> None:
    assert parse_device(text) == (torch.device(device), count)


@pytest.mark.parametrize("text", ["tpu7", "0xcuda", "x", "fourxcuda"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(AssayError, match="is no device"):
        parse_device(text)
