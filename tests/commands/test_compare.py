"""`python cli.py compare`, as a user types it."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example_runs import write_run
from PIL import Image
from places import ROOT
from simulated_scores import simulated_sides

import cli
from lightning_seg import SetupError
from lightning_seg.commands.mask_folders import mask_counts
from lightning_seg.scores import Scores, read_scores


def compare(output: Path, *words: object) -> list[dict[str, str]]:
    """Run the command, return the rows of its table."""
    assert cli.main(["compare", *map(str, words), f"--output={output}", "--samples=500"]) == 0
    with (output / "compare.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_scores(folder: Path, counts: np.ndarray, **summary) -> Path:
    """Write counts of images `0`, `1`, ... as the scores of a test."""
    ids = [str(index) for index in range(len(counts))]
    Scores(ids, ["iou"], counts, {"verb": "test", **summary}).write(folder / "test")
    return folder


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    (a,), (b,) = simulated_sides(rng, 60, planted=0.15, image_scatter=0.2)
    return write_scores(tmp_path / "a", a, seed=0), write_scores(tmp_path / "b", b, seed=1)


def test_a_planted_difference_is_shown(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = compare(tmp_path / "out", *two_runs)
    first, scores = rows[0], [read_scores(run / "test") for run in two_runs]
    mious = [np.nanmean(each.iou()) for each in scores]
    assert first["score"] == "mIoU"
    assert float(first["baseline_score"]) == pytest.approx(mious[0], abs=1e-6)
    assert float(first["difference"]) == pytest.approx(mious[1] - mious[0], abs=1e-6)
    assert float(first["images_low"]) > 0
    assert (first["verdict"], first["baseline"], first["side"]) == ("better", "a", "b")
    assert (first["images"], first["runs"], first["seeds_low"]) == ("60", "1", "")
    assert [row["score"] for row in rows[1:]] == scores[0].classes
    printed = capsys.readouterr().out
    assert "b is better than a, as these two networks are trained: +" in printed
    assert "not about training them again" in printed
    assert printed.splitlines()[-1].startswith("written: ")
    with Image.open(tmp_path / "out/compare.png") as plot:
        assert np.asarray(plot.convert("RGB")).std() > 5


def test_equal_sides_say_so(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = compare(tmp_path / "out", f"one={two_runs[0]}", f"two={two_runs[0]}")
    assert {row["verdict"] for row in rows} == {"no difference can be shown"}
    assert {float(row["p"]) for row in rows} == {1}
    assert "No difference of mIoU can be shown between one and two" in capsys.readouterr().out


def test_every_region_and_class_has_a_row(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), images=6, seed=seed, pictures=0) for seed in (0, 1)]
    rows = compare(tmp_path / "out", *runs)
    means = [row["score"] for row in rows if row["kind"] == "mean"]
    assert means == ["mIoU", "boundary IoU", "mIoU within 1 px", "mIoU within 3 px"]
    assert sum(row["kind"] == "class" for row in rows) == 8
    scores = read_scores(runs[0] / "test")
    for row, region in zip(rows, scores.regions, strict=False):
        assert float(row["baseline_score"]) == pytest.approx(
            np.nanmean(scores.iou(region)), abs=1e-6
        )


def several(tmp_path: Path, seeds: tuple[list, list], runs: int = 3, **options) -> list[list[Path]]:
    rng = np.random.default_rng(1)
    sides = simulated_sides(rng, 40, runs=runs, seed_scatter=0.02, planted=0.6, **options)
    return [
        [
            write_scores(tmp_path / f"{name}_{i}", counts, seed=seed)
            for i, (counts, seed) in enumerate(zip(side, own, strict=True))
        ]
        for name, side, own in zip("ab", sides, seeds, strict=True)
    ]


def test_runs_are_paired_by_their_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several(tmp_path, ([1, 2, 3], [3, 1, 2]))
    words = [f"old={tmp_path}/a_*", f"new={tmp_path}/b_0,{tmp_path}/b_1,{tmp_path}/b_2"]
    (first, *_) = compare(tmp_path / "out", *words)
    printed = capsys.readouterr().out
    assert "Runs are paired by their seeds 1, 2, 3." in printed
    assert "t interval over runs" in " ".join(printed.split())
    mious = [
        [np.nanmean(read_scores(tmp_path / f"{side}_{i}/test").iou()) for i in order]
        for side, order in (("a", (0, 1, 2)), ("b", (1, 2, 0)))
    ]
    difference = np.subtract(mious[1], mious[0])
    half = 4.968 * difference.std(ddof=1) / 3**0.5  # t at 1 - 0.05 * 0.8 / 2, 2 degrees of freedom
    low, high = difference.mean() - half, difference.mean() + half
    found = [float(first["seeds_low"]), float(first["seeds_high"])]
    assert found == pytest.approx([low, high], rel=0.02)
    assert first["runs"] == "3"


@pytest.mark.parametrize(
    ("seeds", "said", "pairs"),
    [
        (([1, 2, 3], [7, 8, 9]), "in their order, because their seeds differ", 3),
        (([None, 2, 3], [1, 2, 3]), "in their order, because a seed is not known", 3),
        (([1, 2, 3], [2, 3, 4]), "by their seeds 2, 3; 2 other runs are left out", 2),
    ],
)
def test_how_runs_are_paired_is_said(
    seeds: tuple[list, list],
    said: str,
    pairs: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    several(tmp_path, seeds)
    rows = compare(tmp_path / "out", f"old={tmp_path}/a_*", f"new={tmp_path}/b_*")
    assert rows[0]["runs"] == str(pairs)
    assert said in capsys.readouterr().out


def test_several_sides_are_each_compared_with_the_first(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = compare(tmp_path / "out", *two_runs, f"again={two_runs[0]}")
    assert [row["side"] for row in rows if row["score"] == "mIoU"] == ["b", "again"]
    assert "The 2 comparisons share the probability of a false alarm." in capsys.readouterr().out


def test_images_of_one_run_alone_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (a,), (b,) = simulated_sides(np.random.default_rng(0), 30)
    runs = write_scores(tmp_path / "a", a), write_scores(tmp_path / "b", b[:20])
    assert compare(tmp_path / "out", *runs)[0]["images"] == "20"
    assert "Of up to 30 images in a run, the 20 of all runs" in capsys.readouterr().out


def test_171_classes_stay_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (a,), (b,) = simulated_sides(rng, 40, "rare", classes=171)
    b[..., 5, 0] = np.minimum(b[..., 5, 0] + 40, b[..., 5, 1:].min(-1))
    names = [f"class, number {index} " + "x" * 300 for index in range(170)] + ["[red]last[/red]"]
    runs = [
        write_scores(tmp_path / name, counts, classes=names)
        for name, counts in zip("ab", (a, b), strict=True)
    ]
    rows = compare(tmp_path / "out", *runs)
    assert [row["score"] for row in rows[1:]] == names
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) < 70
    assert "more classes, in which no difference can be shown, are in compare.csv" in printed
    with Image.open(tmp_path / "out/compare.png") as plot:
        assert plot.size[1] < 2000


def test_one_class(tmp_path: Path) -> None:
    (a,), (b,) = simulated_sides(np.random.default_rng(0), 20, classes=1)
    runs = write_scores(tmp_path / "a", a), write_scores(tmp_path / "b", b)
    mean, only = compare(tmp_path / "out", *runs)
    assert mean["difference"] == only["difference"]


def test_scores_of_validation_are_named(
    two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two_runs[1] / "test").rename(two_runs[1] / "validate")
    text = (two_runs[1] / "validate/metrics.json").read_text().replace('"test"', '"validate"')
    (two_runs[1] / "validate/metrics.json").write_text(text)
    compare(tmp_path / "out", *two_runs)
    assert "The scores of b were written by validate, not by test." in capsys.readouterr().out


def damaged(run: Path, change: str) -> None:
    scores = read_scores(run / "test")
    if change == "classes":
        scores.summary["classes"] = [*scores.classes[:2], "tree", *scores.classes[3:]]
    elif change == "count":
        scores.counts = scores.counts[:, :, :-1]
    elif change == "images":
        scores.ids = [f"other_{name}" for name in scores.ids]
    elif change == "labels":
        scores.counts[4, 0, 1, 2] += 9
    elif change == "void":
        scores.counts[:] = 0
    scores.write(run / "test")
    if change == "file":
        (run / "test/counts.npz").write_bytes(b"PK damaged")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("classes", r"tree as class 2, and .*a/test has class_2"),
        ("count", r"b/test has 7 classes, and .* has 8"),
        ("images", r"a and b have no image in common: 0 and other_0"),
        ("labels", r"the labels of 4 differ: \d+ pixels of class_1 in .*b/test and \d+ in"),
        ("void", r"the labels of 0 differ: 0 pixels of"),
        ("file", r"the scores in .*b/test cannot be read"),
    ],
)
def test_runs_that_cannot_be_compared_are_one_message(
    change: str, said: str, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    damaged(two_runs[1], change)
    with pytest.raises(SetupError, match=said):
        compare(tmp_path / "out", *two_runs)


def test_sides_without_labels_are_one_message_and_few_images_show_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (a,), (b,) = simulated_sides(np.random.default_rng(0), 5, planted=2.0)
    empty = [write_scores(tmp_path / f"empty_{name}", np.zeros_like(a)) for name in "ab"]
    with pytest.raises(SetupError, match="no image of both empty_a and empty_b has a labelled"):
        compare(tmp_path / "out", *empty)
    # images without labels beside others are no mistake
    with_void = [np.concatenate([counts, np.zeros_like(a)]) for counts in (a, b)]
    runs = [write_scores(tmp_path / n, c) for n, c in zip("ab", with_void, strict=True)]
    assert compare(tmp_path / "out", *runs)[0]["images"] == "10"
    few = [write_scores(tmp_path / n, c) for n, c in zip("cd", (a, b), strict=True)]
    assert compare(tmp_path / "out", *few)[0]["verdict"] == "no difference can be shown"
    assert "Fewer than six images cannot show a difference." in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_one_message(
    two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = map(str, two_runs)
    for words, said in (
        ([a], "at least two sides"),
        ([a, "/nowhere"], "no folder '/nowhere'"),
        ([a, f"{tmp_path}/x*"], "no folder"),
        ([a, str(tmp_path)], "holds no scores"),
        ([a, f"b={b},{b}"], "stands twice"),
        ([f"x={a}", f"x={b}"], "two sides have the name x"),
        ([a, b, "--confidence=1"], "confidence must be in"),
        ([a, b, "--samples=20"], "samples must be at least 100"),
    ):
        with pytest.raises(SetupError, match=said):
            cli.main(["compare", *words, f"--output={tmp_path}/out"])
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be written to"):
        cli.main(["compare", a, b, f"--output={tmp_path}/file/out"])


def test_a_mistake_is_shown_with_its_flag_and_without_traceback(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "cli.py", "compare", str(tmp_path), str(tmp_path), "--masks=/nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert "Traceback" not in run.stderr


def write_masks(folder: Path, maps: dict[str, np.ndarray]) -> Path:
    for name, values in maps.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values.astype(np.uint8))
        if "palette" in name:
            image.putpalette(list(range(256)) * 3)
        image.save(folder / f"{name}.png")
    return folder


def test_folders_of_predicted_masks_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    truths = {f"city/{i}_palette": rng.choice([0, 1, 2, 255], (20, 30)) for i in range(12)}
    wrong = {
        name: np.where(rng.random((20, 30)) < 0.3, 1, truth % 255) for name, truth in truths.items()
    }
    right = {name: np.where(truth == 255, 0, truth) for name, truth in truths.items()}
    masks = write_masks(tmp_path / "truth", truths)
    sides = write_masks(tmp_path / "p1/masks", wrong).parent, write_masks(tmp_path / "p2", right)
    rows = compare(tmp_path / "out", *sides, f"--masks={masks}")
    means = [row["score"] for row in rows if row["kind"] == "mean"]
    assert means[:3] == ["mIoU", "boundary IoU", "mIoU within 1 px"]
    classes = [row for row in rows if row["kind"] == "class"]
    assert [row["score"] for row in classes] == ["class_0", "class_1", "class_2"]
    for index, row in enumerate(classes):
        pairs = [
            (wrong[name] == index, truths[name] == index, truths[name] != 255) for name in truths
        ]
        hits = sum((p & t & labeled).sum() for p, t, labeled in pairs)
        union = sum(((p | t) & labeled).sum() for p, t, labeled in pairs)
        assert float(row["baseline_score"]) == pytest.approx(hits / union, abs=1e-6)
        assert row["side_score"] == "1.000000"
    assert rows[0]["verdict"] == "better"
    (tmp_path / "names.txt").write_text("sky\nroad, wet\ntree\n")
    named = compare(tmp_path / "out", *sides, f"--masks={masks}", f"--classes={tmp_path}/names.txt")
    assert [row["score"] for row in named[-3:]] == ["sky", "road, wet", "tree"]


def test_a_prediction_of_void_is_no_class_and_a_void_label_does_not_count() -> None:
    mask, truth = np.array([[255, 1, 0]], np.uint8), np.array([[0, 255, 0]], np.uint8)
    for void in (255, 2, 0):  # beyond, beside and among the classes
        masks = [np.where(each == 255, void, each + (void == 0)) for each in (mask, truth)]
        counts = mask_counts(*masks, 2 + (void == 0), void)[0]
        assert counts[int(void == 0) :].tolist() == [[1, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ("truth", "mask", "words", "said"),
    [
        (np.zeros((4, 5)), np.zeros((4, 6)), [], r"m.png has 6x4 pixels and .* has 5x4"),
        (np.zeros((4, 5)), np.full((4, 5), 7), ["--classes=3"], r"holds 7, which is neither a cl"),
        (np.full((4, 5), 9), np.zeros((4, 5)), ["--classes=3"], r"truth/m.png holds 9"),
        (np.zeros((4, 5)), np.zeros((4, 5, 3)), [], "an image of mode RGB"),
        (np.zeros((4, 5)), None, [], r"p/m.png cannot be read"),
        (np.zeros((4, 5)), np.zeros((4, 5)), ["--classes=0"], r"classes must be in \[1, 255\]"),
        (np.zeros((4, 5)), np.zeros((4, 5)), ["--classes=/no"], "names of the classes cannot be"),
    ],
)
def test_masks_that_do_not_fit_are_one_message(
    truth: np.ndarray, mask: np.ndarray | None, words: list[str], said: str, tmp_path: Path
) -> None:
    truths = write_masks(tmp_path / "truth", {"m": truth})
    folder = write_masks(tmp_path / "p", {"m": np.zeros((4, 5)) if mask is None else mask})
    if mask is None:
        (folder / "m.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(SetupError, match=said):
        compare(tmp_path / "out", f"a={folder}", f"b={folder}", f"--masks={truths}", *words)


def test_folders_without_common_masks_are_one_message(tmp_path: Path) -> None:
    folder = write_masks(tmp_path / "p", {"m": np.zeros((4, 5))})
    other = write_masks(tmp_path / "q", {"n": np.zeros((4, 5))})
    (tmp_path / "empty").mkdir()
    for sides, said in (((folder, folder), "no mask of"), ((other, tmp_path / "empty"), "no PNG")):
        with pytest.raises(SetupError, match=said):
            compare(tmp_path / "out", f"a={sides[0]}", f"b={sides[1]}", f"--masks={other}")
