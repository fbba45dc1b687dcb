"""The pieces of configs/callbacks: a running mean, early stopping, searches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import TWO, in_processes
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder
from methods import FOR_SEGMENTATION, PIECES, TWO_PLAYERS, tiny_words
from places import ROOT
from small_runs import quiet_trainer, scenes, tiny

import cli
from lightning_seg import CrossEntropyModule, PolyLR, SetupError
from lightning_seg.callbacks import BatchSizeSearch, LearningRateSearch, NetworkEMA

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",
    "ignore:Skipping .* since `fast_dev_run` is enabled",
)
ONE_PLAYER = [name for name in PIECES if name not in TWO_PLAYERS]


def piece(name: str) -> list[str]:
    return ["-c", f"{ROOT}/configs/callbacks/{name}.yaml"]


def weights(run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# The running mean


class ByHand:
    """Averages the network, and keeps the opponent's weights of the last step."""

    def __init__(self) -> None:
        self.mean, self.opponent = None, None

    def add(self, module) -> None:
        now = {name: value.double().clone() for name, value in module.network.named_parameters()}
        before = self.mean or now
        self.mean = {name: 0.75 * before[name] + 0.25 * now[name] for name in now}
        if hasattr(module, "opponent"):
            self.opponent = [value.clone() for value in module.opponent.parameters()]


@pytest.mark.parametrize("method", PIECES)
def test_the_running_mean_is_the_one_by_hand_and_ends_in_the_network(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, before = ByHand(), NetworkEMA.on_train_batch_end

    def both(self, trainer, pl_module, *others) -> None:
        hand.add(pl_module)
        before(self, trainer, pl_module, *others)

    monkeypatch.setattr(NetworkEMA, "on_train_batch_end", both)
    words = [*tiny_words(method), *piece("ema"), "--trainer.callbacks.decay=0.75"]
    run = cli.main(["fit", *words, "--trainer.max_epochs=2", "--trainer.limit_train_batches=3"])
    found = dict(run.model.network.named_parameters())
    assert found.keys() == hand.mean.keys()
    for name, value in hand.mean.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)
    if method in TWO_PLAYERS:
        pairs = zip(run.model.opponent.parameters(), hand.opponent, strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("method", ["cross_entropy", "asml", "semi_adv", "mix_match"])
def test_a_run_with_a_running_mean_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    words = [*tiny_words(method), *piece("ema"), "--trainer.callbacks.decay=0.6"]
    if method in FOR_SEGMENTATION:
        words += ["--model.class_weights=[1,2,3,4,5,6,7,8]"]
    words += ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"]
    words += ["--model.lr_scheduler.total_iters=9"]  # and whatever else follows the length
    if method in TWO_PLAYERS:
        words += ["--model.opponent_lr_scheduler.total_iters=9"]
        words += ["--model.decay_steps=9" if method == "asml" else "--model.semi_start=1"]
    whole = cli.main(["fit", *words, "--trainer.max_steps=5", "--trainer.default_root_dir=whole"])
    part = cli.main(["fit", *words, "--trainer.max_steps=2", "--trainer.default_root_dir=part"])
    (path,) = (tmp_path / "part").rglob("*.ckpt")
    stored = torch.load(path, weights_only=True)
    assert equal(stored["state_dict"], weights(part))  # the mean
    on = [*words, "--trainer.max_steps=5", "--trainer.default_root_dir=on", f"--ckpt_path={path}"]
    assert equal(weights(cli.main(["fit", *on])), weights(whole))


def test_validation_and_checkpoint_are_of_the_mean_and_training_goes_on_from_the_weights(
    tmp_path: Path,
) -> None:
    words = [*tiny_words("cross_entropy"), "--trainer.max_steps=4", "--seed_everything=3"]
    plain = cli.main(["fit", *words, "--trainer.default_root_dir=plain"])
    run = cli.main(["fit", *words, *piece("ema"), "--trainer.default_root_dir=mean"])
    (path,) = (tmp_path / "mean").rglob("*.ckpt")
    stored = torch.load(path, weights_only=True)
    assert equal(stored["current_model_state"], weights(plain))
    assert equal(stored["state_dict"], weights(run))
    assert not equal(stored["state_dict"], stored["current_model_state"])
    scored = cli.main(["validate", *words, *piece("ema"), f"--ckpt_path={path}"])
    for name in ("val/miou", "val/loss"):
        found, expected = (each.trainer.callback_metrics[name] for each in (scored, run))
        torch.testing.assert_close(found, expected)


def test_before_the_first_step_of_the_mean_the_weights_are_validated_and_stored(
    tmp_path: Path,
) -> None:
    words = [*tiny_words("cross_entropy"), "--trainer.max_steps=2", "--seed_everything=3"]
    plain = cli.main(["fit", *words, "--trainer.default_root_dir=plain"])
    late = ["--trainer.callbacks.update_starting_at_step=1000", "--trainer.default_root_dir=mean"]
    run = cli.main(["fit", *words, *piece("ema"), *late])
    (path,) = (tmp_path / "mean").rglob("*.ckpt")
    assert equal(torch.load(path, weights_only=True)["state_dict"], weights(plain))
    assert equal(weights(run), weights(plain))


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"update_every_n_steps": 0}])
def test_an_impossible_mean_is_refused(options: dict) -> None:
    (name,) = options
    with pytest.raises(SetupError, match=f"{name} must be in .*option: trainer.callbacks.{name}="):
        NetworkEMA(**options)


# Early stopping


@pytest.mark.parametrize("method", ["cross_entropy", "asml", "colorization"])
def test_a_training_stops_where_the_score_no_longer_rises(method: str) -> None:
    words = [*tiny_words(method), *piece("early_stopping"), "--trainer.callbacks.patience=1"]
    words += ["--trainer.max_epochs=9", "--trainer.limit_train_batches=1", "--model.lr=1e-30"]
    run = cli.main(["fit", *words, "--trainer.limit_val_batches=1"])
    assert 2 <= run.trainer.current_epoch < 9


# The learning rate


@pytest.mark.parametrize("method", ONE_PLAYER)
def test_a_training_starts_from_the_rate_that_was_found(method: str) -> None:
    """It is the training of a run that was given this rate."""
    words = [*tiny_words(method), "--trainer.max_epochs=1"]  # which is shorter than the search
    search = [*piece("lr_finder"), "--trainer.callbacks.num_training_steps=20"]
    found = cli.main(["fit", *words, *search, "--trainer.default_root_dir=found"])
    assert found.model.lr != 0.01
    assert 0 < found.trainer.global_step < 20
    given = [*words, f"--model.lr={found.model.lr!r}", "--trainer.default_root_dir=given"]
    assert equal(weights(cli.main(["fit", *given])), weights(found))


class Rates(LearningRateSearch):
    """Keeps the learning rates of the training."""

    def on_train_batch_start(self, trainer, *_args) -> None:
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.seen = [*getattr(self, "seen", []), rates]


class RawRates(LearningRateFinder):
    """The same of Lightning's own class."""

    on_train_batch_start = Rates.on_train_batch_start


@pytest.mark.parametrize(("kind", "factor"), [(Rates, 0.1), (RawRates, 1.0)])
def test_poly_lr_falls_from_the_found_rate(kind, factor: float, tmp_path: Path) -> None:
    search = kind(min_lr=1e-5, max_lr=1.0, num_training_steps=15)
    ours = tiny(CrossEntropyModule, lr_scheduler=PolyLR, backbone_lr_factor=factor)
    quiet_trainer(tmp_path, max_steps=4, callbacks=[search]).fit(ours, scenes())
    assert len(search.seen) == 4
    for step, rates in enumerate(search.seen):
        expected = ours.lr * (1 - step / 4) ** 0.9
        assert rates[-1] == pytest.approx(expected)
        assert rates[0] == pytest.approx(expected * factor)


@pytest.mark.parametrize("method", TWO_PLAYERS)
@pytest.mark.parametrize("raw", [False, True])
def test_two_players_have_no_learning_rate_to_search(method: str, raw: bool) -> None:
    words = [*tiny_words(method), "--trainer.max_steps=2"]
    lightnings = "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateFinder"
    search = [lightnings] if raw else piece("lr_finder")
    with pytest.raises(SetupError, match=r"is searched for one optimizer, and \w+Module has two"):
        cli.main(["fit", *words, *search])


def test_a_resumed_run_searches_neither_rate_nor_size(tmp_path: Path) -> None:
    searches = [*piece("lr_finder"), *piece("batch_size_finder")]
    words = [*tiny_words("cross_entropy"), *searches, "--model.lr_scheduler.total_iters=9"]
    words += ["--trainer.limit_val_batches=1"]
    whole = cli.main(["fit", *words, "--trainer.max_steps=3", "--trainer.default_root_dir=whole"])
    cli.main(["fit", *words, "--trainer.max_steps=2", "--trainer.default_root_dir=part"])
    (path,) = (tmp_path / "part").rglob("*.ckpt")
    on = [*words, "--trainer.max_steps=3", "--trainer.default_root_dir=on", f"--ckpt_path={path}"]
    resumed = cli.main(["fit", *on])
    assert resumed.datamodule.batch_size == whole.datamodule.batch_size
    assert equal(weights(resumed), weights(whole))


# The batch size


@pytest.mark.parametrize("method", PIECES)
def test_a_training_starts_with_the_batch_size_that_was_found(method: str) -> None:
    """It is the training of a run that was given this size; memory is full above 4 images."""
    words = [*tiny_words(method), "--trainer.max_steps=3", "--data.train_size=32"]
    words += ["--trainer.limit_val_batches=1", "--data.batch_size=3"]
    search = [*piece("batch_size_finder"), "--trainer.callbacks.max_val=4"]
    found = cli.main(["fit", *words, *search, "--trainer.default_root_dir=found"])
    assert found.datamodule.batch_size == 4
    assert found.trainer.global_step == 3
    given = [*words, "--data.batch_size=4", "--trainer.default_root_dir=given"]
    assert equal(weights(cli.main(["fit", *given])), weights(found))


class Hungry(BatchSizeSearch):
    """Pretends that more than 6 images do not fit the memory."""

    def on_fit_start(self, trainer, pl_module) -> None:
        step = pl_module.training_step

        def limited(batch, batch_idx):
            if len(batch["image"]) > 6:
                raise RuntimeError("CUDA out of memory.")
            return step(batch, batch_idx)

        pl_module.training_step = limited
        super().on_fit_start(trainer, pl_module)


@pytest.mark.parametrize(("mode", "size"), [("power", 4), ("binsearch", 6)])
def test_the_largest_size_that_fits_is_found(mode: str, size: int, tmp_path: Path) -> None:
    data = scenes(train_size=40)
    search = Hungry(mode=mode, margin=0.0, max_val=64)
    ours = tiny(CrossEntropyModule)
    quiet_trainer(tmp_path, max_steps=1, callbacks=[search]).fit(ours, data)
    assert data.batch_size == search.optimal_batch_size == size


# Several processes


def test_two_processes_share_the_mean_the_weights_of_classes_and_the_found_rate(
    tmp_path: Path,
) -> None:
    words = ["fit", *tiny_words("cross_entropy"), "--trainer.max_epochs=1", *TWO]
    words += ["--trainer.limit_train_batches=2"]
    cases = {
        "mean": [*words, *piece("ema"), "--trainer.callbacks.decay=0.5"],
        "weights": [*words, "--model.class_weights=balanced"],
        "rate": [*words, *piece("lr_finder"), "--trainer.callbacks.num_training_steps=15"],
        "size": [*words, *piece("batch_size_finder")],
        "players": ["fit", *tiny_words("asml"), *words[-5:], *piece("ema")],
    }
    first, second = in_processes(
        2,
        tmp_path,
        {
            name: {"words": [*each, f"--trainer.default_root_dir={name}"]}
            for name, each in cases.items()
        },
    )
    assert "BatchSizeSearch runs in one process" in first.pop("size")["refused"]
    for name, found in first.items():
        assert found.get("world") == 2, (name, found)
        other = second[name]
        assert found["scores"]["val/loss"] == other["scores"]["val/loss"]
        named = [key for key in found["weights"] if "running" not in key]  # of each process
        assert all(torch.equal(found["weights"][key], other["weights"][key]) for key in named)


# Together


def test_the_pieces_join_and_a_later_one_of_the_same_class_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "trainer:\n  callbacks:\n    - class_path: lightning.pytorch.callbacks.EarlyStopping\n"
        "      init_args: {monitor: val/loss, mode: min}\n"
    )
    words = [*tiny_words("lmp"), *piece("ema"), *piece("early_stopping"), "-c", "mine.yaml"]
    run = cli.main(["fit", *words, *piece("lr_finder"), "--trainer.fast_dev_run=true"])
    kinds = [type(each) for each in run.trainer.callbacks]
    assert {NetworkEMA, EarlyStopping, LearningRateSearch} <= set(kinds)
    (stopping,) = (each for each in run.trainer.callbacks if isinstance(each, EarlyStopping))
    assert stopping.monitor == "val/loss"
