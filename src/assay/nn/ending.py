"""Where a network ends: the linear layer that makes its logits."""

from __future__ import annotations

from torch import nn


def last_linear(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Name and module of the linear layer that gives a network's answer; ``None`` where it has no linear layer.

    It is the last ``nn.Linear`` in the order of the modules. Layers of an auxiliary classifier, which stands beside the network
    and is often registered last, do not count: those in a module whose name begins with "aux", as that of our ``inception_v3``
    and of torchvision's networks (``AuxLogits``, ``aux1``, ``aux_classifier``).
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    own = [(name, layer) for name, layer in layers if not any(part.lower().startswith("aux") for part in name.split("."))]
    found = own or layers
    return found[-1] if found else None
