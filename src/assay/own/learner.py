"""The training loop as scikit-learn's estimators: in pipelines, in cross-validation, in a grid search over treatments.

from assay import Learner
from assay.papers.labels.elr import elr
GridSearchCV(Learner(), {"treatment": [None, elr], "epochs": [10, 30]}).fit(X, y)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from assay.data import Dataset, Split
from assay.own.baselines import baseline
from assay.own.preparing import Line, Preparation, form_of
from assay.recipe import Recipe
from assay.train.loop import fit

_CHUNK = 1024


class _Learner(BaseEstimator):  # type: ignore[misc]
    """What classifying and regressing have in common."""

    def __init__(
        self,
        recipe: Recipe | Callable[[Dataset], Recipe] | None = None,
        *,
        treatment: Callable[[Recipe], Recipe] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.recipe = recipe
        self.treatment = treatment
        self.epochs = epochs
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------ training

    def _train(self, inputs: Tensor | tuple[str, ...], labels: Tensor, task: str, classes: tuple[str, ...]) -> Self:
        preparation = Preparation(form_of(inputs))
        if self.recipe is None and isinstance(inputs, Tensor) and inputs.dim() in (2, 3):
            # The plain recipe wants numbers of the size of 1; a recipe of one's own gets the inputs as they are.
            preparation = preparation.then(Line.standard(inputs))
            inputs = preparation(inputs)
        whole = Split(inputs, labels)
        none = whole.take(torch.arange(0))
        data = Dataset("X", task, train=whole, valid=none, test=none, classes=classes)
        recipe = self._recipe(data)
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        trained = fit(recipe, int(seed), self.device)
        # A recipe encodes texts, and a treatment may scale: what is predicted for has to go the same way.
        self.preparation_ = preparation.followed(data, recipe.data)
        self.model_ = trained.model
        self.history_ = trained.history
        self.n_iter_ = len(trained.history["train_loss"])
        return self

    def _recipe(self, data: Dataset) -> Recipe:
        if self.recipe is None:
            recipe = baseline(data)
        elif isinstance(self.recipe, Recipe):
            recipe = self.recipe.replace(data=data)
        else:
            recipe = self.recipe(data)
        if self.treatment is not None:
            recipe = self.treatment(recipe)
        changes = {name: getattr(self, name) for name in ("epochs", "batch_size") if getattr(self, name) is not None}
        return recipe.replace(watch=(), **changes)

    # ---------------------------------------------------------------------------------------------- predicting

    def _outputs(self, X: Any) -> Tensor:
        """Outputs of the network for every example: (N, C) on the CPU."""
        check_is_fitted(self)
        given: Tensor | tuple[str, ...]
        if _is_texts(X):
            if self.preparation_.kind != "text":
                raise ValueError("X holds texts, but the network was trained on numbers: give it what fit was given.")
            given = tuple(X)
        else:
            given = torch.from_numpy(validate_data(self, X, reset=False, dtype=np.float32, allow_nd=True))
        inputs: Tensor = self.preparation_(given)
        device = next(self.model_.parameters()).device
        with torch.no_grad():
            return torch.cat([self.model_(part.to(device)).float().cpu() for part in inputs.split(_CHUNK)])


class Learner(ClassifierMixin, _Learner):  # type: ignore[misc]
    """A network that classifies, with scikit-learn's interface.

    Args:
        recipe: how to train: ``None`` for :func:`assay.own.baseline` (which standardises tables and series first), a function
            of the data set that returns a recipe, or a :class:`~assay.recipe.Recipe`, whose own data are replaced.
        treatment: a paper's treatment that is put on the recipe, e.g. ``elr``.
        epochs: passes over the data; ``None`` leaves them to the recipe.
        batch_size: examples in a step; ``None`` leaves it to the recipe.
        device: where to train.
        random_state: seed of weights, order and dropout. The same seed gives the same network.

    Attributes:
        classes_: (C,) the classes, in the order of the columns of :meth:`predict_proba`.
        model_: the trained ``nn.Module``.
        history_: per epoch ``train_loss`` and ``train_accuracy``.
        n_iter_: epochs that were trained.
        preparation_: what an example goes through before the network (scaling, words to numbers).
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train.

        Args:
            X: a table (N, D), series (N, C, L), images (N, C, H, W), or a list of N texts.
            y: (N,) classes.

        Raises:
            ValueError: there is only one class, or something is not finite.
        """
        inputs, targets = _checked(self, X, y)
        check_classification_targets(targets)
        self.classes_, codes = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"All examples have one class ({self.classes_[0]}): a classifier needs at least two.")
        labels = torch.from_numpy(codes.astype(np.int64))
        return self._train(inputs, labels, "classification", tuple(str(name) for name in self.classes_))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (N, C): the softmax of the logits."""
        found: NDArray[np.float64] = self._outputs(X).double().softmax(dim=1).numpy()
        return found

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of every example: (N,)."""
        outputs = self._outputs(X)
        found: NDArray[Any] = self.classes_[outputs.argmax(dim=1).numpy()]
        return found


class LearnerRegressor(RegressorMixin, _Learner):  # type: ignore[misc]
    """A network that predicts a number, with scikit-learn's interface; see :class:`Learner` for its parameters.

    Attributes:
        model_: the trained ``nn.Module``.
        history_: per epoch ``train_loss``.
        n_iter_: epochs that were trained.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on inputs as :meth:`Learner.fit` takes them, and numbers y (N,)."""
        inputs, targets = _checked(self, X, y, y_numeric=True)
        return self._train(inputs, torch.from_numpy(np.asarray(targets, dtype=np.float32)), "regression", ())

    def predict(self, X: Any) -> NDArray[np.float64]:
        """A number for every example: (N,)."""
        found: NDArray[np.float64] = self._outputs(X).squeeze(1).double().numpy()
        return found


def _is_texts(X: Any) -> bool:
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and all(isinstance(one, str) for one in X)
    return getattr(X, "ndim", 0) == 1 and len(X) > 0 and all(isinstance(one, str) for one in X)


def _checked(learner: _Learner, X: Any, y: Any, y_numeric: bool = False) -> tuple[Tensor | tuple[str, ...], NDArray[Any]]:
    """Inputs as the training loop wants them, and targets (N,)."""
    if not _is_texts(X):
        values, targets = validate_data(learner, X, y, dtype=np.float32, allow_nd=True, y_numeric=y_numeric)
        return torch.from_numpy(np.array(values)), targets
    targets = np.asarray(y)
    if targets.shape != (len(X),):
        raise ValueError(f"There are {len(X)} texts, but y is {targets.shape}: give each text one label.")
    return tuple(str(one) for one in X), targets
