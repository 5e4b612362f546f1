"""What a method is compared with: a plain network for the kind of data, and what a sceptic would use instead of networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import mlp
from assay.nn.audio import AudioCNN
from assay.nn.text import encode, words
from assay.own.networks import TableNet, category_columns, in_units, squared_error
from assay.papers.architectures.wide_resnet import WideResNet
from assay.papers.signals.tsc_baselines import FCN
from assay.papers.text.text_cnn import TextCNN
from assay.recipe import Recipe
from assay.train.schedules import warmup_cosine

_LONGEST_TEXT = 256
_NEIGHBOURS = (1, 3, 5, 9, 15)
_BOOSTING_HOLDS_OUT = 10_000


def kind(data: Dataset) -> str:
    """``"text"``, ``"images"``, ``"audio"``, ``"series"`` or ``"table"``.

    Audio are series of log-mel bands; the history tells them from others.

    Raises:
        AssayError: the task or the inputs are of no kind that there is a baseline for.
    """
    if data.task not in ("classification", "regression"):
        raise AssayError(f"{data.name} is a {data.task} data set: there are baselines for classification and regression only.")
    if isinstance(data.train.inputs, tuple):
        return "text"
    kinds = {1: "table", 2: "series", 3: "images"}
    if len(data.input_shape) not in kinds or not data.train.inputs.is_floating_point():
        raise AssayError(
            f"The inputs of {data.name} are {data.train.inputs.dtype} {data.input_shape}: there is no baseline for them."
        )
    if any(line.startswith("log_mel(") for line in data.history):
        return "audio"
    return kinds[len(data.input_shape)]


def baseline(data: Dataset) -> Recipe:
    """A plain training for this kind of data: a sound network with usual settings, the same for everybody.

    Images: a wide residual network WRN-10-2. Tables: embeddings of the
    categories and a perceptron of two layers with 256 units. Texts: convolutions over words
    (text_cnn, with 100 numbers a word). Series: a fully convolutional network (tsc_baselines). Audio: four convolutions over
    the log-mel spectrogram. All use AdamW, whose rate rises for a twentieth of the steps and then falls along a cosine; epochs
    grow as data shrink, so that about as many steps are done.

    Raises:
        AssayError: there is no baseline for such data.
    """
    found, count = kind(data), len(data.train)
    batch_size = 32 if count < 2000 else 64 if count < 20_000 else 128
    model: Callable[[], nn.Module]
    if found == "text":
        data = encode(data, length=_length(data.train))
        model, steps, most, rate = partial(TextCNN, len(data.features), data.num_classes, dim=100), 1000, 20, 1e-3
    elif found == "images":
        model = partial(WideResNet, 10, 2, data.num_classes, data.input_shape[0])
        steps, most, rate = 1000, 30, 3e-3
    elif found == "audio":
        model, steps, most, rate = partial(AudioCNN, data.input_shape[0], data.num_classes), 1000, 20, 2e-3
    elif found == "series":
        model, steps, most, rate = partial(FCN, data.input_shape[0], data.num_classes), 1500, 60, 1e-3
    else:
        groups = category_columns(data.features)
        model = partial(mlp, data.input_shape[0], data.num_classes)
        if groups:
            model = partial(TableNet, data.input_shape[0], data.num_classes, groups)
        steps, most, rate = 2000, 60, 1e-3
    recipe = Recipe(
        data,
        model=model,
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.01),
        schedule=warmup_cosine,
        epochs=min(most, max(5, math.ceil(steps * batch_size / count))),
        batch_size=batch_size,
        watch=(),
    )
    if data.task == "classification":
        return recipe
    mean, std = data.train.labels.mean().item(), data.train.labels.std(correction=0).item() or 1.0
    return recipe.replace(model=partial(in_units, model, mean, std), loss=partial(squared_error, std=std))


def _length(split: Split) -> int:
    """Words that hold 95 of 100 texts, at most 256."""
    lengths = [len(words(text)) for text in split.inputs if isinstance(text, str)]
    return max(8, min(_LONGEST_TEXT, int(np.quantile(lengths, 0.95))))


# ---------------------------------------------------------------------------------------------------- without networks


def reference_name(data: Dataset) -> str:
    """What somebody would use who does not believe in networks."""
    linear = "logistic regression" if data.task == "classification" else "ridge regression"
    names = {
        "text": f"TF-IDF, {linear}",
        "table": "gradient boosting",
        "images": "nearest neighbours",
        "series": "nearest neighbours",
        "audio": f"band statistics, {linear}",
    }
    return names[kind(data)]


def reference_varies(data: Dataset) -> bool:
    """Does the reference depend on the seed? Boosting does where it holds some of many training examples out to stop on."""
    return kind(data) == "table" and len(data.train) > _BOOSTING_HOLDS_OUT


def reference(data: Dataset, seed: int) -> dict[str, Tensor]:
    """Fit it on the training split (the number of neighbours is chosen on the validation split).

    Returns:
        ``predicted`` and ``valid`` (N,): a class or a number for every test and validation example.
    """
    ways = {"text": _words, "table": _boosting, "audio": _bands}
    model, inputs = ways.get(kind(data), _neighbours)(data, seed)
    splits = {"predicted": data.test, "valid": data.valid}
    return {
        name: torch.from_numpy(np.asarray(model.predict(inputs(split)) if len(split) else [], dtype=np.float64))
        for name, split in splits.items()
    }


def _words(data: Dataset, seed: int) -> tuple[Any, Callable[[Split], Any]]:
    learner = LogisticRegression(C=10.0, max_iter=1000) if data.task == "classification" else Ridge()
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, tokenizer=words, token_pattern=None), learner)
    return model.fit(data.train.inputs, data.train.labels.numpy()), lambda split: split.inputs


def _boosting(data: Dataset, seed: int) -> tuple[Any, Callable[[Split], Any]]:
    kinds = {"classification": HistGradientBoostingClassifier, "regression": HistGradientBoostingRegressor}
    model = kinds[data.task](random_state=seed)
    return model.fit(_numbers(data.train), data.train.labels.numpy()), _numbers


def _bands(data: Dataset, seed: int) -> tuple[Any, Callable[[Split], Any]]:
    def summary(split: Split) -> NDArray[Any]:
        assert isinstance(split.inputs, Tensor)
        return torch.cat([split.inputs.mean(dim=2), split.inputs.std(dim=2, correction=0)], dim=1).numpy()

    learner = LogisticRegression(max_iter=1000) if data.task == "classification" else Ridge()
    model = make_pipeline(StandardScaler(), learner)
    return model.fit(summary(data.train), data.train.labels.numpy()), summary


def _neighbours(data: Dataset, seed: int) -> tuple[Any, Callable[[Split], Any]]:
    make = KNeighborsClassifier if data.task == "classification" else KNeighborsRegressor
    train, labels = _numbers(data.train), data.train.labels.numpy()
    models = [make(k).fit(train, labels) for k in _NEIGHBOURS if k <= len(labels)]
    if len(data.valid) <= 1:
        return models[0], _numbers
    choose_on = (_numbers(data.valid), data.valid.labels.numpy())
    return max(models, key=lambda model: model.score(*choose_on)), _numbers


def _numbers(split: Split) -> NDArray[Any]:
    assert isinstance(split.inputs, Tensor)
    return split.inputs.flatten(1).numpy()
