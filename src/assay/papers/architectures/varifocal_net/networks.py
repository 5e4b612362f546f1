"""Networks that look twice: once at the whole picture, and once at a square of it that they choose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from assay.data.scenes import tight_boxes
from assay.nn.convnet import ConvNorm, Stage, stages
from assay.nn.initialise import he_normal
from assay.papers.architectures.resnet import basic

Part = Literal["global", "local", "both"]


def zoom(images: Tensor, boxes: Tensor) -> Tensor:
    """What is in the squares, at the size of the whole image; gradients reach the boxes.

    Args:
        images: (B, C, H, W).
        boxes: (B, 3) centre x, centre y and half the side, as shares of width and height: (0.5, 0.5, 0.5) is all of the image.
            What lies outside of it is 0.

    Returns:
        (B, C, H, W), interpolated bilinearly, with places in float32 at least.
    """
    exact = torch.promote_types(images.dtype, torch.float32)
    x, y, half = boxes.to(exact).unbind(dim=1)
    zero = torch.zeros_like(x)
    rows = torch.stack([2 * half, zero, 2 * x - 1, zero, 2 * half, 2 * y - 1], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images.to(exact), grid, padding_mode="zeros", align_corners=False).to(images.dtype)


fx.wrap("zoom")  # how large an image is, traced networks need not know


def enclosing_box(evidence: Tensor, share: float = 0.5, least: float = 0.125) -> Tensor:
    """The smallest square around the places with at least a ``share`` of the largest evidence, inside of the image.

    Args:
        evidence: (B, h, w), large where something speaks for the answer.
        share: in (0, 1].
        least: smallest half of a side.

    Returns:
        (B, 3) as :func:`zoom` takes them.
    """
    strong = evidence >= share * evidence.amax(dim=(1, 2), keepdim=True).clamp_min(0)
    strong |= evidence == evidence.amax(
        dim=(1, 2), keepdim=True
    )  # where nothing speaks for it, the place that says least against
    height, width = evidence.shape[1:]
    left, top, right, bottom = (tight_boxes(strong) / evidence.new_tensor([width, height, width, height])).unbind(dim=1)
    half = (torch.maximum(right - left, bottom - top) / 2).clamp(least, 0.5)
    centres = [torch.minimum(torch.maximum(two / 2, half), 1 - half) for two in (left + right, top + bottom)]
    return torch.stack([*centres, half], dim=1)


class Answers(nn.Module):
    """Logits of joint answers to two questions out of features: a layer, or a perceptron, for each.

    Args:
        features: F.
        num_types: answers to the first question.
        num_aux: answers to the second; 1 if there is no second.
        hidden: units of a hidden layer with ReLU and dropout; ``None`` for none.
        dropout: before the last layer of a perceptron.

    Shape: (B, F) -> (B, num_types * num_aux); answer (t, a) stands at ``t * num_aux + a``.
    """

    def __init__(self, features: int, num_types: int, num_aux: int = 1, hidden: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()

        def perceptron(answers: int) -> nn.Module:
            if hidden is None:
                return nn.Linear(features, answers)
            return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, answers))

        self.types = perceptron(num_types)
        self.aux = perceptron(num_aux) if num_aux > 1 else None

    def forward(self, features: Tensor) -> Tensor:
        types: Tensor = self.types(features)
        if self.aux is None:
            return types
        joint: Tensor = types.unsqueeze(2) + self.aux(features).unsqueeze(1)
        return joint.flatten(1)


def separate(logits: Tensor, num_aux: int) -> tuple[Tensor, Tensor]:
    """Joint logits (B, T * A) as log-probabilities of both answers, (B, T) and (B, A)."""
    joint = logits.log_softmax(dim=1).unflatten(1, (-1, num_aux))
    return joint.logsumexp(dim=2), joint.logsumexp(dim=1)


class Look(nn.Module):
    """One half: a trunk, the mean over its maps, and the answers.

    Args:
        trunk: (B, C, H, W) -> (B, features, h, w).
        features: planes of the trunk's maps.
        num_types: as for :class:`Answers`.
        num_aux: as for :class:`Answers`.

    Shape: (B, C, H, W) -> (B, num_types * num_aux).
    """

    def __init__(self, trunk: nn.Module, features: int, num_types: int, num_aux: int = 1) -> None:
        super().__init__()
        self.trunk, self.answers = trunk, Answers(features, num_types, num_aux)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.answers(self.trunk(images).mean(dim=(2, 3)))
        return logits

    def evidence(self, maps: Tensor) -> Tensor:
        """What each place of the maps (B, F, h, w) adds to the logit of the most probable type: (B, h, w)."""
        layer = self.answers.types
        assert isinstance(layer, nn.Linear)
        return torch.einsum("bf,bfhw->bhw", layer.weight[layer(maps.mean(dim=(2, 3))).argmax(dim=1)], maps)


class Localiser(nn.Module):
    """Proposes a square inside of the image from the maps of the global half.

    Args:
        features: planes of the maps.
        least: smallest half of a side.
        cells: rows and columns to which maps are averaged.

    Shape: (B, features, h, w) -> (B, 3) as :func:`zoom` takes them; at the start all are in the middle.
    """

    def __init__(self, features: int, least: float = 0.125, cells: int = 6) -> None:
        super().__init__()
        self.least = least
        last = nn.Linear(64, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Conv2d(features, 8, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(cells),
            nn.Flatten(),
            nn.Linear(8 * cells * cells, 64),
            nn.Tanh(),
            last,
        )

    def forward(self, maps: Tensor) -> Tensor:
        x, y, size = self.net(maps).sigmoid().unbind(dim=1)
        half = self.least + (0.5 - self.least) * size
        return torch.stack([half + (1 - 2 * half) * x, half + (1 - 2 * half) * y, half], dim=1)


class Pointer(nn.Module):
    """Where the evidence is: :func:`enclosing_box` as a module, so that its boxes can be watched."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, evidence: Tensor) -> Tensor:
        return enclosing_box(evidence, least=self.least)


class FixedBox(nn.Module):
    """A square in the middle of every image, in place of a :class:`Localiser`: the control."""

    def __init__(self, half_side: float) -> None:
        super().__init__()
        self.half_side = half_side

    def forward(self, maps: Tensor) -> Tensor:
        return maps.new_tensor([0.5, 0.5, self.half_side]).expand(len(maps), 3)


class VarifocalNet(nn.Module):
    """Both halves, the net that proposes squares, and the answers from both.

        net = VarifocalNet(partial(residual_trunk, 1, 16), features=64, num_types=24, num_aux=2)
        net.learn("global")        # and train; then "local"; then "both"
        net(images)                # logits of the part that learns; of "both" from the start

    Args:
        make_trunk: makes (B, C, H, W) -> (B, features, h, w); called twice.
        features: planes of the maps that it makes.
        num_types: answers to the first question.
        num_aux: answers to the second; 1 if there is no second.
        least: smallest half of a square's side, as a share of the image's.
        hidden: units of the hidden layer of each last perceptron.
        dropout: in these.

    Shape: (B, C, H, W) -> (B, num_types * num_aux), joint answers as of :class:`Answers`; see :func:`separate`.
    """

    def __init__(
        self,
        make_trunk: Callable[[], nn.Module],
        features: int,
        num_types: int = 24,
        num_aux: int = 2,
        least: float = 0.125,
        hidden: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < least <= 0.5:
            raise ValueError(f"least, half the side of the smallest square, must be in (0, 0.5], not {least}")
        self.glance = Look(make_trunk(), features, num_types, num_aux)
        self.localiser: nn.Module = Localiser(features, least)
        self.pointer = Pointer(least)
        self.closer = Look(make_trunk(), features, num_types, num_aux)
        self.both = Answers(2 * features, num_types, num_aux, hidden, dropout)
        self.part: Part = "both"
        self.pulled = False  # whether squares are compared with the evidence

    def learn(self, part: Part) -> None:
        """Choose whose logits ``forward`` gives; what earlier stages have learnt stays as it is, normalisation included."""
        self.part = part
        self.train(self.training)

    def train(self, mode: bool = True) -> VarifocalNet:
        """As of any module; parts that do not learn any more are in evaluation mode."""
        super().train(mode)
        for part in self._done():
            part.eval()
        return self

    def _done(self) -> tuple[nn.Module, ...]:
        return {"global": (), "local": (self.glance,), "both": (self.glance, self.localiser, self.closer)}[self.part]

    def forward(self, images: Tensor) -> Tensor:
        if self.part == "global":
            logits: Tensor = self.glance(images)
            return logits
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            maps = self.glance.trunk(images)
            if self.pulled and self.training:
                self.pointer(self.glance.evidence(maps))
        if self.part == "local":
            closer: Tensor = self.closer(zoom(images, self.localiser(maps)))
            return closer
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            seen = self.closer.trunk(zoom(images, self.localiser(maps)))
        answer: Tensor = self.both(torch.cat([maps.mean(dim=(2, 3)), seen.mean(dim=(2, 3))], dim=1))
        return answer

    def boxes(self, images: Tensor) -> Tensor:
        """Where it looks closer: (B, 3) as :func:`zoom` takes them."""
        found: Tensor = self.localiser(self.glance.trunk(images))
        return found


def residual_trunk(in_channels: int = 1, width: int = 16, stride: int = 2) -> nn.Sequential:
    """A convolution and two residual blocks: (B, in_channels, H, W) -> (B, 4 * width, H / 4s, W / 4s), s being the stride."""
    table = [Stage(2 * width, 1, 2), Stage(4 * width, 1, 2)]
    trunk = nn.Sequential(ConvNorm(in_channels, width, 3, stride), stages(basic, width, table))
    he_normal(trunk)
    return trunk


def varifocal_net(
    num_types: int = 24, num_aux: int = 2, in_channels: int = 1, width: int = 16, stride: int = 2, least: float = 0.125
) -> VarifocalNet:
    """A varifocal network with trunks of :func:`residual_trunk`; arguments as of :class:`VarifocalNet`."""
    trunk = partial(residual_trunk, in_channels, width, stride)
    return VarifocalNet(trunk, 4 * width, num_types, num_aux, least)


def small(num_classes: int, in_channels: int = 1) -> nn.Module:
    """A small one for 28x28; see :func:`paper_training`."""
    return varifocal_net(num_classes, 1, in_channels, width=8, stride=1)
