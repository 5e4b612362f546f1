"""Files are whole or not there, also when the disk is full."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay.errors import AssayError
from assay.files import load_checkpoint, load_tensors, save_checkpoint, save_tensors, write_atomically, write_json


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.safetensors"
    save_tensors(path, {"a": torch.arange(3), "b": torch.ones(2, 2).t()}, {"n": 1, "é": [None]})
    tensors, facts = load_tensors(path)
    assert tensors["a"].tolist() == [0, 1, 2]
    assert facts == {"n": 1, "é": [None]}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AssayError, match="the disk is full: free some space"):
        write_atomically(path, full)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


#: A file may not grow beyond 4 kB in that process: the nearest thing to a full disk that needs no privileges.
FULL = """
import resource, signal, sys, torch
sys.dont_write_bytecode = True  # Python keeps what it compiled also where it could write but the first 4 kB of it
from pathlib import Path
from assay.errors import AssayError
from assay.files import save_checkpoint
path = Path(sys.argv[1])
save_checkpoint(path, {"x": torch.ones(3)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_checkpoint(path, {"x": torch.ones(100_000)})
except AssayError as error:
    print(error)
"""


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    path = tmp_path / "training.checkpoint"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=240, check=True)
    assert "could not be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert load_checkpoint(path)["x"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["training.checkpoint"]


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "training.checkpoint"
    save_checkpoint(path, {"x": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(AssayError, match="remove it to start over"):
        load_checkpoint(path)


def test_json_refuses_what_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []
