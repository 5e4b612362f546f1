"""A trained network that is kept: weights, preprocessing and how it came about, in a folder that holds no pickle.

RUN/model.safetensors   the weights
RUN/run.json            all else: task, classes, preparation, how to make the network, every arm's scores
RUN/report.html         the same for people

run = load_run("photos-1")
run.model(run.inputs("new photos/")).softmax(dim=1)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from assay.errors import AssayError
from assay.files import load_tensors, save_tensors, write_json
from assay.lab.machine import machine, now, versions
from assay.own.factories import build, describe
from assay.own.fresh import CHUNK, stream, together
from assay.own.material import Material
from assay.own.preparing import Preparation, Unrepeatable
from assay.paths import folder, runs_dir
from assay.train.loop import Trained

#: Of the layout of run.json; raised when an older version could not read it.
FORMAT = 1
WEIGHTS, FACTS, REPORT = "model.safetensors", "run.json", "report.html"


@dataclass
class SavedRun:
    """A trained network with all that is needed to use it.

    Attributes:
        folder: where it lies.
        model: the network, in evaluation mode.
        task: ``"classification"`` or ``"regression"``.
        classes: names of the classes in the order of the logits; empty for regression.
        preparation: what makes an example into the network's input.
        facts: everything that ``run.json`` says.
    """

    folder: Path
    model: nn.Module
    task: str
    classes: tuple[str, ...]
    preparation: Preparation
    facts: dict[str, Any] = field(repr=False)

    def inputs(self, source: str | Path | Material) -> Tensor:
        """New examples as the network takes them: (N, ...).

        Args:
            source: a path that :func:`assay.own.fresh.stream` reads, or what was read already.

        Raises:
            AssayError: they are not of the form that the network was trained on.
        """
        if isinstance(source, Material):
            found: Tensor = self.preparation(source.inputs)
            return found
        pieces = [self.preparation(piece.inputs) for piece in stream(source, self.preparation, [])]
        whole: Tensor = together(pieces)
        return whole

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """Logits (N, C), or numbers (N, 1) in the target's units, for inputs (N, ...); on the CPU."""
        device = next((tensor.device for tensor in self.model.state_dict().values()), torch.device("cpu"))
        return torch.cat([self.model(part.to(device)).float().cpu() for part in inputs.split(CHUNK)])

    def labels(self, target: pd.Series) -> NDArray[np.float64]:
        """What was found in a target column as class numbers or numbers (N,); NaN where it is neither."""
        if self.task == "regression":
            numbers: NDArray[np.float64] = pd.to_numeric(target, errors="coerce").to_numpy(np.float64, copy=True)
            return numbers
        places = {name: float(place) for place, name in enumerate(self.classes)}
        return np.array([_place(value, places) for value in target], dtype=np.float64)


def _place(value: object, places: Mapping[str, float]) -> float:
    """The number of a class by its name; 3.0 and "3" are the class "3"."""
    name = str(value).strip()
    if name not in places:
        try:
            name = str(int(number)) if (number := float(name)).is_integer() else name
        except (ValueError, OverflowError):
            return float("nan")
    return places.get(name, float("nan"))


# ---------------------------------------------------------------------------------------------------- saving


def save_run(place: Path, trained: Trained, seed: int, preparation: Preparation, facts: Mapping[str, Any]) -> None:
    """Write a run, after it was made again from what will be written and gave the same outputs.

    Args:
        place: a new or empty folder, or one that holds a run.
        trained: the network.
        seed: that it was trained with.
        preparation: of the inputs that it was trained on.
        facts: what else to keep, as plain JSON values.

    Raises:
        AssayError: the folder holds other things.
        Unrepeatable: the network cannot be made again without pickle.
    """
    require_free(place)
    recipe = trained.recipe
    inputs = recipe.data.test.inputs
    assert isinstance(inputs, Tensor)  # it was trained on them
    factory = describe(recipe.model)
    plain = {
        "format": FORMAT,
        "made": now(),
        "versions": versions(),
        "machine": machine(),
        "task": recipe.data.task,
        "classes": list(recipe.data.classes),
        "seed": seed,
        "input": {
            "shape": list(inputs.shape[1:]),
            "integers": None if inputs.is_floating_point() else int(inputs.max()) + 1,
        },
        "model": factory,
        "preparation": preparation.as_dict(),
        **facts,
    }
    state = {name: value.cpu() for name, value in trained.model.state_dict().items()}
    try:
        again = _made(json.loads(json.dumps(plain, allow_nan=False)), state, trusted=_roots(factory))
    except AssayError as error:
        raise Unrepeatable(f"its network cannot be made again ({str(error).rstrip('.')})") from error
    few = inputs[:16]
    with torch.no_grad():
        ours, theirs = again(few), trained.model(few.to(next(trained.model.parameters()).device)).cpu()
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise Unrepeatable("its network, made again from its weights, gives other outputs")
    folder(place)
    save_tensors(place / WEIGHTS, state, {"kind": "run", "made": plain["made"]})
    write_json(place / FACTS, plain)


def require_free(place: Path) -> None:
    """Refuse a folder that holds other things than a run, which may be replaced."""
    if place.exists() and (not place.is_dir() or (any(place.iterdir()) and not (place / FACTS).is_file())):
        raise AssayError(f"{place} holds other things than a run: name a new or an empty folder with --out.")


def new_folder(name: str) -> Path:
    """A folder for a run of that name that is not there yet: ``NAME-1``, ``NAME-2``, ..."""
    number = 1
    while (place := runs_dir() / f"{name}-{number}").exists():
        number += 1
    return place


def _roots(factory: Any) -> set[str]:
    """Modules that a factory names: what was just trained may be made again, whatever it is made of."""
    if isinstance(factory, dict):
        own = {str(factory[key]).partition(":")[0] for key in ("call", "make", "name") if key in factory}
        return own.union(*(_roots(value) for value in factory.values()))
    return set().union(*(_roots(value) for value in factory)) if isinstance(factory, list) else set()


# ---------------------------------------------------------------------------------------------------- loading


def load_run(path: str | Path, trusted: Collection[str] = (), device: str = "cpu") -> SavedRun:
    """Read a run that ``assay try`` saved.

    Args:
        path: its folder, or its name among the runs of this user.
        trusted: modules whose functions may be called to make the network, besides assay's own.
        device: where the network is to compute.

    Raises:
        AssayError: there is no such run, it is broken, or its network is made by code that is not trusted.
    """
    place = find_run(path)
    try:
        plain = json.loads((place / FACTS).read_text(encoding="utf-8"))
        version = plain["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AssayError(f"{place / FACTS} cannot be read ({type(error).__name__}): it is no run, or broken.") from error
    if version != FORMAT:
        raise AssayError(f"{place} is a run of format {version}, and this version of assay reads {FORMAT}: use its own version.")
    state, _ = load_tensors(place / WEIGHTS)
    return SavedRun(
        folder=place,
        model=_made(plain, state, trusted).to(usable_device(device)),
        task=plain["task"],
        classes=tuple(plain["classes"]),
        preparation=Preparation.from_dict(plain["preparation"]),
        facts=plain,
    )


def usable_device(name: str) -> torch.device:
    """A device by its name, if this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise AssayError(
            f"This machine has no device {name!r} that torch can use: `assay doctor` says more; cpu works."
        ) from None
    return device


def find_run(path: str | Path) -> Path:
    """The folder of a run, given as a path or by name."""
    for place in (Path(path), runs_dir() / str(path)):
        if (place / FACTS).is_file():
            return place
    there = sorted(runs()) or ["none yet; `assay try` saves them"]
    raise AssayError(f"There is no run {str(path)!r}: name the folder of one, or one of those here ({', '.join(there[-8:])}).")


def runs() -> Iterator[str]:
    """Names of the runs of this user."""
    yield from (path.parent.name for path in runs_dir().glob(f"*/{FACTS}"))


def _made(plain: Mapping[str, Any], state: Mapping[str, Tensor], trusted: Collection[str]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plain["seed"])  # what is random in a network and not in its state comes back the same
        model = build(plain["model"], trusted)()
    if not isinstance(model, nn.Module):
        raise AssayError("The run's factory makes no network: it was not written by assay.")
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise AssayError(f"The run's weights do not fit its network ({str(error).splitlines()[0]}): it is broken.") from error
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval()
