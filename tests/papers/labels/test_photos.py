"""The claims on photos that papers about labels have in common run, wherever CIFAR-10 is."""

from __future__ import annotations

import pytest

from assay import catalogue
from assay.data import load
from assay.errors import AssayError
from assay.lab import Lab

CLAIMS = {
    "elr": "resists_wrong_labels_on_photos",
    "ncr": "resists_wrong_labels_on_photos",
    "massive_label_noise": "survives_dilution_on_photos",
    "relabel": "worth_asking_on_photos",
}


@pytest.mark.parametrize("key", CLAIMS)
def test_claims_on_photos_at_smoke_scale(key: str, home: object) -> None:
    try:
        load("cifar10-20k")
    except AssayError as error:
        pytest.skip(str(error))
    claim = catalogue.claims(catalogue.find(key))[CLAIMS[key]]
    measured = claim.measure(Lab(scale="smoke"))
    assert len(measured) >= 2
    assert all(0 <= float(getattr(value, "number", value)) <= 1 for value in measured.values())
