"""Training the fully convolutional network of tsc_baselines on GunPoint: assay against the loop and layers people write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from assay.data import Dataset, load

JOB = "training: FCN, GunPoint (50 series of 150 steps), 8 epochs, batch 5"
PROCESSOR_TIME = True
# Four fifths of the time are matrix products at the processor's peak, in either layout of memory.
WANTED = {"bare_loop": 1.1}
EPOCHS = 8


def _data() -> Dataset:
    return load("gunpoint").normalise()


def ours() -> Callable[[], float]:
    from assay.papers.signals.tsc_baselines import published
    from assay.train.loop import fit

    recipe = published(_data(), "fcn", EPOCHS).replace(hooks=())
    return lambda: float(fit(recipe, 0).accuracy("train"))


def bare_loop() -> Callable[[], float]:
    """Conv1d and BatchNorm1d, the data in a DataLoader over a TensorDataset."""
    data = _data()
    assert isinstance(data.train.inputs, torch.Tensor)
    inputs, labels = data.train.inputs, data.train.labels

    def run() -> float:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for before, after, width in ((1, 128, 8), (128, 256, 5), (256, 128, 3)):
            layers += [nn.Conv1d(before, after, width, padding="same"), nn.BatchNorm1d(after), nn.ReLU()]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            for batch, wanted in DataLoader(TensorDataset(inputs, labels), batch_size=5, shuffle=True):
                optimizer.zero_grad()
                F.cross_entropy(net(batch), wanted).backward()
                optimizer.step()
        with torch.no_grad():
            return (net.eval()(inputs).argmax(1) == labels).double().mean().item()

    return run


def agree(ours: float, peer: float) -> None:
    """Other weights at the start; after so few epochs of batches of five both are better than chance, and that is all."""
    assert min(ours, peer) > 0.5, f"ours {ours}, peer {peer}"
