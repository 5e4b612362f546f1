"""A small perceptron on a table of 20,000 rows: where the overhead of loading item by item shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from sklearn.datasets import make_classification
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.nn import mlp

JOB = "training: MLP 20-64-64-2, table of 20,000 rows, 2 epochs, batch 128"
WANTED = {"skorch_": 3.0, "lightning_": 3.0}
EPOCHS, BATCH, LR = 2, 128, 0.05


def table() -> Dataset:
    inputs, labels = make_classification(24_000, 20, n_informative=10, class_sep=1.5, random_state=0)
    x, y = torch.from_numpy(inputs).float(), torch.from_numpy(labels).long()
    train, test = Split(x[:20_000], y[:20_000]), Split(x[20_000:], y[20_000:])
    return Dataset("table", "classification", train, Split(x[:0], y[:0]), test, ("0", "1"))


model = partial(mlp, 20, 2, (64, 64))


def ours() -> Callable[[], object]:
    from assay.recipe import Recipe
    from assay.train.loop import fit

    optimizer = partial(torch.optim.SGD, lr=LR, momentum=0.9)
    recipe = Recipe(table(), model=model, optimizer=optimizer, epochs=EPOCHS, batch_size=BATCH, watch=())
    return lambda: float(fit(recipe, 0).accuracy())


def skorch_() -> Callable[[], object]:
    from skorch import NeuralNetClassifier

    data = table()
    inputs, labels = data.train.inputs.numpy(), data.train.labels.numpy()

    def run() -> float:
        torch.manual_seed(0)
        net = NeuralNetClassifier(
            model,
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
    data = table()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model()

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
    """Other shuffling, so other weights; the accuracy is the same within two points."""
    assert abs(ours - peer) < 0.02, f"ours {ours}, peer {peer}"
