"""One training on several devices: as many processes, which share every batch, through Lightning Fabric.

What is trained is what one device would train. All processes draw the same order and the same augmentation of the whole
batch; each sends its share of it through the network, the outputs are put together again, and every process computes the
loss of the *whole* batch. So a loss need not be a mean, shares may be unequal, and hooks and losses with memory per example
see in every process what they would see in the only one. Three things differ from one device, and make the number of devices
part of a training's identity:

- sums of floating-point numbers are taken in another order;
- batch normalisation sees a share, not the batch, and the statistics that are kept are those of the first process's shares.
  On CUDA devices a network may be made with ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, which normalises over the batch;
- dropout and whatever else draws from torch's own random stream draws other numbers: each process has its own.

A hook must draw from ``run.generator``, which is the same everywhere; weights that drift apart are found out after the epoch.

The processes are started here and end with the process that asked for them, however it ends; an error in one ends all. A
checkpoint holds the random streams of all processes, so that a training resumes bit for bit on as many devices. Seconds are
wall-clock time. One machine only.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from assay.errors import AssayError
from assay.files import load_checkpoint, load_tensors, save_checkpoint, save_tensors
from assay.recipe import Recipe
from assay.train.loop import Loop, Report, Trained, finished, seeded, with_weights

#: So many steps lie between two looks at the clock for a checkpoint, on which all processes must agree.
LOOK = 10


def installed() -> str:
    """The version of Lightning Fabric; empty where it is missing."""
    if importlib.util.find_spec("lightning_fabric") is None:
        return ""
    return importlib.metadata.version("lightning-fabric")


def fit_on_devices(
    recipe: Recipe,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    report: Report | None = None,
) -> Trained:
    """Train on ``recipe.devices`` devices of the kind ``device.type``; see :func:`assay.train.loop.fit`.

    Raises:
        AssayError: Lightning Fabric or a device is missing, the recipe cannot be sent to another process, or the training
            itself refuses (a loss that is not finite).
        RuntimeError: a process died or crashed; the message has its traceback.
    """
    with Crew(recipe.devices, device.type) as crew:
        return crew.fit(recipe, seed, checkpoint, checkpoint_seconds, report)


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    seed: int
    checkpoint: Path | None
    resume: bool
    checkpoint_seconds: float
    result: Path


class Crew:
    """Processes that train together, one for each device; a context manager, which ends them.

    Args:
        devices: how many.
        kind: of device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, devices: int, kind: str = "cpu") -> None:
        if not installed():
            raise AssayError("Training on several devices needs Lightning Fabric: pip install 'assay[devices]'.")
        if kind not in ("cpu", "cuda"):
            raise AssayError(f"Several devices can be of the kind cpu or cuda, not {kind}: train on one.")
        if kind == "cuda" and torch.cuda.device_count() < devices:
            raise AssayError(f"{devices} CUDA devices were asked for and this machine has {torch.cuda.device_count()}.")
        self.devices = devices
        self.kind = kind
        self.folder = tempfile.TemporaryDirectory(prefix="assay-")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pipes: list[Connection] = []

    def __enter__(self) -> Crew:
        threads = max(1, torch.get_num_threads() // self.devices)
        try:
            for rank in range(self.devices):
                ours, theirs = Pipe()
                # A program of its own: whatever started this process (a script without a guard, a notebook, a worker that must
                # have no children of multiprocessing's) is not started again with it.
                started = [sys.executable, "-P", "-c", "from assay.train.devices import serve; serve()"]
                given = [theirs.fileno(), rank, self.devices, threads, self.kind, Path(self.folder.name) / "store"]
                process = subprocess.Popen(
                    [*started, *map(str, given)], pass_fds=[theirs.fileno()], env=_environment(rank), stdin=subprocess.DEVNULL
                )
                theirs.close()
                self.pipes.append(ours)
                self.processes.append(process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()  # they have nothing to tidy up, and may be waiting for one that is gone
        for process in self.processes:
            process.wait()
        for pipe in self.pipes:
            pipe.close()
        self.folder.cleanup()

    def fit(
        self,
        recipe: Recipe,
        seed: int,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 30.0,
        report: Report | None = None,
    ) -> Trained:
        """Train ``recipe`` on all devices of the crew; an error leaves the crew unusable."""
        result = Path(self.folder.name) / "result.safetensors"
        resume = checkpoint is not None and checkpoint.exists()
        content = _pickled(_Job(recipe, seed, checkpoint, resume, checkpoint_seconds, result))
        for pipe in self.pipes:
            with suppress(OSError):  # it has died: its end is seen below
                pipe.send_bytes(content)
        facts: dict[str, Any] = {}
        waiting = list(self.pipes)
        while waiting:
            for pipe in cast("list[Connection]", wait(waiting)):
                moment, details = self._heard(pipe)
                if moment == "report" and report is not None:
                    report(*details)
                elif moment == "done":
                    facts |= details
                    waiting.remove(pipe)
        tensors, _ = load_tensors(result)
        weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
        memory = {name[7:]: value for name, value in tensors.items() if name.startswith("memory.")}
        device = torch.device(self.kind)
        model = with_weights(recipe, seed, device, weights)
        inputs = recipe.data.train.inputs
        assert isinstance(inputs, Tensor)
        return finished(recipe, model, inputs[:1].to(device), facts["history"], facts["seconds"], memory)

    def _heard(self, pipe: Connection) -> tuple[str, Any]:
        try:
            moment, details = pipe.recv()
        except (EOFError, OSError):
            moment, details = "died", None
        if moment in ("died", "refused", "crashed"):
            raise self._reason(pipe, moment, details)
        return moment, details

    def _reason(self, pipe: Connection, moment: str, details: Any) -> Exception:
        """Why the crew failed. A process that died takes the others' connections along: their complaints are not the reason."""
        told: dict[Connection, tuple[str, Any]] = {pipe: (moment, details)}
        until = time.monotonic() + 1.0
        while moment == "crashed" and time.monotonic() < until and "died" not in {one for one, _ in told.values()}:
            for other in [p for p in self.pipes if p not in told and p.poll(0.05)]:
                try:
                    heard = other.recv()
                except (EOFError, OSError):
                    heard = ("died", None)
                if heard[0] in ("died", "crashed", "refused"):
                    told[other] = heard
        dead = next((one for one, (how, _) in told.items() if how == "died"), None)
        if moment == "refused":
            return AssayError(str(details))
        rank = self.pipes.index(dead or pipe)
        which = f"process {rank} of the {self.devices} that train together"
        if dead is None:
            return RuntimeError(f"{which} crashed:\n{details}")
        code = self.processes[rank].wait()
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return RuntimeError(f"{which} died ({why})")


def _environment(rank: int) -> dict[str, str]:
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment.setdefault("GLOO_SOCKET_IFNAME", loopback)  # the processes are on one machine, and nobody else is to listen
    environment.setdefault("NCCL_SOCKET_IFNAME", loopback)
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return environment


def _pickled(job: _Job) -> bytes:
    try:
        return pickle.dumps(job, protocol=5)
    except Exception as error:
        raise AssayError(
            f"The recipe cannot be sent to another process ({error}): on several devices everything in it must be a value, or a "
            "top-level function or class of a module."
        ) from None


# ------------------------------------------------------------------------------------------ in each of the processes


def serve() -> None:
    """Train what the starting process sends, together with the other processes; ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the starting process's to handle
    descriptor, rank, devices, threads = map(int, sys.argv[1:5])
    kind, store = sys.argv[5:7]
    pipe = Connection(descriptor)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, jobs), daemon=True).start()
    try:
        torch.set_num_threads(threads)
        if kind == "cuda":
            torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        # Meeting in a file needs no port.
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=devices)
        while True:
            facts = _train(_unpickled(jobs.get()), rank, kind, partial(_report, pipe))
            pipe.send(("done", facts))
    except AssayError as error:
        pipe.send(("refused", str(error)))
    except BaseException:
        pipe.send(("crashed", traceback.format_exc()))
    threading.Event().wait()  # were it to go, the others would complain of that: the starting process ends all of them


def _listen(pipe: Connection, jobs: queue.SimpleQueue[bytes]) -> None:
    while True:
        try:
            jobs.put(pipe.recv_bytes())
        except (EOFError, OSError):  # the starting process is gone
            os._exit(1)


def _unpickled(content: bytes) -> _Job:
    try:
        job: _Job = pickle.loads(content)  # from the process that started this one, through a pipe that nobody else has
    except (AttributeError, ImportError) as error:
        raise AssayError(
            f"The recipe refers to what another process cannot import ({error}): on several devices its functions must stand in "
            "a module, not in the script or notebook itself."
        ) from None
    return job


def _report(pipe: Connection, done: float, total: float, note: str) -> None:
    pipe.send(("report", (done, total, note)))


def _train(job: _Job, rank: int, kind: str, report: Report) -> dict[str, Any]:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    with seeded(job.seed, device):
        loop = _SharedLoop(job.recipe, job.seed, device)
        if job.resume:
            assert job.checkpoint is not None
            loop.load_state(load_checkpoint(job.checkpoint))
        else:
            for hook in job.recipe.hooks:
                hook.on_start(loop.run)
            # Each its own stream from here on, or dropout would draw the same units in every share.
            torch.manual_seed(job.seed + 1_000_003 * rank)
        loop.train(job.checkpoint, job.checkpoint_seconds, None if rank else report)
        weights = loop.weights()["model"]
    if rank:
        return {}
    tensors = {f"model.{name}": value for name, value in weights.items()}
    save_tensors(job.result, tensors | {f"memory.{name}": value for name, value in loop.run.memory.items()}, {})
    return {"history": loop.run.history, "seconds": loop.seconds}


class _Gather(torch.autograd.Function):
    """The outputs of all shares, in order, in every process.

    Backwards a share gets the gradient of its own rows times the number of processes: gradients of weights are averaged over
    processes afterwards, and what is wanted is their sum over shares. A path to the weights that does not lead through here
    (a hook's own pass over the whole batch) has its whole gradient in every process, and its average is right as it is.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, bounds: list[int], rank: int) -> Tensor:
        sizes = [stop - start for start, stop in pairwise(bounds)]
        ctx.rows, ctx.shape, ctx.devices = slice(bounds[rank], bounds[rank + 1]), own.shape, len(sizes)
        longest = max(sizes)
        mine = own[: sizes[rank]]
        padded = F.pad(mine, [0, 0] * (own.dim() - 1) + [0, longest - len(mine)]).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        mine = gradients[0][ctx.rows] * ctx.devices
        if len(mine) < ctx.shape[0]:  # a share of nothing: see _SharedLoop._outputs_of
            mine = mine.new_zeros(ctx.shape)
        return mine, None, None


class _SharedLoop(Loop):
    """The part of one process: its share of every batch."""

    def __init__(self, recipe: Recipe, seed: int, device: torch.device) -> None:
        self.rank, self.devices = dist.get_rank(), dist.get_world_size()
        self.sharded = recipe.strategy == "fsdp"
        super().__init__(recipe, seed, device)
        own = [p for p in self.loss.parameters() if p.requires_grad] if isinstance(self.loss, nn.Module) else []
        if self.sharded and "layers" in self.wants:
            raise AssayError("A loss that watches layers cannot be trained under strategy='fsdp'; use strategy='ddp'.")
        if own and self.sharded:
            raise AssayError("A loss with weights of its own cannot be trained under strategy='fsdp'; use strategy='ddp'.")
        for parameter in own:  # every process has their whole gradient, on some devices not to the last bit
            parameter.register_post_accumulate_grad_hook(self._average)

    def _distributed(self) -> Callable[[Tensor], Tensor]:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment
        from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

        strategy: Any
        if self.sharded:
            strategy = ModelParallelStrategy(_shard, data_parallel_size=self.devices, tensor_parallel_size=1)
        else:
            # With this setting the gradients' buckets stay as they were made: their sums are then the same after resuming.
            strategy = DDPStrategy(find_unused_parameters=True)
        accelerator = "cuda" if self.device.type == "cuda" else "cpu"
        fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=self.devices, plugins=[LightningEnvironment()])
        fabric.launch()
        self.module: Callable[[Tensor], Tensor] = fabric.setup_module(self.model)
        return self._outputs_of

    def _outputs_of(self, batch: Tensor) -> Tensor:
        """The outputs for a whole batch, in every process; each computes a share of them."""
        bounds = [len(batch) * rank // self.devices for rank in range(self.devices + 1)]
        mine = batch[bounds[self.rank] : bounds[self.rank + 1]]
        # Without a share (a last batch of fewer examples than devices) some example stands in, whose outputs are not used.
        own = self.module(mine if len(mine) else batch[:1])
        if "features" in self.wants:
            self.features = self._gathered(self.features, bounds)
        if "layers" in self.wants:
            self.layers = {name: self._gathered(output, bounds) for name, output in self.outputs.items()}
        return self._gathered(own, bounds)

    def _gathered(self, own: Tensor, bounds: list[int]) -> Tensor:
        whole: Tensor = _Gather.apply(own.float(), bounds, self.rank)  # type: ignore[no-untyped-call]
        return whole

    def _average(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= self.devices

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _end_epoch(self) -> None:
        self._same_weights()
        for buffer in self.model.buffers():
            dist.broadcast(buffer, 0)
        super()._end_epoch()
        stop = torch.tensor(self.run.stop, dtype=torch.uint8)
        dist.broadcast(stop, 0)
        self.run.stop = bool(stop)

    @torch.no_grad()
    def _same_weights(self) -> None:
        """Find out weights that have drifted apart."""
        if self.sharded:
            return
        total = torch.stack([p.double().sum() for p in self.parameters]).sum().cpu()
        bounds = torch.stack([total, -total])
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if bool(bounds.isfinite().all()) and bool(bounds[0] != -bounds[1]):
            raise AssayError(
                f"The weights of the {self.devices} processes have drifted apart in epoch {self.run.epoch + 1}: a hook or the "
                "loss draws from torch's own random stream; let it draw from run.generator, or train on one device."
            )

    # ---------------------------------------------------------------------------------------------- checkpoint

    def _due(self, elapsed: float, every: float) -> bool:
        if self.run.step % LOOK:
            return False
        due = torch.tensor(elapsed > every, dtype=torch.uint8)
        dist.broadcast(due, 0)  # the first process's clock decides
        return bool(due)

    def _save(self, checkpoint: Path) -> None:
        state = self.state()
        if not self.rank:
            save_checkpoint(checkpoint, state)

    def weights(self) -> dict[str, Any]:
        if not self.sharded:
            return super().weights()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=whole)  # empty but in the first process
        return {"model": model, "optimizer": optimizer}

    def _load_weights(self, state: dict[str, Any]) -> None:
        if not self.sharded:
            super()._load_weights(state)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True),
        )

    def state(self) -> dict[str, Any]:
        state = super().state()
        random = state["random"]
        state["streams"] = {name: _from_all(random[name]) for name in ("torch", "cuda")}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        streams = state["streams"]
        if len(streams["torch"]) != self.devices:
            raise AssayError(f"The checkpoint is of {len(streams['torch'])} processes, not {self.devices}: remove it.")
        state["random"] |= {name: of_all[self.rank] for name, of_all in streams.items()}
        super().load_state(state)


def _from_all(tensor: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    if len(tensor):
        dist.all_gather(gathered, tensor)
    return gathered


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Share out the weights of a network: those of the whole, and those of each of its blocks for itself.

    A block is an entry of a ``Sequential`` or ``ModuleList``. Its weights are brought together when its turn comes and let go
    afterwards. Weights that are used twice stay with the whole, which knows all their places.
    """
    from torch.distributed.fsdp import fully_shard

    everything, once = list(model.parameters()), {id(p) for p in model.parameters()}
    tied = len(list(model.named_parameters(remove_duplicate=False))) != len(once) or not everything
    mesh = mesh["data_parallel"]
    lists = (nn.ModuleList, nn.ModuleDict)  # they have no forward of their own
    blocks = [child for m in model.modules() if isinstance(m, (nn.Sequential, *lists)) for child in m.children()]
    for block in reversed(blocks if not tied else []):  # inner ones first
        if not isinstance(block, lists) and any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


__all__ = ["Crew", "fit_on_devices", "installed", "serve"]
