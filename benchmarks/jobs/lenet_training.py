"""Training a LeNet on MNIST 5k for one epoch: a bare loop written by hand, skorch, Lightning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from assay.data import load
from assay.nn import lenet

JOB = "training: LeNet, MNIST 5k, 2 epochs, batch 128"
WANTED = {"bare_loop": 1.5, "skorch_": 1.8, "lightning_": 1.8}
EPOCHS, BATCH, LR = 2, 128, 0.05


def ours() -> Callable[[], object]:
    from assay.recipe import Recipe
    from assay.train.loop import fit

    data = load("mnist5k")
    recipe = Recipe(
        data, model=lenet, optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9), epochs=EPOCHS, batch_size=BATCH, watch=()
    )
    return lambda: float(fit(recipe, 0).accuracy())


def bare_loop() -> Callable[[], object]:
    """What people write: default memory layout, data in a DataLoader over a TensorDataset."""
    from torch.utils.data import DataLoader, TensorDataset

    data = load("mnist5k")

    def run() -> float:
        torch.manual_seed(0)
        model = lenet()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
        loader = DataLoader(TensorDataset(data.train.inputs, data.train.labels), batch_size=BATCH, shuffle=True)
        for _ in range(EPOCHS):
            for inputs, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        with torch.no_grad():
            return (model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()

    return run


def skorch_() -> Callable[[], object]:
    from skorch import NeuralNetClassifier

    data = load("mnist5k")
    inputs, labels = data.train.inputs.numpy(), data.train.labels.numpy()

    def run() -> float:
        torch.manual_seed(0)
        net = NeuralNetClassifier(
            lenet,
            criterion=torch.nn.CrossEntropyLoss,
            optimizer=torch.optim.SGD,
            optimizer__momentum=0.9,
            lr=LR,
            max_epochs=EPOCHS,
            batch_size=BATCH,
            iterator_train__shuffle=True,
            train_split=None,
            verbose=0,
        )
        net.fit(inputs, labels)
        return float((net.predict(data.test.inputs.numpy()) == data.test.labels.numpy()).mean())

    return run


def lightning_() -> Callable[[], object]:
    import logging
    import warnings

    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = load("mnist5k")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = lenet()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            inputs, labels = batch
            return F.cross_entropy(self.model(inputs), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)

    def run() -> float:
        torch.manual_seed(0)
        module = Module()
        loader = DataLoader(TensorDataset(data.train.inputs, data.train.labels), batch_size=BATCH, shuffle=True)
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        with torch.no_grad():
            return (module.model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()

    return run


def agree(ours: float, peer: float) -> None:
    """Other shuffling, so other weights; the accuracy is the same within three points after two epochs."""
    assert abs(ours - peer) < 0.03, f"ours {ours}, peer {peer}"
