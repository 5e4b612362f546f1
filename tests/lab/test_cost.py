"""Costs: the counter against closed forms, and claims that are counted, begun or extrapolated without being trained."""

import importlib
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from assay import catalogue
from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.cost import Costs, Rates, Work, _Cut, _limit, cost, count_step, count_training, makespan, stand_in, summary
from assay.nn import mlp
from assay.paper import Claim, Higher, Measured, claim
from assay.papers.architectures.wide_resnet import wide_bottleneck, wide_resnet
from assay.recipe import Recipe

RATES = Rates(float32=1e12, bfloat16=4e12, core=1e10, launch=1e-5)
PAPER = catalogue.papers()["elr"]


def test_a_linear_layer_by_hand() -> None:
    """Forward 2 B in out; backwards the same for the weights, and for what comes in unless that is the data."""
    step = count_step(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.zeros(1, 8), 32)
    first, second = 2 * 32 * 8 * 16, 2 * 32 * 16 * 4
    assert step.look == first + second
    assert step.train == 2 * first + 3 * second
    assert step.train_launches > step.look_launches >= 3


def test_a_convolution_by_hand() -> None:
    """Two numbers for each of kernel x channels of an output value, at every place."""
    step = count_step(nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.zeros(1, 3, 16, 16), 4)
    assert step.look == 2 * 4 * 8 * (8 * 8) * (3 * 3 * 3)
    assert step.train == 2 * step.look


def test_recurrent_networks_count_too() -> None:
    """They are one piece to mkldnn, of which the counter knows nothing; without memory they are matrix products."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(16, 32, batch_first=True)

        def forward(self, series: Tensor) -> Tensor:
            return self.cell(series)[0][:, -1]

    assert count_step(Last(), torch.zeros(1, 10, 16), 4).look == 2 * 4 * 10 * (16 + 32) * 4 * 32


def multiplications(depth: int, width: int) -> int:
    """Of a wide residual network on 3 x 32 x 32, written down from the paper's Table 1."""
    total, planes, side = 3 * 16 * 9 * 32 * 32, 16, 32
    for group in range(3):
        wide = 16 * width * 2**group
        for block in range((depth - 4) // 6):
            side = side // 2 if group and not block else side
            total += (planes * wide + wide * wide) * 9 * side * side
            total += planes * wide * side * side if planes != wide else 0
            planes = wide
    return total + planes * 10


@pytest.mark.parametrize(("depth", "width", "published"), [(28, 10, 5.25e9), (16, 8, 1.55e9)])
def test_wide_residual_networks_have_the_multiplications_that_are_published(depth: int, width: int, published: float) -> None:
    """WRN-28-10: 5.2 G, and WRN-16-8: 1.55 G multiplications, as the literature states for images of 32 x 32."""
    step = count_step(wide_resnet(depth, width), torch.zeros(1, 3, 32, 32), 2)
    assert step.look == 2 * 2 * multiplications(depth, width)
    assert step.look / 4 == pytest.approx(published, rel=0.02)
    stem = 2 * 2 * 3 * 16 * 9 * 32 * 32  # images need no gradient
    assert step.train == 3 * step.look - stem


def test_the_residual_network_of_50_layers_has_4_1_billion_multiplications() -> None:
    step = count_step(wide_bottleneck(50, factor=1), torch.zeros(1, 3, 224, 224), 1)
    assert step.look / 2 == pytest.approx(4.09e9, rel=0.005)


class Looks(nn.Module):
    """Looks at values, which tensors without memory have not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs * (2.0 if inputs.sum().item() > 0 else 1.0))


def test_what_cannot_run_without_memory_runs_on_a_few_examples() -> None:
    assert count_step(Looks(), torch.zeros(10, 8), 64).look == 2 * 64 * 8 * 2


def test_a_training_is_a_step_times_the_steps_and_the_looks(table: object) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=3, batch_size=64)  # type: ignore[arg-type]
    work = count_training(recipe, recipe.model())
    forward = 2 * (8 * 16 + 16 * 2)
    assert work.flops == pytest.approx(3 * (400 * (3 * forward - 2 * 8 * 16) + 200 * forward))
    assert work.launches > 3 * 7 * 10
    parts = count_training(recipe.replace(accumulate=2), recipe.model())
    assert parts.flops == pytest.approx(work.flops)
    assert parts.launches > 1.5 * work.launches


# ------------------------------------------------------------------------------------------------ claims


def toil(steps: int, watch: tuple[int, ...], progress: object = None) -> dict[str, Tensor]:
    """Matrix products that say how far they are."""
    matrix = torch.ones(64, 64)
    for step in range(steps):
        matrix = matrix @ matrix / 64
        if progress is not None:
            progress(step + 1, steps, "")  # type: ignore[operator]
    return {"seen": torch.zeros(len(watch))}


def toil_in_silence(steps: int) -> dict[str, Tensor]:
    return toil(steps, ())


def _recipe(lab: Lab) -> Recipe:
    return Recipe(lab.data("wine").normalise(), model=partial(mlp, 13, 3, (8,)), epochs=lab.pick(smoke=1, laptop=2, full=200))


@claim("Two trainings, one of them twice.", expect=Higher("a", than="b"))
def trains(lab: Lab) -> Measured:
    plain = _recipe(lab)
    arms = {"a": lab.train(plain), "b": lab.train(plain.replace(batch_size=32)), "again": lab.train(plain)}
    assert lab.train(plain).logits().shape == (36, 3)
    return {arm: trained.accuracy() for arm, trained in arms.items()}


@claim("The first of these trainings once more.", expect=Higher("a", than="b"))
def trains_again(lab: Lab) -> Measured:
    return {"a": lab.train(_recipe(lab)).history["test_accuracy"][-1], "b": 0.0}


@claim("A lot of work that tells how far it is, and then a training.", expect=Higher("a", than="b"))
def toils(lab: Lab) -> Measured:
    watch = tuple(range(lab.pick(smoke=2, laptop=3, full=7)))
    seen = lab.remember(toil, steps=lab.pick(smoke=3, laptop=10, full=10**7), watch=watch)["seen"]
    assert len(seen) == len(watch)
    return {"a": lab.train(_recipe(lab)).accuracy(), "b": 0.0}


@claim("A little work.", expect=Higher("a", than="b"))
def toils_a_little(lab: Lab) -> Measured:
    return {"a": lab.remember(toil, steps=10, watch=(1,))["seen"].sum().item(), "b": 0.0}


@claim("Work that never says how far it is.", expect=Higher("a", than="b"))
def toils_in_silence(lab: Lab) -> Measured:
    lab.remember(toil_in_silence, steps=lab.pick(smoke=3, laptop=10, full=10**7))
    return {"a": lab.train(_recipe(lab)).accuracy(), "b": 0.0}


@claim("A data set that nobody has.", expect=Higher("a", than="b"))
def asks_for_the_moon(lab: Lab) -> Measured:
    return {"a": lab.train(Recipe(lab.data("the-moon"), model=mlp)).accuracy(), "b": 0.0}


def counted(*claims: Claim, budget: float = 0.3) -> Costs:
    return cost([(PAPER, one) for one in claims], "full", budget)


def test_the_same_training_counts_once(home: Path) -> None:
    costs = counted(trains, trains_again)
    assert [len(one.works) for one in costs.claims] == [4, 1]
    works = costs.distinct()
    assert [work.how for work in works] == ["counted", "counted"]
    found = summary(costs, RATES, seeds=5)
    assert (found["total"]["trainings"], found["total"]["distinct"]) == (25, 10)
    assert found["total"]["flops"] == 5 * sum(work.flops for work in works)
    assert not list(home.glob("**/*.safetensors"))  # nothing was trained
    units = dict(costs.units(RATES))
    assert units["elr:trains_again"] == 0.0  # its only training belongs to the claim before it


def test_work_that_tells_how_far_it_is_counts_in_proportion(home: Path) -> None:
    costs = counted(toils)
    assert not costs.claims[0].error
    assert not costs.claims[0].notes
    part, training = costs.distinct()
    assert (part.how, training.how) == ("in part", "counted")
    assert part.flops == pytest.approx(10**7 * 2 * 64**3)  # whether or not the time was up in the middle of a step
    assert part.seconds is not None
    assert part.seconds > 1.0


FRESH = """
import sys
sys.path.insert(0, {tests!r})
from test_cost import counted, toils
costs = counted(toils)
print(costs.claims[0].error, costs.claims[0].notes, [(work.how, work.flops > 1e12) for work in costs.distinct()[:1]])
"""


def test_the_first_piece_of_work_of_a_process_is_counted_too(home: Path) -> None:
    """In a process that has counted nothing yet, and has still to import what counts."""
    script = FRESH.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["[]", "[('in", "part',", "True)]"], done.stdout + done.stderr


def test_time_that_is_up_waits_for_an_import_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "import time\nbegan = time.process_time()\nwhile time.process_time() - began < 0.3:\n    pass\nwhole = True\n"
    (tmp_path / "slow_to_import.py").write_text(slow)
    monkeypatch.syspath_prepend(tmp_path)

    def import_and_go_on() -> None:
        importlib.import_module("slow_to_import")
        while True:
            pass

    with pytest.raises(_Cut), _limit(0.05):
        import_and_go_on()
    assert sys.modules.pop("slow_to_import").whole


def test_little_work_is_run(home: Path) -> None:
    (work,) = counted(toils_a_little, budget=5.0).distinct()
    assert (work.how, work.flops) == ("run", 10 * 2 * 64**3)


def test_silent_work_is_extrapolated_from_the_evidence_or_said_to_be_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = counted(toils_in_silence)
    assert [work.how for work in costs.distinct()] == ["counted"]
    assert "no laptop evidence" in costs.claims[0].notes[0]
    entry = {"toils_in_silence": {"scale": "laptop", "seconds": 50.0, "seeds": 5}}
    monkeypatch.setattr("assay.lab.evidence.recorded", lambda key: entry)
    _, other = counted(toils_in_silence).distinct()
    assert other.how == "extrapolated"
    assert other.seconds == pytest.approx(10.0 * 100)  # 200 epochs instead of 2


def test_what_cannot_be_counted_says_why_and_the_rest_goes_on(home: Path) -> None:
    costs = counted(asks_for_the_moon, trains_again)
    assert "no data set 'the-moon'" in costs.claims[0].error
    assert summary(costs, RATES, 5)["total"]["uncounted"] == 1
    assert len(costs.claims[1].works) == 1


def test_stand_ins_have_the_sizes_of_the_registry() -> None:
    data = stand_in("cifar10")
    assert data is not None
    assert (len(data.train), len(data.test), data.input_shape, data.num_classes) == (50_000, 10_000, (3, 32, 32), 10)
    assert data.train.inputs.untyped_storage().nbytes() == 4 * 50_000  # type: ignore[union-attr]
    assert len(data.rescale(-1, 1).test) == 10_000
    assert stand_in("mr") is None


# ------------------------------------------------------------------------------------------------ hours


def test_a_gpu_waits_for_arithmetic_or_for_launches() -> None:
    assert Work("large", "counted", flops=8e12, launches=1e3).gpu_seconds(RATES) == 8.0
    assert Work("large", "counted", flops=8e12, launches=1e3, precision="bfloat16").gpu_seconds(RATES) == 2.0
    assert Work("small", "counted", flops=1e6, launches=1e6).gpu_seconds(RATES) == 10.0
    assert Work("no network", "run", seconds=3600.0).hours(RATES) == 1.0
    assert Work("small", "run", flops=1e6, launches=1e9, seconds=3600.0).hours(RATES) == 1.0  # a core is faster


def test_unknown_hardware_is_refused() -> None:
    with pytest.raises(AssayError, match="choose one of a100, h100"):
        Rates.of("abacus", 0.3, 1e9)
    with pytest.raises(AssayError, match="fraction of the peak"):
        Rates.of("a100", 30, 1e9)


def test_longest_first_on_several_machines() -> None:
    pieces = [7.0, 5.0, 4.0, 4.0, 3.0, 1.0]
    assert makespan(pieces, 1) == 24.0
    assert makespan(pieces, 3) == 8.0
    assert makespan(pieces, 100) == 7.0
