"""A network of torchvision and timm on every side, with the same weights and images; not a job itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

#: Batches that take less than a second or two a pass on a core: many small pictures, a few large ones.
SHAPES = ((32, 3, 64, 64), (4, 3, 224, 224))

Result = list[Tensor]


def weights(name: str) -> dict[str, Tensor]:
    """Random weights under torchvision's (and timm's) names, the same in every process."""
    import torchvision

    torch.manual_seed(0)
    state: dict[str, Tensor] = getattr(torchvision.models, name)().state_dict()
    return state


def torchvision(name: str) -> nn.Module:
    """As it comes."""
    import torchvision

    model: nn.Module = getattr(torchvision.models, name)()
    model.load_state_dict(weights(name))
    return model


def timm(name: str) -> nn.Module:
    """As it comes."""
    import timm

    model: nn.Module = timm.create_model(name)
    model.load_state_dict(weights(name))
    return model


def timm_unnormalised(name: str) -> nn.Module:
    """A network of timm without normalisation, as it comes, but with branches that count: their last gains begin at 0."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name)
    for key, value in model.named_parameters():
        if key.endswith("gain"):
            nn.init.ones_(value)
    return model


def forward(model: nn.Module, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Callable[[], Result]:
    """Inference on every batch."""
    images = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    model.eval()

    def run() -> Result:
        with torch.no_grad():
            return [model(batch) for batch in images]

    return run


def forward_and_backward(model: nn.Module, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Callable[[], Result]:
    """A training step on every batch up to the gradients; returned are the logits and the gradient of the last layer."""
    images = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    model.train()
    last = list(model.parameters())[-1]

    def run() -> Result:
        found = []
        for batch in images:
            model.zero_grad(set_to_none=True)
            logits = model(batch)
            nn.functional.cross_entropy(logits, torch.arange(len(batch))).backward()
            assert last.grad is not None
            found += [logits.detach(), last.grad]
        return found

    return run


def agree(ours: Result, peer: Result) -> None:
    for one, other in zip(ours, peer, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * float(other.abs().max()))
