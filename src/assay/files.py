"""Files that are whole or not there: atomic writes, checkpoints, tensors with their facts."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` and put it in its place only when it is complete and on disk.

    A reader sees the old file or the new one, never half of one; a full disk leaves the old one as it was.

    Raises:
        AssayError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _disk_error(path, error) from error
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o666 & ~_umask())  # temporary files are private; what stands here is like any other file
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _disk_error(path, error) from error
    except Exception as error:  # the writers of torch and safetensors have their own words for what the system told them
        if any(word in str(error) for word in ("PytorchStreamWriter", "unexpected pos", "os error")):
            raise _disk_error(path, error) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _disk_error(path: Path, error: Exception) -> AssayError:
    if getattr(error, "errno", None) == errno.ENOSPC or not isinstance(error, OSError):
        return AssayError(f"{path} could not be written, the disk is full: free some space (`assay cache prune`) and run again.")
    return AssayError(f"{path} could not be written ({error.strerror}): mend its folder's permissions, or set ASSAY_HOME.")


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, two spaces deep, with a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training atomically."""
    import torch

    write_atomically(path, lambda temporary: torch.save(dict(state), temporary))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state of a training; nothing in the file is executed."""
    import torch

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AssayError(f"The checkpoint {path} cannot be read ({type(error).__name__}): remove it to start over.") from error
    return state


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write named tensors and JSON facts into one safetensors file, atomically."""
    from safetensors.torch import save_file

    # Each in memory of its own: weights may be tied, and results may be views of each other.
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(whole, temporary, {"facts": json.dumps(facts)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
    except Exception as error:
        raise AssayError(f"{path} cannot be read ({type(error).__name__}): remove it, it will be made again.") from error
    return tensors, facts
