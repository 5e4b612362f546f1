"""Explaining what a network says of an input: methods that share credit out, and measures that judge them (:mod:`.curves`).

All methods have one calling convention: ``method(model, inputs, target, *, ...) -> attributions``.

``inputs`` is a tensor (B, ...) or a tuple of several, ``target`` the class whose score is explained, one for all or (B,) int64;
attributions have the inputs' shape. The network is used in evaluation mode and left as it was found, and examples never mix.
Integrated gradients are those of :mod:`assay.papers.explain.integrated_gradients`, for several inputs too.
"""

from assay.explain.differences import deeplift
from assay.explain.gradients import deconvnet, grad_cam, gradient, guided_backprop, input_x_gradient
from assay.explain.occluding import occlusion
from assay.explain.path import integrated_gradients
from assay.explain.relevance import Z_PLUS, AlphaBeta, Epsilon, Flat, Gamma, Layer, WSquare, ZBox, layered, lrp

__all__ = [
    "Z_PLUS",
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Layer",
    "WSquare",
    "ZBox",
    "deconvnet",
    "deeplift",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "layered",
    "lrp",
    "occlusion",
]
