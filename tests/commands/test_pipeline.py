"""The pipeline's order, hand-over and memory, with a `fit` that only writes files."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from lightning_seg import SetupError
from lightning_seg.commands.pipeline import last_checkpoint, pipeline, run, stages_of

PROXY = "model:\n  class_path: lightning_seg.MixMatchModule\n"
TUNE = "model:\n  class_path: lightning_seg.CrossEntropyModule\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in {"1_a": PROXY, "2_b": PROXY, "3_c": TUNE, "data": "data: {}\n"}.items():
        Path(f"{name}.yaml").write_text(text)
    return tmp_path


WORDS = ["--stages", "1_a.yaml", "2_b.yaml", "3_c.yaml", "--out", "out"]


def checkpoint(path: Path, cut: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "x" * 1000)
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])
    return path


class Fit:
    """Writes an encoder like the word it is given; may break off behind a checkpoint."""

    def __init__(self, break_in: str = "", text: str = "encoder") -> None:
        self.calls, self.break_in, self.text = [], break_in, text

    def __call__(self, words: list[str]) -> None:
        self.calls.append(words)
        folder = Path(words[words.index("--trainer.default_root_dir") + 1])
        if folder.name == self.break_in:
            checkpoint(folder / "version_0" / "last.ckpt")
            raise KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        Path(words[words.index("--encoder_file.path") + 1]).write_text(self.text)


def value(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_stages_run_in_order_and_hand_the_encoder_over(files):
    fit = Fit()
    run(stages_of(WORDS), fit)
    assert [words[0] for words in fit.calls] == ["fit"] * 3
    assert [value(words, "--trainer.default_root_dir") for words in fit.calls] == [
        "out/1_a",
        "out/2_b",
        "out/3_c",
    ]
    assert [value(words, "--model.encoder.weights") for words in fit.calls] == [
        None,
        "out/1_a/encoder.pt",
        None,
    ]
    assert [value(words, "--model.network.weights") for words in fit.calls] == [
        None,
        None,
        "out/2_b/encoder.pt",
    ]
    assert not any("--ckpt_path" in words for words in fit.calls)


def test_words_for_all_and_for_one_stage(files):
    words = [
        *WORDS,
        "-c",
        "data.yaml",
        "--encoder",
        "resnet50",
        "--trainer.max_steps",
        "5",
        "--stage",
        "2",
        "--model.margin",
        "-1",
        "--stage=3",
        "--trainer.max_steps=9",
    ]
    first, second, third = (stage.words for stage in stages_of(words))
    assert first[:6] == ["-c", "data.yaml", "-c", "1_a.yaml", "--trainer.max_steps", "5"]
    assert second[4:8] == ["--trainer.max_steps", "5", "--model.margin", "-1"]
    assert third[4:7] == ["--trainer.max_steps", "5", "--trainer.max_steps=9"]
    assert (
        value(first, "--model.encoder.name") == value(second, "--model.encoder.name") == "resnet50"
    )
    assert value(third, "--model.network.encoder") == "resnet50"


def test_the_model_of_the_last_configuration_or_word_counts(files):
    stages = stages_of(
        [
            *WORDS,
            "--stage",
            "1",
            "-c",
            "3_c.yaml",
            "--stage",
            "3",
            "--model=lightning_seg.MixMatchModule",
        ]
    )
    assert [stage.trains_encoder for stage in stages] == [False, True, True]
    (alone,) = stages_of(["--stages", "data.yaml", "--out", "o"])
    assert not alone.trains_encoder


def test_done_stages_are_skipped_and_one_cut_off_goes_on(files):
    fit = Fit(break_in="2_b")
    with pytest.raises(KeyboardInterrupt):
        run(stages_of(WORDS), fit)
    again = Fit()
    run(stages_of(WORDS), again)
    assert [value(words, "--trainer.default_root_dir") for words in again.calls] == [
        "out/2_b",
        "out/3_c",
    ]
    resumed = value(again.calls[0], "--ckpt_path")
    assert Path(resumed) == (files / "out/2_b/version_0/last.ckpt")
    assert "--ckpt_path" not in again.calls[1]
    run(stages_of(WORDS), None)  # nothing is left to do


def test_changed_settings_are_told(files):
    run(stages_of(WORDS), Fit())
    with pytest.raises(SetupError, match=r"out/1_a was begun .*: the command line changed"):
        run(stages_of([*WORDS, "--model.lr", "1"]), None)
    Path("2_b.yaml").write_text(PROXY + "trainer: {}\n")
    with pytest.raises(SetupError, match=r"out/2_b was begun .*: a configuration file changed"):
        run(stages_of(WORDS), None)
    Path("2_b.yaml").write_text(PROXY)
    for name in ("done", "settings.json", "encoder.pt"):
        Path("out/1_a", name).unlink()
    with pytest.raises(SetupError, match=r"out/2_b was .*: what it starts from changed"):
        run(stages_of(WORDS), Fit(text="another"))


def test_what_failed_before_its_first_checkpoint_may_be_changed(files):
    def refuse(words):
        raise SetupError("no")

    with pytest.raises(SetupError, match="no"):
        run(stages_of(WORDS), refuse)
    fit = Fit()
    run(stages_of([*WORDS, "--model.lr", "1"]), fit)
    assert len(fit.calls) == 3


def test_the_newest_complete_checkpoint_counts(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    import os

    for number, (name, cut) in enumerate({"a": None, "b": None, "c": 500}.items()):
        path = checkpoint(tmp_path / name / f"{name}.ckpt", cut)
        os.utime(path, (number, number))
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "c" / "c.ckpt")
    (tmp_path / "gone.ckpt").symlink_to(tmp_path / "nothing.ckpt")
    assert last_checkpoint(tmp_path) == tmp_path / "b" / "b.ckpt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o"], "required: --stages"),
        ([*WORDS, "--stage", "4"], "--stage 4: there are the stages 1 to 3"),
        ([*WORDS, "--stage"], "there are the stages 1 to 3"),
        (["--stages", "1_a.yaml", "1_a.yaml", "--out", "o"], "two of the stages have one name"),
    ],
)
def test_wrong_words_are_told(files, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        stages_of(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_told(files):
    with pytest.raises(SetupError, match=r"configuration file 4\.yaml does not exist"):
        stages_of(["--stages", "4.yaml", "--out", "o"])


def test_the_verb_returns_its_exit_code(files):
    assert pipeline(WORDS, Fit()) == 0


def test_a_pattern_that_the_shell_left_alone_names_the_stages(files):
    (stage,) = stages_of(["--stages", "3_*.yaml", "--out", "o"])
    assert stage.name == "3_c"
    shipped = stages_of(["--stages", "configs/mix_match/*.yaml", "--out", "o"])
    assert [stage.name for stage in shipped] == ["1_proxy", "2_match", "3_finetune"]
    assert [stage.trains_encoder for stage in shipped] == [True, True, False]


def test_configurations_are_printed_and_nothing_is_begun(files, capsys):
    calls = []

    def fit(words):
        calls.append(words)
        raise SystemExit(0)

    assert pipeline([*WORDS, "--stage", "3", "--print_config"], fit) == 0
    assert [words[-1] for words in calls] == ["--print_config"] * 3
    assert capsys.readouterr().out.splitlines() == [
        "# stage 1: 1_a",
        "# stage 2: 2_b",
        "# stage 3: 3_c",
    ]
    assert not Path("out").exists()
    with pytest.raises(SystemExit) as stopped:
        pipeline([*WORDS, "--print_config"], lambda words: sys.exit(2))
    assert stopped.value.code == 2


def test_a_stage_without_an_encoder_is_not_done(files):
    with pytest.raises(SetupError, match=r"1_a ended without writing out/1_a/encoder\.pt"):
        run(stages_of(WORDS), lambda words: None)
    assert not Path("out/1_a/done").exists()


@pytest.mark.parametrize(
    ("text", "words", "moved"),
    [
        ("", [], False),
        ("trainer: {logger: {class_path: CSVLogger}}", [], True),
        ("trainer: {logger: {class_path: CSVLogger}}", ["--trainer.logger=false"], False),
        ("trainer: {logger: false}", [], False),
        ("", ["--trainer.logger", "CSVLogger"], True),
    ],
)
def test_a_loggers_files_and_so_the_checkpoints_go_to_the_stages_folder(files, text, words, moved):
    Path("data.yaml").write_text(text)
    for stage in stages_of([*WORDS, "-c", "data.yaml", *words]):
        wanted = str(stage.folder) if moved else None
        assert value(stage.words, "--trainer.logger.save_dir") == wanted


def test_several_loggers_are_refused(files):
    Path("data.yaml").write_text("trainer: {logger: [{class_path: CSVLogger}]}")
    with pytest.raises(SetupError, match="takes one logger"):
        stages_of([*WORDS, "-c", "data.yaml"])
    pieces = ["-c", "configs/logger/csv.yaml", "-c", "configs/logger/wandb.yaml"]
    with pytest.raises(SetupError, match="takes one logger"):
        stages_of([*WORDS, *pieces])


LABELS = "autolabel:\n  keep: 0.7\n"


class FitAndLabel(Fit):
    """Also writes the folder of labels."""

    def __call__(self, words: list[str]) -> None:
        if words[0] != "autolabel":
            super().__call__(words)
            return
        self.calls.append(words)
        folder = Path(words[words.index("--autolabel.output") + 1])
        folder.mkdir(parents=True)
        (folder / "autolabel.json").write_text(self.text)
        (folder / "data.yaml").write_text("data: {}\n")


@pytest.fixture
def rounds(files: Path) -> list[str]:
    """Train, label, train, and both once more."""
    for name in ("2_labels", "4_labels"):
        Path(f"{name}.yaml").write_text(LABELS)
    for name in ("1_teacher", "3_student", "5_student"):
        Path(f"{name}.yaml").write_text(TUNE)
    names = ["1_teacher", "2_labels", "3_student", "4_labels", "5_student"]
    words = ["--stages", *(f"{name}.yaml" for name in names), "--out", "out", "-c", "data.yaml"]
    words += ["--data.root", "here", "--data.mask_values", "[0,", "-1]", "--model.lr", "-1"]
    return [*words, "--stage", "3", "--data.crop_size", "8"]


def test_a_stage_labels_with_the_network_before_and_the_next_one_trains_on_that(rounds):
    fit = FitAndLabel()
    run(stages_of(rounds), fit)
    teacher, labels, student, again, last = fit.calls
    assert [words[0] for words in fit.calls] == ["fit", "autolabel", "fit", "autolabel", "fit"]
    given = ["--data.root", "here", "--data.mask_values", "[0,", "-1]", "--model.lr", "-1"]
    assert teacher[1:12] == ["-c", "data.yaml", "-c", "1_teacher.yaml", *given]
    assert labels[1:14] == [*teacher[1:12], "-c", "2_labels.yaml"]
    assert value(labels, "--ckpt_path") == "out/1_teacher"
    assert value(labels, "--autolabel.output") == "out/2_labels/data"
    assert value(labels, "--trainer.default_root_dir") == "out/2_labels"
    files = ["-c", "data.yaml", "-c", "3_student.yaml", "-c", "out/2_labels/data/data.yaml"]
    assert student[1:11] == [*files, "--model.lr", "-1", "--data.crop_size", "8"]
    assert not any("--data.root" in words for words in (student, last))
    # the second round labels the same images, and by the student
    assert again[1:12] == ["-c", "data.yaml", "-c", "3_student.yaml", *given]
    assert value(again, "--ckpt_path") == "out/3_student"
    assert last[5:7] == ["-c", "out/4_labels/data/data.yaml"]
    assert not any("weights" in word for words in fit.calls for word in words)


def test_labels_are_made_once_and_other_labels_are_told(rounds):
    run(stages_of(rounds), FitAndLabel())
    run(stages_of(rounds), None)
    for name in ("done", "settings.json"):
        Path("out/2_labels", name).unlink()
    again = FitAndLabel()
    run(stages_of(rounds), again)  # the folder appeared when it was complete
    assert again.calls == []
    Path("out/2_labels/data/autolabel.json").write_text("others")
    with pytest.raises(SetupError, match=r"out/3_student was .*: what it starts from changed"):
        run(stages_of(rounds), None)


def test_a_stage_of_labels_needs_a_network_before_it(files, capsys):
    Path("2_labels.yaml").write_text(LABELS)
    for stages in (["2_labels.yaml", "3_c.yaml"], ["1_a.yaml", "2_labels.yaml"]):
        with pytest.raises(SystemExit):
            stages_of(["--stages", *stages, "--out", "out"])
        assert "2_labels is an autolabel, and no stage before it trains" in capsys.readouterr().err
