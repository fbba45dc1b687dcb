"""Trainings of every method against cross-entropy: a grid of settings, rows and seeds.

    python benchmarks/evidence.py run [--settings horses_96 ...] [--rows ce cpg ...] [--seeds 0-4]
    python benchmarks/evidence.py table

`run` does each training as the command would, `fit` and then `test` of the last weights, and skips
what is done. A training that was cut off goes on from its last checkpoint. Trainings are forked
from one process that has imported everything, because imports take longer than some trainings. Each
one adds a row to `benchmarks/results/evidence.csv`. `table` prints the mean differences from
cross-entropy over seeds, paired by seed, with 95 % t intervals. `--split validate` scores
validation images, for the choice of settings, and writes `evidence_validate.csv`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from evidence_table import GRID, ROOT, SCORES, cell, read
from filelock import FileLock
from small_copies import small_copies

DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Training:
    """One cell of the grid."""

    setting: str
    row: str
    seed: int
    words: tuple[str, ...]
    """The command line after the verb, without folders; `{seed}` stands for the seed."""
    stages: tuple[Stage, ...] = ()
    """The trainings of the encoder that this one starts from, first ones first."""

    @property
    def key(self) -> str:
        """The digest of the configuration without the seed; other settings are other trainings."""
        return _digest([*(word for stage in self.stages for word in stage.words), *self.words])


@dataclass(frozen=True)
class Stage:
    """A training of an encoder, which later trainings of the same seed share."""

    name: str
    words: tuple[str, ...]
    """The command line after the verb, without folders."""


def _digest(words: Sequence[str]) -> str:
    files = [word for word in words if word.endswith(".yaml")]
    text = "\n".join([*words, *((ROOT / each).read_text() for each in files)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def trainings(
    grid: dict[str, Any], settings: Sequence[str], rows: Sequence[str], seeds: Sequence[int]
) -> Iterator[Training]:
    """Yield the chosen trainings, seed by seed, so that every row soon has its pairs."""
    for name in settings or grid["settings"]:
        setting = grid["settings"][name]
        for seed in seeds:
            for row in setting["rows"]:
                if rows and row not in rows:
                    continue
                spec = grid["rows"][row]
                stages = tuple(_stages(grid, setting, spec.get("encoder")))
                yield Training(name, row, seed, _words(setting, spec, setting["configs"]), stages)


def _stages(grid: dict[str, Any], setting: dict[str, Any], last: str | None) -> Iterator[Stage]:
    """Yield the stages up to the last one, whose predecessors are named by `after`."""
    if last is not None:
        spec = grid["stages"][last]
        yield from _stages(grid, setting, spec.get("after"))
        yield Stage(last, _words(setting, spec, setting["configs"][:1]))


def _words(
    setting: dict[str, Any], spec: dict[str, Any], configs: Sequence[str]
) -> tuple[str, ...]:
    """Return the configurations and options of a row or a stage, those of the setting first."""
    method = f"configs/method/{spec['method']}.yaml"
    options = {**setting.get("options", {}), **spec.get("options", {})}
    words = [*configs, method, "benchmarks/evidence/common.yaml"]
    parts = [part for config in words for part in ("-c", config)]
    return (*parts, *(f"--{key}={_text(value)}" for key, value in options.items()))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def folder_of_data(setting: dict[str, Any], output: Path) -> list[str]:
    """Return the option that names the data of a setting, and make its small copies."""
    if "copy" not in setting:
        return []
    source, side = setting["copy"]["source"], setting["copy"]["longest_side"]
    return [
        f"--data.root={small_copies(DATA / source, output / 'data' / f'{source}_{side}', side)}"
    ]


def carry_out(training: Training, data: list[str], split: str, output: Path) -> None:
    """Train and score in this process, which ends afterwards; append the row to the CSV."""
    folder = output / training.setting / training.row / f"seed{training.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "log.txt").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    import torch

    import cli

    torch.set_num_threads(1)
    begin = time.perf_counter()
    words = [*completed(training.words, training.seed), *data]
    encoder = train_encoder(training, data, output)
    if encoder is not None:
        words.append(f"--model.network.weights={encoder}")
    os.chdir(folder)
    last = folder / "run" / "checkpoints" / "last.ckpt"
    cli.main(["fit", *words, "--ckpt_path=auto"])
    seconds = resource.getrusage(resource.RUSAGE_SELF)
    scoring = [f"--ckpt_path={last}", "--scores.pictures=0", "--trainer.limit_val_batches=1.0"]
    cli.main([split, *words, *scoring])
    append(training, split, folder, seconds, time.perf_counter() - begin)


def completed(words: Sequence[str], seed: int) -> list[str]:
    """Return the command line with whole paths and the seed."""
    whole = [str(ROOT / word) if word.endswith(".yaml") else word for word in words]
    return [*(word.replace("{seed}", str(seed)) for word in whole), f"--seed_everything={seed}"]


def train_encoder(training: Training, data: list[str], output: Path) -> Path | None:
    """Do the stages of a training that are not done; return the file of the last encoder."""
    import cli

    encoder: Path | None = None
    for place, stage in enumerate(training.stages, start=1):
        digest = _digest([word for each in training.stages[:place] for word in each.words])
        name = f"{stage.name}-{digest}"
        folder = output / training.setting / "stages" / name / f"seed{training.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        words = [*completed(stage.words, training.seed), *data]
        if encoder is not None:
            words.append(f"--model.encoder.weights={encoder}")
        encoder = folder / "encoder.pt"
        with FileLock(folder / "lock"):
            os.chdir(folder)
            if not (folder / "done").exists():
                cli.main(["fit", *words, f"--encoder_file.path={encoder}", "--ckpt_path=auto"])
                (folder / "done").touch()
    return encoder


def append(
    training: Training, split: str, folder: Path, used: resource.struct_rusage, wall: float
) -> None:
    """Append the scores of a training to the CSV."""
    from lightning_seg.provenance import commit
    from lightning_seg.scores import read_scores

    found = read_scores(folder / "run" / split)
    iou, truth = found.iou(), found.counts[:, 0, :, 2].sum(0)
    present = np.flatnonzero(truth)
    rare = present[np.argsort(truth[present], kind="stable")][: max(1, len(present) // 3)]
    row = {
        "setting": training.setting,
        "row": training.row,
        "seed": training.seed,
        "config": training.key,
        "commit": commit(ROOT),
        "date": datetime.date.today().isoformat(),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "wall_seconds": round(wall, 1),
        "memory_mib": used.ru_maxrss // 1024,
        **{name: round(value, 6) for name, value in found.summary["scores"].items() if value},
        "rare_third": round(float(np.nan_to_num(iou[rare]).mean()), 6),
        "iou": json.dumps({n: round(float(v), 4) for n, v in zip(found.classes, iou, strict=True)}),
    }
    path = table_path(split)
    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        known = rows_of(split)
        names = list(dict.fromkeys(name for each in [*known, row] for name in each))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows([*known, row])


def table_path(split: str) -> Path:
    """Return the CSV of a split."""
    return RESULTS / ("evidence.csv" if split == "test" else f"evidence_{split}.csv")


def rows_of(split: str) -> list[dict[str, Any]]:
    """Return the rows of the CSV, none where there is no file."""
    return read(table_path(split))


def run(options: argparse.Namespace, grid: dict[str, Any]) -> None:
    """Do the trainings that are not done, a core each."""
    output = options.output.resolve()
    done = {(r["setting"], r["row"], r["seed"], r["config"]) for r in rows_of(options.split)}
    chosen = list(trainings(grid, options.settings, options.rows, options.seeds))
    left = [t for t in chosen if (t.setting, t.row, str(t.seed), t.key) not in done]
    data = {
        name: folder_of_data(grid["settings"][name], output) for name in {t.setting for t in left}
    }
    print(f"{len(chosen) - len(left)} of {len(chosen)} trainings are done", flush=True)
    import cli  # noqa: F401  imported once, for all forked trainings

    context, running, started, failed = multiprocessing.get_context("fork"), [], time.time(), 0
    queue, finished = list(left), 0
    while queue or running:
        while queue and len(running) < options.processes:
            training = queue.pop(0)
            words = (training, data[training.setting], options.split, output)
            process = context.Process(target=carry_out, args=words)
            process.start()
            running.append((training, process))
        time.sleep(0.5)
        for training, process in list(running):
            if process.is_alive():
                continue
            running.remove((training, process))
            finished += 1
            failed += process.exitcode != 0
            minutes = (time.time() - started) / finished * (len(left) - finished) / 60
            state = "done" if process.exitcode == 0 else f"FAILED ({process.exitcode})"
            print(
                f"{finished}/{len(left)} {training.setting} {training.row} seed {training.seed} "
                f"{state}; about {minutes:.0f} minutes left",
                flush=True,
            )
    print(f"{failed} trainings failed: see log.txt in their folders" if failed else "all done")


def table(options: argparse.Namespace, grid: dict[str, Any]) -> None:
    """Print every row's difference from cross-entropy, in points."""
    rows = rows_of(options.split)
    for name in options.settings or grid["settings"]:
        setting = grid["settings"][name]
        here = [each for each in rows if each["setting"] == name]
        if not here:
            continue
        print(f"\n{name}: {setting['title']}")
        print(f"{'row':<22}{'seeds':>6}" + "".join(f"{title:>18}" for title in SCORES.values()))
        for row in setting["rows"]:
            found = [cell(here, row, score) for score in SCORES]
            texts = [f"{each.mean:+.2f} +- {each.half:.2f}" for each in found if each]
            if texts:
                line = f"{row:<22}{found[0].seeds:>6}" + "".join(f"{text:>18}" for text in texts)
                print(line)


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    """Parse the command line."""
    grid = yaml.safe_load(GRID.read_text())
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("--settings", nargs="+", default=[], choices=list(grid["settings"]))
    parser.add_argument("--rows", nargs="+", default=[], choices=list(grid["rows"]))
    parser.add_argument("--seeds", type=_seeds, default=_seeds("0-4"), help="such as 0-4, or 7")
    parser.add_argument("--split", choices=["test", "validate"], default="test")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "evidence")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    {"run": run, "table": table}[options.verb](options, grid)


if __name__ == "__main__":
    main()
