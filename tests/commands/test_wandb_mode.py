"""A run is logged offline where W&B would stop it, and as the user has chosen elsewhere."""

from __future__ import annotations

import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from small_runs import quiet_trainer

from lightning_seg.commands import wandb_mode
from lightning_seg.commands.wandb_mode import choose_mode


@pytest.fixture
def place(monkeypatch):
    """A machine with a key and a network; both can be taken away."""
    found = SimpleNamespace(key=True, network=True, mode="online", asked=0)

    def login(**options):
        assert options == {"prompt": False, "verify": False}
        return found.key

    def urlopen(address, timeout):
        found.asked += 1
        assert address == "https://wandb.example"
        assert timeout <= 10
        if isinstance(found.network, Exception):
            raise found.network
        return SimpleNamespace(close=lambda: None)

    def setup():
        settings = SimpleNamespace(mode=found.mode, base_url="https://wandb.example")
        return SimpleNamespace(settings=settings)

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb, "setup", setup)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    said = []
    monkeypatch.setattr(wandb_mode, "rank_zero_info", said.append)
    found.said = said
    return found


def chosen(folder, **options):
    logger = WandbLogger(save_dir=folder, project="p", **options)
    choose_mode(quiet_trainer(folder, logger=logger))
    return logger._wandb_init.get("mode")


def test_with_a_key_and_a_network_nothing_changes(tmp_path, place):
    assert chosen(tmp_path) is None
    assert place.said == []


def test_without_a_key_the_run_is_offline_and_one_line_says_so(tmp_path, place):
    place.key = False
    assert chosen(tmp_path) == "offline"
    (line,) = place.said
    assert "no key" in line
    assert "wandb sync" in line
    assert "\n" not in line
    assert place.asked == 0


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), TimeoutError(), ConnectionResetError(), ValueError("odd")],
)
def test_without_a_network_too(tmp_path, place, error):
    place.network = error
    assert chosen(tmp_path) == "offline"
    assert "https://wandb.example cannot be reached" in place.said[0]


def test_any_answer_is_a_network(tmp_path, place):
    place.network = urllib.error.HTTPError("https://wandb.example", 404, "", None, None)
    assert chosen(tmp_path) is None


def test_a_chosen_mode_stays(tmp_path, place, monkeypatch):
    place.key = False
    for mode in ("disabled", "offline", "dryrun"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert chosen(tmp_path) is None
    monkeypatch.setenv("WANDB_MODE", "online")
    assert chosen(tmp_path) == "offline"
    monkeypatch.delenv("WANDB_MODE")
    assert chosen(tmp_path, mode="disabled") == "disabled"
    place.mode = "disabled"
    assert chosen(tmp_path) is None


def test_other_loggers_ask_nothing(tmp_path, place):
    place.key = False
    choose_mode(quiet_trainer(tmp_path, logger=CSVLogger(tmp_path)))
    assert place.said == []
