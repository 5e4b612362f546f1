"""What works on this machine and what does not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.errors import AssayError
from assay.lab.machine import commit, machine, versions
from assay.paths import data_dir, folder, trained_dir

Finding = dict[str, Any]


def examine() -> list[Finding]:
    """One finding for each part: ``{"part", "state": "works" | "absent" | "broken", "details"}``."""
    parts: list[tuple[str, Callable[[], tuple[str, str]]]] = [
        ("machine", lambda: ("works", f"{machine()['processor']}, {machine()['cores']} cores, {machine()['system']}")),
        ("versions", lambda: ("works", ", ".join(f"{name} {found}" for name, found in versions().items()))),
        ("code", lambda: ("works", commit() or "installed package, no checkout")),
        ("cuda", _cuda),
        ("devices", _devices),
        ("mirror", _mirror),
        ("ledger", _ledger),
        ("cache", _cache),
        ("shared cache", _shared_cache),
        ("pip", _pip),
    ]
    findings = []
    for part, look in parts:
        try:
            state, details = look()
        except AssayError as error:
            state, details = "broken", str(error)
        findings.append({"part": part, "state": state, "details": details})
    return findings


def _cuda() -> tuple[str, str]:
    import torch

    if not torch.cuda.is_available():
        return "absent", "no CUDA device; everything runs on the processor"
    return "works", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _devices() -> tuple[str, str]:
    from assay.train.devices import installed

    if not installed():
        return "absent", "one training runs on one device; on several with Lightning Fabric: pip install 'assay[devices]'"
    return "works", f"one training can run on several devices (processes on a CPU): Lightning Fabric {installed()}"


def _mirror() -> tuple[str, str]:
    mirror = os.environ.get("ASSAY_MIRROR", "")
    if not mirror:
        return "absent", "ASSAY_MIRROR is not set; public data sets come from their own addresses"
    if "://" not in mirror and not Path(mirror).is_dir():
        return "broken", f"ASSAY_MIRROR names {mirror}, which is no folder"
    return "works", mirror


def _ledger() -> tuple[str, str]:
    from assay.lab.ledger import Ledger

    ledger = Ledger()
    return "works", f"{ledger.count_done()} seeds done in {ledger.place}"


def _cache() -> tuple[str, str]:
    from assay.lab.cache import entries

    for place in (folder(data_dir()), folder(trained_dir())):
        if not os.access(place, os.W_OK):
            return "broken", f"{place} cannot be written: set ASSAY_HOME to a folder that can"
    kept = entries()
    free = shutil.disk_usage(trained_dir()).free / 1e9
    return (
        "works",
        f"{len(kept)} trainings, {sum(e.bytes for e in kept) / 1e6:.0f} MB in {trained_dir()}, {free:.0f} GB free",
    )


def _shared_cache() -> tuple[str, str]:
    from assay.lab.shared import shared_cache

    place = shared_cache()
    if place is None:
        return "absent", "ASSAY_CACHE is not set; what is trained here stays here"
    place.check()
    return "works", place.url


def _pip() -> tuple[str, str]:
    import importlib.util

    if importlib.util.find_spec("pip") is None:
        return "absent", "no pip in this environment: data sets that lie in package archives cannot be fetched"
    return "works", "data sets in package archives can be fetched"
