"""How pieces of configuration and flags compose, and the help."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import SMALL_WORDS

import cli
from lightning_seg import SetupError
from lightning_seg.commands.messages import plain_errors
from lightning_seg.commands.parser import ReadableParser
from lightning_seg.commands.pieces import SHIPPED, find_piece, find_pieces

Printed = Callable[..., dict[str, Any]]
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return the configuration of `fit` with these words; what went to stderr under `notes`."""

    def print_config(*words: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", *words, "--print_config"])
        output = capsys.readouterr()
        assert stop.value.code == 0, output.err
        return {**yaml.safe_load(output.out), "notes": output.err}

    return print_config


def piece(folder: Path, content: dict[str, Any]) -> str:
    path = folder / f"piece_{len(list(folder.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def classes(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["class_path"].rpartition(".")[2] for entry in entries]


def test_a_second_piece_with_callbacks_keeps_those_of_the_first(
    printed: Printed, tmp_path: Path
) -> None:
    monitor = "lightning.pytorch.callbacks.LearningRateMonitor"
    mine = piece(tmp_path, {"trainer": {"callbacks": [{"class_path": monitor}]}})
    for words in (["configs/trainer/cpu.yaml", mine], [mine, "configs/trainer/cpu.yaml"]):
        found = printed("-c", words[0], "-c", words[1])["trainer"]["callbacks"]
        assert sorted(classes(found)) == ["LearningRateMonitor", "ModelCheckpoint"]
    # a second piece of the same callback takes the place of the first
    again = {"class_path": CHECKPOINT, "init_args": {"monitor": "val/loss", "mode": "min"}}
    other = piece(tmp_path, {"trainer": {"callbacks": [again]}})
    found = printed("-c", "configs/trainer/cpu.yaml", "-c", mine, "-c", other)["trainer"]
    assert classes(found["callbacks"]) == ["LearningRateMonitor", "ModelCheckpoint"]
    assert found["callbacks"][1]["init_args"]["monitor"] == "val/loss"
    assert found["callbacks"][1]["init_args"]["filename"] is None  # not the first one's
    # the flag overrides, as any flag
    only = ["-c", mine, "--trainer.callbacks", CHECKPOINT]
    assert printed(*only)["trainer"]["callbacks"]["class_path"] == CHECKPOINT


def test_a_list_may_be_emptied(printed: Printed, tmp_path: Path) -> None:
    nothing = piece(tmp_path, {"trainer": {"callbacks": None, "logger": False}})
    words = ["-c", "configs/trainer/cpu.yaml", "-c", "configs/logger/csv.yaml", "-c", nothing]
    found = printed(*words)["trainer"]
    assert found["callbacks"] is None
    assert found["logger"] is False


def test_a_runs_own_configuration_and_its_pieces_do_not_double_anything(
    printed: Printed, tmp_path: Path
) -> None:
    words = ["-c", "configs/trainer/cpu.yaml", "-c", "configs/logger/csv.yaml"]
    first = printed(*words)
    del first["notes"]
    saved = piece(tmp_path, first)
    again = printed("-c", saved, *words)
    del again["notes"]
    assert again["trainer"]["callbacks"] == first["trainer"]["callbacks"]
    assert again["trainer"]["logger"] in (
        first["trainer"]["logger"],
        [first["trainer"]["logger"]],
    )


def test_two_logger_pieces_both_log(printed: Printed) -> None:
    words = ["-c", "configs/logger/csv.yaml", "-c", "configs/logger/wandb.yaml"]
    loggers = printed(*words)["trainer"]["logger"]
    assert classes(loggers) == ["CSVLogger", "WandbLogger"]
    assert [logger["init_args"]["name"] for logger in loggers] == ["csv", None]


@pytest.mark.parametrize(
    "words",
    [
        ["--model.optimizer", "SGD"],
        ["--model.optimizer=SGD"],
        ["--model.optimizer=torch.optim.SGD"],
        ["-c", "piece"],
    ],
)
def test_an_optimizers_arguments_stay_with_their_class(
    printed: Printed, tmp_path: Path, words: list[str]
) -> None:
    change = {"model": {"init_args": {"optimizer": {"class_path": "torch.optim.SGD"}}}}
    words = [piece(tmp_path, change) if word == "piece" else word for word in words]
    own = {"lr": 0.5, "weight_decay": 0.25, "betas": [0.8, 0.9]}
    before = {"class_path": "torch.optim.AdamW", "init_args": own}
    first = piece(tmp_path, {"model": {"init_args": {"optimizer": before}}})
    found = printed("-c", first, *words)
    optimizer = found["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    # SGD's own defaults, torch 2.14
    assert optimizer["init_args"]["lr"] == 0.001
    assert optimizer["init_args"]["weight_decay"] == 0
    assert found["notes"].strip() == (
        "note: model.optimizer: SGD has its own defaults, not AdamW's lr 0.5, weight_decay 0.25"
    )
    given = printed("-c", first, *words, "--model.optimizer.weight_decay=0.125")
    assert given["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"] == 0.125


def test_no_argument_of_the_default_optimizer_or_another_schedule_follows(
    printed: Printed,
) -> None:
    found = printed("--model.optimizer=SGD")
    assert found["model"]["init_args"]["optimizer"]["init_args"]["weight_decay"] == 0
    assert found["notes"] == ""  # nobody asked for AdamW's
    other = "torch.optim.lr_scheduler.PolynomialLR"
    words = ["-c", "configs/method/asml.yaml", f"--model.opponent_lr_scheduler={other}"]
    found = printed(*words)
    arguments = found["model"]["init_args"]["opponent_lr_scheduler"]["init_args"]
    assert (arguments["power"], arguments["total_iters"]) == (1.0, 5)
    assert "not PolyLR's power 0.9" not in found["notes"]  # 0.9 is PolyLR's own default
    assert found["model"]["init_args"]["lr_scheduler"]["class_path"] == "lightning_seg.PolyLR"


def test_a_null_is_null_however_deep(printed: Printed) -> None:
    words = ["-c", "configs/demo.yaml", "--model.network.weights", "null"]
    assert printed(*words)["model"]["init_args"]["network"]["init_args"]["weights"] is None
    words = ["--data.patches=PatchMixer", "--data.patches.background_index=null"]
    patches = printed(*words)["data"]["init_args"]["patches"]
    assert patches["init_args"]["background_index"] is None
    assert printed("--model.lr_scheduler=null")["model"]["init_args"]["lr_scheduler"] is None


def test_shipped_pieces_are_found_where_the_working_folder_has_none(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_piece("configs/data/camvid.yaml") == SHIPPED / "data/camvid.yaml"
    assert find_piece("configs/data/nothing.yaml") == "configs/data/nothing.yaml"
    stages = find_pieces("configs/mix_match/*.yaml")
    assert stages == [str(SHIPPED / f"mix_match/{name}.yaml") for name in
                      ("1_proxy", "2_match", "3_finetune")]  # fmt: skip
    words = ["-c", "configs/data/camvid.yaml", "--data.root=x"]
    assert printed(*words)["data"]["class_path"] == "datamodules.CamVidDataModule"
    own = tmp_path / "configs/data/camvid.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("data: {class_path: datamodules.SyntheticScenesDataModule}")
    assert printed("-c", "configs/data/camvid.yaml")["data"]["class_path"].endswith(
        "ScenesDataModule"
    )


def test_the_verb_configs_lists_every_piece(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {
        f"configs/{path.relative_to(SHIPPED).as_posix()}" for path in SHIPPED.rglob("*.*")
    }
    assert all(len(line.split()) > 4 and len(line) <= 120 for line in lines)


@pytest.mark.parametrize("method", ["ASMLModule", "SemiAdvModule", "CPGModule", "MixMatchModule"])
def test_the_help_of_a_method_is_short_and_shows_what_all_share(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--model.help", method])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 250
    assert "--model.lr LR" in text
    assert "--model.optimizer OPTIMIZER" in text
    assert "torch.nn.Identity" not in text


CALLS = """
from pathlib import Path
from torch import nn

def run(*given, **options):
    Path("called").touch()

def build(num_classes: int) -> nn.Module:
    Path("built").touch()
    return nn.Conv2d(3, num_classes, 1)
"""


@pytest.mark.parametrize(
    "part",
    [
        {"network": {"class_path": "calls.run"}},
        {"network": "calls.run"},
        {"network": {"class_path": "os.getcwd"}},
        {"optimizer": {"class_path": "calls.run"}},
        {"optimizer": "calls.run"},
        {"lr_scheduler": {"class_path": "calls.run"}},
    ],
)
def test_no_function_is_called_before_it_is_known_what_it_returns(
    part: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "calls.py").write_text(CALLS)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", piece(tmp_path, {"model": {"init_args": part}})])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    if "calls.run" in part.values():
        assert "calls.run is a function" in message
        assert len(message.splitlines()) == 1
    assert not (tmp_path / "called").exists()
    monkeypatch.delitem(sys.modules, "calls", raising=False)


def test_a_function_that_is_annotated_to_return_a_module_builds_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "calls.py").write_text(CALLS)
    words = [word for word in SMALL_WORDS if "network" not in word]
    run = cli.main(["fit", *words, "--model.network=calls.build", "--trainer.fast_dev_run=true"])
    assert type(run.model.network.network).__name__ == "Conv2d"
    monkeypatch.delitem(sys.modules, "calls", raising=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {init_args: {class_names: [Stra\xdfe]}}", "piece.yaml is not UTF-8 text"),
        (b"\x98\x00\xff", "piece.yaml is not UTF-8 text"),
        (b"- a\n- list", "piece.yaml"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "piece.yaml").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", str(tmp_path / "piece.yaml")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_an_empty_piece_changes_nothing(printed: Printed, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert printed("-c", str(tmp_path / "empty.yaml")) == printed()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val"),
        (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches"),
        (["--seed_everything=-5"], "seed_everything"),
        (["--seed_everything=4294967296"], "seed_everything"),
        (["--model.lr=-1"], "model.lr"),
        (["--model.backbone_lr_factor=-1"], "model.backbone_lr_factor"),
        (["--model.lambda_aux=-1"], "model.lambda_aux"),
        (["--model.optimizer=SGD", "--model.optimizer.lr=-0.5"], "model.optimizer"),
    ],
)
def test_a_setting_out_of_its_range_is_named(words: list[str], option: str, tmp_path: Path) -> None:
    quiet = ["--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as stop, plain_errors(ReadableParser.keys):
        cli.main(["fit", *SMALL_WORDS, *quiet, *words])
    assert stop.value.code.endswith(f"(option: --{option})")


def test_pieces_are_copied_into_the_working_folder_and_none_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["configs", "--copy", "configs/cluster"]) == 0
    template = tmp_path / "configs/cluster/slurm.sbatch"
    assert template.read_text() == (SHIPPED / "cluster/slurm.sbatch").read_text()
    assert "written: configs/cluster/slurm.sbatch\n" in capsys.readouterr().out
    cli.main(["configs", "--copy", "configs/data/camvid.yaml"])
    assert (tmp_path / "configs/data/camvid.yaml").is_file()
    for name, message in {
        "configs/cluster": "slurm.sbatch exists",
        "configs/other": "no file or folder",
        "data": "no file or folder",
    }.items():
        with pytest.raises(SetupError, match=message):
            cli.main(["configs", "--copy", name])
