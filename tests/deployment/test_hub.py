"""Trained networks in folders of the HuggingFace Hub, without a network connection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from small_runs import tiny

import cli
import lightning_seg
from lightning_seg import CrossEntropyModule, Segmenter, SetupError
from lightning_seg.deployment.model_card import history_of


def test_a_folder_gives_the_network_back_and_nothing_is_lost_on_a_second_round(
    run, tmp_path: Path
) -> None:
    model, path, _, image = run
    network = lightning_seg.load(path)
    network.save_pretrained(tmp_path / "one")
    assert {each.name for each in (tmp_path / "one").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    once = Segmenter.from_pretrained(tmp_path / "one")
    once.save_pretrained(tmp_path / "two")
    twice = lightning_seg.load(tmp_path / "two")
    for each in (once, twice):
        assert not each.training
        assert np.array_equal(each.predict(image), network.predict(image))
        assert each.class_names == model.class_names
        assert each.history == network.history
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config["class_names"] == model.class_names
    assert config["output"] == "labels"
    shares = Segmenter.from_pretrained(tmp_path / "one", output="probabilities")
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    torch.testing.assert_close(shares(batch), model(batch).softmax(1))


def test_weights_that_were_changed_are_those_that_are_saved(run, tmp_path: Path) -> None:
    network = lightning_seg.load(run[1])
    with torch.no_grad():
        next(network.network.parameters()).fill_(0.25)
    network.save_pretrained(tmp_path)
    assert (next(Segmenter.from_pretrained(tmp_path).network.parameters()) == 0.25).all()


def test_the_card_shows_the_scores_and_the_configuration_without_paths(run, tmp_path: Path) -> None:
    _, checkpoint, folder, _ = run
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert history_of(checkpoint)["configuration"]["model"] == config["model"]
    words = ["test", "-c", str(folder / "config.yaml"), f"--ckpt_path={checkpoint}"]
    tested = cli.main(words)
    network = lightning_seg.load(checkpoint)
    network.save_pretrained(tmp_path / "horses")
    card = ModelCard.load(tmp_path / "horses/README.md")
    (result,) = card.data.eval_results
    miou = float(tested.trainer.callback_metrics["test/miou"])
    assert result.metric_value == pytest.approx(miou, abs=1e-6)
    assert (result.metric_name, result.task_name) == ("mIoU", None)
    assert card.data.model_name == "horses"
    assert card.data.pipeline_tag == "image-segmentation"
    assert f"| **mean** | **{100 * miou:.1f}** |" in card.text
    assert all(f"| {name} | " in card.text for name in network.class_names)
    assert 'Segmenter.from_pretrained("horses")' in card.text
    # not where the run was, and not who ran it
    assert str(folder) not in card.text + (tmp_path / "horses/config.json").read_text()
    block = card.text.split("```yaml")[1].split("```")[0]
    assert yaml.safe_load(block)["model"]["class_path"].endswith("CrossEntropyModule")
    # scores of another checkpoint are not this one's
    other = tmp_path / "run/checkpoints/other.ckpt"
    other.parent.mkdir(parents=True)
    shutil.copy(checkpoint, other)
    shutil.copy(folder / "config.yaml", tmp_path / "run")
    shutil.copytree(folder / "test", tmp_path / "run/test")
    assert "miou" not in history_of(other)
    assert "No scores" in lightning_seg.load(other).generate_model_card(name="x").text


def test_the_hub_gets_the_same_files_under_the_name_of_the_repository(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {}

    class Repository:
        repo_id = "me/horses"

    def upload(self, *, folder_path: Path, **options: object) -> str:
        sent.update({each.name: each.read_bytes() for each in Path(folder_path).iterdir()})
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **options: Repository)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert lightning_seg.load(run[1]).push_to_hub("me/horses") == "address"
    assert sent.keys() == {"README.md", "config.json", "model.safetensors"}
    assert b'from_pretrained("me/horses")' in sent["README.md"]


def test_export_to_a_name_without_suffix_writes_the_folder(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, folder, image = run
    words = [f"--ckpt_path={folder}", f"--output={tmp_path}/mine"]
    assert cli.main(["export", *words]) == 0
    assert f"written: {tmp_path}/mine, which" in capsys.readouterr().out
    assert Segmenter.from_pretrained(tmp_path / "mine").predict(image).shape == (75, 98)
    with pytest.raises(SetupError, match="keeps float32 weights"):
        cli.main(["export", *words, "--precision=float16"])


def test_what_cannot_be_shared_or_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="built in Python does not say how to build it again"):
        Segmenter(tiny(CrossEntropyModule)).save_pretrained(tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "b").mkdir()
    with pytest.raises(SetupError, match="is a folder, expected a file"):
        Segmenter.from_pretrained(tmp_path / "b")
