"""How far the last hidden layer has collapsed: are classes points, and do the points lie as far apart as they can?

A network that is trained long on balanced classes ends in a state of four properties (Papyan, Han and Donoho 2020): features of a
class are all its mean (NC1), the class means form a simplex whose angles are all equal (NC2), the rows of the last layer point
where the means point (NC3), and the network says the class of the nearest mean (NC4). Here each is a number that goes to 0:

    seen = last_layer(model, inputs)
    neural_collapse(seen.features, labels, seen.weight, seen.bias).nc2

Every class counts the same, however many examples it has: the centre of the means is their plain mean, not that of all examples.
With equally many examples of each class this is the usual definition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.nn.ending import last_linear


@dataclass(frozen=True)
class LastLayer:
    """What goes into a network's last linear layer, and the layer.

    Args:
        features: (N, F) its inputs.
        weight: (C, F).
        bias: (C,), zeros where it has none.
        name: of the layer within the network.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor
    name: str


@torch.no_grad()
def last_layer(model: nn.Module, inputs: Tensor, chunk: int = 512) -> LastLayer:
    """Run a network in evaluation mode and keep what goes into its last linear layer.

    Args:
        model: whose last ``nn.Linear`` gives the logits (:func:`assay.nn.ending.last_linear`).
        inputs: (N, ...).
        chunk: examples at a time.

    Raises:
        ValueError: the network has no linear layer, or does not call its last one once for each batch.
    """
    found = last_linear(model)
    if found is None:
        raise ValueError("the network has no linear layer, so it has no features that one could look at")
    name, head = found
    kept: list[Tensor] = []
    was_training = model.training
    model.eval()
    handle = head.register_forward_pre_hook(lambda _, given: kept.append(given[0].flatten(1)))
    parts = inputs.to(head.weight.device).split(chunk)
    try:
        for part in parts:
            model(part)
    finally:
        handle.remove()
        model.train(was_training)
    if len(kept) != len(parts) or sum(map(len, kept)) != len(inputs):
        raise ValueError(f"the network does not call its last linear layer {name!r} once for each example")
    bias = head.weight.new_zeros(head.out_features) if head.bias is None else head.bias.detach()
    return LastLayer(torch.cat(kept), head.weight.detach(), bias, name)


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean feature of every class: (N, F), (N,) int64 -> (num_classes, F), NaN for a class without examples."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features)
    return sums / torch.bincount(labels, minlength=num_classes).to(features)[:, None]


def centred_cosines(means: Tensor) -> Tensor:
    """Cosines between class means, seen from their common centre: (K, F) -> (K, K).

    Those of a simplex are all -1 / (K - 1), which is as far apart as K points can lie.
    """
    units = F.normalize(means - means.mean(dim=0), dim=1)
    return units @ units.T


@dataclass(frozen=True)
class Collapse:
    """What :func:`neural_collapse` found; every number is 0 in full collapse, but for the angle.

    Args:
        nc1: tr(S_W S_B^+) / K: spread within classes against spread between their means.
        nc2: distance of the means' Gram matrix, both of length 1, from that of a simplex.
        nc3: squared distance between the last layer's weights and the centred means, both of length 1; NaN without weights.
        nc4: share of the examples that the network does not put into the class of the nearest mean; NaN without weights.
        cosines: (K, K) between centred class means.
        smallest_angle: between two centred class means, degrees; arccos(-1 / (K - 1)) at best.
        spread: standard deviation of the cosines of all pairs of classes.
    """

    nc1: float
    nc2: float
    nc3: float
    nc4: float
    cosines: Tensor
    smallest_angle: float
    spread: float


@torch.no_grad()
def neural_collapse(features: Tensor, labels: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Collapse:
    """The four properties of neural collapse, in double precision.

    Args:
        features: (N, F), what goes into the last layer.
        labels: (N,) int64. Classes without examples are left out.
        weight: (C, F) of the last layer, a row for each class.
        bias: (C,) of the last layer.

    Raises:
        ValueError: fewer than two classes have examples.
    """
    present, place = labels.unique(return_inverse=True)
    count = len(present)
    if count < 2:
        raise ValueError(f"collapse is about several classes, and the labels have {count}")
    wide = features.double()
    means = class_means(wide, place, count)
    centred = means - means.mean(dim=0)
    cosines = centred_cosines(means)
    pairs = cosines[torch.triu(torch.ones_like(cosines, dtype=torch.bool), diagonal=1)]
    gram = centred @ centred.T
    simplex = (torch.eye(count).to(gram) - 1 / count) / math.sqrt(count - 1)
    nc3 = nc4 = math.nan
    if weight is not None:
        rows = weight[present].double()
        nc3 = (rows / rows.norm() - centred / centred.norm()).square().sum().item()
        logits = wide @ weight.double().T + (0 if bias is None else bias.double())
        nc4 = (logits.argmax(dim=1) != present[torch.cdist(wide, means).argmin(dim=1)]).double().mean().item()
    return Collapse(
        nc1=_spread_within(wide, place, means, centred),
        nc2=(gram / gram.norm() - simplex).norm().item(),
        nc3=nc3,
        nc4=nc4,
        cosines=cosines,
        smallest_angle=math.degrees(math.acos(min(1.0, max(-1.0, pairs.max().item())))),
        spread=pairs.std(correction=0).item(),
    )


def _spread_within(features: Tensor, place: Tensor, means: Tensor, centred: Tensor) -> float:
    """tr(S_W S_B^+) / K without any F x F matrix.

    With the singular values s and vectors v of the centred means, S_B^+ = K sum_r v_r v_r^T / s_r^2, so that the trace is the
    mean square of what is left of each feature without its mean, measured along v_r in units of s_r.
    """
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    real = sizes > sizes.max() * max(centred.shape) * torch.finfo(sizes.dtype).eps
    along = (features - means[place]) @ directions[real].T / sizes[real]  # (N, K - 1)
    by_class = class_means(along.square().sum(dim=1, keepdim=True), place, len(means))
    return by_class.mean().item()
