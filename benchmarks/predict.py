"""Compare predictions to files with a loop of 15 lines, on images of 2048x1024.

    python benchmarks/predict.py [--rounds 3] [--threads 1] [--images 6] [--keep]

Both read JPEG files, predict with the same LR-ASPP, and write a palette PNG and a blended JPEG per
image. The loop is plain PyTorch and Pillow. The times are those of the wall clock per image,
because threads of this project write the files.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_turn
import numpy as np
import torch
from PIL import Image
from two_players import quiet

from lightning_seg import CrossEntropyModule
from lightning_seg.callbacks import PredictionWriter
from lightning_seg.networks import LRASPP
from lightning_seg.pictures import color_table

CLASSES, SIZE = 19, (1024, 2048)


def write_images(folder: Path, count: int) -> list[Path]:
    """Write smooth random photographs."""
    draw = np.random.default_rng(0)
    paths = []
    for number in range(count):
        small = draw.integers(0, 256, (SIZE[0] // 32, SIZE[1] // 32, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(small).resize(SIZE[::-1], Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def the_loop(module: CrossEntropyModule, paths: list[Path], folder: Path) -> None:
    """Predict in the loop that a user would write."""
    colors = color_table(CLASSES)
    mean, std = module.image_mean, module.image_std
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            logits = module.network((tensor - mean) / std)["out"]
        labels = logits[0].argmax(0).to(torch.uint8).numpy()
        mask = Image.fromarray(labels)
        mask.putpalette(colors.tobytes())
        mask.save(folder / f"{path.stem}.png")
        mixed = (image * 0.5 + colors[labels] * 0.5).round().astype(np.uint8)
        Image.fromarray(mixed).save(folder / f"{path.stem}.jpg", quality=92)


def with_writer(module: CrossEntropyModule, paths: list[Path], folder: Path) -> None:
    """Predict with the module and the callback, in the order of Lightning's loop."""
    writer, trainer = PredictionWriter(str(folder)), SimpleNamespace(default_root_dir=str(folder))
    writer.on_predict_start(trainer, module)
    for number, path in enumerate(paths):
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
        batch: dict[str, Any] = {"image": image, "id": [path.stem]}
        with torch.inference_mode():
            found = module.predict_step(batch, number)
        writer.write_on_batch_end(trainer, module, found, None, batch, number, 0)
    writer.on_predict_end(trainer, module)


def main() -> None:
    parser = in_turn.parser(__doc__, rounds=3)
    parser.add_argument("--images", type=int, default=6, help="number of images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    make = [LRASPP(CLASSES, "mobilenetv3_large_100") for _ in range(2)]
    plain, ours = (CrossEntropyModule(net, num_classes=CLASSES).eval() for net in make)
    plain.network.to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as place, quiet():
        paths = write_images(Path(place), options.images)
        out = Path(place) / "out"
        out.mkdir()
        runs = {
            "loop of 15 lines": lambda: the_loop(plain, paths, out),
            "module and PredictionWriter": lambda: with_writer(ours, paths, out),
        }
        times = in_turn.in_turn(runs, options.rounds, time.perf_counter)
    per_image = {name: [each / len(paths) for each in taken] for name, taken in times.items()}
    title = f"Predictions of {SIZE[1]}x{SIZE[0]} images to files, per image"
    found = in_turn.rows(title, per_image, "loop of 15 lines", options.threads)
    in_turn.finish("predict", found, options.keep)


if __name__ == "__main__":
    main()
