"""Where things are kept."""

from pathlib import Path

import pytest

from assay import paths


def test_one_folder_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "here"))
    monkeypatch.delenv("ASSAY_LEDGER", raising=False)
    assert paths.data_dir() == tmp_path / "here" / "data"
    assert paths.trained_dir() == tmp_path / "here" / "trained"
    assert paths.ledger_url() == f"sqlite:///{tmp_path}/here/ledger.sqlite"
    assert (tmp_path / "here").is_dir()


def test_a_ledger_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_LEDGER", "postgresql://host/assay")
    assert paths.ledger_url() == "postgresql://host/assay"


def test_the_ledger_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ASSAY_HOME", "ASSAY_LEDGER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "keep"))
    assert paths.home() is None
    assert paths.data_dir().parent == paths.trained_dir().parent
    assert not paths.ledger_url().removeprefix("sqlite:///").startswith(str(paths.data_dir().parent))
