"""Small networks that are attacked, and what they have learnt to tell apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn import lenet


@pytest.fixture(scope="session")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that tells eight noisy patterns apart, images of them in [0, 1], and what they show."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(8, 1, 12, 12, generator=generator)
    labels = torch.randint(8, (560,), generator=generator)
    images = 0.5 + 0.4 * (patterns[labels] - 0.5) + 0.15 * torch.randn(560, 1, 12, 12, generator=generator)
    images = images.clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lenet(1, 8, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(15):
        for part in torch.randperm(500, generator=generator).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    model.eval()
    assert (model(images[500:]).argmax(dim=1) == labels[500:]).double().mean() > 0.9
    return model, images[500:], labels[500:]
