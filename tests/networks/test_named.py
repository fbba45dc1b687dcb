"""Networks of other libraries and functions by their names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_seg import CrossEntropyModule, SetupError
from lightning_seg.networks import NamedNetwork
from lightning_seg.training.optimization import backbone_of

SMP, VISION = "segmentation_models_pytorch", "torchvision.models.segmentation"
SEGFORMER = "transformers.SegformerForSemanticSegmentation"
TINY_SEGFORMER = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}
CASES = {
    "smp unet": (f"{SMP}.Unet", {"encoder_name": "resnet18"}, "encoder"),
    "smp segformer": (f"{SMP}.Segformer", {"encoder_name": "mit_b0"}, "encoder"),
    "lraspp": (f"{VISION}.lraspp_mobilenet_v3_large", {}, "backbone"),
    "fcn": (f"{VISION}.fcn_resnet50", {"aux_loss": True}, "backbone"),
    "segformer": (SEGFORMER, TINY_SEGFORMER, "segformer"),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a user, whose functions and classes can be named."""
    module = ModuleType("mine_of_a_user")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def named(case: str, num_classes: int = 5) -> NamedNetwork:
    path, arguments, _ = CASES[case]
    if path.startswith("transformers"):
        pytest.importorskip("transformers")
    return NamedNetwork(num_classes, path, arguments)


@pytest.mark.parametrize("case", CASES)
def test_logits_have_the_size_of_the_image_and_the_encoder_is_found(case: str) -> None:
    ours = named(case)
    assert ours.training
    assert all(part.training for part in ours.modules())
    found = ours(torch.randn(2, 3, 90, 107))
    for logits in (found["out"], *found.get("aux", [])):
        assert logits.shape == (2, 5, 90, 107)
    assert ("aux" in found) == (case == "fcn")
    part = CASES[case][2]
    assert backbone_of(ours) is ours.encoder is getattr(ours.network, part)
    sum(logits.sum() for logits in (found["out"], *found.get("aux", []))).backward()
    assert all(each.grad is not None for each in ours.encoder.parameters())


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given, **options):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(smp.encoders, "hf_hub_download", refuse)
    for case in CASES:
        named(case)
    asked = {"encoder_name": "resnet18", "encoder_weights": "imagenet"}
    with pytest.raises(SetupError, match=r"cannot be built for 5 classes .*: a download"):
        NamedNetwork(5, f"{SMP}.Unet", asked)
    with pytest.raises(SetupError, match="a download"):
        NamedNetwork(5, f"{VISION}.fcn_resnet50", {"weights_backbone": "IMAGENET1K_V1"})
    NamedNetwork(5, f"{SMP}.Unet", asked, load_weights=False)


def test_the_normalisation_is_that_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch.encoders as encoders

    known = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "input_space": "RGB"}
    asked = {"encoder_name": "resnet18", "encoder_weights": "imagenet"}
    weights = encoders.get_encoder("resnet18", weights=None).state_dict()
    monkeypatch.setattr(encoders, "hf_hub_download", lambda *given, **options: "file")
    monkeypatch.setattr(encoders, "load_file", lambda *given, **options: weights)
    for span, space in (([0, 1], "RGB"), ([0, 255], "RGB"), ([0, 1], "BGR")):
        settings = {**known, "input_range": span, "input_space": space}
        monkeypatch.setattr(
            encoders, "get_preprocessing_params", lambda *given, settings=settings: settings
        )
        if span == [0, 1] and space == "RGB":
            ours = CrossEntropyModule(
                lambda count: NamedNetwork(count, f"{SMP}.Unet", asked), num_classes=5
            )
            assert ours.image_mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
            assert ours.image_std.flatten().tolist() == pytest.approx([0.2, 0.2, 0.1])
            assert ours.network.encoder.pretrained
        else:
            with pytest.raises(SetupError, match="are for images in"):
                NamedNetwork(5, f"{SMP}.Unet", asked)
    plain = CrossEntropyModule(
        lambda count: NamedNetwork(count, f"{VISION}.fcn_resnet50"), num_classes=5
    )
    assert plain.image_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_images_are_filled_up_and_logits_cropped() -> None:
    ours = named("smp segformer").eval()
    assert ours.multiple == (32, 32)
    image = torch.randn(1, 3, 40, 70)
    whole = F.pad(image, (0, 26, 0, 24), mode="replicate")
    with torch.no_grad():
        assert torch.equal(ours(image)["out"], ours.network(whole)[..., :40, :70])


def test_logits_of_huggingface_are_resized() -> None:
    ours = named("segformer").eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        small = ours.network(image).logits
        assert small.shape == (1, 5, 16, 24)
        expected = F.interpolate(small, (64, 96), mode="bilinear", align_corners=False)
        assert torch.equal(ours(image)["out"], expected)
        direct = CrossEntropyModule(ours.network, num_classes=5)  # the module itself, in Python
        assert direct.eval()(image).shape == (1, 5, 64, 96)


def test_a_transformer_of_a_fixed_size_takes_smaller_images() -> None:
    arguments = {"encoder_name": "tu-vit_tiny_patch16_224", "img_size": 160}
    ours = NamedNetwork(3, f"{SMP}.DPT", arguments)
    assert (ours.multiple, ours.fixed_size) == ((160, 160), True)
    assert ours.eval()(torch.randn(1, 3, 100, 50))["out"].shape == (1, 3, 100, 50)
    with pytest.raises(SetupError, match="at most 160x160 pixels, not 161x50"):
        ours(torch.randn(1, 3, 161, 50))


def test_weights_of_huggingface_come_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=7, **TINY_SEGFORMER)
    theirs = transformers.SegformerForSemanticSegmentation(config)
    theirs.save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    ).save_pretrained(tmp_path)
    ours = NamedNetwork(5, SEGFORMER, {"pretrained": str(tmp_path)})
    for name, value in theirs.segformer.state_dict().items():
        assert torch.equal(ours.encoder.state_dict()[name], value), name
    assert ours.eval()(torch.zeros(1, 3, 64, 64))["out"].shape == (1, 5, 64, 64)
    assert (ours.mean, ours.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert ours.encoder.pretrained
    again = NamedNetwork(5, SEGFORMER, {"pretrained": str(tmp_path)}, load_weights=False)
    assert again.network.config.hidden_sizes == [8, 8, 16, 16]
    same = [torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True)]
    assert not all(same)


def test_a_function_names_its_classes_in_any_of_the_usual_ways(mine: ModuleType) -> None:
    def first(count: int, width: int = 4) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, count, 1))

    def keyword(width: int = 4, *, n_classes: int = 2) -> nn.Sequential:
        return first(n_classes, width)

    mine.first, mine.keyword = first, keyword
    for name in ("first", "keyword"):
        ours = NamedNetwork(6, f"mine_of_a_user.{name}", {"width": 9})
        assert ours.network[0].out_channels == 9
        assert ours(torch.zeros(1, 3, 5, 5))["out"].shape == (1, 6, 5, 5)


class Untidy(nn.Module):
    """Counts its passes and draws random numbers, as a network in training does."""

    def __init__(self, num_classes: int, extra: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.head = nn.Conv2d(3, num_classes + extra, 1)

    def forward(self, image):
        return self.head(self.frozen(self.norm(image + torch.rand(1))))


def test_finding_out_the_sizes_changes_nothing(mine: ModuleType) -> None:
    mine.Untidy = Untidy
    torch.manual_seed(3)
    ours = NamedNetwork(4, "mine_of_a_user.Untidy")
    drawn = torch.rand(3)
    torch.manual_seed(3)
    Untidy(4)
    assert torch.equal(torch.rand(3), drawn)
    assert ours.network.norm.num_batches_tracked == 0
    assert torch.equal(ours.network.norm.running_mean, torch.zeros(3))
    assert ours.network.norm.training
    assert not ours.network.frozen.training


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        (f"{SMP}.Unett", {}, r"segmentation_models_pytorch has no Unett; did you mean Unet"),
        (f"{SMP}.Unet", {"encodr_name": "x"}, "no argument 'encodr_name'; did you mean encoder_n"),
        (f"{SMP}.Unet", {"classes": 3}, "the number of classes, 5, comes from the data"),
        (f"{SMP}.Unet", {"encoder_name": "nope"}, "cannot be built for 5 classes .*Wrong encoder"),
        ("nowhere_at_all.Net", {}, "the package nowhere_at_all is not installed"),
        ("os.getcwd", {}, "needs the annotation `-> torch.nn.Module`"),
        ("torch.nn.Dropout", {}, r"(?s)has no argument num_classes.*class Mine.*torch\.nn\.Drop"),
        ("torch.nn.Conv2d", {}, "cannot be built for 5 classes"),
        ("mine_of_a_user.Untidy", {"extra": 2}, "logits of 7 classes, and the data has 5"),
        ("mine_of_a_user.Flat", {}, "returns no maps"),
        ("mine_of_a_user.Broken", {}, r"takes no images .*: only magic sizes"),
    ],
)
def test_what_cannot_be_built_is_said(
    path: str, arguments: dict, message: str, mine: ModuleType
) -> None:
    class Flat(nn.Linear):
        def __init__(self, num_classes: int) -> None:
            super().__init__(3, num_classes)

        def forward(self, image):
            return super().forward(image.mean((2, 3)))

    class Broken(Untidy):
        def forward(self, image):
            raise ValueError("only magic sizes")

    mine.Untidy, mine.Flat, mine.Broken = Untidy, Flat, Broken
    with pytest.raises(SetupError, match=message):
        NamedNetwork(5, path, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_sizess": [8]}, "no argument 'hidden_sizess'; did you mean hidden_sizes"),
        ({"num_labels": 3}, "comes from the data, not from num_labels"),
        ({"pretrained": "/nowhere/at/all"}, "cannot be built"),
    ],
)
def test_options_of_huggingface_are_checked(arguments: dict, message: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(SetupError, match=message):
        NamedNetwork(5, SEGFORMER, arguments)


def test_masks_without_classes_of_pixels_are_refused() -> None:
    pytest.importorskip("transformers")
    path = "transformers.SegformerForImageClassification"
    with pytest.raises(SetupError, match="returns no maps"):
        NamedNetwork(5, path, TINY_SEGFORMER)


def test_a_size_below_those_that_were_tried_is_one_sentence() -> None:
    ours = NamedNetwork(5, f"{SMP}.PAN", {"encoder_name": "resnet18"}).eval()
    with pytest.raises(SetupError, match=r"works on images of 128x192 .* fails on"):
        ours(torch.zeros(1, 3, 30, 30))


def test_a_single_image_is_too_few_for_pooled_batch_norms() -> None:
    ours = NamedNetwork(5, f"{VISION}.deeplabv3_mobilenet_v3_large")
    with pytest.raises(SetupError, match="needs 2 or more images per device"):
        ours(torch.zeros(1, 3, 128, 128))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(3, 6, 1), r"Conv2d returns \(1, 6, 8, 8\) for 5 classes"),
        (nn.Conv2d(3, 5, 2, 2), "logits of 4x4 pixels for an image of 8x8: resize them"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"returns \(1, 3\) for 5"),
        (nn.Identity(), r"returns \(1, 3, 8, 8\) for 5 classes"),
    ],
)
def test_logits_of_other_classes_or_sizes_are_found(network: nn.Module, message: str) -> None:
    network.weight_to_train = nn.Parameter(torch.zeros(1))
    ours = CrossEntropyModule(network, num_classes=5)
    with pytest.raises(SetupError, match=message):
        ours(torch.zeros(1, 3, 8, 8))
