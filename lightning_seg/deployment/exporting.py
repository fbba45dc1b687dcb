"""Files of a trained network for other programs: ONNX, torch.export and safetensors."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_seg.deployment.segmenter import Segmenter
from lightning_seg.errors import SetupError, require_packages
from lightning_seg.files import write_whole
from lightning_seg.networks.image_sizes import short_formulas

Precision = Literal["float32", "float16", "int8"]
KINDS = (".onnx", ".pt2", ".safetensors")
TOLERANCE = 1e-4
"""Largest difference of an exported network's logits or probabilities from the original ones."""
TIES = 1e-3
"""Largest share of pixels that may get another class, because two classes are almost equal."""


class Exported(NamedTuple):
    """What was written, and how it compares to the network."""

    path: Path
    """The file."""
    any_size: bool
    """Whether the file takes batches and images of any size."""
    difference: float
    """Largest difference of logits or probabilities, or share of pixels with another class."""


def export_network(
    network: Segmenter, path: Path, size: tuple[int, int], precision: Precision = "float32"
) -> Exported:
    """Write a network as ONNX or as a program of torch.export, after a comparison with it.

    The file takes uint8 images (B, channels, H, W), normalises them itself, and returns what
    `network.output` says. Batches and images have any size where the network allows that, and the
    size that was asked for elsewhere.

    Args:
        network: The network.
        path: The file, `.onnx` or `.pt2`.
        size: Height and width of an image, which is the size where any size is not possible.
        precision: `float32`; for ONNX also `float16` weights, or `int8` weights of the layers that
            onnxruntime quantises.

    Raises:
        SetupError: A package is missing, the network has an operation that the format lacks, or
            results differ by more than 1e-4.
    """
    network = network.eval()
    if path.suffix == ".pt2" and precision != "float32":
        raise SetupError(f"{path.name} keeps float32 weights", option="precision float32")
    make, run = (_onnx, _run_onnx) if path.suffix == ".onnx" else (_program, _run_program)
    height, width = size
    sizes = [size, (height + 13, max(2, width - 7)), (max(2, height // 2 + 1), width + 30)]
    refused: Exception | None = None
    for any_size in (True, False):
        try:
            with _quiet(), short_formulas():
                content = make(network, size, any_size)
                tried = sizes if any_size else [size]
                difference = _difference(network, partial(run, content), tried, any_size)
        except Exception as error:  # of the exporter, which raises almost any kind
            refused = error
            continue
        if difference > (TIES if network.output == "labels" else TOLERANCE):
            refused = SetupError(f"its results differ by {difference:.2g}")
            continue
        if precision != "float32":
            content = _reduced(content, precision)
            difference = _difference(network, partial(run, content), tried, any_size)
        content = (
            _described(content, network, size, any_size) if path.suffix == ".onnx" else content
        )
        with write_whole(path) as part:
            part.write_bytes(content)
        return Exported(path, any_size, difference)
    reason = str(refused).strip().partition("\n")[0] or type(refused).__name__
    raise SetupError(
        f"{type(network.network).__name__} cannot be written as {path.suffix}: {reason}",
        option="output model.safetensors",
    ) from refused


def _difference(
    network: Segmenter,
    run: Callable[[Tensor], NDArray[Any]],
    sizes: list[tuple[int, int]],
    any_size: bool,
) -> float:
    """Return the largest difference between an exported network and the original."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for number, (height, width) in enumerate(sizes):
        shape = (1 + number * any_size, network.channels, height, width)
        image = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
        with torch.inference_mode():
            expected = network(image).numpy()
        result = run(image)
        if result.shape != expected.shape:
            raise SetupError(f"it returns {result.shape} for {expected.shape}")
        if network.output == "labels":
            found.append(float((result != expected).mean()))
        else:
            found.append(float(np.abs(result - expected).max()))
    return max(found)


def _onnx(network: Segmenter, size: tuple[int, int], any_size: bool) -> bytes:
    require_packages("ONNX files need", "onnx", "onnxscript", "onnxruntime")
    image = _traced(network, size, any_size)
    auto = torch.export.Dim.AUTO
    program = torch.onnx.export(
        network,
        (image,),
        dynamo=True,
        input_names=["image"],
        output_names=[network.output],
        dynamic_shapes={"image": {0: auto, 2: auto, 3: auto}} if any_size else None,
        verbose=False,
    )
    assert program is not None
    buffer = io.BytesIO()
    import onnx

    onnx.save_model(program.model_proto, buffer)
    return buffer.getvalue()


def _traced(network: Segmenter, size: tuple[int, int], any_size: bool) -> Tensor:
    """Return the batch that an exporter follows through the network."""
    if not any_size:
        return torch.zeros(1, network.channels, *size, dtype=torch.uint8)
    return torch.zeros(2, network.channels, *size, dtype=torch.uint8)


def _run_onnx(content: bytes, image: Tensor) -> NDArray[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its own errors are raised, too
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": image.numpy()})
    found: NDArray[Any] = result
    return found


def _reduced(content: bytes, precision: Precision) -> bytes:
    """Return an ONNX file with smaller weights, made by the tools of onnxruntime."""
    import tempfile

    import onnx

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        source.write_bytes(content)
        if precision == "int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
            return target.read_bytes()
        from onnxruntime.transformers.float16 import convert_float_to_float16

        smaller = convert_float_to_float16(onnx.load(source), keep_io_types=True)
        onnx.save_model(smaller, target)
        return target.read_bytes()


def _described(content: bytes, network: Segmenter, size: tuple[int, int], any_size: bool) -> bytes:
    """Return an ONNX file with facts as its metadata, each as JSON."""
    import onnx

    model = onnx.load_model_from_string(content)
    facts = {**network.facts(), "size": None if any_size else list(size)}
    onnx.helper.set_model_props(model, {name: json.dumps(each) for name, each in facts.items()})
    return bytes(model.SerializeToString())


def _program(network: Segmenter, size: tuple[int, int], any_size: bool) -> bytes:
    image = _traced(network, size, any_size)
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},) if any_size else None
    program = torch.export.export(network, (image,), dynamic_shapes=shapes)
    buffer = io.BytesIO()
    facts = {**network.facts(), "size": None if any_size else list(size)}
    torch.export.save(program, buffer, extra_files={"facts.json": json.dumps(facts)})
    return buffer.getvalue()


def _run_program(content: bytes, image: Tensor) -> NDArray[Any]:
    module = torch.export.load(io.BytesIO(content)).module()
    with torch.inference_mode():
        found: NDArray[Any] = module(image).numpy()
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and warnings, which are of their own code, from the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
