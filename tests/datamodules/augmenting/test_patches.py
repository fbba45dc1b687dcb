"""Patches against brute force: pixel by pixel, with sets for areas, and by counting draws."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from datamodules import DataError
from datamodules.augmenting.patches import PatchMixer, Square, discard_covered

MEAN_COLOR = (124, 116, 104)  # ImageNet's, what padding is elsewhere in the project
VOID = 255


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photograph(height: int, width: int) -> np.ndarray:
    rng = generator(height * width)
    image = cv2.resize(rng.uniform(0, 255, (height // 6 + 2, width // 6 + 2, 3)), (width, height))
    return np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels tell where they are; for at most 200 x 200."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows, columns, np.full_like(rows, 7)]).astype(np.uint8)


def scene(height: int = 120, width: int = 150, seed: int = 0) -> np.ndarray:
    """Boxes of classes 1..5 and some void on background."""
    rng, mask = generator(seed), np.zeros((height, width), np.uint8)
    for label in (1, 2, 3, 4, 5, VOID):
        top, left = rng.integers(height - 10), rng.integers(width - 10)
        mask[top : top + rng.integers(8, 50), left : left + rng.integers(8, 50)] = label
    return mask


def pixels(square: Square, shape: tuple[int, int]) -> set[tuple[int, int]]:
    """The pixels of the image in a square, one by one."""
    begin = square.row - square.side // 2, square.column - square.side // 2
    every = {
        (begin[0] + down, begin[1] + right)
        for down in range(square.side)
        for right in range(square.side)
    }
    return {(y, x) for y, x in every if 0 <= y < shape[0] and 0 <= x < shape[1]}


def padded_crop(image: np.ndarray, square: Square) -> np.ndarray:
    crop = np.empty((square.side, square.side, 3), np.uint8)
    for down in range(square.side):
        for right in range(square.side):
            y, x = square.row - square.side // 2 + down, square.column - square.side // 2 + right
            inside = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
            crop[down, right] = image[y, x] if inside else MEAN_COLOR
    return crop


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Interpolation at pixel centres, in float64, as two matrices."""
    weights = np.zeros((size, len(image)))
    for place in range(size):
        at = min(max((place + 0.5) * len(image) / size - 0.5, 0), len(image) - 1)
        low = min(int(at), max(len(image) - 2, 0))
        weights[place, low] += 1 - (at - low)
        if len(image) > 1:
            weights[place, low + 1] += at - low
    return np.einsum("iy,jx,yxc->ijc", weights, weights, image.astype(np.float64))


# Pixels


@pytest.mark.parametrize("shape", [(90, 130), (40, 33), (5, 90), (1, 1)])
@pytest.mark.parametrize("out_size", [16, 24, 64])
def test_patches_are_bilinear_views_of_their_squares(shape, out_size) -> None:
    image, mask = photograph(*shape), np.ones(shape, np.uint8)
    draw = PatchMixer(6, (10, 60), out_size)
    squares = draw.draw(mask, generator(3))
    patches = draw(image, mask, generator(3))
    assert patches.images.shape == (6, out_size, out_size, 3)
    assert patches.images.dtype == np.uint8
    assert len({square.side for square in squares}) > 2
    for square, patch in zip(squares, patches.images, strict=True):
        expected = bilinear(padded_crop(image, square), out_size)
        # OpenCV's weights have 11 bits in each direction
        assert np.abs(patch - expected).max() <= 1


def test_enlarging_equals_pillows() -> None:
    image, mask = photograph(80, 80), np.ones((80, 80), np.uint8)
    draw = PatchMixer(5, (20, 40), 64)
    squares, patches = draw.draw(mask, generator()), draw(image, mask, generator())
    for square, patch in zip(squares, patches.images, strict=True):
        crop = Image.fromarray(padded_crop(image, square))
        expected = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(patch - expected).max() <= 1


@pytest.mark.parametrize("shape", [(100, 90), (20, 11), (1, 1)])
def test_a_patch_of_the_right_size_is_cut_exactly_and_padded_outside(shape) -> None:
    image, mask = coordinates(*shape), np.ones(shape, np.uint8)
    draw = PatchMixer(8, (32, 32), 32)
    squares, patches = draw.draw(mask, generator(1)), draw(image, mask, generator(1))
    reaches_out = 0
    for square, patch in zip(squares, patches.images, strict=True):
        expected = padded_crop(image, square)
        reaches_out += (expected == MEAN_COLOR).all(2).any()
        assert np.array_equal(patch, expected)
    assert reaches_out


def test_mirrored_and_strided_views_are_no_different() -> None:
    image, mask = photograph(90, 120), scene(90, 120)
    for view in ((slice(None), slice(None, None, -1)), (slice(None, None, -2), slice(5, 80, 2))):
        draw = PatchMixer(10, (16, 50), 24)
        found = draw(image[view], mask[view], generator())
        expected = draw(image[view].copy(), mask[view].copy(), generator())
        assert np.array_equal(found.images, expected.images)
        assert np.array_equal(found.labels, expected.labels)


def test_image_and_mask_are_left_as_they_are() -> None:
    image, mask = photograph(90, 120), scene(90, 120)
    kept = image.copy(), mask.copy()
    image.flags.writeable = mask.flags.writeable = False
    patches = PatchMixer(10, (24, 24), 24)(image, mask, generator())
    patches.images[:] = 0  # nobody's view
    assert np.array_equal(image, kept[0])
    assert np.array_equal(mask, kept[1])


# Labels


@pytest.mark.parametrize("background_index", [0, 3, None])
def test_the_label_is_that_of_the_pixel_in_the_middle(background_index) -> None:
    image = coordinates(120, 150)
    for seed in range(30):
        mask = scene(seed=seed)
        draw = PatchMixer(10, (32, 32), 32, background_index=background_index)
        images, labels = draw(image, mask, generator(seed))
        assert labels.dtype == np.int64
        for patch, label in zip(images, labels, strict=True):
            row, column, inside = patch[16, 16]
            assert inside == 7
            assert mask[row, column] == label
            assert label != VOID


@pytest.mark.parametrize(
    ("count", "share", "quota"),
    [
        (1, 0.1, 0),
        (2, 0.1, 1),
        (9, 0.1, 1),
        (10, 0.1, 1),
        (19, 0.1, 1),
        (20, 0.1, 2),
        (30, 0.1, 3),
        (10, 0.0, 0),
        (10, 0.5, 5),
        (3, 0.99, 2),
    ],
)
def test_the_quota_of_the_background(count, share, quota) -> None:
    draw = PatchMixer(count, (8, 40), 8, background_share=share)
    for seed in range(8):
        labels = draw(photograph(120, 150), scene(seed=seed), generator(seed)).labels
        assert len(labels) == count
        assert (labels == 0).sum() == quota
        assert (labels[count - quota :] == 0).all()


def test_without_background_there_is_no_patch_of_class_0() -> None:
    """The authors' code labels one patch 0 where class 0 is not in the crop."""
    mask = scene()
    mask[mask == 0] = 9
    for background_index in (0, None):
        draw = PatchMixer(10, (16, 64), 16, background_index=background_index)
        for seed in range(20):
            labels = draw(photograph(120, 150), mask, generator(seed)).labels
            assert len(labels) == 10
            assert 0 not in labels


def test_without_a_background_class_all_classes_are_drawn_by_their_area() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:20], mask[20:30] = 1, VOID
    draw = PatchMixer(1, (2, 2), 2, background_index=None)
    image, rng = photograph(100, 100), generator()
    labels = [draw(image, mask, rng).labels[0] for _ in range(900)]
    found = np.bincount(labels, minlength=2)
    assert stats.chisquare(found, [700, 200]).pvalue > 0.001


def test_another_class_can_be_the_background() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[:2], mask[2:4] = 4, 5
    labels = PatchMixer(10, (8, 8), 8, background_index=4)(
        photograph(60, 60), mask, generator()
    ).labels
    assert (labels == 4).sum() == 1
    assert labels[-1] == 4


@pytest.mark.parametrize("label", [0, 6])
@pytest.mark.parametrize("background_index", [0, None])
def test_one_class(label, background_index) -> None:
    mask = np.full((50, 70), label, np.uint8)
    draw = PatchMixer(10, (16, 30), 16, background_index=background_index)
    assert draw(photograph(50, 70), mask, generator()).labels.tolist() == [label] * 10


@pytest.mark.parametrize("background_index", [0, None])
@pytest.mark.parametrize("shape", [(50, 70), (1, 1)])
def test_all_void_gives_no_patch(shape, background_index) -> None:
    draw = PatchMixer(10, (16, 30), 16, background_index=background_index)
    images, labels = draw(photograph(*shape), np.full(shape, VOID, np.uint8), generator())
    assert (images.shape, images.dtype) == ((0, 16, 16, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((0,), np.int64)


@pytest.mark.parametrize("at", [(0, 0), (49, 69), (20, 30), (0, 69)])
def test_objects_of_one_pixel(at) -> None:
    mask = np.full((50, 70), VOID, np.uint8)
    mask[10, :] = 0
    mask[at] = 4
    draw = PatchMixer(10, (16, 30), 16)
    squares = draw.draw(mask, generator())
    assert [square[:2] for square in squares[:9]] == [at] * 9
    assert squares[9].row == 10
    assert draw(photograph(50, 70), mask, generator()).labels.tolist() == [4] * 9 + [0]


def test_an_image_smaller_than_every_patch() -> None:
    image, mask = photograph(9, 7), np.full((9, 7), 2, np.uint8)
    mask[0] = VOID
    draw = PatchMixer(4, (64, 64), 64)
    images, labels = draw(image, mask, generator())
    assert labels.tolist() == [2] * 4
    for square, patch in zip(draw.draw(mask, generator()), images, strict=True):
        top, left = 32 - square.row, 32 - square.column
        assert np.array_equal(patch[top : top + 9, left : left + 7], image)
        assert (patch == MEAN_COLOR).all(2).sum() >= 64 * 64 - 9 * 7


# Chance


def test_centres_are_uniform_among_the_objects_pixels() -> None:
    mask = np.zeros((9, 8), np.uint8)
    mask[1, 2:7], mask[4, 0], mask[5:8, 7], mask[8] = 1, 2, 3, VOID
    # one patch: the first candidate, whatever is discarded
    draw, rng = PatchMixer(1, (2, 6), 2), generator()
    squares = [draw.draw(mask, rng)[0] for _ in range(4000)]
    found = np.zeros(mask.shape, int)
    for square in squares:
        found[square[:2]] += 1
    objects = (mask != 0) & (mask != VOID)
    assert (found[~objects] == 0).all()
    assert stats.chisquare(found[objects]).pvalue > 0.001
    sides, counts = np.unique([square.side for square in squares], return_counts=True)
    assert sides.tolist() == [2, 4, 6]
    assert stats.chisquare(counts).pvalue > 0.001
    assert abs(np.corrcoef([(s.column, s.side) for s in squares], rowvar=False)[0, 1]) < 0.06


def test_centres_are_uniform_in_the_background() -> None:
    mask = np.zeros((5, 6), np.uint8)
    mask[0], mask[3, 1:] = 1, VOID
    draw, rng, found = PatchMixer(2, (4, 4), 2), generator(), np.zeros(mask.shape, int)
    for _ in range(2000):
        found[draw.draw(mask, rng)[1][:2]] += 1
    assert (found[mask != 0] == 0).all()
    assert stats.chisquare(found[mask == 0]).pvalue > 0.001


@pytest.mark.parametrize(
    ("patch_size", "sides"),
    [((63, 67), {64, 66}), ((64, 68), {64, 66, 68}), ((2, 2), {2}), ((7, 8), {8}), ((3, 5), {4})],
)
def test_sides_are_even_and_in_the_range(patch_size, sides) -> None:
    draw, rng, mask = PatchMixer(20, patch_size), generator(), scene()
    assert {square.side for _ in range(10) for square in draw.draw(mask, rng)} == sides


def test_a_seed_decides_everything() -> None:
    image, mask, draw = photograph(120, 150), scene(), PatchMixer(10, (16, 64), 16)
    found = []
    for seed, legacy in ((5, 0), (5, 1), (6, 0)):
        np.random.seed(legacy)  # of no consequence
        found.append(draw(image, mask, generator(seed)))
    assert np.array_equal(found[0].images, found[1].images)
    assert np.array_equal(found[0].labels, found[1].labels)
    assert not np.array_equal(found[0].images, found[2].images)
    rng = generator(5)
    draw(image, mask, rng)
    assert not np.array_equal(draw(image, mask, rng).images, found[0].images)


# Overlap


def greedy(candidates, wanted, shape, max_overlap, legacy):
    """The authors divide by side * side of the first candidate, wherever it lies."""
    kept, spare, union = [], [], set()
    first = candidates[0].side * candidates[0].side
    for square in candidates:
        own = pixels(square, shape)
        if len(own & union) / (first if legacy else len(own)) > max_overlap:
            spare.append(square)
        else:
            kept.append(square)
            union |= own
    return [*kept, *spare][:wanted]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("max_overlap", [0.0, 0.3, 0.6, 1.0])
def test_discarding_equals_the_greedy_way(max_overlap, legacy) -> None:
    shape, differ = (40, 55), 0
    for seed in range(12):
        rng = generator(seed)
        reach = 5 if seed % 3 == 0 else 40  # crowded ones run out and are filled up
        candidates = [
            Square(int(rng.integers(reach)), int(rng.integers(reach)), 2 * int(rng.integers(2, 16)))
            for _ in range(25)
        ]
        expected = greedy(candidates, 5, shape, max_overlap, legacy)
        assert discard_covered(iter(candidates), 5, shape, max_overlap, legacy) == expected
        differ += expected != candidates[:5]
    assert differ > 6 or max_overlap == 1


def test_the_share_is_of_the_patchs_own_area_unless_legacy() -> None:
    """A small square inside of a large one is all covered: of 100 pixels, 16 are 0.16 < 0.6."""
    large, small = Square(5, 5, 10), Square(5, 5, 4)
    apart = Square(20, 20, 4)
    assert discard_covered([large, small, apart], 2, (30, 30)) == [large, apart]
    legacy = discard_covered([large, small, apart], 2, (30, 30), legacy_overlap=True)
    assert legacy == [large, small]


def test_legacy_overlap_counts_the_part_of_the_first_patch_beyond_the_image() -> None:
    """Of the first one's 100 pixels 25 are in the image; 25 of them are 0.25 < 0.6 covered."""
    corner, same, apart = Square(0, 0, 10), Square(0, 0, 10), Square(20, 20, 4)
    assert discard_covered([corner, same, apart], 2, (30, 30)) == [corner, apart]
    legacy = discard_covered([corner, same, apart], 2, (30, 30), legacy_overlap=True)
    assert legacy == [corner, same]


def test_only_what_is_more_than_the_limit_is_discarded() -> None:
    """Of 10 x 10 pixels, 6 or 7 columns are covered."""
    first, at_limit, above, apart = (Square(5, c, 10) for c in (5, 9, 8, 30))
    assert discard_covered([first, at_limit, apart], 2, (10, 40)) == [first, at_limit]
    assert discard_covered([first, above, apart], 2, (10, 40)) == [first, apart]


def split(squares, shape, max_overlap):
    """How many squares keep to the limit, and whether all the others break it."""
    union, kept = set(), 0
    for square in squares:
        own = pixels(square, shape)
        if len(own & union) > max_overlap * len(own):
            break
        union |= own
        kept += 1
    rest = [pixels(square, shape) for square in squares[kept:]]
    return kept, all(len(own & union) > max_overlap * len(own) for own in rest)


def test_kept_patches_show_something_new() -> None:
    refilled = []
    for seed in range(20):
        mask = scene(seed=seed)
        if seed % 2:  # a tiny object: patches cannot but overlap
            mask[(mask != 0) & (mask != VOID)] = 0
            mask[50:53, 60:63] = 1
        squares = PatchMixer(10, (16, 48), 16).draw(mask, generator(seed))
        objects = squares[:9]
        assert [mask[square[:2]] == 0 for square in squares] == [False] * 9 + [True]
        kept, rest_breaks_it = split(objects, mask.shape, 0.6)
        assert rest_breaks_it
        refilled.append(kept < 9)
    assert all(refilled[1::2])
    assert not all(refilled[::2])


def test_wide_objects_need_no_refill() -> None:
    mask = np.ones((200, 200), np.uint8)
    for seed in range(10):
        squares = PatchMixer(10, (32, 32), 8).draw(mask, generator(seed))
        assert split(squares, mask.shape, 0.6)[0] == 10
        assert split(PatchMixer(10, (32, 32), 8, max_overlap=0.1).draw(mask, generator(seed)),
                     mask.shape, 0.1)[0] == 10  # fmt: skip


# Options and errors


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"patches_per_image": 0}, "patches_per_image"),
        ({"out_size": 0}, "out_size"),
        ({"patch_size": (0, 64)}, "patch_size"),
        ({"patch_size": (1, 1)}, "patch_size"),
        ({"patch_size": (65, 65)}, "patch_size"),
        ({"patch_size": (64, 32)}, "patch_size"),
        ({"background_index": 255}, "background_index"),
        ({"background_index": -1}, "background_index"),
        ({"background_share": 1.0}, "background_share"),
        ({"background_share": -0.1}, "background_share"),
        ({"max_overlap": 1.1}, "max_overlap"),
    ],
)
def test_impossible_options(options, named) -> None:
    with pytest.raises(DataError, match=rf"{named} must .*\(option: {named}=\)"):
        PatchMixer(**options)


def test_image_and_mask_must_fit() -> None:
    draw = PatchMixer()
    for image, mask in (((4, 5, 3), (5, 4)), ((4, 5), (4, 5)), ((5, 4, 4), (4, 5))):
        with pytest.raises(ValueError, match="do not fit"):
            draw(np.zeros(image, np.uint8), np.zeros(mask, np.uint8), generator())


def test_the_defaults_are_the_papers_on_voc() -> None:
    images, labels = PatchMixer()(photograph(300, 400), scene(300, 400), generator())
    assert images.shape == (10, 128, 128, 3)
    assert (labels == 0).sum() == 1
    sides = [
        square.side for seed in range(300) for square in PatchMixer().draw(scene(), generator(seed))
    ]
    assert (min(sides), max(sides)) == (64, 256)
    assert all(b - a == 2 for a, b in pairwise(sorted(set(sides))))
