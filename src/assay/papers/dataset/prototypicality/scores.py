"""The five scores, each a plain function of a network or of predictions; large for typical examples."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from assay.papers.robust.deepfool import deepfool


def adversarial_distance(model: nn.Module, inputs: Tensor, labels: Tensor, max_iter: int = 50) -> Tensor:
    """``adv``: the L2 norm of a nearly smallest move that changes what the network says; 0 where it is wrong already.

    The move is DeepFool's. It is infinite where none was found in ``max_iter`` rounds.

    Args:
        model: (B, ...) -> logits (B, C).
        inputs: (N, ...) float.
        labels: (N,) int64, what is held to be right.
        max_iter: most linearisations.

    Returns:
        (N,)
    """
    found = deepfool(model, inputs, max_iter=max_iter)
    distance = found.perturbation.flatten(1).norm(dim=1)
    distance = torch.where(found.new_label == found.label, math.inf, distance)
    return torch.where(found.label == labels, distance, 0.0)


def retention(before: Tensor, after: Tensor, floor: float = 1e-6) -> Tensor:
    """``ret``: minus the symmetric Kullback-Leibler divergence of the predictions before and after training on other data.

    Args:
        before: (N, C) probabilities of a network that was trained on these examples.
        after: (N, C) the same network's, after it went on training without them.
        floor: least probability.

    Returns:
        (N,), at most 0.
    """
    p, q = before.clamp_min(floor), after.clamp_min(floor)
    return -((p - q) * (p.log() - q.log())).sum(dim=1)  # KL(p || q) + KL(q || p)


def agreement(probabilities: Tensor) -> Tensor:
    """``agr``: minus the mean Jensen-Shannon divergence of all pairs of an ensemble.

    Args:
        probabilities: (M, N, C) of M networks, at least 2.

    Returns:
        (N,), between -log 2 and 0.
    """
    if len(probabilities) < 2:
        raise ValueError("agreement is between networks: give the probabilities of 2 or more")
    entropy = _entropy(probabilities)  # (M, N)
    pairs = list(itertools.combinations(range(len(probabilities)), 2))
    # JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2
    apart = [_entropy((probabilities[i] + probabilities[j]) / 2) - (entropy[i] + entropy[j]) / 2 for i, j in pairs]
    return -torch.stack(apart).mean(dim=0).clamp_min(0)


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)
    return entropy


def confidence(probabilities: Tensor) -> Tensor:
    """``conf``: the probability of the likeliest class, on average over the networks: (M, N, C) -> (N,)."""
    return probabilities.amax(dim=2).mean(dim=0)


def noise_withstood(probabilities: Tensor, labels: Tensor, share: float = 0.9) -> Tensor:
    """``priv``: the rank of the largest noise at which private training still gets an example right.

    Args:
        probabilities: (S, R, N, C) of R private trainings at each of S levels of noise, smallest noise first.
        labels: (N,) int64.
        share: of the R trainings that must be right (paper: 0.9).

    Returns:
        (N,): 0 if no level is withstood, else its place (1 to S); the mean probability of the label breaks ties.
    """
    right = (probabilities.argmax(dim=3) == labels).double().mean(dim=1) >= share  # (S, N)
    places = torch.arange(1, len(right) + 1, device=labels.device).unsqueeze(1)
    level = (right * places).amax(dim=0)
    label = labels.expand(probabilities.shape[:3]).unsqueeze(3)
    return level + probabilities.gather(3, label).squeeze(3).double().mean(dim=(0, 1))
