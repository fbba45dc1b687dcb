"""Windows and copies against the whole image, and against their definition."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_seg import SetupError
from lightning_seg.inference import Predictor, augmented_probabilities, strips
from lightning_seg.networks import LRASPP, TimmEncoder


def convolution(reach: int = 1, seed: int = 0) -> nn.Conv2d:
    """A network whose logits depend on the pixels within a reach."""
    torch.manual_seed(seed)
    side = 2 * reach + 1
    return nn.Conv2d(3, 5, side, padding=reach, dtype=torch.float64).requires_grad_(False)


def image(height: int = 40, width: int = 50, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize("window", [None, 50, 64, (40, 50), (41, 1000)])
def test_where_one_window_covers_the_image_the_result_is_the_networks_to_the_bit(window) -> None:
    network, seen = convolution(), image(batch=2)
    assert torch.equal(Predictor(window)(network, seen), network(seen))
    tensor = seen.half()
    assert Predictor(window)(lambda x: x, tensor) is tensor


@pytest.mark.parametrize("blend", ["gaussian", "flat"])
def test_windows_of_a_network_that_sees_single_pixels_give_the_whole_image(blend) -> None:
    """Every window predicts the same at a pixel, so that any mixture of them is that."""
    rng = torch.Generator().manual_seed(3)
    for _ in range(12):
        height, width, tall, wide = (
            int(each) for each in torch.randint(1, 40, (4,), generator=rng)
        )
        overlap = float(torch.rand(1, generator=rng)) * 0.95
        network, seen = convolution(0), image(height, width, 2)
        predictor = Predictor((tall, wide), overlap, blend)
        found = predictor(network, seen)
        torch.testing.assert_close(found.softmax(1), network(seen).softmax(1))
        if predictor.divides((height, width)):  # logarithms of probabilities
            torch.testing.assert_close(found.exp().sum(1), torch.ones_like(found[:, 0]))


def test_windows_are_the_mean_of_their_probabilities() -> None:
    """Two windows of 6 columns at 0 and 4 of 10: columns 4 and 5 are the mean of both."""
    network, seen = convolution(2), image(6, 10)
    left, right = (network(seen[..., a : a + 6]).softmax(1) for a in (0, 4))
    expected = torch.cat([left[..., :4], (left[..., 4:] + right[..., :2]) / 2, right[..., 2:]], -1)
    found = Predictor(6, 0.25, "flat")(network, seen)
    torch.testing.assert_close(found.softmax(1), expected)


def test_far_from_their_borders_windows_see_what_the_whole_image_shows() -> None:
    network, seen = convolution(1), image()
    found = Predictor(20, 0.5, "flat")(network, seen).softmax(1)
    whole = network(seen).softmax(1)
    # pixels that no window's border is within reach of
    inner = torch.ones(40, 50, dtype=torch.bool)
    for begin in (0, 10, 20):
        inner[[begin, begin + 19]] = False
    for begin in (0, 10, 20, 30):
        inner[:, [begin, begin + 19]] = False
    assert inner.sum() > 500
    torch.testing.assert_close(found[0, :, inner], whole[0, :, inner])
    assert not torch.allclose(found, whole, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_the_size_of_a_batch_of_windows_does_not_matter(batch_size) -> None:
    network, seen = convolution(), image()
    one = Predictor(16, 0.3, batch_size=1)(network, seen)
    many = Predictor(16, 0.3, batch_size=batch_size)(network, seen)
    torch.testing.assert_close(one, many)


@pytest.mark.parametrize(
    "predictor", [Predictor(16, 0.3), Predictor(flip=True), Predictor(16, flip=True)]
)
def test_the_images_of_a_batch_do_not_matter_to_each_other(predictor) -> None:
    network, seen = convolution(), image(batch=3)
    together = predictor(network, seen)
    alone = torch.cat([predictor(network, each[None]) for each in seen])
    torch.testing.assert_close(together, alone)


def test_a_network_that_treats_mirror_images_alike_is_not_changed_by_flipping() -> None:
    network, seen = convolution(2), image()
    network.weight.copy_((network.weight + network.weight.flip(-1)) / 2)
    found = Predictor(flip=True)(network, seen)
    torch.testing.assert_close(found.softmax(1), network(seen).softmax(1))


def test_copies_are_averaged_by_their_definition() -> None:
    network, seen = convolution(1), image(20, 30)
    expected = torch.zeros(1, 5, 20, 30, dtype=torch.float64)
    for scale, size in ((0.5, (10, 15)), (1, (20, 30)), (1.5, (30, 45))):
        copy = (
            F.interpolate(seen, size, mode="bilinear", antialias=scale < 1) if scale != 1 else seen
        )
        for mirrored in (False, True):
            logits = network(copy.flip(-1)).flip(-1) if mirrored else network(copy)
            logits = F.interpolate(logits, (20, 30), mode="bilinear")
            expected += logits.softmax(1) / 6
    found = Predictor(flip=True, scales=(0.5, 1, 1.5))(network, seen)
    torch.testing.assert_close(found.softmax(1), expected)


def test_a_scaled_copy_of_bytes_is_the_copy_of_their_fractions() -> None:
    seen = torch.randint(0, 256, (1, 3, 9, 7), dtype=torch.uint8)
    shown = []
    augmented_probabilities(lambda x: shown.append(x) or x.float(), seen, scales=(1, 2))
    assert shown[0] is seen
    torch.testing.assert_close(shown[1], F.interpolate(seen / 255, scale_factor=2, mode="bilinear"))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_images_of_one_row_or_column(size) -> None:
    network, seen = convolution(), image(*size)
    for predictor in (
        Predictor(8),
        Predictor(8, flip=True, scales=(0.5, 1)),
        Predictor(scales=(0.1,)),
    ):
        found = predictor(network, seen)
        assert found.shape == (1, 5, *size)
        assert found.isfinite().all()


def test_probabilities_of_0_are_finite_logits() -> None:
    seen = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1).repeat(1, 1, 4, 4)
    found = Predictor(2)(lambda x: x, seen)
    assert found.isfinite().all()
    assert found.softmax(1)[0, 0].min() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_averaged_in_32_bits(dtype) -> None:
    network = lambda x: convolution()(x.double()).to(dtype)  # noqa: E731
    found = Predictor(16, flip=True)(network, image())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(1), torch.ones(1, 40, 50), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("window", "overlap"), [(16, 0.3), ((7, 11), 0.9), ((100, 9), 0.5)])
def test_strips_are_the_labels_of_the_logits(window, overlap) -> None:
    network, seen = convolution(2), image()
    predictor = Predictor(window, overlap, flip=True)
    logits = predictor(network, seen)[0]
    row, parts = 0, []
    for top, labels, probabilities in strips(
        predictor, network, lambda a, b: seen[0, :, a:b], (40, 50), probabilities=True
    ):
        assert top == row
        row += len(labels)
        parts.append((labels, probabilities))
    assert torch.equal(torch.cat([labels for labels, _ in parts]), logits.max(0).indices.byte())
    found = torch.cat([each for _, each in parts], dim=1)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, logits.softmax(0).half())


def test_progress_is_told_each_window_once() -> None:
    predictor, seen = Predictor(16, 0.3), []
    predictor.progress = lambda blocks, total: (seen.append(total) or each for each in blocks)
    predictor(convolution(), image())
    assert seen == [20] * 20  # 4 x 5 windows, at most 11 pixels apart


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window": 0}, "window"),
        ({"window": (64, -1)}, "window"),
        ({"window": 64, "overlap": 1}, "overlap"),
        ({"window": 64, "overlap": -0.1}, "overlap"),
        ({"window": 64, "overlap": float("nan")}, "overlap"),
        ({"scales": [1, 0]}, "scales"),
        ({"scales": [-1]}, "scales"),
        ({"scales": []}, "scales"),
        ({"scales": [float("nan")]}, "scales"),
        ({"batch_size": 0}, "batch_size"),
        ({"blend": "linear"}, "blend"),
    ],
)
def test_impossible_values_name_their_option(options, named) -> None:
    with pytest.raises(SetupError, match=rf"\(option: {named}="):
        Predictor(**options)


def test_a_window_below_the_networks_stride_is_refused() -> None:
    network = partial(LRASPP, encoder="test_resnet")(4)
    encoder = next(part for part in network.modules() if isinstance(part, TimmEncoder))
    stride = max(encoder.reductions)
    Predictor(stride).require_window_for(network)
    Predictor(None).require_window_for(network)
    Predictor(2).require_window_for(convolution())  # says nothing of its stride
    with pytest.raises(SetupError, match=rf"{stride - 1}x{stride} .* stride {stride}"):
        Predictor((stride - 1, stride)).require_window_for(network)
    with pytest.raises(SetupError, match="after scaling"):
        Predictor(stride, scales=(0.5, 1)).require_window_for(network)
