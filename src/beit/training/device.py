"""The machine a run computes on: device, precision, and the ranks of a distributed run. Ranks are known here."""

import atexit
import hashlib
import os
import platform
import re
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from beit.config.errors import Interrupted, LostRank, RunFailed, UserError, require
from beit.patience import DEFAULT

Precision = Literal["bf16", "float32"]
Result = TypeVar("Result")
LOST_RANK = re.compile("timed out|timeout|connection (closed|refused|reset)|broken pipe", re.IGNORECASE)
"""What torch says of it when another rank is gone."""


@contextmanager
def in_touch(rank: int, world: int) -> Iterator[None]:
    """Around what ranks do together: :class:`LostRank` inside, where torch says in its words that one is gone."""
    try:
        yield
    except (RunFailed, Interrupted):
        raise
    except RuntimeError as error:
        if world == 1 or LOST_RANK.search(str(error)) is None:
            raise
        raise LostRank(f"rank {rank} lost touch with another rank; start all ranks again") from error


@dataclass(frozen=True)
class Compute:
    """One process of a run: its device, its rank among `world` processes, and what they say to each other."""

    device: torch.device
    rank: int = 0
    world: int = 1
    host_group: dist.ProcessGroup | None = None
    """For values on the host; what goes through it does not make a GPU wait."""

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def distribute(self, model: nn.Module) -> nn.Module:
        """`model`, already on the device, so that its gradients, where it has any, are averaged over the ranks."""
        if self.world == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        # Gradients of 1x1 convolutions have other strides along axes of length one, which changes nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        ids = [self.device.index] if self.device.type == "cuda" else None
        with self.in_touch():
            return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def in_touch(self) -> AbstractContextManager[None]:
        """Around what this rank does with the others: :class:`LostRank` where one is gone."""
        return in_touch(self.rank, self.world)

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        """No averaging of gradients inside: for all passes of an accumulated step but the last."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the main rank's buffers of `model`: gradients alone keep the ranks alike, and statistics of
        batches, as those of batch norms, do not follow from them."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def largest(self, value: int) -> int:
        """The largest `value` of any rank, on all of them."""
        if self.world == 1:
            return value
        flag = torch.tensor(value)
        with self.in_touch():
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.host_group)
        return int(flag)

    def any_rank(self, condition: Tensor) -> Tensor:
        """A bool scalar on the device: True where `condition` is on any rank. The host does not wait for it."""
        if self.world == 1:
            return condition
        flag = condition.float()
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return flag > 0

    def sums(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over ranks of every tensor, on the host; one transfer for all of them. A rank that had nothing to
        add brings no tensors, and takes names and shapes from another.

        In float64, where counts of pixels stay exact (float32 on MPS, which has no other).
        """
        shapes = max(self.exchange({name: tensors[name].shape for name in sorted(tensors)}), key=len)
        if not shapes:
            return {}
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        parts = {name: torch.zeros(shape) for name, shape in shapes.items()} | dict(tensors)
        flat = torch.cat([part.detach().flatten().to(self.device, dtype) for part in parts.values()])
        if self.world > 1:
            with self.in_touch():
                dist.all_reduce(flat)
        sums = torch.split(flat.cpu(), [shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(sums, shapes.items(), strict=True)}

    def exchange(self, value: Result) -> list[Result]:
        """`value` of every rank, in their order."""
        everyone = [value] * self.world
        if self.world > 1:
            with self.in_touch():
                dist.all_gather_object(everyone, value, group=self.host_group)
        return everyone

    def from_main(self, produce: Callable[[], Result]) -> Result:
        """What `produce` gives on the main rank, on every rank; what it raises there is raised everywhere."""
        if self.world == 1:
            return produce()
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = produce()
            except Exception as error:
                outcome[1] = error
        with self.in_touch():
            dist.broadcast_object_list(outcome, src=0, group=self.host_group)
        if outcome[1] is not None:
            raise outcome[1]
        return cast(Result, outcome[0])


def open_compute(device: str = "auto", timeout: float = DEFAULT) -> Compute:
    """Join the ranks that torchrun or SLURM started, or compute alone.

    Args:
        device: `auto`, `cpu`, `cuda` (also `cuda:1`) or `mps`.
        timeout: seconds that a rank waits for the others before it gives up.
    """
    chosen = choose_device(device)
    if world_size() == 1:
        return Compute(chosen)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if backend not in _groups:
        with in_touch(int(os.environ["RANK"]), world_size()):
            _groups[backend] = _join_ranks(backend, timeout)
    return Compute(chosen, dist.get_rank(), dist.get_world_size(), _groups[backend])


def world_size() -> int:
    """How many ranks torchrun or SLURM started; UserError where the environment tells it in part."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = [os.environ.get(name, "") for name in names]
    if values[1] == "1" or not any(values):
        return 1
    match = re.fullmatch(r"(\d+) (\d+) \S+ (\d+)", " ".join(values))
    if match is None or int(match[1]) >= int(match[2]) or not 0 < int(match[3]) < 65536:
        there = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True) if value)
        raise UserError(f"{there} alone start no ranks ({', '.join(names)} do); use torchrun, or unset them")
    return int(match[2])


_groups: dict[str, dist.ProcessGroup] = {}
"""The ranks that this process has met, which it can do once: of verbs in a row the first one's patience counts."""


def _join_ranks(backend: str, seconds: float) -> dist.ProcessGroup:
    """Meet the other ranks; the group for values on the host."""
    timeout = timedelta(seconds=seconds)
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    # torchrun starts ranks again beside the store in which the addresses of those that are gone still stand. Several
    # agents of it count starts each for itself, and need another store (docs/machines.md).
    starts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = starts if os.environ.get("LOCAL_WORLD_SIZE") == str(world) else "0"
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    atexit.register(dist.destroy_process_group)
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def choose_device(device: str = "auto") -> torch.device:
    """`device`, or for `auto` a GPU where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device} is not a device; choose auto, cpu, cuda or mps") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    require(available.get(chosen.type, False), f"--device {device} is not available on this machine; choose auto")
    return chosen


def choose_precision(precision: str, device: torch.device) -> Precision:
    """`precision`, or for `auto` bf16 where `device` has instructions for it, else float32."""
    if precision in ("bf16", "float32"):
        return "bf16" if precision == "bf16" else "float32"
    require(precision == "auto", f"--precision {precision} is unknown; choose auto, bf16 or float32")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        fast = device.type == "cpu" and multiplies and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return "bf16" if fast else "float32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context in which networks run at `precision`; their weights stay float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


@contextmanager
def eval_mode(device: torch.device, precision: Precision) -> Iterator[None]:
    """Around all that a network is asked without learning from it, in training and elsewhere."""
    with torch.no_grad(), autocast(device, precision):
        yield


def reseed(seed: int, device: torch.device) -> None:
    """Seed torch's generators for the CPU and `device`; cheap enough for every pass."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def seed_of(*numbers: int) -> int:
    """64 bits that follow from `numbers`, as a seed, a step and a place, and are unrelated for any two of them."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch`, a tensor or a (named) tuple or list of them, on `device`; pinned memory moves in the background."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple | list):
        items = [to_device(item, device) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a GPU; otherwise of this machine, or of its container; as good as endless if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return memory


def describe_machine(compute: Compute) -> dict[str, Any]:
    """What status.json says about this machine."""
    machine: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "processes": compute.world,
        "device": compute.device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_of(torch.device("cpu")) / 2**30, 1),
    }
    if compute.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(compute.device)
        machine |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
    return machine


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Versions of what decides a run's figures."""
    versions = {"python": sys.version.split()[0]}
    for name in ("beit", "torch", "torchvision", "numpy"):
        with suppress(metadata.PackageNotFoundError):  # run from a source tree
            versions[name] = metadata.version(name)
    return versions
