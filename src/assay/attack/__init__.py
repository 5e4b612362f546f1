"""Attacks on classifiers, and bounds on what any attack can do.

Every attack is a function ``attack(model, inputs, labels, *, eps, norm, clip, ...) -> adversarial inputs``: plain tensors in and
out, the network is used in evaluation mode and left as it was found.

from assay.attack import certified, pgd, robust_accuracy, signs_of_masking, square
"""

from assay.attack.balls import Clip
from assay.attack.bounds import Interval, certified, interval_bounds, worst_margins
from assay.attack.gradient import fgsm, margins, pgd
from assay.attack.masking import Masking, signs_of_masking
from assay.attack.square import square
from assay.attack.worst import Robustness, robust_accuracy

__all__ = [
    "Clip",
    "Interval",
    "Masking",
    "Robustness",
    "certified",
    "fgsm",
    "interval_bounds",
    "margins",
    "pgd",
    "robust_accuracy",
    "signs_of_masking",
    "square",
    "worst_margins",
]
