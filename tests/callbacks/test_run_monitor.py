"""What the dashboards show of a run, against plain computations."""

from __future__ import annotations

from hashlib import sha256

import lightning as L
import numpy as np
import pytest
import torch
from small_runs import Kept, quiet_trainer, scenes, tiny
from torch.utils.data import DataLoader

from lightning_seg import ASMLModule, CrossEntropyModule, PolyLR
from lightning_seg.callbacks import RunMonitor, run_monitor
from lightning_seg.callbacks.run_facts import class_shares, run_facts
from lightning_seg.provenance import commit


class Rates(L.Callback):
    """Keeps the learning rates that each step is made with, and the weights before it."""

    def __init__(self) -> None:
        self.rates, self.weights = [], []

    def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
        pass

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        groups = [group for each in trainer.optimizers for group in each.param_groups]
        self.rates.append([group["lr"] for group in groups])
        self.weights.append([[w.clone() for w in group["params"]] for group in groups])

    def on_train_end(self, trainer, pl_module) -> None:
        self.on_train_batch_start(trainer, pl_module, None, 0)


def fit(folder, module, monitor=None, data=None, **options):
    seen, kept = Rates(), Kept()
    callbacks = [seen, monitor or RunMonitor()]
    options = {"max_steps": 3, "limit_val_batches": 0, **options}
    trainer = quiet_trainer(folder, callbacks=callbacks, logger=kept, **options)
    trainer.fit(module, data or scenes())
    return seen, kept.rows


def test_every_group_has_the_learning_rate_of_the_step(tmp_path):
    options = {"lr_scheduler": PolyLR, "backbone_lr_factor": 0.1, "head_bias_lr_factor": 2.0}
    seen, rows = fit(tmp_path, tiny(CrossEntropyModule, **options))
    keys = [f"lr/network/{name}" for name in ("backbone", "head", "head_bias")]
    for step in range(3):
        logged = [rows[step][key] for key in keys]
        np.testing.assert_allclose(logged, seen.rates[step], rtol=1e-6)
    assert rows[2][keys[1]] < rows[0][keys[1]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_norms_are_those_of_the_steps(tmp_path, accumulate):
    """Plain SGD moves the weights by the learning rate times the gradient."""
    plain = torch.optim.SGD
    module = tiny(
        ASMLModule,
        accumulate_grad_batches=accumulate,
        opponent_optimizer=lambda groups: plain(groups, lr=0.01),
    )
    data = scenes(train_size=16)
    seen, rows = fit(tmp_path, module, data=data, max_steps=2)
    for step in range(2):
        before, after = seen.weights[step * accumulate], seen.weights[(step + 1) * accumulate]
        for place, (player, rate) in enumerate([("network", 0.05), ("opponent", 0.01)]):
            moved = [(b - a).norm() for a, b in zip(before[place], after[place], strict=True)]
            slow = torch.stack(moved).norm() / rate
            assert rows[step][f"gradient/{player}"] == pytest.approx(slow.item(), rel=1e-3)
            assert rows[step][f"lr/{player}"] == pytest.approx(rate)


def test_a_norm_is_taken_before_clipping(tmp_path):
    _, free = fit(tmp_path, tiny(CrossEntropyModule), max_steps=1)
    _, clipped = fit(tmp_path, tiny(CrossEntropyModule), max_steps=1, gradient_clip_val=1e-3)
    assert free[0]["gradient/network"] == clipped[0]["gradient/network"] > 1e-2


def test_only_logged_steps_have_values(tmp_path):
    _, rows = fit(tmp_path, tiny(CrossEntropyModule), max_steps=6, log_every_n_steps=3)
    assert sorted(step for step, row in rows.items() if "lr/network" in row) == [2, 5]


class Clock:
    """A clock that only what is timed moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(CrossEntropyModule):
    """A step takes 1 second, a validation batch 100."""

    clock: Clock

    def training_step(self, batch, batch_idx):
        self.clock.now += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.clock.now += 100
        return super().validation_step(batch, batch_idx)


def test_speed_and_the_wait_for_data_leave_validations_out(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_monitor, "time", clock)
    module, data = tiny(Slow), scenes(train_size=16)
    module.clock = clock
    loader = data.train_dataloader

    def slow_loader():
        stream = loader()
        batches = type(stream).__iter__

        class Waiting(type(stream)):
            def __iter__(self):
                for batch in batches(self):
                    clock.now += 3
                    yield batch

        stream.__class__ = Waiting
        return stream

    monkeypatch.setattr(data, "train_dataloader", slow_loader)
    options = {"max_steps": 8, "limit_val_batches": 1, "log_every_n_steps": 4}
    _, rows = fit(tmp_path, module, data=data, **options)
    for step in (3, 7):
        assert rows[step]["speed/images_per_second"] == pytest.approx(16 / 16, rel=0.26)
        assert rows[step]["speed/data_share"] == pytest.approx(12 / 16, abs=0.07)
        assert 0.05 < rows[step]["memory/peak_gb"] < 64


def test_what_is_switched_off_is_not_logged(tmp_path):
    _, rows = fit(tmp_path, tiny(CrossEntropyModule), RunMonitor(gradients=False, speed=False))
    assert not [key for key in rows[0] if key.startswith(("gradient", "speed", "memory"))]
    assert "lr/network" in rows[0]


class Settings(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.settings = {}

    def log_hyperparams(self, params, *args) -> None:
        self.settings |= params


def test_the_loggers_know_code_data_and_classes(tmp_path):
    kept, data = Settings(), scenes()
    trainer = quiet_trainer(tmp_path, callbacks=[RunMonitor()], logger=kept, max_steps=2)
    trainer.fit(tiny(CrossEntropyModule), data)
    facts = kept.settings["run"]
    assert facts["dataset"] == "SyntheticScenes"
    assert facts["git_commit"] == commit()
    assert facts["images"] == {"train": 8, "val": 3}
    ids = sorted(data.source("val").ids)
    assert facts["split_hash"]["val"] == sha256("\n".join(ids).encode()).hexdigest()[:12]
    assert facts["classes"] == 8
    masks = np.stack([data.source("val")[index].mask for index in range(3)])
    shares = kept.settings["class_shares_val"]
    for index, name in enumerate(shares):
        assert shares[name] == pytest.approx(
            (masks == index).sum() / (masks != 255).sum(), abs=1e-5
        )


def test_data_of_ones_own_have_fewer_facts(tmp_path):
    batch = {"image": torch.zeros(1, 3, 8, 8), "mask": torch.zeros(1, 8, 8).long(), "id": ["a"]}
    kept = Settings()
    trainer = quiet_trainer(tmp_path, callbacks=[RunMonitor()], logger=kept, max_steps=1)
    loader = DataLoader([batch], batch_size=None)
    trainer.fit(tiny(CrossEntropyModule), loader, loader)
    assert kept.settings["run"]["dataset"] is None
    assert kept.settings["run"]["images"] == {}
    assert run_facts(trainer, trainer.lightning_module)["classes"] == 8


def test_void_images_have_no_shares():
    assert class_shares(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"]) == {"a": 0.0, "b": 0.0}
