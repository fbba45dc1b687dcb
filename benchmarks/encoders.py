"""Which encoders of timm train with which heads: one step for every pair, at two sizes.

    python benchmarks/encoders.py [NAME ...]

Without names it takes the encoders of the table in docs/networks.md, and writes that table. Every
pair trains one step on two images of 128x128 and of 100x133 pixels: a loss, a gradient for every
weight that is used, and logits at the size of the images. A cell is `yes`, or the sentence of the
error.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F

from lightning_seg import SetupError, networks

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
BEGIN, END = "<!-- made by benchmarks/encoders.py -->\n", "<!-- end -->\n"
HEADS = ("DPT", "UNet", "FCN", "PSPNet", "DeepLabV2", "DeepLabV3", "LRASPP", "HRNetOCR", "FCN8s")
SIZES = ((128, 128), (100, 133))
ENCODERS = {
    "plain vision transformers": [
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
        "deit_tiny_patch16_224",
        "samvit_base_patch16",
    ],
    "transformers with stages": [
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "maxvit_nano_rw_256",
        "hiera_tiny_224",
        "pvt_v2_b0",
        "davit_tiny",
        "efficientvit_b0",
        "fastvit_t8",
    ],
    "state spaces and others": ["mambaout_femto", "focalnet_tiny_srf", "poolformer_s12"],
    "convolutional": [
        "resnet18",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_035",
        "tf_efficientnet_lite0",
        "convnext_atto",
        "convnextv2_atto",
        "regnety_002",
        "vgg11",
        "densenet121",
        "hrnet_w18_small",
    ],
}


def step(head: str, encoder: str) -> str:
    """Train one step at both sizes; return `yes`, or the sentence of the error."""
    torch.manual_seed(0)
    options = {"hidden": 64} if head == "FCN8s" else {}
    try:
        network = getattr(networks, head)(3, encoder, **options).train()
        for height, width in SIZES:
            target = torch.randint(3, (2, height, width))
            outputs = network(torch.randn(2, 3, height, width))
            assert outputs["out"].shape == (2, 3, height, width)
            network.zero_grad()
            sum(F.cross_entropy(logits, target) for logits in outputs.values()).backward()
            gradients = [each.grad for each in network.parameters() if each.grad is not None]
            assert gradients
            assert all(each.isfinite().all() for each in gradients)
    except SetupError as error:
        return str(error)
    return "yes"


def main() -> None:
    """Try every pair; write the table where no names are given."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    kinds = {"given": sys.argv[1:]} if sys.argv[1:] else ENCODERS
    lines, notes = (
        [f"| encoder | {' | '.join(HEADS)} |", f"|---|{'---|' * len(HEADS)}"],
        list[str](),
    )
    for kind, names in kinds.items():
        lines.append(f"| **{kind}** |{' |' * len(HEADS)}")
        for name in names:
            cells = []
            for head in HEADS:
                found = step(head, name)
                if found != "yes":
                    notes += [found] * (found not in notes)
                    found = f"({notes.index(found) + 1})"
                cells.append(found)
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    lines += ["", *(f"({place}) {note}  " for place, note in enumerate(notes, start=1))]
    print("\n".join(lines[-len(notes) :]))
    if not sys.argv[1:]:
        page = PAGE.read_text(encoding="utf-8")
        head, _, rest = page.partition(BEGIN)
        table = "\n".join(lines)
        PAGE.write_text(f"{head}{BEGIN}\n{table}\n\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
