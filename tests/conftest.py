"""What every test may rely on: one thread, no other person's cache, and data sets that are here or a visible skip."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


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
    """torchvision's import fails beside a CPU build of torch for want of two operators, and with it timm's and torchmetrics'."""
    if "torchvision" in sys.modules:
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
