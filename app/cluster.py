"""Workers on a Ray cluster: the crew of a batch, with actors in place of processes.

Inputs and result folders are read and written where the worker runs, so every node must see them under the same paths, and
have the same splatsmith installed. Ray's own retries are off: `app.batch` decides what is tried again.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.workers import Died, Event, Failed, Item, Made, Prepare, Ready, Unfit, limit_threads, work_on
from splat.errors import BackendUnavailable, InputError, SplatsmithError

if TYPE_CHECKING:
    from types import ModuleType

    from splat.progress import Progress

INSTALL = 'pip install "splatsmith[cluster]"'
REMEDY = "check the address, and that the cluster runs (ray start --head)"
ANSWER_WITHIN = 10.0  # seconds
OBJECT_STORE = 100_000_000  # bytes, of a cluster that is started here: nothing large passes through it


def connect(address: str) -> dict[str, float]:
    """Join the cluster at `address` as Ray knows it (HOST:6379, ray://HOST:10001, auto); returns its resources (CPU, GPU).

    `local` starts one on this machine that ends with this process. Raises `BackendUnavailable` without Ray and `InputError`
    when nothing answers.
    """
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on any system: listen on the loopback address alone
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # report to nobody
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # and obey this process alone
    ray = _ray()
    if ray.is_initialized():
        return ray.cluster_resources()
    _check_that_it_answers(address)
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **(own if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = (str(error).splitlines() or ["no answer"])[0][:200].rstrip(".")
        raise InputError(f"--cluster {address} cannot be joined ({reason}); {REMEDY}.") from error
    return ray.cluster_resources()


def _check_that_it_answers(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_WITHIN).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--cluster {address} does not answer ({reason}); {REMEDY}.") from error


def places(resources: dict[str, float], threads: int, gpus: float) -> int:
    """How many workers the whole cluster has room for at once. Raises `InputError` when it is none."""
    cpus, cards = resources.get("CPU", 0), resources.get("GPU", 0)
    room = int(min(cpus // threads, cards // gpus if gpus else cpus))
    if room < 1:
        raise InputError(
            f"The cluster has {cpus:g} CPUs and {cards:g} GPUs, too few for a worker of {threads} threads"
            f"{f' and {gpus:g} GPUs' if gpus else ''}; give fewer --threads{' or --device cpu' if gpus else ''}."
        )
    return room


@dataclass
class RayCrew:
    """Actors on the cluster that `connect` joined. Tells of no steps within an item."""

    prepare: Prepare
    threads: int  # CPUs that each worker reserves
    gpus: float = 0.0  # GPUs that each worker reserves
    _actors: dict[int, Any] = field(default_factory=dict)
    _answers: dict[Any, int] = field(default_factory=dict)  # object reference of what is awaited -> worker
    _hired: int = 0

    def hire(self) -> int:
        self._hired += 1
        actor = _ray().remote(_RayWorker).options(num_cpus=self.threads, num_gpus=self.gpus, max_restarts=0, max_task_retries=0)
        self._actors[self._hired] = actor.remote(self.threads)
        self._await(self._hired, self._actors[self._hired].load.remote(self.prepare))
        return self._hired

    def give(self, worker: int, item: Item, attempt: int) -> None:
        self._await(worker, self._actors[worker].make.remote(item, attempt))

    def events(self, timeout: float) -> list[tuple[int, Event]]:
        ray = _ray()
        if not self._answers:
            return []
        ray.wait(list(self._answers), num_returns=1, timeout=timeout, fetch_local=False)
        answered, _ = ray.wait(list(self._answers), num_returns=len(self._answers), timeout=0)
        told: list[tuple[int, Event]] = []
        for answer in answered:
            worker = self._answers.pop(answer)
            try:
                told.append((worker, ray.get(answer)))
            except ray.exceptions.RayError as error:
                self.dismiss(worker)
                told.append((worker, _end(error)))
        return told

    def dismiss(self, worker: int) -> None:
        self._answers = {answer: number for answer, number in self._answers.items() if number != worker}
        if actor := self._actors.pop(worker, None):
            _ray().kill(
                actor, no_restart=True
            )  # if only its node was out of reach, it must not finish an item given to another

    def close(self) -> None:
        """End all workers at once; their state is in OUT.partial, as after any kill."""
        for worker in list(self._actors):
            self.dismiss(worker)

    def _await(self, worker: int, answer: Any) -> None:
        self._answers[answer] = worker


class _RayWorker:
    """What runs in an actor's process."""

    def __init__(self, threads: int) -> None:
        limit_threads(threads)

    def load(self, prepare: Prepare) -> Ready | Unfit:
        try:
            self.maker = prepare()
        except SplatsmithError as error:
            return Unfit(error)
        return Ready()

    def make(self, item: Item, attempt: int) -> Made | Failed:
        if not Path(item.out).parent.is_dir():
            sentence = (
                f"{Path(item.out).parent} is not to be seen on a node of the cluster; give --out on a disk that all share."
            )
            return Failed(sentence, 0.0)
        return work_on(self.maker, item, attempt, _ignore)


def _ignore(event: Progress) -> None:
    pass


def _end(error: Exception) -> Unfit | Died:
    """Why a worker answers with an error of Ray's."""
    ray = _ray()
    if isinstance(getattr(error, "cause", None), ImportError | ray.exceptions.RaySystemError):  # it cannot even read the job
        reason = str(error.cause).strip().splitlines()[-1][:200].rstrip(".")
        sentence = f"A node of the cluster cannot read the job ({reason}); install the same splatsmith on every node."
        return Unfit(InputError(sentence))
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Died("was killed by Ray, as its node ran out of memory")
    if isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.WorkerCrashedError):
        return Died("was killed or crashed")
    return Died(f"was lost ({type(error).__name__})")  # such as a node that cannot be reached any more


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailable(f"--cluster needs the package ray; install it with: {INSTALL}") from error
    return ray
