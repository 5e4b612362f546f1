"""The same training in bfloat16 against the bare loop in float32, at equal accuracy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import lenet_training as base
import torch

from assay.data import load
from assay.nn import lenet

JOB = "training in bfloat16: LeNet, MNIST 5k, 2 epochs, batch 128"
WANTED = {"bare_loop": 2.2}
bare_loop = base.bare_loop
agree = base.agree


def ours() -> Callable[[], object]:
    from assay.recipe import Recipe
    from assay.train.loop import fit

    recipe = Recipe(
        load("mnist5k"),
        model=lenet,
        optimizer=partial(torch.optim.SGD, lr=base.LR, momentum=0.9),
        epochs=base.EPOCHS,
        batch_size=base.BATCH,
        precision="bfloat16",
        watch=(),
    )
    return lambda: float(fit(recipe, 0).accuracy())
