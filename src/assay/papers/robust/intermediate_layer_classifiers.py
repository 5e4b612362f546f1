"""Intermediate layer classifiers: where test data are of another kind, ask an earlier layer.

A network's last layer has learnt to answer for the data it was trained on, and throws away what does not matter *there*.
When the data change (noise, blur, another place), earlier layers may still tell the classes apart where the last no longer
can. So freeze the network, train a linear classifier on what each of its layers gives, and take the one that does best on a
few examples of the new kind:

    min over W_l, b_l of  CE(W_l h_l(x) + b_l, y) + penalty * ||W_l||_2        h_l: output of layer l, flattened

*Zero-shot*, the classifiers learn from the original training data alone and the new examples only choose the layer (and the
epoch); *few-shot*, they learn from new examples. Re-training the last layer alone is the usual remedy, and the control.

Source: Uselis and Oh, "Intermediate Layer Classifiers for OOD generalization", ICLR 2025 (arXiv:2504.05461). The norm of the
penalty is not squared, as in the authors' code; maps are averaged down to 4 x 4 here before they are flattened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.nn import mlp
from assay.nn.collapse import LastLayer, last_layer
from assay.nn.frozen import frozen
from assay.nn.layers import hidden_blocks, watching
from assay.paper import Curve, Higher, claim
from assay.recipe import Recipe, probe
from assay.recipes import small_photos
from assay.train.schedules import cosine
from assay.view import Seen

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View

#: The layer that the network's own last linear layer sees.
LAST = "last"
_CHUNK = 256


def layer_features(model: nn.Module, inputs: Tensor, layers: Sequence[str] | None = None, pool: int = 4) -> dict[str, Tensor]:
    """What the layers of a frozen network give: name -> (N, d_l), in order; ``"last"`` is what its last linear layer sees.

    Args:
        model: maps inputs (B, ...) to logits (B, C); used in evaluation mode and left as it was found.
        inputs: (N, ...) float.
        layers: names of modules; ``None`` takes the main blocks (:func:`assay.nn.layers.hidden_blocks`).
        pool: maps (H, W) larger than this in a direction are averaged down to it.

    Raises:
        AssayError: there is no such layer, or the network ends with no linear layer.
    """
    names = list(hidden_blocks(model, inputs[:1]) if layers is None else [name for name in layers if name != LAST])
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with frozen(model, inputs), watching(model, names) as outputs, torch.no_grad():
        for chunk in inputs.split(_CHUNK):
            model(chunk)
            for name in names:
                parts[name].append(_flat(outputs[name], pool))
    return {name: torch.cat(values) for name, values in parts.items()} | {LAST: _head(model, inputs).features}


def _flat(output: Tensor, pool: int) -> Tensor:
    if output.dim() == 3:
        output = F.adaptive_avg_pool1d(output, min(pool, output.shape[2]))
    if output.dim() == 4:
        output = F.adaptive_avg_pool2d(output, (min(pool, output.shape[2]), min(pool, output.shape[3])))
    return output.flatten(1)


def _head(model: nn.Module, inputs: Tensor) -> LastLayer:
    try:
        return last_layer(model, inputs)
    except ValueError as error:
        raise AssayError(f"An earlier layer cannot be compared with the last: {error}.") from error


class IntermediateLayerClassifier:
    """Linear classifiers on every layer of a frozen network; the best one on held-out examples answers.

        found = IntermediateLayerClassifier(model).fit(train, labels, shifted, shifted_labels)
        found.best_layer_, found.scores_, found.predict(more)

    Args:
        model: maps inputs (B, ...) to logits (B, C); stays as it is.
        layers: names of modules; ``None`` takes the main blocks. The last hidden layer is always among them.
        penalty: factor of the norm of each classifier's weights (the authors': 1e-3).
        epochs: passes over the training examples (theirs: 50); of each layer the best epoch is kept.
        learning_rate: of Adam (theirs: 1e-3).
        batch_size: examples a step (theirs: 256).
        pool: maps are averaged down to this many rows and columns.
        warm: whether the classifier of the last layer starts from the network's own last layer.
        seed: of the order of the examples and the first weights.

    Attributes:
        layers_: names in order, ``"last"`` at the end.
        scores_: layer -> accuracy on the validation examples at its best epoch.
        best_layer_: of the highest score; of equals the later one.
        weights_: layer -> (K, d_l); ``biases_``: layer -> (K,).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        penalty: float = 1e-3,
        epochs: int = 50,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        pool: int = 4,
        warm: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.layers, self.pool, self.warm, self.seed = model, layers, pool, warm, seed
        self.penalty, self.epochs, self.learning_rate, self.batch_size = penalty, epochs, learning_rate, batch_size

    def fit(
        self, inputs: Tensor, labels: Tensor, valid_inputs: Tensor | None = None, valid_labels: Tensor | None = None
    ) -> IntermediateLayerClassifier:
        """Train the classifiers, and choose epoch and layer on the validation examples.

        Args:
            inputs: (N, ...) float.
            labels: (N,) int64 in [0, C).
            valid_inputs: (M, ...) of the kind that counts; else the training examples choose, which flatters
                large layers.
            valid_labels: (M,) int64.
        """
        features = layer_features(self.model, inputs, self.layers, self.pool)
        judge = features if valid_inputs is None else layer_features(self.model, valid_inputs, self.layers, self.pool)
        head = _head(self.model, inputs[:1])
        return self.fit_features(features, labels, judge, labels if valid_labels is None else valid_labels, head)

    def fit_features(
        self, features: Mapping[str, Tensor], labels: Tensor, valid: Mapping[str, Tensor], valid_labels: Tensor, head: LastLayer
    ) -> IntermediateLayerClassifier:
        """:meth:`fit` on what :func:`layer_features` gave before, name -> (N, d_l): the network runs once for many fits.

        ``head`` is the network's last layer (:func:`assay.nn.collapse.last_layer`).
        """
        generator = torch.Generator().manual_seed(self.seed)
        self.layers_ = list(features)
        weights: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        for name, values in features.items():
            bound = values.shape[1] ** -0.5  # as nn.Linear begins
            draw = torch.rand(len(head.weight), values.shape[1] + 1, generator=generator).to(values) * 2 * bound - bound
            weights[name], biases[name] = draw[:, 1:].contiguous(), draw[:, 0].contiguous()
        if self.warm:
            weights[LAST], biases[LAST] = head.weight.detach().clone(), head.bias.detach().clone()
        parameters = [values.requires_grad_() for values in (*weights.values(), *biases.values())]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        self.weights_: dict[str, Tensor] = {}
        self.biases_: dict[str, Tensor] = {}
        self.scores_ = dict.fromkeys(features, -1.0)
        self._keep_best(weights, biases, valid, valid_labels)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(labels), generator=generator).to(labels.device).split(self.batch_size):
                # One sum for all layers: their gradients do not meet.
                loss = torch.zeros((), device=labels.device)
                for name, values in features.items():
                    logits = F.linear(values[rows], weights[name], biases[name])
                    loss = loss + F.cross_entropy(logits, labels[rows]) + self.penalty * weights[name].norm()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            self._keep_best(weights, biases, valid, valid_labels)
        self.best_layer_ = max(reversed(self.layers_), key=self.scores_.__getitem__)
        return self

    @torch.no_grad()
    def _keep_best(
        self, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], valid: Mapping[str, Tensor], labels: Tensor
    ) -> None:
        for name, values in valid.items():
            score = (F.linear(values, weights[name], biases[name]).argmax(dim=1) == labels).double().mean().item()
            if score > self.scores_[name]:
                self.scores_[name] = score
                self.weights_[name], self.biases_[name] = weights[name].detach().clone(), biases[name].detach().clone()

    def decision_function(self, inputs: Tensor, layer: str | None = None) -> Tensor:
        """Logits (N, C) of a layer's classifier; without a name the best layer's."""
        name = layer or self.best_layer_
        features = layer_features(self.model, inputs, self.layers, self.pool)
        if name not in features:
            raise AssayError(f"There is no classifier on a layer {name!r}: there are {', '.join(self.layers_)}.")
        return self.logits(features, name)

    def logits(self, features: Mapping[str, Tensor], layer: str) -> Tensor:
        """:meth:`decision_function` on features that are there already."""
        return F.linear(features[layer], self.weights_[layer], self.biases_[layer])

    def predict(self, inputs: Tensor, layer: str | None = None) -> Tensor:
        """Classes (N,) int64."""
        return self.decision_function(inputs, layer).argmax(dim=1)


def layer_sensitivity(
    known: Mapping[str, Tensor], labels: Tensor, fresh: Mapping[str, Tensor], shifted: Mapping[str, Tensor]
) -> dict[str, float]:
    """How much further shifted examples lie from the classes than fresh ones do, layer by layer; 1 is no further.

    The mean distance of shifted examples to the nearest class mean, over that of fresh examples of the known kind.

    Args:
        known: layer -> (N, d_l) features of training examples.
        labels: (N,) their classes.
        fresh: layer -> (M, d_l) of other examples of the same kind.
        shifted: layer -> (M', d_l) of the new kind.
    """
    found = {}
    for name, values in known.items():
        means = torch.stack([values[labels == k].mean(dim=0) for k in labels.unique()])
        near, far = (torch.cdist(some[name], means).amin(dim=1).mean() for some in (fresh, shifted))
        found[name] = (far / near).item()
    return found


@probe
def earlier_layers(view: View, epochs: int = 50, penalty: float = 1e-3) -> Seen:
    """Whether an earlier layer would answer better on these data than the last, if both were trained anew on some of them.

    Args:
        view: a classifier and examples of the kind that counts, half of whose background trains the classifiers; the other half
            chooses the layer.
        epochs: passes over that half.
        penalty: of the norm of the weights.
    """
    view.only("images", "audio", "series", "table")
    view.classifier()
    if not view.layered:
        raise AssayError("this probe looks into layers, which an exported program has not: give the network itself")
    known = view.background_labels
    if known is None or len(view.background) < 20:
        raise AssayError("this probe trains classifiers on further labelled examples of these data, and there are fewer than 20")
    answers, half = view.answers(), len(known) // 2
    order = torch.randperm(len(known), generator=view.generator()).to(known.device)
    taught, chosen = order[:half], order[half:]
    batch_size = max(8, min(256, half // 20))  # of few examples, small batches: what starts from nothing needs steps
    found = IntermediateLayerClassifier(view.model, penalty=penalty, epochs=epochs, batch_size=batch_size, seed=view.seed)
    found.fit(view.background[taught], known[taught], view.background[chosen], known[chosen])
    features = layer_features(view.model, view.inputs, found.layers, found.pool)
    with torch.no_grad():
        own = (view.model(view.inputs).argmax(dim=1) == answers).double().mean().item()
    right = {name: (found.logits(features, name).argmax(dim=1) == answers).double() for name in found.layers_}
    return Seen(
        numbers={"the network itself": own} | {f"layer {name}": values.mean().item() for name, values in right.items()},
        each={f"right by {found.best_layer_}": right[found.best_layer_]},
        notes=(f"chosen on held-out examples: the layer {found.best_layer_}; each classifier was trained on {half} examples",),
    )


# ------------------------------------------------------------------------------------------------------------ claims


def _digits(lab: Lab) -> Recipe:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    if lab.scale == "smoke":
        data = data.subset(train=300, test=200)
    return Recipe(
        data,
        model=partial(mlp, 784, 10, (128,) * 6),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=20, full=30),
        batch_size=64,
    )


def _photos(lab: Lab) -> Recipe:
    data = lab.data(lab.pick(smoke="cifar10-20k", laptop="cifar10-20k", full="cifar10"))
    if lab.scale != "full":
        data = data.subset(train=lab.pick(smoke=100, laptop=2000, full=0), test=lab.pick(smoke=60, laptop=1000, full=0))
    return small_photos(data, epochs=lab.pick(smoke=1, laptop=20, full=60))


@dataclass(frozen=True)
class _Layers:
    """A trained network, what its layers give for the training data, and what they give for test data of every kind."""

    head: LastLayer
    known: dict[str, Tensor]
    labels: Tensor
    tests: dict[str, dict[str, Tensor]]
    answers: Tensor
    choose: Tensor
    count: Tensor

    def part(self, shift: str, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features and answers of some of the test examples."""
        return {name: values[rows] for name, values in self.tests[shift].items()}, self.answers[rows]

    def own(self, shift: str, rows: Tensor) -> float:
        """Accuracy of the network as it is."""
        features, answers = self.part(shift, rows)
        return _right(F.linear(features[LAST], self.head.weight, self.head.bias), answers)


def _layers(lab: Lab, recipe: Recipe, shifts: Mapping[str, int]) -> _Layers:
    model, data = lab.train(recipe).model, recipe.data
    tests = {}
    for kind, severity in shifts.items():
        inputs = (data.shift(kind, severity, seed=lab.seed) if severity else data).test.inputs
        assert isinstance(inputs, Tensor)
        tests[kind] = layer_features(model, inputs.to(lab.device))
    assert isinstance(data.train.inputs, Tensor)
    pictures = data.train.inputs.to(lab.device)
    rows = torch.randperm(len(data.test), generator=lab.generator()).to(lab.device)
    half = len(rows) // 2
    known, labels = layer_features(model, pictures), data.train.labels.to(lab.device)
    head = last_layer(model, pictures[:1])
    return _Layers(head, known, labels, tests, data.test.labels.to(lab.device), rows[:half], rows[half:])


def _right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).double().mean().item()


def _taught(
    lab: Lab, known: Mapping[str, Tensor], labels: Tensor, net: _Layers, shift: str, batch_size: int = 256
) -> dict[str, float | Curve]:
    """Train on what is given, choose on half of the shifted test examples, count on the other half.

    Of the two remedies at the last layer, the network as it is and its last layer trained anew, the better one is chosen.
    """
    epochs = lab.pick(smoke=2, laptop=20, full=50)
    found = IntermediateLayerClassifier(nn.Identity(), epochs=epochs, batch_size=batch_size, seed=lab.seed)
    found.fit_features(known, labels, *net.part(shift, net.choose), net.head)
    test, answers = net.part(shift, net.count)
    right = {name: _right(found.logits(test, name), answers) for name in known}
    earlier = max((name for name in known if name != LAST), key=found.scores_.__getitem__)
    last = net.own(shift, net.count) if net.own(shift, net.choose) >= found.scores_[LAST] else right[LAST]
    return {
        f"{shift}, earlier layer": Curve(
            list(right.values()), value=right[earlier], x_name=f"layer: {', '.join(known)}", y_name="accuracy"
        ),
        f"{shift}, last layer": last,
    }


_PROBES = "Classifiers of 20 epochs; half of the test examples choose layer and epoch, the other half counts."
_DIGITS = f"A perceptron of six layers on MNIST 5k instead of ResNets and ViTs on CIFAR-10-C, Waterbirds and CelebA. {_PROBES}"
_SHIFTS = {"gaussian_noise": 4, "blur": 4, "contrast": 4}


def _zero_shot(lab: Lab, recipe: Recipe, shifts: Mapping[str, int]) -> Measured:
    net = _layers(lab, recipe, shifts)
    arms: dict[str, float | Curve] = {}
    for shift in shifts:
        arms |= _taught(lab, net.known, net.labels, net, shift)
    return arms


@claim(
    "On noisy and on blurred digits a classifier on an earlier layer, trained on clean digits alone, is more accurate by more "
    "than three points than the network's last layer, be it as it was or trained anew with the same effort.",
    expect=(
        Higher("gaussian_noise, earlier layer", than="gaussian_noise, last layer", by=0.03),
        Higher("blur, earlier layer", than="blur, last layer", by=0.03),
    ),
    scaled_down=_DIGITS,
    unit="accuracy on shifted test digits",
)
def earlier_layers_win_on_digits(lab: Lab) -> Measured:
    return _zero_shot(lab, _digits(lab), _SHIFTS)


@claim(
    "On noisy and on blurred photos a classifier on an earlier layer of a residual network, trained on clean photos alone, is "
    "more accurate by more than three points than the network's last layer, be it as it was or trained anew.",
    expect=(
        Higher("gaussian_noise, earlier layer", than="gaussian_noise, last layer", by=0.03),
        Higher("blur, earlier layer", than="blur, last layer", by=0.03),
    ),
    scaled_down=f"A ResNet-8 on 2,000 photos of CIFAR-10 at 16x16 instead of a ResNet-18 on all of them. {_PROBES}",
    unit="accuracy on shifted test photos",
    needs=("cifar10-20k",),
)
def earlier_layers_win_on_photos(lab: Lab) -> Measured:
    return _zero_shot(lab, _photos(lab), _SHIFTS)


@claim(
    "On data of the kind it was trained on the last layer is the best, or within a point of the best.",
    expect=Higher("unshifted, last layer", than="unshifted, earlier layer", by=-0.01),
    scaled_down=_DIGITS,
    unit="accuracy on test digits",
)
def last_layer_is_best_at_home(lab: Lab) -> Measured:
    return _zero_shot(lab, _digits(lab), {"unshifted": 0})


@claim(
    "With 200 labelled digits of the new kind, noisy or blurred, a classifier on an earlier layer is more accurate by more than "
    "three points than the last layer trained anew on the same 200.",
    expect=(
        Higher("gaussian_noise, earlier layer", than="gaussian_noise, last layer", by=0.03),
        Higher("blur, earlier layer", than="blur, last layer", by=0.03),
    ),
    scaled_down=f"{_DIGITS} The 200 are taken from the half that chooses, and the rest of that half chooses.",
    unit="accuracy on shifted test digits",
)
def earlier_layers_win_with_few_examples(lab: Lab) -> Measured:
    net = _layers(lab, _digits(lab), {"gaussian_noise": 4, "blur": 4})
    few = lab.pick(smoke=20, laptop=200, full=200)
    taught, net = net.choose[:few], replace(net, choose=net.choose[few:])
    arms: dict[str, float | Curve] = {}
    for shift in net.tests:
        # Batches of ten, or the classifiers that start from nothing would take 20 steps in all.
        arms |= _taught(lab, *net.part(shift, taught), net, shift, batch_size=10)
    return arms


@claim(
    "Where noise and blur are new, they move what the last layer sees further from the classes, relative to what is usual there, "
    "than what the first layer gives: by more than a tenth.",
    expect=(
        Higher("gaussian_noise, last layer", than="gaussian_noise, first layer", times=1.1),
        Higher("blur, last layer", than="blur, first layer", times=1.1),
    ),
    scaled_down="A perceptron of six layers on MNIST 5k instead of ResNets and ViTs. The measure is ours, not the paper's.",
    unit="distance of shifted digits from the nearest class mean, in that of unshifted ones",
)
def last_layer_is_more_sensitive(lab: Lab) -> Measured:
    net = _layers(lab, _digits(lab), {"unshifted": 0, "gaussian_noise": 4, "blur": 4})
    arms: dict[str, float | Curve] = {}
    for shift in ("gaussian_noise", "blur"):
        found = list(layer_sensitivity(net.known, net.labels, net.tests["unshifted"], net.tests[shift]).values())
        names = f"layer: {', '.join(net.known)}"
        arms[f"{shift}, first layer"] = found[0]
        arms[f"{shift}, last layer"] = Curve(found, value=found[-1], x_name=names, y_name="relative distance")
    return arms
