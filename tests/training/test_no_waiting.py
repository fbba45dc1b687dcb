"""No training step waits for the device: no value of a tensor is asked for on the host.

On a GPU, `.item()`, `.cpu()`, `bool(tensor)` and `nonzero` wait until all work is done, and the GPU
has nothing to do meanwhile. These calls are caught here on the CPU, in a step that is not logged.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from methods import PIECES, tiny_words
from places import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from cli import main

PACKAGE = str(ROOT / "lightning_seg")
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
OPERATIONS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")
ALLOWED = {
    "networks/label_convolution.py": "sums of kernel slices, which only CPUs use",
    "training/loss_guard.py": "each loss is checked on CPUs, and 50 at once on GPUs",
    "losses/probability_gradient.py": "class ids are checked on CPUs",
    "losses/boundary_sum.py": "the sparse form, which CPUs use; GPUs use the dense one",
    "losses/label_gradients.py": "the sparse form, which CPUs use; GPUs use the dense one",
    "losses/false_edges.py": "the form of CPUs",
    "losses/loss_max_pooling.py": "a loss that is not finite is looked for on CPUs",
    "losses/pooling_weights.py": "Newton's steps end early on CPUs; on GPUs their number is fixed",
}
"""Files that may ask for values on CPUs, where nothing waits, and why."""


def place() -> str | None:
    """The file of this package that asked, None where Lightning or PyTorch did."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(PACKAGE):
            return f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.lineno}"
        if "/lightning/" in frame.filename:
            return None
    return None


class Trap(TorchDispatchMode):
    """Keeps the places that ask for a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.__name__.split(".")[0] in OPERATIONS:
            self.note()
        return function(*args, **(kwargs or {}))

    def note(self) -> None:
        where = place()
        if where is not None and where.split(":")[0] not in ALLOWED:
            self.found.add(where)


class Watch(L.Callback):
    """Sets the trap in the second step, of which nothing is logged."""

    def __init__(self) -> None:
        self.trap, self.patch, self.steps = Trap(), pytest.MonkeyPatch(), 0
        self.begun = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.begun += 1
        if self.begun != 2:
            return
        for name in METHODS:
            self.patch.setattr(torch.Tensor, name, self.noted(getattr(torch.Tensor, name)))
        self.trap.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.begun == 2:
            self.trap.__exit__(None, None, None)
            self.patch.undo()
            self.steps += 1

    def noted(self, method: Callable) -> Callable:
        def call(tensor, *args, **kwargs):
            self.trap.note()
            return method(tensor, *args, **kwargs)

        return call


def test_the_trap_finds_each_way_to_wait() -> None:
    watch = Watch()
    code = compile(
        "for ask in (bool, float, int, lambda t: t.item(), lambda t: t.tolist(),"
        " lambda t: t.nonzero(), lambda t: t.cpu(), lambda t: t.numpy()):\n"
        "    before = len(trap.calls)\n"
        "    ask(tensor)\n"
        "    assert len(trap.calls) > before\n",
        f"{PACKAGE}/made_up.py",
        "exec",
    )
    watch.trap.calls = []
    note = watch.trap.note
    watch.trap.note = lambda: (watch.trap.calls.append(place()), note())
    watch.begun = 1
    watch.on_train_batch_start(None, None, None, 1)
    try:
        exec(code, {"trap": watch.trap, "tensor": torch.ones(1)})
    finally:
        watch.on_train_batch_end(None, None, None, None, 1)
    assert all(each.startswith("made_up.py") for each in watch.trap.calls)
    assert watch.trap.found


@pytest.mark.filterwarnings("ignore:The `srun` command", "ignore:the training has")
@pytest.mark.parametrize("method", PIECES)
def test_no_step_waits_for_the_device(method, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    watch = Watch()
    fit = L.Trainer.fit
    monkeypatch.setattr(
        L.Trainer, "fit", lambda self, *a, **k: (self.callbacks.append(watch), fit(self, *a, **k))
    )
    words = ["--trainer.max_steps=2", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0"]
    words += ["--trainer.log_every_n_steps=50", "--trainer.num_sanity_val_steps=0"]
    main(["fit", *tiny_words(method), *words])
    assert watch.steps == 1
    assert not watch.trap.found, "a GPU waits at " + ", ".join(sorted(watch.trap.found))
