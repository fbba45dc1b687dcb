"""Any loss of pixels, sums of them and counted class weights, in every method."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from methods import FOR_SEGMENTATION, SUPERVISED, tiny_words
from small_runs import SMALL_WORDS, fit, outputs, saved, scenes, tiny
from tiny import TinyNet

import cli
from datamodules import SyntheticScenesDataModule
from lightning_seg import CPGModule, CrossEntropyModule, LMPModule, SemiAdvModule, SetupError
from lightning_seg.losses import CrossEntropy, LossMaxPooling, WeightedSum, cross_entropy

SMP = ["DiceLoss", "LovaszLoss", "FocalLoss", "TverskyLoss", "JaccardLoss"]
NAMED = [f"segmentation_models_pytorch.losses.{name}" for name in SMP]
LOSSES = {"cross_entropy": "lightning_seg.losses.CrossEntropy"}
LOSSES |= {name: {"class_path": path} for name, path in zip(SMP, NAMED, strict=True)}
WEIGHTS = {"DiceLoss": 0.5, "LovaszLoss": 0.25}
SUM = {
    "class_path": "lightning_seg.losses.WeightedSum",
    "init_args": {"losses": LOSSES, "weights": WEIGHTS},
}


def dice(**options) -> smp.losses.DiceLoss:
    return smp.losses.DiceLoss("multiclass", **options)


@pytest.fixture(scope="module")
def piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "sum.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"pixel_loss": SUM}}}))
    return path


PAIRS = [(method, NAMED[0]) for method in FOR_SEGMENTATION]
PAIRS += [("cross_entropy", loss) for loss in (*NAMED[1:], "torch.nn.CrossEntropyLoss")]


@pytest.mark.parametrize(("method", "loss"), PAIRS)
def test_every_method_trains_with_a_loss_of_another_library_by_name(
    method: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny_words(method), f"--model.pixel_loss={loss}", "--trainer.max_steps=2"]
    run = cli.main(["fit", *words, "--trainer.limit_val_batches=1"])
    assert run.trainer.global_step == 2
    assert run.trainer.callback_metrics["val/loss"].isfinite()
    found = [part for part in run.model.loss.modules() if type(part).__name__ in loss]
    assert [part.ignore_index for part in found] == [255]
    (path,) = tmp_path.rglob("*.ckpt")
    again = type(run.model).load_from_checkpoint(path, weights_only=True)
    assert repr(again.loss) == repr(run.model.loss)


@pytest.mark.parametrize("method", FOR_SEGMENTATION)
def test_every_method_logs_a_sum_from_yaml_term_by_term(
    method: str, piece: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny_words(method), "-c", str(piece), "--trainer.max_steps=2"]
    run = cli.main(["fit", *words, "--trainer.log_every_n_steps=1", "--model.network.aux=true"])
    logged = run.trainer.callback_metrics
    names = {f"loss_{name}": WEIGHTS.get(name, 1.0) for name in LOSSES}
    names |= {"loss_lmp": 1.0} if method == "lmp" else {}
    assert {f"train/{name}" for name in names} < logged.keys()
    pixels = sum(weight * logged[f"train/{name}"] for name, weight in names.items())
    whole = logged["train/loss_main"] + 0.4 * logged["train/loss_aux"]
    torch.testing.assert_close(pixels, whole)
    total = {"cpg": "train/loss_pixel", "asml": "train/loss_pixel"}.get(method, "train/loss")
    if method != "semi_adv":  # whose loss has other terms, too
        torch.testing.assert_close(logged[total], whole)


@pytest.mark.parametrize("aux", [False, True])
def test_the_terms_are_those_by_hand_also_of_auxiliary_logits(aux: bool, tmp_path: Path) -> None:
    both = WeightedSum({"ce": CrossEntropy(), "dice": dice()}, {"dice": 0.5})
    ours = tiny(CrossEntropyModule, aux=aux, pixel_loss=both, lambda_aux=0.3)
    seen, kept = fit(ours, tmp_path, change=lambda batch: batch["mask"][0, 3:9].fill_(255))
    logits, target = outputs(seen.seen[0])
    by_hand = {"ce": cross_entropy, "dice": dice(ignore_index=255)}
    factors = {"out": 1.0, "aux": 0.3}
    terms = {
        name: sum(factors[key] * loss(each, target).item() for key, each in logits.items())
        for name, loss in by_hand.items()
    }
    row = kept.rows[0]
    assert row["train/loss_ce"] == pytest.approx(terms["ce"], rel=1e-5)
    assert row["train/loss_dice"] == pytest.approx(terms["dice"], rel=1e-5)
    assert row["train/loss"] == pytest.approx(terms["ce"] + 0.5 * terms["dice"], rel=1e-5)


def test_validation_reports_the_mean_of_the_images_losses_by_their_labelled_pixels(
    tmp_path: Path,
) -> None:
    ours, data = tiny(CrossEntropyModule, pixel_loss=dice()), scenes()
    fit(ours, tmp_path, data, limit_val_batches=1.0, max_steps=2)
    ours.eval()
    losses, pixels = [], []
    for batch in data.val_dataloader():
        with torch.no_grad():
            losses.append(dice(ignore_index=255)(ours(batch["image"]), batch["mask"]))
        pixels.append((batch["mask"] != 255).sum())
    losses, pixels = torch.stack(losses), torch.stack(pixels)
    found = ours.trainer.callback_metrics["val/loss"]
    torch.testing.assert_close(found, (losses * pixels).sum() / pixels.sum())


def test_max_pooling_is_added_to_a_loss_in_its_own_method(tmp_path: Path) -> None:
    lovasz = smp.losses.LovaszLoss("multiclass")
    ours = tiny(LMPModule, p=1.3, ratio=0.2, pixel_loss=lovasz, lambda_pixel=0.7)
    seen, kept = fit(ours, tmp_path)
    logits, target = outputs(seen.seen[0])
    pooled = LossMaxPooling(1.3, 0.2)(logits["out"], target).item()
    other = smp.losses.LovaszLoss("multiclass", ignore_index=255)(logits["out"], target).item()
    assert kept.rows[0]["train/loss_lmp"] == pytest.approx(pooled, rel=1e-5)
    assert kept.rows[0]["train/loss_pixel"] == pytest.approx(other, rel=1e-5)
    assert kept.rows[0]["train/loss"] == pytest.approx(pooled + 0.7 * other, rel=1e-5)
    assert 0 < kept.rows[0]["train/support"] <= 1


@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_batch_without_labels_trains_nothing_with_another_librarys_loss(kind, tmp_path) -> None:
    ours = tiny(kind, pixel_loss=smp.losses.FocalLoss("multiclass"))
    before = {name: value.clone() for name, value in ours.network.named_parameters()}
    _, kept = fit(ours, tmp_path, change=lambda batch: batch["mask"].fill_(255))
    assert kept.rows[0]["train/loss"] == 0
    for name, value in ours.network.named_parameters():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("kind", "name"),
    [(CPGModule, "pixel"), (SemiAdvModule, "d"), (LMPModule, "lmp"), (CrossEntropyModule, "aux")],
)
def test_a_term_cannot_have_a_name_that_the_method_logs(kind, name: str) -> None:
    with pytest.raises(SetupError, match=f"`loss_{name}` of its own: give the term `{name}`"):
        kind(TinyNet(8), num_classes=8, pixel_loss=WeightedSum({name: CrossEntropy()}))


@pytest.mark.parametrize("method", FOR_SEGMENTATION)
def test_no_term_of_a_method_is_missing_among_its_own_names(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny_words(method), "--model.network.aux=true", "--trainer.max_steps=2"]
    words += ["--model.false_edges=1"] if method == "cpg" else []
    words += ["--model.semi_start=0"] if method == "semi_adv" else []
    run = cli.main(["fit", *words, "--trainer.log_every_n_steps=1"])
    logged = {re.sub(r"^train/loss_", "", name) for name in run.trainer.callback_metrics}
    logged = {name for name in logged if "/" not in name}
    assert logged == {*run.model.own_terms, "main", "aux"}


def test_smoothing_of_a_cross_entropy_that_is_replaced_is_refused() -> None:
    with pytest.raises(SetupError, match=r"label_smoothing 0.1 is for the cross-entropy, which D"):
        tiny(CrossEntropyModule, pixel_loss=dice(), label_smoothing=0.1)


# Class weights


class FourPixels(SyntheticScenesDataModule):
    """Scenes whose masks are counted by hand: 6, 4 and 2 pixels of the first three classes."""

    def class_pixels(self):
        return torch.tensor([[6, 0, 2, 0, 0, 0, 0, 0], [0, 4, 0, 0, 0, 0, 0, 0]]).numpy()


def weights_of(loss) -> list[torch.Tensor]:
    found = [getattr(part, name, None) for part in loss.modules() for name in ("class_weights",)]
    return [each for each in found if each is not None]


HAND = [2 / 3, 1.0, 2.0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", SUPERVISED)
def test_counted_weights_reach_the_loss_and_stay_in_the_checkpoint(kind, tmp_path: Path) -> None:
    data = FourPixels(train_size=4, val_size=2, image_size=(32, 40), crop_size=24, num_workers=0)
    ours = tiny(kind, class_weights="balanced")
    with pytest.warns(UserWarning, match="no training label shows class_3, .* whose weight is 0"):
        fit(ours, tmp_path, data)
    assert [each.tolist() for each in weights_of(ours.loss)] == [pytest.approx(HAND)]
    ours.trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = kind.load_from_checkpoint(
        tmp_path / "a.ckpt", network=TinyNet(8), weights_only=True
    )  # where no data is
    assert [each.tolist() for each in weights_of(again.loss)] == [pytest.approx(HAND)]


def test_the_data_counts_its_labelled_training_images_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*SMALL_WORDS, "--model=CrossEntropyModule", "--model.class_weights=balanced"]
    words += ["--data.labeled=3", "--trainer.max_epochs=1", "--data.train_size=6"]
    run = cli.main(["fit", *words])
    data = run.datamodule
    masks = torch.cat([torch.tensor(data._sources["train"].mask(i)).flatten() for i in range(3)])
    counts = torch.bincount(masks, minlength=256)[:8].double()
    present = counts > 0
    expected = torch.where(present, counts.sum() / (present.sum() * counts), 0.0).float()
    torch.testing.assert_close(run.model.loss.class_weights, expected)
    assert len(list(tmp_path.rglob("class_pixels-*.npy"))) == 1

    (path,) = tmp_path.rglob("*.ckpt")
    monkeypatch.setattr(type(data), "class_pixels", None)  # a count would fail
    scored = cli.main(["validate", *words, f"--ckpt_path={path}"])
    torch.testing.assert_close(scored.model.loss.class_weights, expected)


def test_weights_change_the_loss_as_numbers_given_by_hand_do(tmp_path: Path) -> None:
    rows = []
    for given in ("balanced", HAND):
        data = FourPixels(
            train_size=4, val_size=2, image_size=(32, 40), crop_size=24, num_workers=0, seed=0
        )
        ours = tiny(CrossEntropyModule, class_weights=given)
        if given == "balanced":
            with pytest.warns(UserWarning, match="whose weight is 0"):
                _, kept = fit(ours, tmp_path, data)
        else:
            _, kept = fit(ours, tmp_path, data)
        rows.append(kept.rows[0]["train/loss"])
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)


def test_weights_act_on_the_parts_of_a_sum_that_weigh_pixels() -> None:
    both = WeightedSum({"ce": torch.nn.CrossEntropyLoss(), "dice": dice()})
    ours = tiny(CrossEntropyModule, pixel_loss=both, class_weights=[*range(1, 9)])
    ce, other = both.losses
    assert ce.loss.weight.tolist() == [*range(1, 9)]
    assert other.class_weights is None
    assert ours.loss is both


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "2 class_weights for 8 classes"),
        ({"class_weights": [-1.0] * 8}, "class_weights must be at least 0, not -1"),
        ({"class_weights": [0.0] * 8}, "all class_weights are 0"),
        ({"class_weights": "inverse"}, "class_weights must be balanced or effective, not inverse"),
        ({"class_weights": [1.0] * 8, "pixel_loss": dice()}, "and DiceLoss has none to set"),
    ],
)
def test_impossible_class_weights_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        tiny(CrossEntropyModule, **options)


def test_weights_that_nobody_counts_are_refused_before_training(tmp_path: Path) -> None:
    ours = tiny(CrossEntropyModule, class_weights="effective")
    data = scenes()
    data.class_pixels = None
    with pytest.raises(SetupError, match="are counted by a data module with `class_pixels`"):
        fit(ours, tmp_path, data)


def test_a_checkpoint_of_a_sum_loads_in_python(tmp_path: Path) -> None:
    ours = tiny(CrossEntropyModule, pixel_loss=WeightedSum({"a": dice()}))
    path = saved(ours, tmp_path)
    again = CrossEntropyModule.load_from_checkpoint(
        path, network=TinyNet(8), pixel_loss=WeightedSum({"a": dice()}), weights_only=True
    )
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in again.state_dict().items())
