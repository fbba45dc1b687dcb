"""Compare training steps of two players with cross-entropy and with the authors' code as loops.

    python benchmarks/two_players.py [--rounds 5] [--device cpu] [--threads 2] [--network lraspp]

The modules run in a Trainer; cross-entropy gets the same labelled images. The loops are those of
`published_loops.py`. Before the measurement, modules and loops train for two steps, and the weights
of both networks must agree.

All runs of a round get the same batches. The tables show medians over rounds of the ratios, so that
other load on the machine slows down all runs. Steps that log (one in fifty) are not measured.
Memory is the peak of the first two steps beyond weights and data. NHWC stands for `channels_last`.
On a GPU, mixed precision is measured too, and a step after the first few that synchronises with the
device is an error.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from published_loops import (
    ADV,
    CLASSES,
    HINGE,
    LENGTH,
    SEMI,
    SEMI_ADV,
    T_SEMI,
    VOID,
    Batch,
    PublishedASM,
    PublishedLoop,
    PublishedSemiAdv,
    adam,
    momentum,
    sgd,
)
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from lightning_seg import ASMLModule, CrossEntropyModule, SemiAdvModule
from lightning_seg.networks import FCN, LRASPP, DeepLabV2, FCDiscriminator, StructureAnalyzer

SIDE, SEED = 321, 0
TOLERANCE = 1e-5
# constructors, and the number of labelled images in a batch on a CPU
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "lraspp": (lambda: LRASPP(CLASSES, "mobilenetv3_large_100"), 4),
    "fcn": (lambda: FCN(CLASSES, "resnet50", aux=False), 2),
    "deeplab": (lambda: DeepLabV2(CLASSES, "resnet101"), 1),
}
ON_GPU = 10
"""Number of labelled images in a batch on a GPU."""


# Measurements of a training


class Watch:
    """The base of all measurements: it seeds the random numbers and measures nothing."""

    def before(self, step: int) -> None:
        if step == 0:
            torch.manual_seed(SEED)

    def after(self, step: int) -> None:
        pass


class Clock(Watch):
    """The mean time of a step in seconds, without the first steps.

    Args:
        device: `cpu` or `cuda`.
        warm: Number of the first step to measure.
        last: Number of the last step to measure.
    """

    def __init__(self, device: str, warm: int, last: int) -> None:
        self.device, self.warm, self.last = device, warm, last
        self.seconds = 0.0

    def before(self, step: int) -> None:
        super().before(step)
        if step == self.warm:
            self.begin = self.now()

    def after(self, step: int) -> None:
        if step == self.last:
            self.seconds = (self.now() - self.begin) / (self.last - self.warm + 1)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class Peak(Watch):
    """The peak memory of the first two steps in MiB, beyond what is held before them.

    The memory of gradients and optimizer states is included, because the networks have not trained
    before.
    """

    def __init__(self, device: str) -> None:
        self.device, self.mib = device, 0.0

    def before(self, step: int) -> None:
        super().before(step)
        if step != 0:
            return
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        else:
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.start()

    def after(self, step: int) -> None:
        if step != 1:
            return
        if self.device == "cuda":
            self.mib = (torch.cuda.max_memory_allocated() - self.held) / 2**20
            return
        self.profile.stop()
        held = most = 0
        for event in self.profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        self.mib = most / 2**20


class NoWaiting(Watch):
    """An error for a step after the first ones that synchronises with the GPU."""

    def __init__(self, warm: int) -> None:
        self.warm = warm

    def before(self, step: int) -> None:
        super().before(step)
        if step >= self.warm:
            torch.cuda.set_sync_debug_mode("error")

    def after(self, step: int) -> None:
        torch.cuda.set_sync_debug_mode("default")


class InTrainer(Callback):
    """A callback that calls a watch before and after each step of a Trainer."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_start(self, *args: Any) -> None:
        self.watch.before(args[-1])

    def on_train_batch_end(self, *args: Any) -> None:
        self.watch.after(args[-1])


# The comparison


def batches(size: int, count: int, device: str) -> list[Batch]:
    """Return two batches in turn: random images, with masks of class blocks and some void."""
    torch.manual_seed(SEED)

    def part() -> Batch:
        blocks = torch.randint(CLASSES + 1, (size, 1, 12, 12)).float()
        mask = F.interpolate(blocks, (SIDE, SIDE))[:, 0].long()
        tensors = {
            "image": torch.randint(256, (size, 3, SIDE, SIDE), dtype=torch.uint8),
            "mask": mask.where(mask < CLASSES, VOID),
            "valid": torch.ones(size, SIDE, SIDE, dtype=torch.bool),
        }
        moved = {name: value.to(device) for name, value in tensors.items()}
        return {**moved, "id": [f"{number}" for number in range(size)]}

    names = ("labeled", "unlabeled", "labeled_real")
    made = [{name: part() for name in names} for _ in range(2)]
    return [made[number % 2] for number in range(count)]


def in_trainer(
    module: L.LightningModule, device: str, precision: str, data: list[Batch], watch: Watch
) -> None:
    """Train a module for as many steps as there are batches."""
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,
        max_steps=len(data),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[InTrainer(watch)],
    )
    trainer.fit(module, DataLoader(data, batch_size=None))


def in_loop(loop: PublishedLoop, data: list[Batch], watch: Watch) -> None:
    """Train a published loop for as many steps as there are batches."""
    for number, batch in enumerate(data):
        watch.before(number)
        loop.iteration = number
        loop.step(batch)
        watch.after(number)


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of any weight or running statistic of two networks."""
    others = other.state_dict()
    return max(
        (value.double().cpu() - others[name].double().cpu()).abs().max().item()
        for name, value in one.state_dict().items()
    )


def weights_moved(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of any weight of two networks."""
    return max(
        (after.detach().cpu() - before.detach().cpu()).abs().max().item()
        for after, before in zip(one.parameters(), other.parameters(), strict=True)
    )


class Comparison:
    """All modules and loops on one network, starting from the same weights.

    Args:
        network: A key of `NETWORKS`.
        device: `cpu` or `cuda`.
        precision: The precision of the Trainer, such as `bf16-mixed`.
    """

    def __init__(self, network: str, device: str, precision: str) -> None:
        build, size = NETWORKS[network]
        self.size = size if device == "cpu" else ON_GPU
        self.device, self.precision = device, precision
        torch.manual_seed(SEED)
        self.net = build()
        self.discriminator, self.analyzer = FCDiscriminator(CLASSES), StructureAnalyzer(CLASSES)

    def semi_adv(self, channels_last: bool = False, **options: Any) -> SemiAdvModule:
        return SemiAdvModule(
            copy.deepcopy(self.net),
            num_classes=CLASSES,
            discriminator=copy.deepcopy(self.discriminator),
            lambda_adv=ADV,
            lambda_semi=SEMI,
            lambda_semi_adv=SEMI_ADV,
            t_semi=T_SEMI,
            semi_start=0,
            reference_padding=True,
            channels_last=channels_last,
            **{"optimizer": sgd, "opponent_optimizer": adam, **options},
        )

    def asm(self, order: str, channels_last: bool = False) -> ASMLModule:
        return ASMLModule(
            copy.deepcopy(self.net),
            num_classes=CLASSES,
            analyzer=copy.deepcopy(self.analyzer),
            lambda_adv=HINGE,
            order=order,
            decay_steps=LENGTH,
            optimizer=momentum,
            opponent_optimizer=momentum,
            channels_last=channels_last,
        )

    def loop(self, kind: type[PublishedLoop], opponent: nn.Module) -> PublishedLoop:
        nets = copy.deepcopy(self.net), copy.deepcopy(opponent)
        return kind(*nets, self.device, self.precision)

    def require_same_weights(self) -> None:
        """Stop unless modules and loops have the same weights after two steps.

        Both use SGD here. The first steps of Adam have full length also where a gradient consists
        of rounding errors.
        """
        both = {"optimizer": momentum, "opponent_optimizer": momentum}
        pairs = [
            (self.semi_adv(**both), PublishedSemiAdv, self.discriminator),
            (self.asm("analyzer_first"), PublishedASM, self.analyzer),
        ]
        for module, kind, opponent in pairs:
            loop = self.loop(kind, opponent)
            if kind is PublishedSemiAdv:
                nets = loop.net, loop.opponent
                loop.optimizers = tuple(momentum(net.parameters()) for net in nets)
            data = batches(self.size, 2, self.device)
            in_trainer(module, self.device, self.precision, data, Watch())
            in_loop(loop, data, Watch())
            differences = [
                largest_difference(loop.net, module.network),
                largest_difference(loop.opponent, module.opponent),
            ]
            moved = [weights_moved(loop.net, self.net), weights_moved(loop.opponent, opponent)]
            print(
                f"{type(module).__name__} and the loop after 2 steps: largest difference of "
                f"the segmenter {differences[0]:.1e} (its weights moved by {moved[0]:.1e}), "
                f"of the opponent {differences[1]:.1e} ({moved[1]:.1e})"
            )
            if max(differences) > TOLERANCE:
                raise SystemExit(f"{type(module).__name__} and the loop differ: {differences}")

    def runs(self) -> dict[str, Callable[[list[Batch], Watch], None]]:
        """Return the runs to compare by name; each takes batches and a watch."""
        run = partial(partial, in_trainer)
        where = self.device, self.precision
        runs = {
            "cross-entropy": run(
                CrossEntropyModule(copy.deepcopy(self.net), num_classes=CLASSES, optimizer=sgd),
                *where,
            ),
            "SemiAdv loop": partial(in_loop, self.loop(PublishedSemiAdv, self.discriminator)),
            "SemiAdv": run(self.semi_adv(), *where),
            "SemiAdv, NHWC": run(self.semi_adv(channels_last=True), *where),
            "ASM loop": partial(in_loop, self.loop(PublishedASM, self.analyzer)),
        }
        for order in ("analyzer_first", "simultaneous"):
            runs[f"ASM {order}"] = run(self.asm(order), *where)
            runs[f"ASM {order}, NHWC"] = run(self.asm(order, True), *where)
        return runs

    def table(self, title: str, rounds: int) -> Table:
        """Measure all runs, alternating in every round, and return a table.

        Args:
            title: Title of the table.
            rounds: Number of rounds.
        """
        runs = self.runs()
        warm, last = (1, 2) if self.device == "cpu" else (5, 24)
        data = batches(self.size, last + 1, self.device)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                clock = Clock(self.device, warm, last)
                run(data, clock)
                times[name].append(clock.seconds)
        peaks = {}
        for name, run in self.runs().items():
            peak = Peak(self.device)
            run(data[:2], peak)
            peaks[name] = peak.mib
            if self.device == "cuda" and "loop" not in name:
                run(data, NoWaiting(warm))
        table = Table(title=title)
        for name in ("step", "ms", "x CE", "x loop", "peak MiB", "x loop"):
            table.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
        for name, taken in times.items():
            loop = f"{name.split()[0].rstrip(',')} loop"
            loop = loop if loop in times else name
            table.add_row(
                name,
                f"{1000 * statistics.median(taken):.0f}",
                ratio(taken, times["cross-entropy"]),
                ratio(taken, times[loop]),
                f"{peaks[name]:.0f}",
                f"{peaks[name] / peaks[loop]:.2f}",
            )
        return table


def ratio(times: list[float], others: list[float]) -> str:
    """Return the median over rounds of the ratio of two times, with two decimals."""
    return f"{statistics.median(a / b for a, b in zip(times, others, strict=True)):.2f}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the messages and warnings of Lightning at the start of a training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Compare weights, then print a table per network and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", nargs="+", choices=NETWORKS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    precisions = ("32-true", "bf16-mixed") if on_gpu else ("32-true",)
    for network in options.network or (["deeplab"] if on_gpu else ["lraspp", "fcn"]):
        with quiet():
            Comparison(network, options.device, "32-true").require_same_weights()
            for precision in precisions:
                compared = Comparison(network, options.device, precision)
                title = f"{network}, {compared.size} + {compared.size} images of {SIDE}x{SIDE}"
                table = compared.table(f"{title}, {options.device}, {precision}", options.rounds)
                Console().print(table)
    if on_gpu:
        print("no step of the modules synchronised with the GPU")


if __name__ == "__main__":
    main()
