"""Memory by content: done once, by one of several processes, and kept whole."""

import multiprocessing
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab, cache, memory
from assay.nn import mlp
from assay.recipe import Recipe


def count(folder: str, value: int) -> dict[str, torch.Tensor]:
    """Leaves a file for every time that it is really done."""
    (Path(folder) / f"done-{os.getpid()}-{len(os.listdir(folder))}").touch()
    return {"x": torch.arange(value)}


def fails(folder: str) -> dict[str, torch.Tensor]:
    (Path(folder) / "tried").touch()
    raise RuntimeError("no")


def returns_a_float() -> dict[str, float]:
    return {"x": 1.0}


def test_the_same_training_is_done_once_and_comes_back_whole(home: Path, table: Dataset) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2), epochs=2)
    lab = Lab(seed=3)
    first, again = lab.train(recipe), lab.train(recipe)
    assert len(cache.entries()) == 1
    assert again.history == first.history
    assert again.cost == first.cost
    assert torch.equal(again.logits("test"), first.logits("test"))
    lab.train(recipe.replace(epochs=3))
    lab.train(recipe, seed=4)
    assert len(cache.entries()) == 3


def test_restoring_leaves_the_random_stream_alone(home: Path, table: Dataset) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2), epochs=1)
    Lab().train(recipe)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Lab().train(recipe)
    assert torch.equal(torch.rand(1), expected)


def test_other_work_is_remembered_by_code_and_arguments(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "done"
    folder.mkdir()
    lab = Lab()
    results = [lab.remember(count, folder=str(folder), value=value) for value in (3, 3, 4)]
    assert len(list(folder.iterdir())) == 2
    assert torch.equal(results[0]["x"], results[1]["x"])
    assert results[2]["x"].tolist() == [0, 1, 2, 3]
    assert results[1]["seconds"] == results[0]["seconds"]


def test_what_fails_is_not_remembered(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no"):
        Lab().remember(fails, folder=str(tmp_path))
    (tmp_path / "tried").unlink()
    with pytest.raises(RuntimeError, match="no"):
        Lab().remember(fails, folder=str(tmp_path))
    assert (tmp_path / "tried").exists()


class Tied(torch.nn.Module):
    """One matrix used twice, and a random projection that is no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = torch.nn.Linear(8, 2)
        self.register_buffer("fixed", torch.randn(8, 8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x @ self.fixed)))))


def test_tied_weights_and_fixed_projections_come_back(home: Path, table: Dataset) -> None:
    recipe = Recipe(table, model=Tied, epochs=1)
    first, again = Lab().train(recipe), Lab().train(recipe)
    assert torch.equal(again.logits("test"), first.logits("test"))
    assert again.model.second.weight is again.model.first.weight


def views(count: int) -> dict[str, torch.Tensor]:
    whole = torch.arange(float(count))
    return {"whole": whole, "half": whole[: count // 2]}


def test_views_of_each_other_are_kept(home: Path) -> None:
    assert Lab().remember(views, count=4)["half"].tolist() == [0, 1]
    assert Lab().remember(views, count=4)["half"].tolist() == [0, 1]


def test_only_tensors_are_kept(home: Path) -> None:
    with pytest.raises(AssayError, match="keeps tensors only"):
        Lab().remember(returns_a_float)


def _ask(folder: str, barrier: object) -> None:
    torch.set_num_threads(1)
    barrier.wait()  # type: ignore[attr-defined]
    memory.remember(count, folder=folder, value=5)


def test_two_processes_that_want_the_same_do_it_once(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "done"
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_ask, args=(str(folder), barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(folder.iterdir())) == 1


def test_pruning_removes_what_was_chosen(home: Path, table: Dataset) -> None:
    lab = Lab()
    for epochs in (1, 2, 3):
        lab.train(Recipe(table, model=partial(mlp, 8, 2), epochs=epochs))
    size = cache.entries()[0].bytes
    cache.remove(cache.choose(older=None, to=f"{2.5 * size / 1e6:.6f}MB"))
    assert len(cache.entries()) == 2
    assert cache.choose(older=1.0, to=None) == []
    cache.remove(cache.choose(older=None, to=None))
    assert cache.entries() == []


def test_interrupted_trainings_are_listed_and_pruned(home: Path, table: Dataset) -> None:
    Lab().train(Recipe(table, model=partial(mlp, 8, 2), epochs=1))
    (entry,) = cache.entries()
    left = entry.path.with_name("0" * 32 + ".checkpoint")
    left.write_bytes(b"half of a training")
    assert {entry.kind for entry in cache.entries()} == {"training", "unfinished"}
    cache.remove(cache.choose(older=None, to=None))
    assert not left.exists()


def test_a_home_that_cannot_be_made_is_one_sentence(monkeypatch: pytest.MonkeyPatch, table: Dataset) -> None:
    monkeypatch.setenv("ASSAY_HOME", "/dev/null/x")
    with pytest.raises(AssayError, match="set ASSAY_HOME"):
        Lab().train(Recipe(table, model=partial(mlp, 8, 2), epochs=1))


def test_a_damaged_entry_says_so(home: Path, table: Dataset) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2), epochs=1)
    Lab().train(recipe)
    (entry,) = cache.entries()
    entry.path.write_bytes(entry.path.read_bytes()[:100])
    with pytest.raises(AssayError, match=r"cannot be read .* remove it"):
        Lab().train(recipe)


def test_scales_pick_and_unknown_ones_are_refused() -> None:
    assert [Lab(scale=scale).pick(smoke=1, laptop=2, full=3) for scale in ("smoke", "laptop", "full")] == [1, 2, 3]
    with pytest.raises(AssayError, match="choose one of"):
        Lab(scale="tiny")


def test_scratch_is_removed(tmp_path: Path) -> None:
    lab = Lab()
    (lab.scratch / "file").touch()
    folder = lab.scratch
    lab.close()
    assert not folder.exists()
