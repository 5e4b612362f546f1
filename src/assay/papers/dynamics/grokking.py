"""Grokking: a network that has memorised its training set may, long afterwards, understand it.

Take the table of a binary operation, say x - y modulo 59, hide half of its entries and train a network on the others, each
symbol a token with no meaning of its own. Soon every training entry is known by heart and validation accuracy is at chance,
which is where one would stop. Train on, and many times as many steps later validation accuracy climbs to 100 %. Weight
decay brings that day much nearer: among all ways to store the table it goes on looking for a smaller one, and the small one
is arithmetic. Such tables are a laboratory for generalisation: exact, tiny, and with no noise in the labels.

Source: Power, Burda, Edwards, Babuschkin and Misra, "Grokking: Generalization Beyond Overfitting on Small Algorithmic
Datasets", 2022. The blocks of the transformer have no biases, as in the authors' code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.paper import Above, Below, Cost, Curve, Higher, Lower, Reported, claim

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured

# ---------------------------------------------------------------------------------------------------- the tables

#: Operations modulo p, of x and y in 0..p-1 and the inverse of y (0 for y = 0).
_MODULAR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "x+y": lambda x, y, inverse: x + y,
    "x-y": lambda x, y, inverse: x - y,
    "x/y": lambda x, y, inverse: x * inverse,
    "x/y if y odd else x-y": lambda x, y, inverse: torch.where(y % 2 == 1, x * inverse, x - y),
    "x^2+y^2": lambda x, y, inverse: x**2 + y**2,
    "x^2+xy+y^2": lambda x, y, inverse: x**2 + x * y + y**2,
    "x^2+xy+y^2+x": lambda x, y, inverse: x**2 + x * y + y**2 + x,
    "x^3+xy": lambda x, y, inverse: x**3 + x * y,
    "x^3+xy^2+y": lambda x, y, inverse: x**3 + x * y**2 + y,
}
#: Operations of permutations of five things, (..., 5) int64; xy means y first and then x.
_PERMUTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "xy": lambda x, y: x.gather(-1, y),
    "xyx^-1": lambda x, y: x.gather(-1, y.gather(-1, x.argsort(-1))),
    "xyx": lambda x, y: x.gather(-1, y.gather(-1, x)),
}


class OperationTable:
    """Every equation of a binary operation, split at random into training and validation.

    Commutative operations leak: for x + y the mirror image of a validation entry is often in the training set.

    Args:
        op: ``"x+y"``, ``"x-y"``, ``"x/y"`` (y = 0 left out), ``"x/y if y odd else x-y"``, ``"x^2+y^2"``, ``"x^2+xy+y^2"``,
            ``"x^2+xy+y^2+x"``, ``"x^3+xy"``, ``"x^3+xy^2+y"`` modulo p; ``"xy"``, ``"xyx^-1"``, ``"xyx"`` on the 120
            permutations of five things; ``"random"``, a table of p^2 random answers, in which there is nothing to understand.
        p: a prime, the modulus. The paper uses 97.
        train_fraction: share of the equations to train on, in (0, 1). The paper uses 0.2 to 0.8.
        seed: of the split, and of the answers of ``"random"``.

    Attributes:
        equations: (N, 5) int64 tokens ``<eos> x op y =``. Tokens below ``elements`` stand for numbers or permutations.
        answers: (N,) int64 in 0..elements-1.
        train, validation: positions in ``equations``, disjoint and covering.
        elements: p, or 120.
        vocab: number of tokens.
    """

    def __init__(self, op: str = "x/y", p: int = 97, train_fraction: float = 0.5, seed: int = 0) -> None:
        if not 0 < train_fraction < 1:
            raise ValueError(f"train_fraction is {train_fraction}; it must lie between 0 and 1")
        generator = torch.Generator().manual_seed(seed)
        if op in _PERMUTATIONS:
            x, y, answers = _permutation_table(op)
            self.elements = 120
        else:
            x, y, answers = _modular_table(op, p, generator)
            self.elements = p
        operation, equals, eos = (torch.full_like(x, self.elements + extra) for extra in range(3))
        self.vocab = self.elements + 3
        self.equations = torch.stack([eos, x, operation, y, equals], dim=1)
        self.answers = answers
        order = torch.randperm(len(x), generator=generator)
        self.train, self.validation = order.tensor_split([round(train_fraction * len(x))])


def _modular_table(op: str, p: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    if p < 2 or any(p % factor == 0 for factor in range(2, math.isqrt(p) + 1)):
        raise ValueError(f"p is {p}; it must be a prime, so that every number but 0 has an inverse")
    x, y = torch.cartesian_prod(torch.arange(p), torch.arange(int(op == "x/y"), p)).unbind(1)
    if op == "random":
        return x, y, torch.randint(p, (len(x),), generator=generator)
    if op not in _MODULAR:
        raise ValueError(f"the operation {op!r} is not known; choose from {', '.join([*_MODULAR, *_PERMUTATIONS, 'random'])}")
    inverse = torch.tensor([0, *(pow(value, -1, p) for value in range(1, p))])
    return x, y, _MODULAR[op](x, y, inverse[y]) % p


def _permutation_table(op: str) -> tuple[Tensor, Tensor, Tensor]:
    permutations = torch.tensor(list(itertools.permutations(range(5))))  # (120, 5), in lexical order
    x, y = torch.cartesian_prod(torch.arange(120), torch.arange(120)).unbind(1)
    result = _PERMUTATIONS[op](permutations[x], permutations[y])  # (14400, 5)
    weights = 5 ** torch.arange(4, -1, -1)  # reads a permutation as a number, which keeps the order
    return x, y, torch.searchsorted(permutations @ weights, result @ weights)


# ---------------------------------------------------------------------------------------------------- the networks


class GrokTransformer(nn.Module):
    """The paper's decoder-only transformer: two blocks, 394,240 parameters besides embedding and output.

    Args:
        vocab: number of tokens.
        d_model: width. The paper uses 128.
        n_heads: attention heads. The paper uses 4.
        n_layers: blocks. The paper uses 2.

    Shape: tokens (N, T) int64 -> logits (N, T, vocab); position t sees tokens 0..t.
    """

    def __init__(self, vocab: int, d_model: int = 128, n_heads: int = 4, n_layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)  # N(0, 1): a smaller start shortens the delay
        self.blocks = nn.ModuleList([_Block(d_model, n_heads) for _ in range(n_layers)])
        self.output = nn.Linear(d_model, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + _positions(tokens.shape[1], x.shape[2]).to(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.output(x)
        return logits


class _Block(nn.Module):
    """Attention and a hidden layer of four times the width, each added to its input and normalised afterwards."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.mix = nn.Linear(d_model, d_model, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.feed = nn.Sequential(
            nn.Linear(d_model, 4 * d_model, bias=False), nn.ReLU(), nn.Linear(4 * d_model, d_model, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(2, (3, self.n_heads, -1))  # (N, T, 3, heads, d_model / heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (N, heads, T, d_model / heads) each
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        seen = seen.transpose(1, 2).flatten(2)  # (N, T, d_model)
        x = self.norm1(x + self.mix(seen))
        out: Tensor = self.norm2(x + self.feed(x))
        return out


def _positions(length: int, width: int) -> Tensor:
    """Fixed sines and cosines, (length, width)."""
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class OperandMLP(nn.Module):
    """A light network that groks in seconds: both operands embedded, side by side through one hidden layer.

    Args:
        elements: number of operands; they are the tokens below it.
        d_model: width of an embedding.
        hidden: ReLU units.

    Shape: tokens (N, 5) int64, as :class:`OperationTable` makes them -> logits (N, 1, elements).
    """

    def __init__(self, elements: int, d_model: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(elements, d_model)
        self.hidden = nn.Linear(2 * d_model, hidden)
        self.output = nn.Linear(hidden, elements)

    def forward(self, tokens: Tensor) -> Tensor:
        # The hidden layer is linear in each operand, so p products for each of them replace one for each of p^2 pairs.
        left, right = self.hidden.weight.chunk(2, dim=1)
        x = F.embedding(tokens[:, 1], F.linear(self.embedding.weight, left, self.hidden.bias))
        y = F.embedding(tokens[:, 3], F.linear(self.embedding.weight, right))
        logits: Tensor = self.output(torch.relu(x + y))
        return logits[:, None]


# ---------------------------------------------------------------------------------------------------- watching it happen


@dataclass(frozen=True)
class History:
    """Accuracies in the course of a training, taken at ever longer distances.

    Attributes:
        steps: optimizer steps done.
        train: fraction of the training equations that are answered correctly.
        validation: the same of the hidden ones.
    """

    steps: tuple[int, ...]
    train: tuple[float, ...]
    validation: tuple[float, ...]


def run_grokking(
    model: nn.Module,
    table: OperationTable,
    steps: int,
    lr: float = 1e-3,
    weight_decay: float = 1.0,
    batch_size: int | None = None,
    seed: int = 0,
    stop_at: float | None = None,
    progress: Callable[[float, float, str], None] | None = None,
) -> History:
    """Train on the answers with AdamW (betas 0.9 and 0.98, rate warmed up over 10 steps) and watch both accuracies.

    Args:
        model: tokens (N, 5) -> logits (N, T, classes); the last position answers. Trained in place, on its own device.
        table: the equations.
        steps: optimizer steps at most. The paper uses 1e5, and 1e6 in its first figure.
        lr: learning rate. The paper uses 1e-3.
        weight_decay: decoupled: weights shrink by ``lr * weight_decay`` a step. The paper's best is 1.
        batch_size: equations in a step; by default the paper's, 512 or half of the training set if that is less.
        seed: of the order of the equations.
        stop_at: validation accuracy at which to stop.
        progress: ``progress(done, total, note)``.
    """
    device = next(model.parameters()).device
    equations, answers = table.equations.to(device), table.answers.to(device)
    train, validation = table.train.to(device), table.validation.to(device)
    batch_size = min(512, math.ceil(len(train) / 2)) if batch_size is None else batch_size
    batches = _batches(train, batch_size, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)

    @torch.no_grad()
    def accuracy(part: Tensor) -> float:
        model.eval()  # a network with dropout knows more than it shows in training
        hits = [(model(equations[rows])[:, -1].argmax(1) == answers[rows]).sum() for rows in part.split(4096)]
        model.train()
        return torch.stack(hits).sum().item() / len(part)

    seen: list[tuple[int, float, float]] = []
    for step in range(1, steps + 1):
        rows = next(batches)
        loss = F.cross_entropy(model(equations[rows])[:, -1], answers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        # On a logarithmic axis: every step at first, and then steps that are 5 % further on than the last one.
        if not seen or step >= 1.05 * seen[-1][0] or step == steps:
            seen.append((step, accuracy(train), accuracy(validation)))
            if progress is not None:
                progress(step, steps, f"step {step}: training {seen[-1][1]:.0%}, validation {seen[-1][2]:.0%}")
            if stop_at is not None and seen[-1][2] >= stop_at:
                break
    taken, train_accuracy, validation_accuracy = zip(*seen, strict=True)
    return History(taken, train_accuracy, validation_accuracy)


def _batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of ``rows`` without end, in a new order every epoch; all of them at once if they fit."""
    while True:
        if size >= len(rows):
            yield rows
        else:
            yield from rows[torch.randperm(len(rows), generator=generator).to(rows.device)].split(size)


def first_step(steps: tuple[int, ...], accuracy: tuple[float, ...], level: float) -> float:
    """The first of ``steps`` at which ``accuracy`` is ``level`` or more; infinity if it never is."""
    return next((float(step) for step, value in zip(steps, accuracy, strict=True) if value >= level), math.inf)


def grokking_delay(history: History, level: float = 0.95, memorised: float = 0.99) -> float:
    """How many times as many steps generalising took as memorising.

    Returns:
        Steps to validation accuracy ``level`` over steps to training accuracy ``memorised``; infinity if the first was
        never reached, ``nan`` if the second was not.
    """
    learnt = first_step(history.steps, history.train, memorised)
    return math.nan if math.isinf(learnt) else first_step(history.steps, history.validation, level) / learnt


# ---------------------------------------------------------------------------------------------------- claims


def grok(
    op: str,
    p: int,
    train_fraction: float,
    seed: int,
    network: str,
    steps: int,
    lr: float,
    weight_decay: float,
    full_batch: bool,
    device: str,
    progress: Callable[[float, float, str], None] | None = None,
) -> dict[str, Tensor]:
    """One training from scratch, until validation accuracy is 99 %: what :class:`History` holds, as tensors."""
    table = OperationTable(op, p, train_fraction, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OperandMLP(table.elements) if network == "mlp" else GrokTransformer(table.vocab)
    batch_size = len(table.train) if full_batch else None
    history = run_grokking(model.to(device), table, steps, lr, weight_decay, batch_size, seed, stop_at=0.99, progress=progress)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in vars(history).items()}


def _watch(lab: Lab, op: str | None = None, train_fraction: float = 0.5, weight_decay: float = 1.0) -> dict[str, Tensor]:
    real = lab.pick(smoke="x-y", laptop="x-y", full="x/y")
    return lab.remember(
        grok,
        op=real if op is None else op,
        p=lab.pick(smoke=13, laptop=59, full=97),
        train_fraction=train_fraction,
        seed=lab.seed,
        network=lab.pick(smoke="mlp", laptop="mlp", full="transformer"),
        steps=_budget(lab),
        lr=lab.pick(smoke=1e-2, laptop=1e-2, full=1e-3),
        weight_decay=weight_decay,
        full_batch=lab.pick(smoke=True, laptop=True, full=False),
        device=str(lab.device),
    )


def _budget(lab: Lab) -> int:
    return lab.pick(smoke=100, laptop=2000, full=100_000)


def _curve(seen: dict[str, Tensor], which: str, value: float | None = None) -> Curve:
    """Accuracy against steps, at most sixty points of it."""
    every = max(1, -(-len(seen["steps"]) // 60))
    steps, accuracy = (seen[name].flip(0)[::every].flip(0).tolist() for name in ("steps", which))
    return Curve(
        accuracy, steps, value, Cost(seconds=float(seen["seconds"])), x_name="step (logarithmic)", y_name=f"{which} accuracy"
    )


def _steps_to_95(lab: Lab, seen: dict[str, Tensor]) -> Curve:
    """Validation accuracy against steps; its number is the step at which it is 95 %, or the whole budget."""
    reached = first_step(tuple(seen["steps"].tolist()), tuple(seen["validation"].tolist()), 0.95)
    return _curve(seen, "validation", value=min(reached, _budget(lab)))


_SMALLER = (
    "x - y modulo 59 instead of x / y modulo 97, one hidden layer instead of a transformer, and to see it in seconds the "
    "whole training set in each step, a rate of 0.01 instead of 0.001 and 2,000 steps instead of 100,000."
)
_HOURS = 6 * 3600.0  # at full scale a training is 100,000 steps of a transformer


@claim(
    "With half of an operation's table to train on, 95 % of the hidden half are answered correctly at last, and that takes at "
    "least 3 times as many steps as knowing 99 % of the training half; random answers are known by heart, and it never happens.",
    expect=(
        Above("validation accuracy", 0.95),
        Above("delay", 3.0),
        Above("training accuracy, random answers", 0.99),
        Below("validation accuracy, random answers", 0.1),
    ),
    reported=Reported(
        "x / y modulo 97, half of the table, Adam without weight decay: 1e6 steps over 1e3",
        {"delay": 1000.0},
        "Figure 1, caption",
    ),
    scaled_down=_SMALLER,
    unit="accuracy (delay: ratio of steps)",
    time_limit=_HOURS,
)
def delayed_generalization(lab: Lab) -> Measured:
    seen, noise = _watch(lab), _watch(lab, op="random")
    history = History(*(tuple(seen[name].tolist()) for name in ("steps", "train", "validation")))
    delay = grokking_delay(history)
    return {
        "training accuracy": _curve(seen, "train"),
        "validation accuracy": _curve(seen, "validation"),
        "training accuracy, random answers": _curve(noise, "train"),
        "validation accuracy, random answers": _curve(noise, "validation"),
        # Never memorised or never understood within the budget: no delay that could be told.
        "delay": delay if math.isfinite(delay) else 0.0,
    }


@claim(
    "With a weight decay of 1 validation accuracy reaches 95 % in fewer steps than without weight decay, if that ever does.",
    expect=Lower("weight decay 1", than="no weight decay"),
    scaled_down=_SMALLER,
    unit="steps to 95 % validation accuracy",
    time_limit=_HOURS,
)
def weight_decay_helps(lab: Lab) -> Measured:
    return {
        "weight decay 1": _steps_to_95(lab, _watch(lab)),
        "no weight decay": _steps_to_95(lab, _watch(lab, weight_decay=0.0)),
    }


@claim(
    "The smaller the part of the table to train on, the more steps to 95 % validation accuracy: from 70 % down to 30 %.",
    expect=(
        Higher("50 % of the table", than="70 % of the table"),
        Higher("40 % of the table", than="50 % of the table"),
        Higher("30 % of the table", than="40 % of the table"),
    ),
    scaled_down=_SMALLER,
    unit="steps to 95 % validation accuracy",
    time_limit=_HOURS,
)
def less_data_slower(lab: Lab) -> Measured:
    fractions = (0.7, 0.5, 0.4, 0.3)
    return {
        f"{part:.0%} of the table".replace("%", " %"): _steps_to_95(lab, _watch(lab, train_fraction=part)) for part in fractions
    }
