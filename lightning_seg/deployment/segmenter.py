"""A trained network with everything between an image and its classes, as a plain module."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from lightning.pytorch.cli import instantiate_module
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_seg.errors import SetupError, require_one_of
from lightning_seg.files import write_whole
from lightning_seg.losses.upsampled_labels import most_probable
from lightning_seg.networks.outputs import read_outputs, require_logits
from lightning_seg.tensor_files import read_torch_file
from lightning_seg.training.image_input import normalized
from lightning_seg.training.segmentation import SegmentationModule
from lightning_seg.version import __version__

Output = Literal["logits", "probabilities", "labels"]
WHAT = "the trained network"
WEIGHTS = "model.safetensors"
"""The file of weights in a folder of `save_pretrained`."""


class Segmenter(nn.Module, ModelHubMixin):
    """Segments images: normalisation, network, and classes in the order of their names.

    `save_pretrained` writes it to a folder, `push_to_hub` to the HuggingFace Hub, and
    `from_pretrained` reads it from either.

    Args:
        module: A trained method; its network is shared, and the module is put into evaluation mode.
        output: What `forward` returns: `logits`, `probabilities`, or `labels`, class ids.

    Attributes:
        class_names: One name per class.
        palette: One RGB colour in 0..255 per class; None leaves the colours to pictures.
        channels: Number of channels of an image.
        multiple: Height and width in pixels to whose multiples the network fills images up.
        kept: What rebuilds the network besides its weights; empty for a module built in Python.
        history: What is known of its training and scores; see `model_card.history_of`.

    Shape:
        (B, channels, H, W), uint8 in 0..255 or floating point in [0, 1] -> (B, C, H, W) logits or
        probabilities, or (B, H, W) uint8 class ids.

    Raises:
        SetupError: `output` is none of the choices.
    """

    def __init__(self, module: SegmentationModule, output: Output = "labels") -> None:
        super().__init__()
        require_one_of("logits", "probabilities", "labels", output=output)
        self.output = output
        self.network = module.eval().network
        self.register_buffer("mean", module.image_mean.clone())
        self.register_buffer("std", module.image_std.clone())
        self.gray = module.input_mode == "gray"
        self.order = module._channels
        self.channels = module.channels
        self.class_names = list(module.class_names)
        self.palette = module.palette
        encoder = getattr(self.network, "encoder", None)
        tall, wide = getattr(encoder, "multiple", getattr(self.network, "multiple", (1, 1)))
        self.multiple: tuple[int, int] = (int(tall), int(wide))
        self.kept: dict[str, Any] = {}
        self.history: dict[str, Any] = {}
        # in a tuple, so that the opponent and other parts of the method are none of this module's
        self._method = (module,)
        self._hub_mixin_config = self.facts()
        self._saved_as = ""
        self.eval()

    mean: Tensor
    std: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """Return logits, probabilities or class ids of images.

        Args:
            image: (B, channels, H, W), uint8 in 0..255 or floating point in [0, 1].
        """
        logits = self.logits(image)
        if self.output == "logits":
            return logits
        if self.output == "probabilities":
            return logits.softmax(1)
        return logits.argmax(1).to(torch.uint8)

    def logits(self, image: Tensor) -> Tensor:
        """Return the (B, C, H, W) logits of images.

        Args:
            image: (B, channels, H, W), uint8 in 0..255 or floating point in [0, 1].
        """
        image = normalized(image, self.mean, self.std, self.gray)
        height, width = image.shape[-2], image.shape[-1]
        tall, wide = self.multiple
        if torch.compiler.is_exporting() and (tall, wide) != (1, 1):
            # in terms of the size, so that the exported network takes other sizes too
            rows = torch.arange(height + -height % tall, device=image.device)
            columns = torch.arange(width + -width % wide, device=image.device)
            image = image.index_select(2, rows.clamp(max=height - 1))
            image = image.index_select(3, columns.clamp(max=width - 1))
        found = self.network(image)
        name, size = type(self.network).__name__, image.shape[-2:]
        outputs = read_outputs(found, name, size)
        if not torch.compiler.is_exporting():
            require_logits(outputs, name, len(self.class_names), size)
        logits = outputs["out"][0][..., :height, :width]
        return logits if self.order is None else logits[:, self.order]

    @torch.inference_mode()
    def predict(self, image: Any) -> NDArray[np.uint8]:
        """Return the class id of every pixel of one image, (H, W) uint8.

        Args:
            image: An array (H, W), (H, W, channels) or a picture of Pillow, uint8 in 0..255 or
                floating point in [0, 1]; or the path of a file that Pillow reads as RGB.

        Raises:
            SetupError: The image has another number of channels.
        """
        array = self._array(image)
        batch = torch.from_numpy(array).permute(2, 0, 1)[None].to(self.mean.device)
        if array.dtype != np.uint8:
            batch = batch.float()
        logits = self.logits(batch)
        labels = most_probable(logits, (array.shape[0], array.shape[1])).labels[0]
        found: NDArray[np.uint8] = labels.to(torch.uint8).cpu().numpy()
        return found

    def facts(self) -> dict[str, Any]:
        """Return what a program needs besides the network: classes, colours, output, version."""
        return {
            "class_names": self.class_names,
            "palette": colors_of(self.class_names, self.palette),
            "output": self.output,
            "channels": self.channels,
            "version": __version__,
        }

    def write(self, path: Path) -> None:
        """Write the weights as `.safetensors`, and as metadata what rebuilds the network.

        Raises:
            SetupError: It is not known how to rebuild the network.
        """
        from safetensors.torch import save_file

        if not self.kept:
            raise SetupError(
                "a network that was built in Python does not say how to build it again: "
                "`lightning_seg.load` of a checkpoint that the command wrote returns one that does"
            )
        (module,) = self._method
        tensors = {name: each.contiguous() for name, each in module.state_dict().items()}
        entries = {**self.kept, "facts": self.facts(), "history": self.history}
        save_file(tensors, path, {"lightning_seg": json.dumps(entries)})

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights to the folder that `save_pretrained` names."""
        with write_whole(save_directory / WEIGHTS) as part:
            self.write(part)
        self._hub_mixin_config = self.facts()
        self._saved_as = save_directory.name

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write the network to a repository of the HuggingFace Hub, and return its address.

        Args:
            repo_id: `user/name`.
            options: Arguments of `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private`.
        """
        card = {"name": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        address: str = super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        return address

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        output: Output = "labels",
        **others: Any,
    ) -> Segmenter:
        """Read the weights that `from_pretrained` names, from a folder or from the Hub."""
        if Path(model_id).is_dir():
            return load(Path(model_id), output)
        path = hf_hub_download(
            model_id,
            WEIGHTS,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return load(path, output)

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """Return the card: use, scores and configuration, as far as they are known.

        Args:
            args: None are used.
            options: `name` under which `from_pretrained` finds the network; others are not used.
        """
        from lightning_seg.deployment.model_card import card_of

        (module,) = self._method
        kinds = type(module).__name__, type(self.network).__name__
        return card_of(options.get("name", self._saved_as), *kinds, self.class_names, self.history)

    def _array(self, image: Any) -> NDArray[Any]:
        """Return an image as an array (H, W, channels)."""
        from PIL import Image, ImageOps

        if isinstance(image, str | Path):
            with Image.open(image) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        array = np.array(image)
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim == 3 and array.shape[2] == 1 and self.channels == 3:
            array = array.repeat(3, axis=2)
        if array.ndim != 3 or array.shape[2] != self.channels:
            raise SetupError(
                f"the network takes images of {self.channels} channels, not of shape {array.shape}"
            )
        return np.ascontiguousarray(array)


def load(path: str | Path, output: Output = "labels") -> Segmenter:
    """Return a trained network that was written by `fit` or by `export`.

    Args:
        path: A checkpoint `.ckpt` that the command wrote, an exported `.safetensors` file, or a
            folder that `save_pretrained` wrote.
        output: What the network returns for a batch: `logits`, `probabilities` or `labels`.

    Returns:
        A module in evaluation mode, on the CPU; `predict` takes one image.

    Raises:
        SetupError: The file does not exist, is damaged, or does not say which network it is of.
    """
    checkpoint = _content(Path(path))
    network = Segmenter(_module_of(checkpoint, Path(path)), output)
    network.kept = {name: checkpoint[name] for name in KEPT if name in checkpoint}
    if "history" not in checkpoint:
        from lightning_seg.deployment.model_card import history_of

        checkpoint["history"] = history_of(Path(path))
    network.history = checkpoint["history"]
    return network


def load_module(path: str | Path) -> SegmentationModule:
    """Return the method of a checkpoint or of an exported `.safetensors` file, on the CPU.

    Raises:
        SetupError: The file does not exist, is damaged, is of a method that predicts no classes, or
            does not say which network it is of.
    """
    return _module_of(_content(Path(path)), Path(path))


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a file in the form of a checkpoint."""
    if (path / WEIGHTS).is_file():
        path = path / WEIGHTS
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return dict(read_torch_file(path, WHAT, "ckpt_path"))


def _module_of(checkpoint: dict[str, Any], path: Path) -> SegmentationModule:
    """Return the method of a checkpoint; `path` is its file, for messages."""
    arguments = dict(checkpoint.get("hyper_parameters", {}))
    kind, network = arguments.get("_class_path"), arguments.get("network")
    if kind is None:
        raise SetupError(
            f"{path} does not say which network it is of: it was trained in Python, and its "
            "weights are loaded with load_from_checkpoint(path, network=...)",
            option="ckpt_path",
        )
    method = _class_of(str(kind))
    if not issubclass(method, SegmentationModule):
        raise SetupError(
            f"{path} is of {method.__name__}, which trains an encoder and predicts no classes",
            option="ckpt_path",
        )
    arguments.pop("_instantiator", None)
    if network is None:
        arguments.pop("network", None)
    module: SegmentationModule = instantiate_module(method, arguments)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def _class_of(path: str) -> type[Any]:
    module, _, name = path.rpartition(".")
    try:
        found: type[Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SetupError(
            f"the class {path} of the checkpoint cannot be imported: {error}"
        ) from error
    return found


KEPT = (
    "hyper_parameters",
    "class_names",
    "class_channels",
    "input_mode",
    "image_mean",
    "image_std",
)
"""What an exported file keeps of a checkpoint besides the weights."""


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return what `Segmenter.write` wrote, in the form of a checkpoint.

    Raises:
        SetupError: The file does not exist, is damaged, or is of another program.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise SetupError(f"{WHAT} {path} does not exist", option="ckpt_path")
    try:
        with safe_open(path, framework="pt") as file:
            kept = json.loads((file.metadata() or {})["lightning_seg"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        reason = "it is of another program" if isinstance(error, KeyError) else error
        raise SetupError(f"{WHAT} {path} cannot be read: {reason}", option="ckpt_path") from error
    return {**kept, "state_dict": tensors}


def colors_of(names: Sequence[str], palette: Sequence[Sequence[int]] | None) -> list[list[int]]:
    """Return one RGB colour per class, those of Pascal VOC without a palette."""
    from lightning_seg.pictures import color_table

    colors: list[list[int]] = color_table(len(names), palette)[: len(names)].tolist()
    return colors
