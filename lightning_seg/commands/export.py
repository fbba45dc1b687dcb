"""The verb `export`: a file of a trained network for other programs.

    lightning-seg export --ckpt_path runs/checkpoints/best.ckpt --output model.onnx

`docs/export.md` shows how the files are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import PositiveInt

from lightning_seg.commands.checkpoint_path import checkpoint_of
from lightning_seg.commands.parser import VERBS, ReadableParser
from lightning_seg.deployment.exporting import (
    KINDS,
    TOLERANCE,
    Exported,
    Precision,
    export_network,
    facts_of,
)
from lightning_seg.deployment.segmenter import (
    WHAT,
    Output,
    Segmenter,
    load,
    load_module,
    write_safetensors,
)
from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole
from lightning_seg.tensor_files import read_torch_file


def export(words: Sequence[str]) -> int:
    """Write a trained network to a file, and print what it takes and returns.

    Args:
        words: The command line after `export`.

    Returns:
        The exit code, 0.

    Raises:
        SystemExit: With 2, an option is wrong.
        SetupError: The checkpoint cannot be read, or the network not be written in this form.
    """
    given = export_parser().parse_args(words)
    path = Path(given.output).expanduser()
    if path.suffix not in KINDS:
        raise SetupError(
            f"{path.name} has no known form: its name must end in {', '.join(KINDS)}",
            option="output model.onnx",
        )
    checkpoint = checkpoint_of(Path(given.ckpt_path).expanduser())
    path.parent.mkdir(parents=True, exist_ok=True)
    network = Segmenter(load_module(checkpoint), given.returns)
    if path.suffix == ".safetensors":
        found = _weights(checkpoint, network, path, given.returns, given.precision)
    else:
        found = export_network(network, path, (given.size[0], given.size[1]), given.precision)
    print(_line(found, network, given.size))
    return 0


def export_parser() -> ReadableParser:
    """Return the parser of `export`'s options."""
    parser = ReadableParser(prog="export", description=VERBS["export"])
    parser.add_argument(
        "--ckpt_path",
        type=str,
        required=True,
        help="A checkpoint, or the folder of a run, of which the best checkpoint is taken.",
    )
    parser.add_argument(
        "--output",
        type=str,
        default="model.onnx",
        help="The file: .onnx for onnxruntime and others, .pt2 for torch.export.load, or "
        ".safetensors for lightning_seg.load.",
    )
    parser.add_argument(
        "--returns",
        type=Literal["logits", "probabilities", "labels"],
        default="labels",
        help="What the network returns: class ids (B, H, W) as uint8, or (B, C, H, W).",
    )
    parser.add_argument(
        "--size",
        type=tuple[PositiveInt, PositiveInt],
        default=(512, 512),
        help="Height and width of an image for the trial, and for networks of a fixed size.",
    )
    parser.add_argument(
        "--precision",
        type=Precision,
        default="float32",
        help="float16 or int8 make an ONNX file smaller; its results then differ.",
    )
    return parser


def _weights(
    checkpoint: Path, network: Segmenter, path: Path, returns: Output, precision: Precision
) -> Exported:
    """Write weights and what rebuilds their network, and read them back."""
    if precision != "float32":
        raise SetupError(f"{path.name} keeps float32 weights", option="precision float32")
    with write_whole(path) as part:
        named = part.with_name(f"{part.name}.safetensors")  # the suffix says how it is read
        content = read_torch_file(checkpoint, WHAT, "ckpt_path")
        write_safetensors(named, content, facts_of(network))
        image = torch.randint(256, (1, network.channels, 64, 96), dtype=torch.uint8)
        again = load(named, returns)
        with torch.inference_mode():
            difference = float((again.logits(image) - network.logits(image)).abs().max())
        if difference > TOLERANCE:
            raise SetupError(f"{path} gives other logits, by {difference:.2g}")
        named.replace(part)
    return Exported(path, True, difference)


def _line(found: Exported, network: Segmenter, size: tuple[int, int]) -> str:
    """Return what was written, in one sentence each."""
    taken = "of any size" if found.any_size else f"of {size[0]}x{size[1]} pixels (height x width)"
    shown = f"the largest difference is {found.difference:.1e}"
    if network.output == "labels":
        shown = f"{found.difference:.2%} of the pixels differ"
    return (
        f"written: {found.path}, which takes uint8 images (B, {network.channels}, H, W) {taken} "
        f"and returns {network.output} of {len(network.class_names)} classes; compared with the "
        f"checkpoint, {shown}"
    )
