"""The command shows options as flags."""

from collections.abc import Callable

import pytest

from datamodules import DataError
from lightning_seg import SetupError
from lightning_seg.commands.messages import in_flags, plain_errors

KEYS = [
    "data.init_args.root",
    "data.init_args.batch_size",
    "model.init_args.lr",
    "model.init_args.optimizer.init_args.lr",
    "model.init_args.target.init_args.bins",
    "model.init_args.network.init_args.encoder",
    "trainer.max_steps",
    "encoder_file.path",
    "predictions.overlays",
    "ckpt_path",
]


@pytest.mark.parametrize(
    ("option", "scope", "flags"),
    [
        ("labeled", "data", "(option: --data.labeled)"),
        ("lr", "model", "(option: --model.lr)"),
        ("bins", "model", "(option: --model.target.bins)"),
        ("encoder", "data", "(option: --model.network.encoder)"),
        ("batch_size 1", "data", "(option: --data.batch_size 1)"),
        ("data.crop_size", "model", "(option: --data.crop_size)"),
        ("trainer.max_steps 5", "model", "(option: --trainer.max_steps 5)"),
        ("encoder_file.path", "model", "(option: --encoder_file.path)"),
        (("data", "ckpt_path"), "model", "(options: --data, --ckpt_path)"),
        ("opponent_lr", "model", "(option: --model.opponent_lr)"),
        (("root", "lr"), "data", "(options: --data.root, --model.optimizer.lr)"),
    ],
)
def test_an_option_is_a_flag_with_its_place(option: str, scope: str, flags: str) -> None:
    kind = {"data": DataError, "model": SetupError}[scope]
    keys = [key for key in KEYS if option != ("root", "lr") or key != "model.init_args.lr"]
    message = in_flags(str(kind("it is (not) so", option=option)), scope, keys)
    assert message == f"it is (not) so {flags}"


def caused() -> None:
    try:
        raise SetupError("caused")
    except SetupError as error:
        raise RuntimeError("a worker died") from error


def lost() -> None:
    raise DataError("no such folder", option="root")


def handed_over() -> None:
    text = "Caught DataError in worker 0.\nTraceback ...\ndatamodules.errors.DataError: bad"
    raise DataError(f"{text} (option: root=)\n")


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        (lost, "error: no such folder (option: --data.root)"),
        (caused, "error: caused"),
        (handed_over, "error: bad (option: --data.root)"),
    ],
)
def test_a_users_mistake_ends_in_one_line(fail: Callable[[], None], line: str) -> None:
    with pytest.raises(SystemExit) as stop, plain_errors(lambda: KEYS):
        fail()
    assert stop.value.code == line


@pytest.mark.parametrize("kind", [PermissionError, NotADirectoryError, FileExistsError])
def test_a_folder_that_cannot_be_written_is_one_line(kind: type[OSError]) -> None:
    with pytest.raises(SystemExit) as stop, plain_errors(list):
        raise kind(13, "no place", "/logs")
    assert stop.value.code == "error: [Errno 13] no place: '/logs'"


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), plain_errors(list):
        print(1 / 0)


def test_an_encoder_that_is_an_object_is_named_by_its_name() -> None:
    keys = ["model.init_args.encoder.init_args.name", "model.init_args.encoder"]
    message = in_flags(str(SetupError("unknown", option="encoder")), "model", keys)
    assert message == "unknown (option: --model.encoder.name)"


def test_wandb_without_a_key_is_one_line() -> None:
    from wandb.errors import UsageError

    def fail() -> None:
        raise UsageError("No API key configured. Use `wandb login` to log in.")

    with pytest.raises(SystemExit) as stop, plain_errors(list):
        fail()
    assert stop.value.code.startswith("error: W&B: No API key configured.")
    assert "WANDB_MODE=offline" in stop.value.code


def test_a_process_that_does_not_answer_is_one_sentence_with_the_option(monkeypatch) -> None:
    monkeypatch.setattr("lightning_seg.commands.messages.world_size", lambda: 2)
    texts = ["[gloo/transport/tcp/pair.cc:1] Connection closed by peer\nframe 1", "pair closure"]
    for text in texts:
        with pytest.raises(SystemExit) as stop, plain_errors(list):
            raise RuntimeError(text)
        assert str(stop.value).startswith(
            "error: another process of this training has not answered"
        )
        assert str(stop.value).endswith("(option: --trainer.strategy.timeout)")
        assert "frame" not in str(stop.value)
    with pytest.raises(RuntimeError, match="shapes"), plain_errors(list):
        raise RuntimeError("shapes differ")
