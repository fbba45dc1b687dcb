"""The job of SLURM that this process belongs to: its name, whether it was requeued, a requeue."""

from __future__ import annotations

import os
import shutil
import subprocess


def job_name() -> str | None:
    """Return a name for what `srun` started, which stays the same when the job is requeued.

    It is `job_<id>`, in an array `job_<id>_<task>`. A second `srun` of the same job adds `_step_1`.
    None stands for a process that `srun` has not started, or in an interactive job, where several
    commands share a step.
    """
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if not job or step is None or interactive or "SLURM_PTY_PORT" in os.environ:
        return None
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    name = f"job_{array}_{task}" if array and task else f"job_{job}"
    return name if step == "0" else f"{name}_step_{step}"


def was_requeued() -> bool:
    """Return whether SLURM has started the job of this process before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def is_preempted() -> bool:
    """Return whether SLURM ends the job of this process because another job needs its place."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or shutil.which("scontrol") is None:
        return False
    words = ["scontrol", "show", "job", job]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return " JobState=RUNNING " in done.stdout and " PreemptTime=2" in done.stdout


def requeue() -> str:
    """Ask SLURM to start the job of this process again; return what came of it, in one sentence."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if shutil.which("scontrol") is None:
        return f"the job {job} is not requeued, because the program scontrol is missing"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr or done.stdout).strip()
        return f"the job {job} is not requeued: {why}"
    return f"the job {job} is requeued, and goes on from its last checkpoint"
