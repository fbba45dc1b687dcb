"""The blocks of code in the README and the pages, and how they are made to run in a test."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from places import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def own_images(root: Path, photos: Path) -> str:
    """Return the README's block on one's own images, for a small dataset and one epoch."""
    (script,) = (each for each in blocks("sh") if "seg()" in each)
    changes = {
        "/where/it/is": str(root),
        "/new/images": str(photos),
        "--data.crop_size 256": "--data.crop_size 64 --data.batch_size 2 --data.num_workers 0",
        "--trainer.max_epochs 20": "--trainer.max_epochs 1",
    }
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    return script


def commands(text: str) -> list[list[str]]:
    """Return the words of every `lightning-seg ...` line, continued lines joined."""
    lines = "\n".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("lightning-seg ")]
