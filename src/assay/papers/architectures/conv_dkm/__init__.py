"""Convolutional deep kernel machines: a deep network without features, that learns all the same.

An infinitely wide network is a Gaussian process whose kernel follows from its layers alone: nothing between input and output
is learnt any more, and on images such kernels stand behind the networks that they come from. A deep kernel machine takes the
limit otherwise. Each layer keeps what a kernel method looks at, the Gram matrix of inner products between examples, but as a
parameter: training may pull it away from the kernel that the layer below implies, for a price

    -dof * KL( N(0, G) || N(0, K(G of the layer below)) )

in the objective. With ``dof`` infinite G is K, the ordinary Gaussian process; the smaller it is, the more freely every layer
learns its own similarities. No feature vector exists anywhere behind the input.

Matrices between all patches of all images would be far too large. So G is learnt between P inducing points only, and what an
image has to do with those is carried along: a state is (ii, ti, t), the Gram matrix of the inducing points (P, P), that of
every place of every image with them (B, H, W, P), and each place with itself (B, H, W). Inducing points of a convolution
are no patches but weighted sums over patches: the weights C, which are learnt, make P' new points out of nine times P old ones,
and a layer costs about what an ordinary convolution from P to P' planes costs, and once for a batch some roots of P x P matrices.

Source: Milsom, Anson and Aitchison, "Convolutional Deep Kernel Machines", ICLR 2024 (arXiv 2309.09814), and the authors' code, of
which three things are otherwise here. Inducing patches are drawn from whitened images, for it is whitened images that they are
compared with. A batch's mean variance is averaged while training, and the average used afterwards, so that an answer hangs on
one image only. And the variance of a place gets the same jitter as that of an inducing point, which keeps the whole matrix
positive for any learnt weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn import functional as F

from assay.errors import Diverged
from assay.paper import Cost, Higher, Reported, Score, claim
from assay.papers.architectures.conv_dkm.grams import (
    ArcCosKernel,
    ConvMix,
    GPOutput,
    GramLayer,
    GramNorm,
    GramState,
    Inducing,
    NystromGAP,
    PatchGram,
    Posterior,
    Residual,
    Test,
    Whitening,
    arc_cosine,
    condition,
    divergence,
)
from assay.train.augment import flip_and_crop
from assay.train.schedules import steps_at

if TYPE_CHECKING:
    from assay.data import Dataset, Split
    from assay.lab import Lab
    from assay.paper import Measured

__all__ = [
    "ArcCosKernel",
    "ConvDKM",
    "ConvDKMClassifier",
    "ConvMix",
    "GPOutput",
    "GramLayer",
    "GramNorm",
    "GramState",
    "NystromGAP",
    "PatchGram",
    "Posterior",
    "Residual",
    "Whitening",
    "arc_cosine",
    "condition",
    "divergence",
]


class ConvDKM(nn.Module):
    """The residual network of the paper as a deep kernel machine, in float64; call :meth:`start_` before training.

    Three blocks of three chunks are its "18-layer" network, with 16, 32 and 64 times ``scale`` inducing points.

    Args:
        in_shape: (C, H, W) of an image.
        num_classes: K.
        scale: inducing points in multiples of ``blocks``; the paper goes from 1 to 32.
        dof: see :class:`GramLayer`; ``math.inf`` leaves these layers out: the ordinary Gaussian process of the network, of which
            inducing points, weights of the mixing, and scales are learnt.
        blocks: inducing points of every block; each halves height and width.
        chunks: residual units of a block.
        inducing: see :class:`GramNorm`.
        test: see :class:`GramNorm`.
        stride: of the first layer, for small budgets; 1 in the paper.

    Shape: (B, C, H, W) -> :class:`Posterior`.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        scale: int = 1,
        dof: float = 0.01,
        blocks: tuple[int, ...] = (16, 32, 64),
        chunks: int = 3,
        inducing: Inducing = "global",
        test: Test = "global",
        stride: int = 1,
    ) -> None:
        super().__init__()
        if dof < 0:
            raise ValueError(f"dof must be 0 or more, not {dof}")
        sizes = [scale * points for points in blocks]
        self.whiten = Whitening(in_shape)
        self.first = PatchGram(torch.randn(sizes[0], in_shape[0], 3, 3, dtype=torch.float64), stride)
        places = tuple(-(-side // stride) for side in in_shape[1:])

        def layer(points: int, new_points: int, size: int, stride: int, places: tuple[int, ...], learns: bool) -> list[nn.Module]:
            mix, norm = ConvMix(points, new_points, size, stride), GramNorm(inducing, test, places)
            return [mix, GramLayer(new_points, dof), norm] if learns and dof < math.inf else [mix, norm]

        layers = [ArcCosKernel(), *layer(sizes[0], sizes[0], 3, 1, places, True)]
        for points, new_points in pairwise([sizes[0], *sizes]):
            for chunk in range(chunks):
                before, step = (points, 2) if chunk == 0 else (new_points, 1)
                places = tuple(-(-side // step) for side in places)
                enter = [ArcCosKernel(), *layer(before, new_points, 3, step, places, True)]
                leave = [ArcCosKernel(), *layer(new_points, new_points, 3, 1, places, True)]
                around = layer(before, new_points, 1, step, places, False) if chunk == 0 else []
                layers.append(Residual(nn.Sequential(*enter, *leave), nn.Sequential(*around)))
        self.layers = nn.Sequential(*layers, NystromGAP(), GramNorm(inducing, test))
        self.output = GPOutput(sizes[-1], num_classes)

    @torch.no_grad()
    def start_(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Take whitening, inducing patches and the first Gram matrices from training images (N, C, H, W), all or many."""
        self.whiten.fit_(images)
        patches = self.first.patches
        rows, columns = (side - patches.shape[-1] + 1 for side in images.shape[2:])
        drawn = torch.rand(3, len(patches), generator=generator, dtype=torch.float64).to(images.device)
        which, row, column = (drawn * drawn.new_tensor([len(images), rows, columns])[:, None]).long()
        white = self.whiten(images[which])
        windows = white.unfold(2, patches.shape[-1], 1).unfold(3, patches.shape[-1], 1)  # (P, C, rows, columns, k, k)
        patches.copy_(windows[torch.arange(len(patches), device=images.device), :, row, column])
        handles = [
            module.register_forward_pre_hook(lambda layer, given: layer.pin_(given[0].ii))
            for module in self.modules()
            if isinstance(module, GramLayer)
        ]
        try:
            self(images[:256])
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, images: Tensor) -> Posterior:
        posterior: Posterior = self.output(self.layers(self.first(self.whiten(images))))
        return posterior

    def loss(
        self, images: Tensor, labels: Tensor, n_train: int, samples: int = 100, generator: torch.Generator | None = None
    ) -> Tensor:
        """What training lowers: minus the expected log likelihood of a label, plus all divergences a training example.

        Args:
            images: (B, C, H, W).
            labels: (B,) int64.
            n_train: examples in the training set.
            samples: of every example's functions, for the expectation; 1000 in the paper.
            generator: of these.
        """
        posterior = self(images)
        count, classes = posterior.mean.shape
        noise = torch.randn(
            samples, count, classes, generator=generator, dtype=posterior.mean.dtype, device=posterior.mean.device
        )
        logits = posterior.samples(noise)
        likely = logits.gather(2, labels.view(1, -1, 1).expand(samples, -1, 1)).squeeze(2) - logits.logsumexp(dim=2)
        loss: Tensor = posterior.penalty / n_train - likely.mean()
        return loss

    @torch.no_grad()
    def predict_proba(self, images: Tensor, samples: int = 1000, seed: int = 0) -> Tensor:
        """Probabilities (B, K): the mean of the softmax over samples, the same noise for every example. For eval mode."""
        posterior = self(images)
        noise = torch.randn(
            samples, 1, posterior.mean.shape[1], generator=torch.Generator().manual_seed(seed), dtype=posterior.mean.dtype
        )
        probabilities: Tensor = posterior.samples(noise.to(posterior.mean.device)).softmax(dim=2).mean(dim=0)
        return probabilities


class ConvDKMClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A convolutional deep kernel machine as a scikit-learn classifier of images.

    Args:
        image_shape: (C, H, W) of what is a row of X; ``None`` if X has this shape already, or holds grey square images.
        scale: see :class:`ConvDKM`.
        dof: see :class:`GramLayer`.
        blocks: see :class:`ConvDKM`.
        chunks: see :class:`ConvDKM`; 3 in the paper.
        inducing: see :class:`GramNorm`.
        test: see :class:`GramNorm`.
        stride: see :class:`ConvDKM`.
        learning_rate: of Adam with betas 0.8 and 0.9; a tenth of it from 40 % of the training on, a hundredth from 80 %. The
            paper's 0.01 is for some 20,000 steps.
        epochs: passes over the training set; the paper makes 100 and 200.
        batch_size: examples in one step; the paper takes 256 of 50,000.
        samples: see :meth:`ConvDKM.loss`; 1000 in the paper.
        augment: ``augment(images, generator) -> images`` on every batch; the paper mirrors and crops.
        device: where to compute.
        random_state: seed of everything that is drawn.

    Attributes:
        classes_: (K,) labels.
        net_: the :class:`ConvDKM`.
        loss_curve_: mean loss of every epoch.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None = None,
        scale: int = 1,
        dof: float = 0.01,
        blocks: tuple[int, ...] = (16, 32),
        chunks: int = 1,
        inducing: Inducing = "global",
        test: Test = "global",
        stride: int = 1,
        learning_rate: float = 0.03,
        epochs: int = 30,
        batch_size: int = 64,
        samples: int = 64,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        device: str = "cpu",
        random_state: int | None = None,
    ) -> None:
        self.image_shape = image_shape
        self.scale = scale
        self.dof = dof
        self.blocks = blocks
        self.chunks = chunks
        self.inducing = inducing
        self.test = test
        self.stride = stride
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.samples = samples
        self.augment = augment
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> ConvDKMClassifier:
        """Learn from images X (N, C, H, W) or rows (N, C * H * W), and labels y (N,).

        Raises:
            ValueError: rows are no images of ``image_shape``, or all of one class.
            Diverged: a Gram matrix stopped being positive definite, or the loss finite.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, allow_nd=True)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has 1 class, and a classifier tells classes apart")
        images, labels = self._images(np.asarray(X)), torch.as_tensor(codes, device=self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator(self.device).manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = ConvDKM(
                (images.shape[1], images.shape[2], images.shape[3]),
                len(self.classes_),
                self.scale,
                self.dof,
                self.blocks,
                self.chunks,
                self.inducing,
                self.test,
                self.stride,
            )
        self.net_ = net.to(self.device)
        self.loss_curve_: list[float] = []
        try:
            net.start_(images, order)
            self._train(net, images, labels, generator, order)
            net.eval()
            net(images[:1])
        except LinAlgError as error:
            raise Diverged(self._lost("a Gram matrix is not positive definite any more")) from error
        return self

    def _train(self, net: ConvDKM, images: Tensor, labels: Tensor, generator: torch.Generator, order: torch.Generator) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=self.learning_rate, betas=(0.8, 0.9), fused=True)
        schedule = steps_at(optimizer, self.epochs * -(-len(images) // self.batch_size), at=(0.4, 0.8), gamma=0.1)
        for _ in range(self.epochs):
            total = 0.0
            for index in torch.randperm(len(images), generator=order).to(images.device).split(self.batch_size):
                batch = images[index] if self.augment is None else self.augment(images[index], generator)
                loss = net.loss(batch, labels[index], len(images), self.samples, generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(index)
            if not math.isfinite(total):
                raise Diverged(self._lost("the loss is not finite any more"))
            self.loss_curve_.append(total / len(images))

    def _lost(self, what: str) -> str:
        epoch = min(len(self.loss_curve_) + 1, self.epochs)
        return f"In epoch {epoch} of {self.epochs} {what}: take a learning_rate below {self.learning_rate}, or a larger dof."

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(N, K); every answer hangs on its own image only."""
        check_is_fitted(self)
        images = self._images(np.asarray(validate_data(self, X, dtype=np.float64, reset=False, allow_nd=True)))
        found: NDArray[np.float64] = torch.cat([self.net_.predict_proba(part).cpu() for part in images.split(256)]).numpy()
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (N,)."""
        best: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return best

    def _images(self, X: NDArray[Any]) -> Tensor:
        """X as (N, C, H, W) float64 on the device."""
        numbers = math.prod(X.shape[1:])
        side = math.isqrt(numbers)
        shape = self.image_shape or (tuple(X.shape[1:]) if X.ndim == 4 else (1, *X.shape[1:]) if X.ndim == 3 else (1, side, side))
        if math.prod(shape) != numbers:
            raise ValueError(f"{numbers} numbers make no image of {' x '.join(map(str, shape))}: set image_shape=(C, H, W)")
        return torch.as_tensor(X, device=self.device).reshape(len(X), *shape)


# ------------------------------------------------------------------------------------------------------------ claims


def _pictures(split: Split, shrink: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    assert isinstance(split.inputs, Tensor)
    return F.avg_pool2d(split.inputs, shrink).double().numpy(), split.labels.numpy()


def judge(data: Dataset, seed: int, shrink: int = 1, **settings: Any) -> dict[str, Tensor]:
    """A machine trained on a data set: on ``valid`` and ``test`` its accuracy and mean log likelihood of the right label.

    One whose training fails says of every image how frequent the classes are in training.
    """
    images, labels = _pictures(data.train, shrink)
    machine = ConvDKMClassifier(random_state=seed, **settings)
    try:
        machine.fit(images, labels)
        failed = False
    except Diverged:
        failed = True
    shares = np.bincount(labels, minlength=data.num_classes) / len(labels)
    found: dict[str, float] = {"failed": failed, "parameters": sum(part.numel() for part in machine.net_.parameters())}
    for name, split in (("valid", data.valid), ("test", data.test)):
        inputs, right = _pictures(split, shrink)
        said = np.tile(shares, (len(right), 1)) if failed else machine.predict_proba(inputs)
        found[f"{name} accuracy"] = float((said.argmax(axis=1) == right).mean())
        found[f"{name} likelihood"] = float(np.log(said[np.arange(len(right)), right]).mean())
    return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in found.items()}


def _machine(lab: Lab, learning_rate: float, scale: int = 2, dof: float = 0.01, norm: str = "global") -> dict[str, Tensor]:
    """A machine of this lab's size, trained and judged; the paper's network and training at full scale."""
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="cifar10"))
    if lab.scale != "full":
        data = data.subset(
            train=lab.pick(smoke=100, laptop=1600, full=0), test=lab.pick(smoke=50, laptop=1000, full=0), seed=lab.seed
        )
    sizes = {"scale": lab.pick(smoke=scale, laptop=scale, full=4 * scale), "dof": dof, "inducing": norm, "test": norm}
    sizes |= lab.pick(
        smoke={"blocks": (4, 4), "chunks": 1, "stride": 3, "epochs": 1, "batch_size": 40, "samples": 8},
        laptop={"blocks": (8, 16), "chunks": 1, "stride": 2, "epochs": 8, "batch_size": 64, "samples": 16},
        full={
            "blocks": (16, 32, 64),
            "chunks": 3,
            "epochs": 100,
            "batch_size": 256,
            "samples": 1000,
            "augment": flip_and_crop,
            "device": str(lab.device),
        },
    )
    return lab.remember(
        judge,
        data=data.holdout(0.2 if lab.scale != "full" else 0.02, seed=lab.seed),
        seed=lab.seed,
        shrink=lab.pick(smoke=2, laptop=2, full=1),
        learning_rate=learning_rate,
        **sizes,
    )


def _tuned(lab: Lab, **changes: Any) -> tuple[dict[str, Tensor], float]:
    """The better on held-out images of two rates, and how many of the two trainings failed."""
    tried = [_machine(lab, rate, **changes) for rate in _rates(lab)]
    return max(tried, key=lambda found: found["valid accuracy"].item()), sum(found["failed"].item() for found in tried)


def _rates(lab: Lab) -> tuple[float, float]:
    """So few steps want larger rates than the paper's 0.01, with which its machine of infinite dof failed on MNIST."""
    return lab.pick(smoke=(0.03, 0.1), laptop=(0.03, 0.1), full=(0.003, 0.01))


def _score(found: dict[str, Tensor], what: str = "accuracy") -> Score:
    return Score(found[f"test {what}"].item(), Cost(found["seconds"].item(), int(found["parameters"])))


_DOF = {"dof 0": 0.0, "dof 0.01": 0.01, "dof 1": 1.0, "dof infinite": math.inf}

_SMALLER = (
    "1,280 MNIST digits of 14x14 (320 more to choose the rate), seen in steps of 2; two blocks of one chunk with 16 and 32 "
    "inducing points instead of three of three with 128, 256 and 512; 8 epochs with batches of 64 instead of 100 with 256."
)


@claim(
    "A machine that learns its Gram matrices (dof 0.01) classifies better, by more than 2 points, than the same with these fixed "
    "at the kernel (dof infinite), of which inducing points and weights are learnt as well; each with the better of two rates.",
    expect=Higher("dof 0.01", than="dof infinite", by=0.02),
    reported=(
        Reported("CIFAR-10, scale 8, 100 epochs: accuracy", {"dof 0.01": 0.8948, "dof infinite": 0.5374}, "the authors' logs"),
        Reported("MNIST, scale 8, 100 epochs: accuracy", {"dof 0.01": 0.9916, "dof infinite": 0.7226}, "the authors' logs"),
    ),
    scaled_down=_SMALLER,
    unit="test accuracy",
)
def learning_gram_beats_nngp(lab: Lab) -> Measured:
    fast = _rates(lab)[1]
    return {
        "dof 0": _score(_machine(lab, fast, dof=_DOF["dof 0"])),  # this and dof 1 are not compared, and have one rate
        "dof 0.01": _score(_tuned(lab)[0]),
        "dof 1": _score(_machine(lab, fast, dof=_DOF["dof 1"])),
        "dof infinite": _score(_tuned(lab, dof=math.inf)[0]),
    }


@claim(
    "Pulling Gram matrices towards the kernel pays in probabilities: with dof 1 test labels are likelier than with dof 0, where "
    "nothing pulls, and than with dof infinite.",
    expect=(Higher("dof 1", than="dof 0"), Higher("dof 1", than="dof infinite")),
    reported=(
        Reported(
            "CIFAR-10, scale 8: log likelihood",
            {"dof 0": -0.5281, "dof 1": -0.3889, "dof infinite": -1.3547},
            "the authors' logs",
        ),
        Reported(
            "MNIST, scale 8: log likelihood", {"dof 0": -0.0359, "dof 1": -0.0263, "dof infinite": -0.9025}, "the authors' logs"
        ),
    ),
    scaled_down=_SMALLER,
    unit="mean log likelihood of test labels",
)
def pull_helps_likelihood(lab: Lab) -> Measured:
    return {name: _score(_machine(lab, _rates(lab)[1], dof=dof), "likelihood") for name, dof in _DOF.items()}


@claim(
    "Twice as many inducing points in every layer raise the accuracy, and twice as many again raise it further.",
    expect=(Higher("scale 2", than="scale 1"), Higher("scale 4", than="scale 2")),
    reported=Reported(
        "CIFAR-10, 200 epochs: accuracy", {"scale 1": 0.8315, "scale 2": 0.8675, "scale 4": 0.8899}, "the authors' logs"
    ),
    scaled_down=f"{_SMALLER} Scales 1, 2 and 4 have 8 and 16, 16 and 32, 32 and 64 inducing points.",
    unit="test accuracy",
)
def more_inducing_points_help(lab: Lab) -> Measured:
    return {f"scale {scale}": _score(_machine(lab, _rates(lab)[1], scale=scale)) for scale in (1, 2, 4)}


@claim(
    "Without normalisation of Gram matrices accuracy is lower, or training fails (which counts as guessing); each with the "
    "better of two rates.",
    expect=Higher("normalised", than="not normalised"),
    reported=(
        Reported(
            "CIFAR-10, scale 8, dof 1: accuracy, no training failed",
            {"normalised": 0.8786, "not normalised": 0.8750},
            "the authors' logs",
        ),
        Reported(
            "MNIST, scale 8, dof 1: accuracy, no training failed",
            {"normalised": 0.9920, "not normalised": 0.9916},
            "the authors' logs",
        ),
    ),
    scaled_down=_SMALLER,
    unit="test accuracy; failed trainings of two",
)
def norm_matters(lab: Lab) -> Measured:
    with_norm, failed_with = _tuned(lab)
    without, failed_without = _tuned(lab, norm="none")
    return {
        "normalised": _score(with_norm),
        "not normalised": _score(without),
        "normalised, failed trainings": failed_with,
        "not normalised, failed trainings": failed_without,
    }
