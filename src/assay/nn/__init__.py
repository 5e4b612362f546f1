"""Building blocks and small standard networks that two or more papers share."""

from assay.nn.small import ConvNet, lenet, mlp

__all__ = ["ConvNet", "lenet", "mlp"]
