"""The verb `export`: a file of a trained network for other programs.

    lightning-seg export --ckpt_path runs/checkpoints/best.ckpt --output model.onnx

`docs/export.md` shows how the files are used.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import Namespace

from lightning_seg.commands.checkpoint_path import checkpoint_of
from lightning_seg.deployment.exporting import (
    KINDS,
    TOLERANCE,
    Exported,
    Precision,
    export_network,
)
from lightning_seg.deployment.segmenter import Segmenter, load
from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole


def export(options: Namespace) -> int:
    """Write a trained network to a file, and print what it takes and returns.

    Args:
        options: The options of the verb, parsed.

    Returns:
        The exit code, 0.

    Raises:
        SetupError: The checkpoint cannot be read, or the network not be written in this form.
    """
    path = Path(options.output).expanduser()
    if path.suffix and path.suffix not in KINDS:
        raise SetupError(
            f"{path.name} has no known form: its name must end in {', '.join(KINDS)}, or have no "
            "suffix for a folder",
            option="output model.onnx",
        )
    checkpoint = checkpoint_of(Path(options.ckpt_path).expanduser())
    path.parent.mkdir(parents=True, exist_ok=True)
    network = load(checkpoint, options.returns)
    if not path.suffix:
        return _folder(network, path, options.precision)
    if path.suffix == ".safetensors":
        found = _weights(network, path, options.precision)
    else:
        found = export_network(network, path, (options.size[0], options.size[1]), options.precision)
    print(_line(found, network, options.size))
    return 0


def _weights(network: Segmenter, path: Path, precision: Precision) -> Exported:
    """Write weights and what rebuilds their network, and read them back."""
    if precision != "float32":
        raise SetupError(f"{path.name} keeps float32 weights", option="precision float32")
    with write_whole(path) as part:
        network.write(part)
        image = torch.randint(256, (1, network.channels, 64, 96), dtype=torch.uint8)
        again = load(part)
        with torch.inference_mode():
            difference = float((again.logits(image) - network.logits(image)).abs().max())
        if difference > TOLERANCE:
            raise SetupError(f"{path} gives other logits, by {difference:.2g}")
    return Exported(path, True, difference)


def _folder(network: Segmenter, path: Path, precision: Precision) -> int:
    """Write a folder for the HuggingFace Hub."""
    if precision != "float32":
        raise SetupError(f"the folder {path} keeps float32 weights", option="precision float32")
    try:
        network.save_pretrained(path)
    except OSError as error:
        raise SetupError(f"{path} cannot be written to: {error}", option="output") from error
    print(
        f"written: {path}, which lightning_seg.load and Segmenter.from_pretrained read; its "
        "README.md is the model card"
    )
    return 0


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
