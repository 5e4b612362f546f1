"""NF-ResNet-50, forward: assay (channels_last by itself, filters standardised in every pass) against timm as it comes."""

from __future__ import annotations

from collections.abc import Callable

import _networks

JOB = "NF-ResNet-50 forward, 32 x 3 x 64 x 64 and 4 x 3 x 224 x 224"
WANTED = {"timm": 1.0}
ROUNDS = 5
PROCESSOR_TIME = True
agree = _networks.agree


def ours() -> Callable[[], _networks.Result]:
    from assay.papers.architectures.nfnet import load_pretrained, nf_resnet50

    return _networks.forward(load_pretrained(nf_resnet50(), _networks.timm_unnormalised("nf_resnet50").state_dict()))


def timm() -> Callable[[], _networks.Result]:
    return _networks.forward(_networks.timm_unnormalised("nf_resnet50"))
