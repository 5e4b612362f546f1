"""Committees: what several classifiers say together, from their predictions alone.

The members predict once, and everything else is arithmetic on the kept tensor of probabilities, members x examples x classes:

    members = probabilities([first, second, third], images)       # (3, N, C)
    together = average(members)                                    # (N, C), the mean of the probabilities
    curve = error_by_size(members, labels)                         # (3,) error of 1, 2 and 3 members
    clips = by_group(together, clip_of_each_frame)                 # frames -> clips
    labels = majority(clips)                                       # (G,) the vote of each clip's frames
    labels = dispatch(probs, capacity=2)                           # (n,) at most two items of each class

Whatever makes probabilities can be a member: networks, ``predict_proba`` of scikit-learn, one network on several views of an
image. Tensors go in and tensors come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from assay.errors import AssayError

#: How members are averaged: arithmetic mean, geometric mean (the softmax of the mean of the logits), or maximum.
Rule = Literal["probabilities", "logits", "max"]


def probabilities(models: Sequence[Callable[[Tensor], Tensor]], inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """What every model says of every example, computed once.

    Args:
        models: each gives logits (B, C) for a batch. Modules are asked in evaluation mode, and left in the mode they were in.
            What one member alone sees (its own crop or scaling) belongs into the member, e.g. ``nn.Sequential(scale, model)``.
        inputs: (N, ...), on the device of the models.
        batch_size: examples at a time.

    Returns:
        (M, N, C) of the type of the logits, without gradients.

    Raises:
        AssayError: there are no models or no examples, or the models know different numbers of classes.
    """
    if not models or not len(inputs):
        raise AssayError(
            f"A committee of {len(models)} models was asked about {len(inputs)} examples: give one of each at least."
        )
    modules = [model for model in models if isinstance(model, nn.Module)]
    trains = [[part for part in module.modules() if part.training] for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            said = [_stacked([model(batch).softmax(dim=-1) for model in models]) for batch in inputs.split(batch_size)]
    finally:
        for parts in trains:
            for part in parts:
                part.training = True
    return torch.cat(said, dim=1)


def _stacked(answers: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(answer.shape) for answer in answers]
    if len(set(shapes)) != 1:
        raise AssayError(f"Members of a committee give answers of the shapes {shapes}; give it networks for the same classes.")
    return torch.stack(list(answers))


def ask(classifiers: Sequence[Any], X: Any) -> Tensor:
    """What every trained classifier says of every example, in scikit-learn's terms.

    Args:
        classifiers: each has ``predict_proba``, or is a network that gives logits for a tensor of X, of the type and on the
            device of its weights.
        X: what they take.

    Returns:
        (M, N, C) float64, on the CPU.

    Raises:
        AssayError: there are none, or they do not give as many columns each.
    """
    if not classifiers:
        raise AssayError("A committee of no classifiers was asked: give at least one.")
    said = []
    for one in classifiers:
        if isinstance(one, nn.Module):
            weight = next((weight for weight in one.parameters() if weight.is_floating_point()), torch.empty(0))
            inputs = torch.as_tensor(X, dtype=weight.dtype, device=weight.device)
            said.append(probabilities([one], inputs)[0].cpu().double())
        else:
            said.append(torch.as_tensor(one.predict_proba(X), dtype=torch.float64))
    columns = [found.shape[1] for found in said]
    if len(set(columns)) != 1:
        raise AssayError(f"Classifiers of a committee know {columns} classes; give it those of the same ones.")
    return torch.stack(said)


def average(members: Tensor, rule: Rule = "probabilities") -> Tensor:
    """One distribution for every example, the members counting the same.

    Args:
        members: (M, N, C) probabilities.
        rule: ``"probabilities"`` is their mean. ``"logits"`` is their geometric mean, which is the softmax of the mean logits: a
            member that rules a class out counts for more. ``"max"`` takes the largest of a class, for whatever one member is sure
            of. The last two are scaled to sum to 1.

    Returns:
        (N, C).
    """
    _require_members(members)
    if rule == "probabilities":
        return members.mean(dim=0)
    if rule == "logits":
        return _logs(members).mean(dim=0).softmax(dim=-1)
    if rule == "max":
        largest = members.amax(dim=0)
        return largest / largest.sum(dim=-1, keepdim=True)
    raise AssayError(f"There is no rule {rule!r} to average members by; choose probabilities, logits or max.")


def weighted(members: Tensor, weights: Tensor) -> Tensor:
    """The members' probabilities (M, N, C) summed up with a weight for each (M,), which may be of any sign and sum: (N, C)."""
    _require_members(members)
    if weights.shape != members.shape[:1]:
        raise AssayError(f"{len(members)} members have weights of the shape {tuple(weights.shape)}; give each member one.")
    return torch.einsum("m,mnc->nc", weights.to(members.dtype), members)


# ------------------------------------------------------------------------------------------------- how they differ


def disagreement(members: Tensor) -> Tensor:
    """For every two members (M, N, C) the share of examples that they class differently: (M, M) float64, 0 on the diagonal."""
    _require_members(members)
    said = members.argmax(dim=-1)  # (M, N)
    return torch.stack([(said != one).double().mean(dim=1) for one in said])


def error_by_size(
    members: Tensor,
    labels: Tensor,
    rule: Rule = "probabilities",
    subsets: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How wrong committees of 1, 2, ... M of the members are, on the average over which of them.

    Args:
        members: (M, N, C) probabilities.
        labels: (N,) int64.
        rule: as in :func:`average`.
        subsets: of one size. Where there are no more than so many, each is taken once and the result is exact; elsewhere so
            many are drawn at random.
        generator: of these draws; ``None`` starts one from 0, so that the same members give the same curve.

    Returns:
        (M,) float64: the share of examples whose label is not what the committee says, for sizes from 1 on.
    """
    _require_members(members)
    if labels.shape != members.shape[1:2]:
        raise AssayError(
            f"Members speak of {members.shape[1]} examples, and there are labels {tuple(labels.shape)}; give each one."
        )
    generator = generator or torch.Generator().manual_seed(0)
    count = len(members)
    errors = []
    for size in range(1, count + 1):
        if math.comb(count, size) <= subsets:
            chosen = torch.tensor(list(combinations(range(count), size)))
        else:
            chosen = torch.rand(subsets, count, generator=generator).argsort(dim=1)[:, :size]
        wrong = [(average(members[subset], rule).argmax(dim=-1) != labels).double().mean() for subset in chosen]
        errors.append(torch.stack(wrong).mean())
    return torch.stack(errors)


# ----------------------------------------------------------------------------------------------- several views of one thing


class Groups(NamedTuple):
    """What the rows of each group say; made by :func:`by_group`.

    Attributes:
        ids: (G,) of the groups, ascending.
        sizes: (G,) int64 rows.
        votes: (G, C) int64, how many rows say each class.
        mean: (G, C) float64, mean of the scores.
    """

    ids: Tensor
    sizes: Tensor
    votes: Tensor
    mean: Tensor


def by_group(scores: Tensor, groups: Tensor) -> Groups:
    """Gather rows that are views of one thing: the frames of a clip, the crops of a photo.

    The votes of a committee's members are this too: ``by_group(members.flatten(0, 1), torch.arange(N).repeat(M))``.

    Args:
        scores: (N, C), of every row; a row's vote is the largest.
        groups: (N,) int64, the id of its group, in any order.

    Raises:
        AssayError: there is not one group for every row.
    """
    if scores.dim() != 2 or groups.shape != scores.shape[:1]:
        raise AssayError(f"Scores {tuple(scores.shape)} and groups {tuple(groups.shape)} do not match; give (N, C) and (N,).")
    ids, places = groups.unique(return_inverse=True)
    votes = torch.zeros(len(ids), scores.shape[1], dtype=torch.int64, device=scores.device)
    votes.index_put_((places, scores.argmax(dim=1)), torch.ones_like(places), accumulate=True)
    # In float64 sums of float32 scores are exact to any order that matters: which row comes first decides nothing.
    total = torch.zeros_like(votes, dtype=torch.float64).index_add_(0, places, scores.double())
    sizes = votes.sum(dim=1)
    return Groups(ids, sizes, votes, total / sizes[:, None])


def majority(groups: Groups) -> Tensor:
    """The class that most rows of a group say; of several with as many votes, that of the largest mean score: (G,) int64."""
    most = groups.votes == groups.votes.amax(dim=1, keepdim=True)
    return groups.mean.masked_fill(~most, -math.inf).argmax(dim=1)


def at_least(groups: Groups, rows: int, positive: int = 1) -> Tensor:
    """``positive`` where at least so many rows of a group say it, else the majority among the other classes: (G,) int64.

    Args:
        groups: of two or more classes.
        rows: 1 raises the alarm at the first row; groups with fewer rows than this must be unanimous.
        positive: the class that is looked for.
    """
    if rows < 1:
        raise AssayError(f"A group is to be positive with {rows} positive rows; give at least 1.")
    votes = groups.votes.clone()
    found = votes[:, positive] >= groups.sizes.clamp_max(rows)
    votes[:, positive] = -1
    return majority(groups._replace(votes=votes)).masked_fill(found, positive)


# ------------------------------------------------------------------------------------------ when the counts are known


def dispatch(
    probs: Tensor,
    capacity: int | Tensor,
    method: Literal["hungarian", "greedy"] = "hungarian",
    margin: float = math.inf,
) -> Tensor:
    """Label the items of a case together, knowing how many of each class there can be at most.

    The labels c maximise ``sum_i log probs[i, c_i] - margin * (labels above capacity)``.

    Args:
        probs: (n, K), of the n items of one case; or (B, n, K) for B cases of one size.
        capacity: items of a class that a case holds at most: one number, or (K,) one for each class. Together at least n,
            unless ``margin`` is finite; where they are just n, every class gets exactly its capacity.
        method: ``"hungarian"`` finds the maximum (an assignment of items to places, O(n^3)); ``"greedy"`` goes from the surest
            item to the least sure, and gives each the best class that has a place left.
        margin: nats of log-likelihood for which a place too many is opened, for cases that are not as they should be. An item
            keeps a class that is full if any other labelling would be less likely by more than this. ``inf`` never exceeds the
            capacity, 0 is the plain argmax.

    Returns:
        (n,) or (B, n) int64.

    Raises:
        AssayError: the items do not fit, or a value is out of its range.
    """
    cases = probs if probs.dim() == 3 else probs[None]
    if cases.dim() != 3 or not cases.shape[2]:
        raise AssayError(f"Probabilities {tuple(probs.shape)} were to be dispatched; give (n, K) or (B, n, K).")
    if math.isnan(margin) or margin < 0:
        raise AssayError(f"The margin of dispatch is {margin}; give a number of nats from 0 on.")
    if bool(cases.isnan().any()):
        raise AssayError(
            "Among the probabilities to be dispatched are some that are not numbers; look at the model that gave them."
        )
    items, classes = cases.shape[1:]
    room = torch.as_tensor(capacity, dtype=torch.int64, device=probs.device)
    if room.dim() > 1 or (room.dim() == 1 and len(room) != classes) or bool((room < 0).any()):
        raise AssayError(f"The capacity of {classes} classes is {capacity}; give one number from 0 on, or one for each class.")
    room = room.expand(classes).clamp_max(items)
    if int(room.sum()) < items and margin == math.inf:
        raise AssayError(f"{items} items do not fit into {int(room.sum())} places; raise the capacity or give a finite margin.")
    logs = _logs(cases.double())
    if method == "hungarian":
        labels = _assigned(logs, room, margin)
    elif method == "greedy":
        labels = _greedily(logs, room, margin)
    else:
        raise AssayError(f"There is no method {method!r} of dispatch; choose hungarian or greedy.")
    return labels if probs.dim() == 3 else labels[0]


def _assigned(logs: Tensor, room: Tensor, margin: float) -> Tensor:
    """The optimum: a class is as many columns as it has places, and with a finite margin as many dear ones as there are items."""
    items, classes = logs.shape[1:]
    kinds = torch.arange(classes, device=logs.device)
    columns = kinds.repeat_interleave(room)
    price = torch.zeros(len(columns), dtype=logs.dtype, device=logs.device)
    if margin < math.inf:
        columns = torch.cat([columns, kinds.repeat_interleave(items)])
        price = torch.cat([price, price.new_full((classes * items,), margin)])
    gains = (logs[:, :, columns] - price).cpu().numpy()
    # Places are never more than items, so scipy gives the rows in order and every item one column.
    chosen = [torch.from_numpy(linear_sum_assignment(gain, maximize=True)[1]) for gain in gains]
    return columns[torch.stack(chosen).to(columns.device)]


def _greedily(logs: Tensor, room: Tensor, margin: float) -> Tensor:
    """From the surest item to the least sure, for all cases side by side."""
    cases, items, classes = logs.shape
    every = torch.arange(cases, device=logs.device)
    left = room.repeat(cases, 1)  # (B, K)
    labels = torch.empty(cases, items, dtype=torch.int64, device=logs.device)
    for item in logs.amax(dim=2).argsort(dim=1, descending=True, stable=True).unbind(dim=1):  # (B,) each
        full = torch.zeros(cases, classes, dtype=logs.dtype, device=logs.device).masked_fill(left <= 0, margin)
        best = (logs[every, item] - full).argmax(dim=1)
        labels[every, item] = best
        left[every, best] -= 1
    return labels


def _logs(probs: Tensor) -> Tensor:
    """Logarithms, with the smallest normal number of the type for what is 0: a class that is ruled out stays comparable."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _require_members(members: Tensor) -> None:
    if members.dim() != 3 or not len(members):
        raise AssayError(f"A committee's predictions have the shape {tuple(members.shape)}; give (members, examples, classes).")
