"""Inception networks of torchvision and timm, with the same weights on every side and no dropout; not a job itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: A few pictures of the papers' size, and more of a smaller one.
SHAPES = ((8, 3, 139, 139), (2, 3, 299, 299))


def timm(name: str) -> nn.Module:
    """As it comes, with random weights that are the same in every process."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, drop_rate=0.0)
    return model


def weights(name: str) -> dict[str, Tensor]:
    """Those weights under timm's (and torchvision's) names."""
    state: dict[str, Tensor] = timm(name).state_dict()
    return state


def torchvision() -> nn.Module:
    """Inception-v3 as it comes, without its auxiliary classifier."""
    import torchvision

    model: nn.Module = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False, dropout=0.0)
    model.load_state_dict(weights("inception_v3"))
    return model
