"""Networks of modules, each used once, as hooking peers need them; in double precision, so that only mathematics differs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _settle(model: nn.Module) -> nn.Module:
    """Batch statistics that are not 0 and 1."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0.2)
    return model.double().eval()


def perceptron() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))
    return net.double().eval(), torch.randn(7, 12).double()


def cnn(pool: type[nn.Module] = nn.MaxPool2d) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), pool(2), nn.Conv2d(6, 8, 3), nn.ReLU(), pool(2),
        nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 5),
    )  # fmt: skip
    return net.double().eval(), torch.rand(6, 3, 12, 12).double()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(out + x)


def resnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), Block(6), nn.AvgPool2d(2), Block(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    return _settle(net), torch.rand(6, 3, 8, 8).double()


class Transformer(nn.Module):
    """Two encoder layers over vectors, a token for the class, a position for each."""

    def __init__(self, activation: str | nn.Module = "relu") -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.3)
        self.place = nn.Parameter(torch.randn(1, 7, 16) * 0.3)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, activation=activation, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.place
        return self.head(self.encoder(x)[:, 0])


def transformer(activation: str | nn.Module = "relu") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Transformer(activation).double().eval(), torch.randn(5, 6, 16).double()


ALL = {"mlp": perceptron, "cnn": cnn, "resnet": resnet, "transformer": transformer}
