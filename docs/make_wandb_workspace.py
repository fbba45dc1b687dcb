"""Make the project's standard W&B workspace: one section for each group of scalars and pictures.

    python docs/make_wandb_workspace.py ENTITY/PROJECT

saves the workspace in W&B. This needs a key (`wandb login`) and the package `wandb-workspaces`.
Without one of them, or without ENTITY/PROJECT, the description is written to wandb_workspace.json.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

STEP = "trainer/global_step"
SECTIONS: dict[str, list[dict[str, Any]]] = {
    "Scores": [
        {"kind": "lines", "title": "mIoU of the validation", "y": ["val/miou"]},
        {
            "kind": "lines",
            "title": "boundaries",
            "y": ["val/boundary_iou", "val/trimap_iou_3"],
        },
        {"kind": "lines", "title": "accuracies", "y": ["val/pixel_accuracy", "val/mean_accuracy"]},
        {"kind": "lines", "title": "IoU of each class", "regex": "^val/iou/.*"},
        {"kind": "lines", "title": "losses", "y": ["train/loss", "val/loss"]},
    ],
    "Pictures": [
        {"kind": "media", "title": "validation images with masks", "keys": ["pictures/masks"]},
        {"kind": "media", "title": "what the method sees", "keys": ["pictures/examples"]},
        {"kind": "media", "title": "the hardest images", "keys": ["pictures/hardest"]},
        {"kind": "media", "title": "embedding of patches", "keys": ["pictures/embedding"]},
    ],
    "Terms of the loss": [{"kind": "lines", "title": "all terms", "regex": "^train/.*"}],
    "Optimization": [
        {"kind": "lines", "title": "learning rates", "regex": "^lr/.*"},
        {"kind": "lines", "title": "gradient norms", "regex": "^gradient/.*"},
    ],
    "Machine": [
        {"kind": "lines", "title": "images per second", "y": ["speed/images_per_second"]},
        {"kind": "lines", "title": "share of waiting for data", "y": ["speed/data_share"]},
        {"kind": "lines", "title": "peak memory in GB", "y": ["memory/peak_gb"]},
    ],
}
"""The panels of every section. The charts of the confusion matrix and of the IoU of each class
bring their panels with them."""


def description() -> dict[str, Any]:
    """Return the workspace as plain values."""
    return {"name": "lightning-seg", "x": STEP, "sections": SECTIONS}


def workspace(entity: str, project: str) -> Any:
    """Return the workspace as an object of the package `wandb-workspaces`, not yet saved."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    def panel(each: dict[str, Any]) -> Any:
        if each["kind"] == "media":
            return reports.MediaBrowser(title=each["title"], media_keys=each["keys"])
        y = {"y": each["y"]} if "y" in each else {"metric_regex": each["regex"]}
        return reports.LinePlot(title=each["title"], x=STEP, **y)

    sections = [
        workspaces.Section(name=name, panels=[panel(each) for each in panels], is_open=True)
        for name, panels in SECTIONS.items()
    ]
    return workspaces.Workspace(
        entity=entity, project=project, name="lightning-seg", sections=sections
    )


def main(words: list[str]) -> None:
    """Save the workspace in W&B, or write its description."""
    import wandb

    entity, _, project = (words[0] if words else "").partition("/")
    package = importlib.util.find_spec("wandb_workspaces") is not None
    if project and package and wandb.login(prompt=False):
        print(workspace(entity, project).save().url)
        return
    path = Path("wandb_workspace.json")
    path.write_text(json.dumps(description(), indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}, without a key, the package wandb-workspaces, or ENTITY/PROJECT")


if __name__ == "__main__":
    main(sys.argv[1:])
