"""Inception-v3, forward + backward: assay (channels_last by itself) against torchvision and timm as they come."""

from __future__ import annotations

from collections.abc import Callable

import _inception
import _networks

JOB = "Inception-v3 forward + backward, 8 x 3 x 139 x 139 and 2 x 3 x 299 x 299"
WANTED = {"torchvision": 1.0, "timm": 1.0}
ROUNDS = 5
PROCESSOR_TIME = True
agree = _networks.agree


def ours() -> Callable[[], _networks.Result]:
    from assay.papers.architectures.inception_v3 import inception_v3, load_pretrained

    model = load_pretrained(inception_v3(aux=False, dropout=0.0), _inception.weights("inception_v3"))
    return _networks.forward_and_backward(model, _inception.SHAPES)


def torchvision() -> Callable[[], _networks.Result]:
    return _networks.forward_and_backward(_inception.torchvision(), _inception.SHAPES)


def timm() -> Callable[[], _networks.Result]:
    return _networks.forward_and_backward(_inception.timm("inception_v3"), _inception.SHAPES)
