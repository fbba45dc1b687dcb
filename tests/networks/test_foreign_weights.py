"""Weight files in the layouts of DINOv2 and DINOv3, as their authors publish them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from lightning_seg import SetupError
from lightning_seg.networks import TimmEncoder

WIDTH, DEPTH = 384, 12  # ViT-S


def block(number: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a block, which have the same names in both projects."""
    shapes = {
        "norm1.weight": (WIDTH,),
        "norm1.bias": (WIDTH,),
        "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.qkv.bias": (3 * WIDTH,),
        "attn.proj.weight": (WIDTH, WIDTH),
        "attn.proj.bias": (WIDTH,),
        "ls1.gamma": (WIDTH,),
        "norm2.weight": (WIDTH,),
        "norm2.bias": (WIDTH,),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH),
        "mlp.fc1.bias": (4 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        "mlp.fc2.bias": (WIDTH,),
        "ls2.gamma": (WIDTH,),
    }
    return {f"blocks.{number}.{name}": shape for name, shape in shapes.items()}


def random_file(top: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {**top, "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    for number in range(DEPTH):
        shapes |= block(number)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def dinov2(registers: int = 0) -> dict[str, Tensor]:
    """Names of `dinov2_vits14_pretrain.pth` and `dinov2_vits14_reg4_pretrain.pth`."""
    top: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 37 * 37 + 1, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": (WIDTH,),
    }
    if registers:
        top["register_tokens"] = (1, registers, WIDTH)
    return random_file(top)


def dinov3() -> dict[str, Tensor]:
    """Names of `dinov3_vits16_pretrain_lvd1689m-*.pth`."""
    found = random_file(
        {
            "cls_token": (1, 1, WIDTH),
            "storage_tokens": (1, 4, WIDTH),
            "mask_token": (1, WIDTH),
            "rope_embed.periods": (16,),
            "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
            "patch_embed.proj.bias": (WIDTH,),
        }
    )
    for number in range(DEPTH):
        found[f"blocks.{number}.attn.qkv.bias_mask"] = torch.ones(3 * WIDTH)
    return found


@pytest.fixture
def written(tmp_path: Path):
    def write(content: object) -> str:
        torch.save(content, tmp_path / "weights.pth")
        return str(tmp_path / "weights.pth")

    return write


def count(encoder: TimmEncoder) -> int:
    return len(encoder.bare.state_dict())


def test_a_file_of_dinov2_is_read_whole(written) -> None:
    file = dinov2()
    encoder = TimmEncoder("vit_small_patch14_dinov2", weights=written(file))
    assert f"{count(encoder)} of {count(encoder)} tensors" in encoder.origin
    assert encoder.pretrained
    ours = encoder.bare.state_dict()
    for name in ours.keys() & file.keys():
        assert torch.equal(ours[name], file[name]), name
    assert len(ours.keys() & file.keys()) == count(encoder)


def test_registers_of_dinov2_have_no_positions_in_timm(written) -> None:
    file = dinov2(registers=4)
    encoder = TimmEncoder("vit_small_patch14_reg4_dinov2", weights=written({"teacher": file}))
    assert f"{count(encoder)} of {count(encoder)} tensors" in encoder.origin
    assert "with the prefix 'teacher_'" in encoder.origin
    ours = encoder.bare.state_dict()
    assert torch.equal(ours["reg_token"], file["register_tokens"])
    assert torch.equal(ours["cls_token"], file["cls_token"] + file["pos_embed"][:, :1])
    assert torch.equal(ours["pos_embed"], file["pos_embed"][:, 1:])


def test_a_table_of_positions_is_resized_as_timm_does(written) -> None:
    file = dinov2()
    options = {"img_size": 224}  # 16 x 16 patches
    encoder = TimmEncoder("vit_small_patch14_dinov2", weights=written(file), options=options)
    assert f"{count(encoder)} of {count(encoder)} tensors" in encoder.origin
    expected = resample_abs_pos_embed(file["pos_embed"], (16, 16), num_prefix_tokens=1)
    torch.testing.assert_close(encoder.bare.pos_embed.detach(), expected)


def test_a_file_of_dinov3_is_read_whole(written) -> None:
    file = dinov3()
    encoder = TimmEncoder("vit_small_patch16_dinov3", weights=written(file))
    assert f"{count(encoder)} of {count(encoder)} tensors" in encoder.origin
    ours = encoder.bare.state_dict()
    pairs = {
        "reg_token": "storage_tokens",
        "cls_token": "cls_token",
        "patch_embed.proj.weight": "patch_embed.proj.weight",
        "blocks.3.attn.qkv.weight": "blocks.3.attn.qkv.weight",
        "blocks.0.gamma_1": "blocks.0.ls1.gamma",
        "blocks.11.gamma_2": "blocks.11.ls2.gamma",
        "blocks.11.mlp.fc2.bias": "blocks.11.mlp.fc2.bias",
    }
    for name, official in pairs.items():
        assert torch.equal(ours[name], file[official]), name


def test_the_features_are_those_of_timm_with_the_same_file(written) -> None:
    path = written(dinov3())
    encoder = TimmEncoder("vit_small_patch16_dinov3", [11], weights=path).eval()
    reference = timm.create_model("vit_small_patch16_dinov3", checkpoint_path=None).eval()
    timm.models.load_checkpoint(
        reference, path, filter_fn=timm.models.eva.checkpoint_filter_fn, weights_only=True
    )
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (expected,) = reference.forward_intermediates(
            image, indices=[11], norm=False, intermediates_only=True
        )
        torch.testing.assert_close(encoder(image)[0], expected)


def test_a_file_of_the_other_project_does_not_match(written) -> None:
    with pytest.raises(SetupError, match="tensors match"):
        TimmEncoder("vit_small_patch16_dinov3", weights=written(dinov2()))
