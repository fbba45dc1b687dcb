"""The verb `pipeline`: several trainings, each from the encoder or the labels of the one before.

    lightning-seg pipeline --stages configs/mix_match/*.yaml --out runs/mix_match
        -c configs/data/camvid.yaml --data.root FOLDER [any option of `fit`, for all stages]
        [--stage 3 -c configs/network/fcn.yaml, options of the third stage only]

Every stage is a `fit` in a folder of its own. A stage that is done is skipped, and a stage that was
cut off resumes from its last checkpoint. The command may be repeated until all stages are done.

A stage whose file has a part `autolabel` is an `autolabel` by the network of the stage before:

    lightning-seg pipeline --stages configs/self_training/*.yaml --out runs/self_training
        -c configs/data/folder.yaml --data.root FOLDER --data.predict FOLDER_OF_MORE_IMAGES

The stages after it train on the folder that it writes, and on no other data: they start as the
first stage does, and get the options of the data that stand after their own `--stage` alone.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

import lightning_seg
from lightning_seg.callbacks.label_folder import PIECE, REPORT
from lightning_seg.commands.pieces import find_piece, find_pieces
from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole
from lightning_seg.training.checkpoint_io import newest_whole

ENCODER, SETTINGS, DONE, DATA = "encoder.pt", "settings.json", "done", "data"


class Stage(NamedTuple):
    """One training of a pipeline."""

    name: str
    folder: Path
    words: list[str]
    """The command line after `fit`, without the encoder of the stage before."""
    trains_encoder: bool
    """Whether the encoder is all that it trains; else it is a segmentation network's."""
    labels: bool = False
    """Whether it is an `autolabel`, and no training."""
    data: Path | None = None
    """The folder of an earlier `autolabel` that it trains on; None trains on the data given."""

    @property
    def encoder(self) -> Path:
        """The file that it hands over."""
        return self.folder / ENCODER

    @property
    def start(self) -> Path:
        """The file on which later stages depend."""
        return self.folder / DATA / REPORT if self.labels else self.encoder


def pipeline(words: Sequence[str], fit: Callable[[list[str]], Any]) -> int:
    """Run the stages that a command line asks for, or print their configurations.

    Args:
        words: The command line after `pipeline`.
        fit: The command; it is called with the words of each stage.

    Returns:
        The exit code, 0.

    Raises:
        SystemExit: With 2, an option is wrong.
        SetupError: A stage cannot run, or its settings have changed since it began.
    """
    # sys.argv stays as it is, because the processes of DDP are started with it
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    # a stage that labels reads the checkpoint of another folder on purpose
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    printed, rest = _without(list(words), "--print_config")
    stages = stages_of(rest)
    for number, stage in enumerate(stages if printed else (), start=1):
        print(f"# stage {number}: {stage.name}", flush=True)
        _returning(fit, ["autolabel" if stage.labels else "fit", *stage.words, *printed[:1]])
    if not printed:
        run(stages, fit)
    return 0


def stages_of(words: list[str]) -> list[Stage]:
    """Return the stages that a command line asks for.

    A stage's `fit` gets, in this order: the configuration files for all stages, the stage's file,
    the other options for all stages, and the options of this stage alone. Later ones override.

    Args:
        words: The command line after `pipeline`.
    """
    parser = _parser()
    chunks = _split(words)
    given, common = parser.parse_known_args(chunks[0])
    pieces = [piece for pattern in given.stages for piece in find_pieces(pattern)]
    own: list[list[str]] = [[] for _ in pieces]
    for number, *more in chunks[1:]:
        if not number.isdigit() or not 1 <= int(number) <= len(own):
            parser.error(f"--stage {number}: there are the stages 1 to {len(own)}")
        own[int(number) - 1] += more
    names = [Path(file).stem for file in pieces]
    if len(set(names)) < len(names):
        parser.error(f"two of the stages have one name: {', '.join(names)}")
    common_files = [word for each in given.config for word in ("-c", each)]
    encoder = [] if given.encoder is None else [given.encoder]
    stages: list[Stage] = []
    before: list[str] = []  # the words of the stage before, with the data that were given
    data: Path | None = None
    for name, file, more in zip(names, pieces, own, strict=True):
        folder = Path(given.out) / name
        if _labels(file):
            if not stages or stages[-1].trains_encoder or stages[-1].labels:
                parser.error(f"{name} is an autolabel, and no stage before it trains a network")
            words = [*before, "-c", str(file), *more, *_places(folder, before)]
            words += ["--autolabel.output", str(folder / DATA)]
            words += ["--ckpt_path", str(stages[-1].folder)]
            stages.append(Stage(name, folder, words, False, labels=True))
            data = folder / DATA
            continue
        files = [*common_files, "-c", str(file)]
        trains_encoder = _trains_encoder([*files, *common, *more])
        named = "--model.encoder.name" if trains_encoder else "--model.network.encoder"
        last = [word for each in encoder for word in (named, each)]
        before = [*files, *common, *more, *last]
        words = [*files, *(common if data is None else _without_data(common)), *more]
        words += [*_places(folder, before), "--encoder_file.path", str(folder / ENCODER), *last]
        stages.append(Stage(name, folder, words, trains_encoder, data=data))
    return stages


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the options that are the pipeline's own."""
    parser = argparse.ArgumentParser(
        prog=f"{Path(sys.argv[0]).name} pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--stages", nargs="+", required=True, metavar="YAML", help="One file per stage, in order."
    )
    parser.add_argument(
        "--out", required=True, help="The folder in which each stage gets a folder."
    )
    parser.add_argument("--encoder", help="The timm name of the encoder in all stages.")
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        help="A piece for all stages, such as the data.",
    )
    return parser


def _places(folder: Path, words: Sequence[str]) -> list[str]:
    """Return the options that put the files of a stage into its folder."""
    found = ["--trainer.default_root_dir", str(folder)]
    if _names_logger(words):  # checkpoints lie below a logger's folder
        found += ["--trainer.logger.save_dir", str(folder)]
    return found


def run(stages: Sequence[Stage], fit: Callable[[list[str]], Any]) -> None:
    """Run the stages that are not done, in order.

    Args:
        stages: All stages.
        fit: The command; it is called with the words of each stage.

    Raises:
        SetupError: A stage was begun with other settings, or has written no encoder.
    """
    before: Stage | None = None
    for number, stage in enumerate(stages, start=1):
        words = _words(stage, before)
        settings = _settings(words, None if before is None else before.start)
        checkpoint, done = last_checkpoint(stage.folder), (stage.folder / DONE).exists()
        if checkpoint is not None or done:
            _require_unchanged(stage.folder, settings)
        title = f"stage {number} of {len(stages)}: {stage.name}"
        before = stage
        if done:
            _say(f"{title}, done before: {stage.folder}")
            continue
        _say(title if checkpoint is None else f"{title}, goes on from {checkpoint}")
        _write(stage.folder / SETTINGS, json.dumps(settings, indent=1))
        if checkpoint is not None:
            words += ["--ckpt_path", str(checkpoint)]
        if not stage.labels:
            fit(["fit", *words])
        elif not stage.start.is_file():  # the folder of labels appears when it is complete
            fit(["autolabel", *words])
        gc.collect()  # trainers and modules refer to each other
        if not stage.start.is_file():
            raise SetupError(
                f"{stage.name} ended without writing {stage.start}: with --trainer.fast_dev_run "
                "there is nothing to go on with"
            )
        _write(stage.folder / DONE, "")
    _say(f"done: {stages[-1].folder}")


def _words(stage: Stage, before: Stage | None) -> list[str]:
    """Return the command line of a stage, with what the stage before hands over."""
    words = list(stage.words)
    if stage.data is not None:  # after the files, and before the options
        place = next(at for at in range(0, len(words), 2) if words[at] != "-c")
        words[place:place] = ["-c", str(stage.data / PIECE)]
    if before is not None and not before.labels and not stage.labels:
        part = "encoder" if stage.trains_encoder else "network"
        words += [f"--model.{part}.weights", str(before.encoder)]
    return words


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder and the folders below; None without one."""
    return newest_whole({path.resolve() for path in folder.rglob("*.ckpt") if path.exists()})


def _without(words: list[str], option: str) -> tuple[list[str], list[str]]:
    """Return the words that are this option without a value, and the other words."""
    found = [word for word in words if word.partition("=")[0] == option]
    return found, [word for word in words if word not in found]


def _without_data(words: list[str]) -> list[str]:
    """Return the words without the options of the data, and without the words that follow them."""
    kept, inside = [], False
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit():
            inside = word.partition("=")[0].partition(".")[0] == "--data"
        if not inside:
            kept.append(word)
    return kept


def _labels(file: str) -> bool:
    """Return whether the file of a stage asks for `autolabel`."""
    (path,) = _config_files(["-c", file])
    return "autolabel" in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def _returning(fit: Callable[[list[str]], Any], words: list[str]) -> None:
    """Call a function that exits when it is done; let an exit with an error pass."""
    try:
        fit(words)
    except SystemExit as stopped:
        if stopped.code:
            raise


def _split(words: Sequence[str]) -> list[list[str]]:
    """Return the words before the first `--stage`, and the words after each `--stage`."""
    chunks: list[list[str]] = [[]]
    for word in words:
        if word == "--stage":
            chunks.append([])
        elif word.startswith("--stage="):
            chunks.append([word.partition("=")[2]])
        else:
            chunks[-1].append(word)
    return [chunks[0], *([*chunk] or [""] for chunk in chunks[1:])]


def _values(words: Sequence[str], *names: str) -> list[str]:
    """Return the values of options of these names, given as `--name VALUE` or `--name=VALUE`."""
    found = []
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in names:
            found.append(value if equals else following)
    return found


def _config_files(words: Sequence[str]) -> list[Path]:
    files = [Path(find_piece(value)) for value in _values(words, "-c", "--config")]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise SetupError(f"configuration file {missing[0]} does not exist", option="config")
    return files


def _in_files(words: Sequence[str], part: str, key: str) -> list[Any]:
    """Return the values of `part.key` in the configuration files, in order, without nulls."""
    contents = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in _config_files(words)]
    found = [((content or {}).get(part) or {}).get(key) for content in contents]
    return [value for value in found if value is not None]


def _names_logger(words: Sequence[str]) -> bool:
    """Return whether the configuration names a logger of a class."""
    named = [*_in_files(words, "trainer", "logger"), *_values(words, "--trainer.logger")]
    kinds = {
        each["class_path"] for each in named if isinstance(each, dict) and "class_path" in each
    }
    if named and (isinstance(named[-1], list) or len(kinds) > 1):
        raise SetupError(
            "a pipeline takes one logger: it puts each stage's files into the stage's folder",
            option="trainer.logger",
        )
    return bool(named) and str(named[-1]).lower() not in ("true", "false", "null")


def _trains_encoder(words: Sequence[str]) -> bool:
    """Return whether the configuration names a method that trains an encoder alone."""
    names = [*_in_files(words, "model", "class_path"), *_values(words, "--model")]
    if not names:
        return False
    module, _, name = names[-1].rpartition(".")
    found = getattr(lightning_seg, name, None) or getattr(import_module(module), name)
    return issubclass(found, lightning_seg.PretrainingModule)


def _settings(words: list[str], before: Path | None) -> dict[str, Any]:
    """Return the settings on which the result of a stage depends."""
    start = None if before is None or not before.is_file() else before.read_bytes()
    return {
        "words": words,
        "files": {str(file): file.read_text(encoding="utf-8") for file in _config_files(words)},
        "start": None if start is None else hashlib.sha256(start).hexdigest(),
    }


def _require_unchanged(folder: Path, settings: dict[str, Any]) -> None:
    if not (folder / SETTINGS).is_file():
        return
    before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if before == settings:
        return
    what = {
        "words": "the command line",
        "files": "a configuration file",
        "start": "what it starts from",
    }
    changed = " and ".join(what[key] for key in what if before.get(key) != settings[key])
    raise SetupError(
        f"{folder} was begun with other settings: {changed} changed. Remove the folder to do that "
        "stage again, or take another one for all (option: --out)"
    )


@rank_zero_only
def _write(path: Path, text: str) -> None:
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


@rank_zero_only
def _say(text: str) -> None:
    Console(stderr=True).rule(text)
