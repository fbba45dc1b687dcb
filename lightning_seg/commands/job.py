"""What a run of the command does in a job of SLURM: its folder, and a requeue at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_seg.errors import SetupError
from lightning_seg.slurm_job import is_preempted, job_name, requeue


def require_all_processes(trainer: Trainer) -> None:
    """Compare the number of processes that torchrun or `srun` has started with the Trainer's.

    Raises:
        SetupError: The numbers differ: some processes would wait for ever, or train alone.
    """
    environment = trainer._accelerator_connector.cluster_environment
    by_srun = isinstance(environment, SLURMEnvironment) and "SLURM_STEP_ID" in os.environ
    if not (by_srun or isinstance(environment, TorchElasticEnvironment)):
        return
    devices, nodes = trainer.num_devices, trainer.num_nodes
    started = environment.world_size()
    if devices * nodes != started:
        raise SetupError(
            f"the Trainer expects {devices * nodes} processes (devices {devices} x num_nodes "
            f"{nodes}), and {started} were started",
            option=("trainer.devices", "trainer.num_nodes"),
        )


def name_runs(trainer: Trainer) -> None:
    """Give CSV and TensorBoard loggers without a version the name of the job.

    Tasks of an array that start at one moment would take the same number, and a requeued job would
    take another one.
    """
    job = job_name()
    for logger in trainer.loggers if job is not None else ():
        if isinstance(logger, (CSVLogger, TensorBoardLogger)) and logger._version is None:
            logger._version = job


@contextlib.contextmanager
def signals_given_back() -> Iterator[None]:
    """Let SIGUSR1 mean after a run what it meant before: between two runs it ends the process."""
    before = signal.getsignal(signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else None
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, before)


def no_requeue_by_lightning(trainer: Trainer) -> None:
    """Keep Lightning from writing a checkpoint and requeueing the job in its handler of SIGUSR1.

    That handler runs in the middle of a step. `StopOnSignal` waits until the step is done.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def requeue_if_asked(trainer: Trainer, number: int) -> None:
    """Requeue the job of SLURM where SIGUSR1 or a preemption has ended the run.

    SLURM requeues a preempted job only if it still runs at the end of its time of grace. The first
    process asks for the requeue.
    """
    if not trainer.is_global_zero:
        return
    if number == signal.SIGUSR1 or (number == signal.SIGTERM and is_preempted()):
        rank_zero_info(requeue())
