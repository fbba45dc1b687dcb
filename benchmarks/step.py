"""Compare a training step of this project with the loops that a user would write.

    python benchmarks/step.py [--rounds 7] [--threads 1] [--network lraspp deeplab] [--keep]

All runs train the same network on the same batch by cross-entropy and SGD with momentum:

- the obvious loop in plain PyTorch: `F.cross_entropy` on full-size logits, contiguous memory;
- the same loop with channels-last memory and the fused optimizer;
- a plain LightningModule with the step of the obvious loop;
- `CrossEntropyModule`, as it comes, with `channels_last: false`, in bfloat16 mixed precision, and
  with `torch.compile` (`--compile`).

The times are the processor's time per step, without the first steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import in_turn
import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from two_players import Watch, batches, in_trainer, quiet

from lightning_seg import CrossEntropyModule
from lightning_seg.networks import LRASPP, DeepLabV3

CLASSES, WARM, STEPS = 21, 1, 3
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "lraspp": (lambda: LRASPP(CLASSES, "mobilenetv3_large_100"), 4),
    "deeplab": (lambda: DeepLabV3(CLASSES, "resnet18", output_stride=16, aux=False), 2),
}
SGD: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9}


class CPUClock(Watch):
    """The mean processor time of a step, without the first ones."""

    def before(self, step: int) -> None:
        super().before(step)
        if step == WARM:
            self.begin = time.process_time()

    def after(self, step: int) -> None:
        if step == WARM + STEPS - 1:
            self.seconds = (time.process_time() - self.begin) / STEPS


class PlainModule(L.LightningModule):
    """The obvious step, in Lightning."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = obvious_loss(self.net, batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), **SGD)


def obvious_loss(net: nn.Module, batch: dict[str, Any], channels_last: bool = False) -> Tensor:
    image = batch["image"].float() / 255
    image = (image - image.new_tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)) / image.new_tensor(
        (0.229, 0.224, 0.225)
    ).view(1, 3, 1, 1)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    return F.cross_entropy(net(image)["out"], batch["mask"], ignore_index=255)


def loop(net: nn.Module, data: list[dict[str, Any]], quick: bool, clock: Watch) -> None:
    """Train in a plain loop."""
    if quick:
        net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), fused=quick, **SGD)
    for number, batch in enumerate(data):
        clock.before(number)
        loss = obvious_loss(net, batch, quick)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # the progress bar shows it
        clock.after(number)


def in_clock(net: nn.Module, data: list[dict[str, Any]], quick: bool) -> float:
    """Train in a plain loop; return the seconds of a step."""
    clock = CPUClock()
    loop(net, data, quick, clock)
    return clock.seconds


def trained(
    module: L.LightningModule, data: list[dict[str, Any]], precision: Any = "32-true"
) -> float:
    """Train in a Trainer; return the seconds of a step."""
    clock = CPUClock()
    in_trainer(module, "cpu", precision, data, clock)
    return clock.seconds


def ours(build: Callable[[], nn.Module], **options: Any) -> CrossEntropyModule:
    return CrossEntropyModule(
        build(),
        num_classes=CLASSES,
        optimizer=lambda groups: torch.optim.SGD(groups, **SGD),
        **options,
    )


def main() -> None:
    parser = in_turn.parser(__doc__, rounds=7)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for name in options.network:
        build, size = NETWORKS[name]
        data = [each["labeled"] for each in batches(size, WARM + STEPS, "cpu")]
        nets = [build() for _ in range(3)]
        modules: dict[str, L.LightningModule] = {
            "plain LightningModule": PlainModule(nets[2]),
            "CrossEntropyModule": ours(build),
            "CrossEntropyModule, channels_last false": ours(build, channels_last=False),
        }
        if options.compile:
            modules["CrossEntropyModule, compiled"] = ours(build, compile_network=True)
        half = ours(build)
        runs = {
            "obvious loop": lambda nets=nets, data=data: in_clock(nets[0], data, False),
            "loop, channels-last and fused": lambda nets=nets, data=data: in_clock(
                nets[1], data, True
            ),
            **{each: lambda m=m, data=data: trained(m, data) for each, m in modules.items()},
            "CrossEntropyModule, bf16-mixed": lambda m=half, data=data: trained(
                m, data, "bf16-mixed"
            ),
        }
        with quiet():
            times = in_turn.in_turn(runs, options.rounds)
        title = f"A step of {name}, {size} images of 321x321, {CLASSES} classes"
        found += in_turn.rows(title, times, "obvious loop", options.threads)
    in_turn.finish("step", found, options.keep)


if __name__ == "__main__":
    main()
