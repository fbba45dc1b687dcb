"""The model card of a trained network: what it predicts, how well, and how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lightning_seg.errors import SetupError
from lightning_seg.run_folder import CONFIG, folder_of_checkpoint
from lightning_seg.scores import mean_of_present, read_scores
from lightning_seg.version import __version__

SCORED_BY = ("test", "validate")
"""The verbs that leave scores in the folder of a run; the first one found is shown."""

_SECTIONS = ("model", "data", "trainer", "seed_everything")
_HIDDEN = "(a path)"
_USAGE = """```python
import lightning_seg

network = lightning_seg.Segmenter.from_pretrained("{name}")
mask = network.predict("photo.jpg")  # (H, W) uint8 class ids, of network.class_names
```"""


def history_of(checkpoint: Path) -> dict[str, Any]:
    """Return what the folder of a run says of the network in one of its checkpoints.

    Args:
        checkpoint: A checkpoint in the folder of a run, or in a folder below it.

    Returns:
        Plain values that JSON can hold, as far as they are known: `configuration` without the paths
        of files, and of the scores `verb`, `data`, `images`, `miou` and `iou`, a list with None for
        classes that no image has. Scores of another checkpoint of the run are left out.
    """
    folder = folder_of_checkpoint(checkpoint)
    if folder is None:
        return {}
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "configuration": {
            name: _without_paths(config[name]) for name in _SECTIONS if name in config
        }
    }
    for verb in SCORED_BY:
        try:
            scores = read_scores(folder / verb)
        except SetupError:
            continue
        of = scores.summary.get("checkpoint")
        if of is None or Path(of).name != checkpoint.name:
            continue
        iou = scores.iou()
        found |= {
            "verb": verb,
            "data": str(scores.summary.get("data")).removesuffix("DataModule"),
            "images": len(scores.ids),
            "miou": mean_of_present(iou),
            "iou": [None if value != value else float(value) for value in iou],
        }
        break
    return found


def _without_paths(value: Any) -> Any:
    """Return a configuration in which no value is an absolute path."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return _HIDDEN if isinstance(value, str) and value.startswith(("/", "~", "\\")) else value


def card_of(
    name: str, method: str, network: str, classes: Sequence[str], history: dict[str, Any]
) -> ModelCard:
    """Return the card of a network, with metadata that the HuggingFace Hub reads.

    Args:
        name: The name under which `from_pretrained` finds the network.
        method: The class of the training method.
        network: The class of the network.
        classes: One name per class.
        history: Result of `history_of`.
    """
    results = None
    if "miou" in history:
        data = history["data"]
        results = [
            EvalResult(
                "image-segmentation", data, data, "mean_iou", history["miou"], metric_name="mIoU"
            )
        ]
    metadata = ModelCardData(
        library_name="lightning-seg",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "pytorch", method],
        model_name=Path(name).name,
        eval_results=results,
    )
    parts = [
        f"# {Path(name).name}",
        f"A {network} for semantic segmentation of {len(classes)} classes, trained with "
        f"`{method}` of lightning-seg {__version__}.",
        "## Use",
        _USAGE.format(name=name),
        "## Scores",
        *_scores(classes, history),
        "## Training",
        *_training(history),
    ]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _scores(classes: Sequence[str], history: dict[str, Any]) -> list[str]:
    """Return the table of scores; one sentence where there are none."""
    if "miou" not in history:
        listed = "\n".join(f"- {each}" for each in classes)
        return ["No scores of this checkpoint are known.", f"The classes are:\n\n{listed}"]
    lines = ["| class | IoU |", "|---|---:|"]
    for name, value in zip(classes, history["iou"], strict=True):
        lines.append(f"| {name} | {'absent' if value is None else f'{100 * value:.1f}'} |")
    lines.append(f"| **mean** | **{100 * history['miou']:.1f}** |")
    said = f"IoU in per cent on the {history['images']} images of {history['data']} that "
    return [f"{said}`{history['verb']}` evaluates.", "\n".join(lines)]


def _training(history: dict[str, Any]) -> list[str]:
    """Return the configuration of the training; one sentence where it is not known."""
    if not history.get("configuration"):
        return ["The configuration of the training is not known."]
    text = yaml.safe_dump(history["configuration"], sort_keys=False, allow_unicode=True)
    return [
        "The configuration, without the paths of files. "
        "`lightning-seg fit -c FILE` trains with such a file.",
        f"```yaml\n{text}```",
    ]
