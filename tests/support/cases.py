"""Runs many commands in one process, or in each of two gloo processes, and keeps what they found.

RANK=0 WORLD_SIZE=2 ... python cases.py FOLDER

`FOLDER/cases.json` has the words of every case by its name; `rank<r>.pt` gets the results.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import lightning as L
import torch
from torch import Tensor
from two_processes import meeting_place, run_two

TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
KEPT = ("start", "logged", "steps", "ids", "noise", "labelled", "rates")
Result = dict


class Watch(L.Callback):
    """Keeps what happens in a run; `cut_labels` makes labels unequal, by the image alone."""

    def __init__(self, cut_labels: bool = False) -> None:
        self.cut_labels = cut_labels
        self.start: dict[str, Tensor] = {}
        self.logged: list[dict[str, float]] = []
        self.steps: dict[int, int] = {}
        self.ids: list[list[str]] = []
        self.noise: list[float] = []
        self.labelled: list[int] = []
        self.rates: list[float] = []  # of the last step

    def on_fit_start(self, trainer, pl_module) -> None:
        self.start = weights(pl_module)
        for number, optimizer in enumerate(trainer.optimizers):
            self.steps[number] = 0
            optimizer.register_step_post_hook(lambda *_, number=number: self._count(number))

    def _count(self, number: int) -> None:
        self.steps[number] += 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        groups = [each for each in batch.values() if isinstance(each, dict)] or [batch]
        self.ids.append(sorted(name for each in groups for name in each["id"]))
        for group in groups if self.cut_labels else ():
            for number, image in enumerate(group["image"]):
                share = (0.0, 0.3, 1.0)[image_seed(image) % 3]
                for key, void in (("mask", 255), ("valid", False)):
                    if key in group:
                        rows = group[key][number]
                        rows[: round(share * len(rows))] = void
            if "mask" in group:
                self.labelled.append(int((group["mask"] != 255).sum()))
        DRAWS.images = groups[-1]["image"] if DRAWS.active else None
        DRAWS.calls = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        DRAWS.images = None
        state = torch.random.get_rng_state()
        self.noise.append(torch.rand(1).item())  # what the next dropout will draw
        torch.random.set_rng_state(state)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.logged.append({key: logged[key] for key in logged if key.startswith("train/")})
        self.rates = [group["lr"] for each in trainer.optimizers for group in each.param_groups]


class Draws:
    """Random numbers of an image that depend on the image alone, in whichever batch it is."""

    active, images, calls = False, None, 0
    rand, randint = staticmethod(torch.rand), staticmethod(torch.randint)

    def _rows(self, draw, size) -> Tensor | None:
        if self.images is None or not isinstance(size[0], int) or size[0] != len(self.images):
            return None
        self.calls += 1
        seeds = [image_seed(image) + self.calls for image in self.images]
        return torch.cat([draw((1, *size[1:]), torch.Generator().manual_seed(s)) for s in seeds])

    def like_rand(self, *size, device=None, generator=None, **options) -> Tensor:
        found = None
        if generator is None and size and not isinstance(size[0], (tuple, torch.Size)):
            found = self._rows(lambda shape, own: self.rand(shape, generator=own), size)
        if found is None:
            return self.rand(*size, device=device, generator=generator, **options)
        return found

    def like_randint(self, high, size, *others, device=None, generator=None, **options) -> Tensor:
        found = None
        if generator is None and not others and isinstance(size, tuple):
            found = self._rows(lambda shape, own: self.randint(high, shape, generator=own), size)
        if found is None:
            return self.randint(high, size, *others, device=device, generator=generator, **options)
        return found


DRAWS = Draws()


@contextmanager
def draws_by_image():
    """Let jigsaw puzzles and places of colours depend on the image, not on its batch."""
    DRAWS.active = True
    with patch("torch.rand", DRAWS.like_rand), patch("torch.randint", DRAWS.like_randint):
        try:
            yield
        finally:
            DRAWS.active = False


def image_seed(image: Tensor) -> int:
    """Return a number of an image's pixels."""
    places = torch.arange(image.numel(), device=image.device).view_as(image) % 251
    return int((image.long() * places).sum())


def weights(module) -> dict[str, Tensor]:
    """Return all learnt weights, and the statistics of batch norms."""
    state = module.state_dict()
    names = [name for name, _ in module.named_parameters()]
    names += [name for name in state if name.endswith(("running_mean", "running_var"))]
    return {name: state[name].detach().clone() for name in names}


def run_case(words: list[str], alike: bool = False, **watching: bool) -> Result:
    """Run a command; return what it found, or the message of a setting that was refused."""
    import cli
    from lightning_seg.errors import UserError

    if words[0] == "fit":
        words = [*words, "--trainer.callbacks+=cases.Watch"]
        words += [f"--trainer.callbacks.{key}={value}" for key, value in watching.items()]
    try:
        if alike:
            with draws_by_image():
                run = cli.main(words)
        else:
            run = cli.main(words)
    except UserError as error:
        return {"refused": str(error)}
    trainer, module = run.trainer, run.model
    found: Result = {"world": trainer.world_size, "global_step": trainer.global_step}
    found["weights"] = weights(module) if words[0] == "fit" else {}
    found["scores"] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for callback in trainer.callbacks:
        if type(callback).__name__ == "Watch":
            found |= {name: vars(callback)[name] for name in KEPT}
    return found


def run_all(folder: Path, cases: dict[str, dict]) -> dict[str, Result]:
    """Run cases one after the other, in a folder where splits and predictions are written."""
    found = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name, case in cases.items():
            found[name] = run_case(**case)
    finally:
        os.chdir(before)
    return found


def in_processes(
    count: int, folder: Path, cases: dict[str, dict], timeout: float = 600
) -> list[dict[str, Result]]:
    """Return the results of every process; one process is a fresh one, too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = meeting_place() if count == 2 else {}
    run_two([__file__, str(folder)], environment, timeout, count)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(count)]


def main(folder: Path, rank: int) -> None:
    """Run the cases of a folder; write `rank<r>.pt`."""
    cases = json.loads((folder / "cases.json").read_text())
    torch.save(run_all(folder, cases), folder / f"rank{rank}.pt")


if __name__ == "__main__":
    sys.modules["cases"] = sys.modules["__main__"]  # a configuration names `cases.Watch`
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(os.environ["RANK"]))
