"""What every test may rely on: one thread, no other person's cache, and data sets that are here or a visible skip."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# What is printed is looked at as a pipe gets it, with the width that it has there.
for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
    os.environ.pop(name, None)

# On a processor with AVX2 alone, oneDNN's gradient of the weights of a convolution of 1x1 with a stride, of less than eight
# channels in channels_last, writes beyond its memory and ends the process: small networks have such ones.
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")

if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    # The same examples in every run: what one of them finds is found by whoever looks for it, and not by one run in a thousand.
    settings.register_profile("same", derandomize=True, database=None)
    settings.load_profile("same")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test whose public data set is neither here nor in a mirror is skipped, and says which; with a mirror it fails."""
    from assay.errors import AssayError

    try:
        return (yield)
    except AssayError as error:
        if "could not be fetched" in str(error) and not os.environ.get("ASSAY_MIRROR"):
            pytest.skip(str(error).partition(" [")[0])
        raise


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ASSAY_HOME of this test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ASSAY_HOME", str(folder))
    monkeypatch.delenv("ASSAY_LEDGER", raising=False)
    return folder


@pytest.fixture
def table() -> object:
    """A small classification table that a network learns in a moment: two noisy half-spaces in eight dimensions."""
    from assay.data import Dataset, Split

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 8, generator=generator)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).long()
    return Dataset(
        name="half-spaces",
        task="classification",
        train=Split(inputs[:400], labels[:400]),
        valid=Split(inputs[400:400], labels[400:400]),
        test=Split(inputs[400:], labels[400:]),
        classes=("below", "above"),
        licence="made here",
        source="tests",
    )


@pytest.fixture(scope="session", autouse=True)
def torchvision_operators() -> object:
    """torchvision's import fails beside a CPU build of torch for want of two operators, and with it timm's and torchmetrics'.

    Where its own can be loaded they are: an operator that is defined twice ends the process.
    """
    found = importlib.util.find_spec("torchvision")
    if "torchvision" in sys.modules or found is None or found.origin is None:
        return None
    for library in Path(found.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return None
    made = torch.library.Library("torchvision", "DEF")
    made.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    made.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return made
