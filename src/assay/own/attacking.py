"""How easily is a classifier fooled, and what can be proved of it? Several attacks side by side, for growing balls.

    tested = robust(on="photos/", model="photos-1")
    tested.rows                         # one a ball: accuracy under each attack, under the worst of them, and what is proved
    tested.looked.notes                 # among them the signs of gradient masking

The accuracy under the strongest attack for each example is an upper bound of the true one; what interval bounds prove is a
lower one. A network whose gradients lead nowhere looks robust to attacks that follow them: signs of that are named.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assay.attack import certified, robust_accuracy, signs_of_masking
from assay.attack.balls import CHUNK, wide
from assay.attack.bounds import Unbounded
from assay.data import Dataset
from assay.errors import AssayError
from assay.nn.frozen import frozen
from assay.own.named import Named
from assay.own.opening import open_subject
from assay.own.probing import Looked, parse, see
from assay.papers.robust.deepfool import DeepFoolResult, deepfool
from assay.train.loop import Report
from assay.view import Seen, View

#: Sizes of change that are looked at: grey levels of 8-bit pixels, or parts of a standard deviation.
_PIXELS = tuple(levels / 255 for levels in (1, 2, 4, 8, 16, 32))
_DEVIATIONS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DEEPFOOL = "DeepFool"


@dataclass(frozen=True)
class Ball:
    """What is left of a network in balls of one size.

    Args:
        eps: radius.
        under: attack -> share of the examples that are classified as labelled before and after it.
        worst: the same after the strongest of them for each example.
        proved: share of which it is proved; ``None`` where the network cannot be bounded.
    """

    eps: float
    under: dict[str, float]
    worst: float
    proved: float | None


@dataclass
class Tested:
    """A network under attack.

    Args:
        looked: the network, the examples, how far each must be moved, and notes.
        norm: in which changes are measured: 2 or infinity.
        clean: share of the examples that are classified as labelled.
        range: what a change is measured in, in a sentence without a full stop.
        rows: one for each size, the smallest first.
        masking: signs of gradient masking, sentences without full stops.
        checked: the size at which they were looked for.
        after: what the network says of each example behind the smallest change that was found to fool it; ``None`` where none
            did, or where it is wrong from the start.
    """

    looked: Looked
    norm: float
    clean: float
    range: str
    rows: list[Ball]
    masking: list[str]
    checked: float
    after: list[str | None]

    def written(self, eps: float) -> str:
        """A size as people write it: of images in grey levels, where it is a whole number of them."""
        levels = round(255 * eps)
        if self.looked.kind == "images" and self.norm == math.inf and levels and math.isclose(levels, 255 * eps, rel_tol=1e-6):
            return f"{levels}/255"
        return f"{eps:.3g}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = self.looked.as_dict()
        return {
            "probe": "robust",
            **{name: plain[name] for name in ("model", "data", "kind", "accuracy", "seconds")},
            "norm": "inf" if self.norm == math.inf else 2,
            "range": self.range,
            "clean": self.clean,
            "numbers": plain["numbers"],
            "balls": [{"eps": row.eps, "under": row.under, "worst": row.worst, "proved": row.proved} for row in self.rows],
            "masking": self.masking,
            "masking_looked_for_at": self.checked,
            "examples": [one | {"after": after} for one, after in zip(plain["examples"], self.after, strict=True)],
            "notes": plain["notes"],
        }


def robust(
    on: str | Path | Dataset,
    model: str | None = None,
    named: Named = Named(),  # noqa: B008 (it cannot be changed)
    examples: int = 100,
    seed: int = 0,
    raw: bool = False,
    device: str = "cpu",
    settings: Sequence[str] = (),
    trusted: Collection[str] = (),
    report: Report | None = None,
) -> Tested:
    """Attack a classifier on examples, and prove what can be proved.

    Args:
        on: the data; see :func:`assay.own.opening.open_subject`, also for the next two and ``raw``.
        model: the network; ``None`` trains the baseline on the data.
        named: columns of the data that have a meaning.
        examples: how many are drawn and attacked.
        seed: of the draw, of the baseline's training and of what is random.
        raw: hand columns and series to the network as they stand in the file.
        device: where the baseline is trained.
        settings: options of :meth:`_Test.robust`, as ``"norm=2"`` or ``"eps=0.01,0.1"``.
        trusted: modules whose functions may be called to make the network of a saved run again.
        report: is told how far a training is.

    Raises:
        AssayError: the network, the data or an option is wrong, or they do not fit together.
    """
    if examples < 1:
        raise AssayError(f"{examples} examples were asked for: give at least 1.")
    test = _Test()
    options = parse(test.robust, settings)
    _sizes(options.get("eps", ""), ())  # before a network is trained
    if options.get("norm", math.inf) not in (2, math.inf):
        raise AssayError(f"The norm {options['norm']:g} is none that attacks are made for: set norm=inf or norm=2.")
    subject = open_subject(model, on, named, raw, seed, device, trusted, report)
    if subject.kind == "text":
        raise AssayError("robust moves inputs by small amounts, and words have none: it is for images, audio, series and tables.")
    looked = see(test.robust, subject, options, examples, seed)
    after = [None if said is None else subject.classes[said] for said in test.after]
    return Tested(looked, test.norm, test.clean, test.range, test.rows, test.masking, test.checked, after)


def _sizes(text: str, default: Sequence[float]) -> tuple[float, ...]:
    """``"0.01,8/255"`` as numbers, the smallest first."""
    try:
        found = [float(top) / float(bottom or 1) for top, _, bottom in (part.partition("/") for part in text.split(",") if part)]
    except (ValueError, ZeroDivisionError):
        found = [-1.0]
    if not all(0 < size < math.inf for size in found):
        raise AssayError(f"eps={text} is no list of sizes above 0: write it like eps=0.01,8/255.")
    return tuple(sorted(found or default))


class _Ranged(nn.Module):
    """A network that takes its inputs in units in which changes are measured: ``low + units * width``."""

    def __init__(self, model: nn.Module, low: Tensor, width: Tensor) -> None:
        super().__init__()
        self.model = model
        self.low, self.width = nn.Buffer(low, persistent=False), nn.Buffer(width, persistent=False)

    def forward(self, units: Tensor) -> Tensor:
        logits: Tensor = self.model(self.low + units * self.width)
        return logits


def _in_units(view: View) -> tuple[nn.Module, Tensor, tuple[float, float] | None, str]:
    """The network and its inputs in units of change, the range of these, and what they are."""
    inputs, known = view.inputs, torch.cat([view.inputs, view.background])
    if view.kind == "images":
        if float(known.min()) >= 0 and float(known.max()) <= 1:
            return (
                view.model,
                inputs,
                (0.0, 1.0),
                "eps is a part of the range of pixels, which is [0, 1], and changed pixels stay in it",
            )
        # Scaled before they came here: the darkest and the brightest value of each channel stand for 0 and 1.
        low, high = (end(known, dim=(0, 2, 3), keepdim=True) for end in (torch.amin, torch.amax))
        width = torch.where(high > low, high - low, 1)
        text = (
            f"eps is a part of the range of each channel, from the smallest to the largest value in these data "
            f"({float(low.min()):.3g} to {float(high.max()):.3g} as the network takes them), and changed pixels stay in it"
        )
        return _Ranged(view.model, low, width).eval(), ((inputs - low) / width).clamp(0, 1), (0.0, 1.0), text
    dims = [0, *range(2, known.dim())]
    spread = known.double().std(dim=dims, keepdim=True, correction=0).to(inputs.dtype)
    width = torch.where(spread > 0, spread, 1)
    what = "column" if view.kind == "table" else "channel"
    text = f"eps is a part of the standard deviation of each {what}, and changed values may lie anywhere"
    return _Ranged(view.model, torch.zeros_like(width), width).eval(), inputs / width, None, text


@dataclass
class _Test:
    """The probe, and what it found besides what a probe can say."""

    norm: float = math.inf
    clean: float = 0.0
    range: str = ""
    rows: list[Ball] = field(default_factory=list)
    masking: list[str] = field(default_factory=list)
    checked: float = 0.0
    after: list[int | None] = field(default_factory=list)

    def robust(
        self, view: View, eps: str = "", norm: float = math.inf, steps: int = 20, restarts: int = 2, queries: int = 200
    ) -> Seen:
        """How much a network withstands: the worst of four attacks, and what can be proved.

        Args:
            view: a classifier and examples.
            eps: sizes of change, as ``"0.01,8/255"``; none takes six from small to large.
            norm: in which they are measured: inf (the largest change of an entry) or 2.
            steps: of gradient ascent.
            restarts: of gradient ascent.
            queries: of Square Attack.
        """
        view.classifier()
        model, inputs, clip, self.range = _in_units(view)
        notes = []
        labels = view.labels
        if labels is None:
            labels = view.target
            notes.append("right answers are not known: what the network says without an attack counts as right")
        labels = labels.long()
        default = _PIXELS if view.kind == "images" else _DEVIATIONS
        if norm == 2:  # a ball that is about as long on its way to a corner as the cube of the other norm
            default = tuple(float(f"{size * math.sqrt(inputs[0].numel()) / 2:.2g}") for size in default)
        self.norm, sizes, generator = norm, _sizes(eps, default), view.generator()
        if _leads_back(model, inputs):
            found = deepfool(model, inputs, norm=norm, clip=clip)
        else:
            notes.append("no gradient leads from the outputs back to the inputs, so that DeepFool has nowhere to go")
            found = _unmoved(model, inputs)
        moved = found.perturbation.flatten(1).norm(p=norm, dim=1)
        right = found.label == labels
        self.clean = right.double().mean().item()
        # An attack's smallest success, or none.
        reach = torch.where(found.new_label == found.label, math.inf, moved).where(right, 0.0)
        smallest, fooled_by = reach.clone(), {DEEPFOOL: reach}
        changed = torch.where(wide(right & (reach < math.inf), inputs), found.adversarial, inputs)
        bounded = True
        for size in sizes:
            rows = torch.nonzero(right).squeeze(1)
            tried = robust_accuracy(
                model,
                inputs[rows],
                labels[rows],
                eps=size,
                norm=norm,
                steps=steps,
                restarts=restarts,
                queries=queries,
                clip=clip,
                generator=generator,
            )
            beaten = ~tried.standing & (smallest[rows] > size)
            changed[rows[beaten]] = tried.adversarial[beaten]
            for attack, stood in tried.withstood.items():
                until = fooled_by.setdefault(attack, torch.where(right, math.inf, 0.0).to(reach))
                # A larger ball holds the smaller one: what was fooled in it stays fooled.
                until[rows[~stood]] = until[rows[~stood]].clamp_max(size)
                smallest = torch.minimum(smallest, until)
            proved = None
            if bounded:
                try:
                    proved = certified(model, inputs, labels, eps=size, clip=clip).double().mean().item()
                except (Unbounded, RuntimeError) as error:
                    bounded = False
                    notes.append(f"nothing is proved: {_why(error)}")
            under = {attack: (until > size).double().mean().item() for attack, until in fooled_by.items()}
            self.rows.append(Ball(size, under, (smallest > size).double().mean().item(), proved))
        # Signs of masking show where an attack is neither hopeless nor certain.
        self.checked = min(self.rows, key=lambda row: abs(row.worst - self.clean / 2)).eps
        self.masking = list(
            signs_of_masking(
                model,
                inputs,
                labels,
                eps=self.checked,
                norm=norm,
                steps=steps,
                queries=queries,
                clip=clip,
                generator=generator,
            ).signs
        )
        with torch.no_grad():
            said = torch.cat([model(part).argmax(dim=1) for part in changed.split(CHUNK)])
        fooled = right & (smallest < math.inf)
        self.after = [label if was else None for label, was in zip(said.tolist(), fooled.tolist(), strict=True)]
        if bounded and norm == 2:
            notes.append("what is proved holds for the cube around the ball, so that much more may be true")
        return Seen(
            numbers={
                "median distance by DeepFool, of what is right": reach[right].median().item() if bool(right.any()) else math.nan
            },
            each={"smallest change found": smallest},
            inputs={"behind the smallest change found": _back(model, changed)} if view.kind == "images" else {},
            notes=tuple(notes),
        )


def _why(error: Exception) -> str:
    """What is in the way of interval bounds, without a full stop."""
    text = str(error).splitlines()[0].rstrip(".")
    if "not supported between instances of" in text:
        return "interval bounds have no rule for comparisons, and this network makes one of what it computes"
    return text


def _leads_back(model: nn.Module, inputs: Tensor) -> bool:
    """Does anything that the network says depend on its inputs differentiably? Of a comparison nothing does."""
    with frozen(model, inputs):
        leads: bool = model(inputs[:1].clone().requires_grad_()).requires_grad
    return leads


@torch.no_grad()
def _unmoved(model: nn.Module, inputs: Tensor) -> DeepFoolResult:
    """DeepFool's answer where it finds no way."""
    label = torch.cat([model(part).argmax(dim=1) for part in inputs.split(CHUNK)])
    return DeepFoolResult(inputs, torch.zeros_like(inputs), torch.zeros_like(label), label, label)


def _back(model: nn.Module, units: Tensor) -> Tensor:
    return model.low + units * model.width if isinstance(model, _Ranged) else units
