"""One training, four ways: assay, a loop written by hand, skorch, Lightning. Each returns what is timed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from assay.data import Dataset

EPOCHS, BATCH, RATE = 2, 128, 0.05


def _inputs(data: Dataset, split: str) -> Tensor:
    inputs = getattr(data, split).inputs
    assert isinstance(inputs, Tensor)
    return inputs


def _accuracy(model: nn.Module, data: Dataset) -> float:
    with torch.no_grad():
        return (model.eval()(_inputs(data, "test")).argmax(1) == data.test.labels).double().mean().item()


def _loader(data: Dataset) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(_inputs(data, "train"), data.train.labels), batch_size=BATCH, shuffle=True)


def assay(
    data: Dataset, model: Callable[[], nn.Module], precision: Literal["float32", "bfloat16"] = "float32"
) -> Callable[[], float]:
    """Ours."""
    from assay.recipe import Recipe
    from assay.train.loop import fit

    optimizer = partial(torch.optim.SGD, lr=RATE, momentum=0.9)
    recipe = Recipe(data, model, optimizer=optimizer, epochs=EPOCHS, batch_size=BATCH, precision=precision, watch=())
    return lambda: float(fit(recipe, 0).accuracy())


def by_hand(data: Dataset, model: Callable[[], nn.Module]) -> Callable[[], float]:
    """What people write: default memory layout, the data in a DataLoader over a TensorDataset."""

    def run() -> float:
        torch.manual_seed(0)
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
        loader = _loader(data)
        for _ in range(EPOCHS):
            for inputs, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(net(inputs), labels).backward()
                optimizer.step()
        return _accuracy(net, data)

    return run


def skorch(data: Dataset, model: Callable[[], nn.Module]) -> Callable[[], float]:
    """skorch without validation split and without printing."""
    from skorch import NeuralNetClassifier

    inputs, labels = _inputs(data, "train").numpy(), data.train.labels.numpy()

    def run() -> float:
        torch.manual_seed(0)
        net = NeuralNetClassifier(
            model,
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.SGD,
            optimizer__momentum=0.9,
            lr=RATE,
            max_epochs=EPOCHS,
            batch_size=BATCH,
            iterator_train__shuffle=True,
            train_split=None,
            verbose=0,
        )
        net.fit(inputs, labels)
        return _accuracy(net.module_, data)

    return run


def lightning(data: Dataset, model: Callable[[], nn.Module]) -> Callable[[], float]:
    """Lightning without logger, checkpoints, bars and summary."""
    from lightning import LightningModule, Trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            inputs, labels = batch
            return F.cross_entropy(self.model(inputs), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

    def run() -> float:
        torch.manual_seed(0)
        module = Module()
        Trainer(max_epochs=EPOCHS, accelerator="cpu", **quiet).fit(module, _loader(data))
        return _accuracy(module.model, data)

    return run


def agree(ours: float, peer: float) -> None:
    """Other shuffling, so other weights; the accuracy is the same within three points after two epochs."""
    assert abs(ours - peer) < 0.03, f"ours {ours}, peer {peer}"
