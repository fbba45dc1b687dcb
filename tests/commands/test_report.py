"""`python cli.py report`, as a user types it, and the page in a browser."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Page, with_page
from example_runs import write_run
from PIL import Image

import cli
from lightning_seg import SetupError
from lightning_seg.commands.report import PAGE
from lightning_seg.commands.report_charts import read_curves, reliability_chart, training_charts
from lightning_seg.commands.report_images import BUDGET, image_groups
from lightning_seg.commands.report_parts import confusion_matrix, confusions
from lightning_seg.scores import Scores, read_scores


class Reader(HTMLParser):
    """The tags and the text of a page."""

    VOID = ("meta", "img", "input", "br", "line", "polyline", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += f" {' '.join(data.split())}"

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def report(run: Path, *words: object) -> Reader:
    """Run the command, return its page."""
    assert cli.main(["report", str(run), *map(str, words)]) == 0
    return Reader((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "baseline", images=16, seed=0)
    write_run(root / "lmp", images=16, seed=1, quality=1.0)
    return root


@pytest.fixture
def runs(written: Path, tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(written, tmp_path / "runs")
    return tmp_path / "runs/lmp", tmp_path / "runs/baseline"


def test_the_page_shows_every_part(runs: tuple[Path, Path]) -> None:
    page = report(runs[0], "--baseline", runs[1])
    scores, before = (read_scores(run / "test") for run in runs)
    miou, old = (100 * np.nanmean(each.iou()) for each in (scores, before))
    assert f"{miou:.1f} % mIoU, baseline {old:.1f} %" in page.text
    assert f"{miou - old:+.2f} points of mIoU, 95 % interval over 16 images" in page.text
    for part in ("Classes", "Boundaries", "Confusions", "Reliability", "Images", "Training"):
        assert f" {part} " in page.text
    assert "lightning-seg test -c runs/lmp/config.yaml --ckpt_path best" in page.text
    assert "seed_everything: 1" in page.text
    for name, iou in zip(scores.classes, scores.iou(), strict=True):
        assert re.search(rf" {name} +{100 * iou:.1f} %", page.text), name
    assert "mIoU within 3 px" in page.text
    for heading in ("Worst images", "Best images", "Most changed against the baseline"):
        assert heading in page.text
    assert not page.all("div role=note")
    assert "missing" not in page.text


def test_the_page_needs_nothing_else(runs: tuple[Path, Path]) -> None:
    page = report(runs[0], "--baseline", runs[1])
    text = (runs[0] / "report.html").read_text()
    for attributes in page.all("img", "script", "link", "a", "iframe", "image", "use"):
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:image/jpeg;base64,", "#"))
    assert not re.search(r"https?://|@import|url\(", text)
    (policy,) = (
        each["content"] for each in page.all("meta") if "content" in each and "http-equiv" in each
    )
    assert policy.startswith("default-src 'none'")
    assert len(text) < 10_000_000


def test_the_page_can_be_read_without_seeing_it(runs: tuple[Path, Path]) -> None:
    page = report(runs[0], "--baseline", runs[1])
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    charts = [each for each in page.all("svg") if "aria-hidden" not in each]
    assert all(each["role"] == "img" for each in charts)
    assert all(re.search(r"\d", each["aria-label"]) for each in charts)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {each.get("for") for each in page.all("label")}
    sliders = [each for each in page.all("input") if each["type"] == "range"]
    assert len(sliders) == len(page.all("figure")) - len(charts)
    assert {each["id"] for each in sliders} <= labelled
    for attributes in page.all("a"):
        assert attributes["href"].removeprefix("#") in ids


def luminance(color: tuple[float, ...]) -> float:
    """The relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_the_contrast_of_wcag_aa(dark: bool) -> None:
    css = (PAGE / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colors = {
        name: tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4))
        for name, value in re.findall(r"--(\w+): #(\w{6})", blocks[dark])
    }
    for text in ("text", "muted", "accent", "better", "worse"):
        for ground in ("page", "panel"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for line in ("line1", "line2", "line3", "line4", "line5", "accent", "tick"):
        assert contrast(colors[line], colors["page"]) >= 3, line
    for percent in range(101):  # the cells of the confusion matrix
        share = percent / 100
        cell = tuple(
            share * h + (1 - share) * p
            for h, p in zip(colors["heat"], colors["panel"], strict=True)
        )
        light_text = percent < 60 if dark else percent >= 78
        assert contrast((light_text,) * 3, cell) >= 4.5, percent


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    names = ["<b>bold</b>", 'a "quoted" & name', "x" * 300, "{{ 7 * 7 }}", "comma, class"]
    names += ["</script><script>alert(1)</script>", "'", "типы"]
    run = write_run(tmp_path / "run", images=3, classes=names, method="<i>M</i>")
    scores = read_scores(run / "test")
    bad = '<img src=x onerror="alert(1)">'
    scores.summary["pictures"][0]["id"] = scores.ids[0] = bad
    scores.write(run / "test")
    (run / "config.yaml").write_text("a: </code></pre><script>alert(2)</script>\n")
    page = report(run)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert not [each for each in page.all("img") if "onerror" in each]
    for name in names:
        assert name[:59] in page.text
    assert bad in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_171_classes_and_one_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for count in (171, 1):
        truth = rng.integers(50, 100, (5, 1, count))
        hits = (truth * rng.uniform(0.3, 0.9, truth.shape)).astype(int)
        counts = np.stack([hits, truth, truth], -1)
        names = [f"class {index}" for index in range(count)]
        confusion = np.diag(hits.sum((0, 1)))
        confusion[0, -1] += 50 * (count > 1)
        summary = {"classes": names, "confusion": confusion.tolist(), "palette": [[1, 2]]}
        run = tmp_path / str(count)
        Scores([str(i) for i in range(5)], ["iou"], counts, summary).write(run / "test")
        page = report(run)
        assert f" class {count - 1} " in page.text
        assert "Percent of the pixels of each label" not in page.text
        assert ("of the pixels of class 0 are predicted as class 170" in page.text) == (count > 1)
        assert "hold no pictures" in page.text


def test_an_interrupted_run_is_reported_with_what_is_there(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[0]
    shutil.rmtree(run / "test")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best.ckpt").touch()
    content = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(content[: len(content) // 2] + "\n17,NaN,\x00,,")
    page = report(run)
    command = f" test -c {run}/config.yaml --ckpt_path {run}/checkpoints/best.ckpt"
    assert "There are no scores. This command makes them:" in page.text
    assert command in page.text
    assert command in capsys.readouterr().out
    assert "Training" in page.text
    assert not page.all("img")
    (run / "config.yaml").unlink()
    assert "There is no config.yaml" in report(run).text
    (run / "metrics.csv").unlink()
    with pytest.raises(SetupError, match=r"nothing to report in .*lmp: There are no scores\."):
        report(run)


def test_damaged_files_are_left_out_with_a_sentence(runs: tuple[Path, Path]) -> None:
    run = runs[0]
    summary = json.loads((run / "test/metrics.json").read_text())
    summary |= {"calibration": {"bins": 3}, "confusion": [[1]], "palette": "red", "scores": 7}
    summary["pictures"] += [
        3,
        {"id": 1},
        {"id": "2", "image": "no", "truth": "no", "prediction": 1},
    ]
    (run / "test/metrics.json").write_text(json.dumps(summary))
    for picture in (run / "test/pictures").rglob("*_truth.png"):
        picture.write_bytes(b"\x89PNG")
    page = report(run)
    for part in ("confusion matrix", "calibration", "pictures"):
        assert f"hold no {part}." in page.text
    (run / "test/counts.npz").write_bytes(b"damaged")
    assert "cannot be read" in report(run).text


def test_a_training_of_an_encoder_has_no_scores_to_ask_for(runs: tuple[Path, Path]) -> None:
    run = runs[0]
    shutil.rmtree(run / "test")
    (run / "config.yaml").write_text("model: {class_path: lightning_seg.JigsawModule}\n")
    text = report(run).text
    assert "This training is of an encoder" in text
    assert "This command makes them" not in text


def test_damaged_scores_alone_are_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0] / "test", tmp_path / "alone")
    (tmp_path / "alone/counts.npz").write_bytes(b"damaged")
    with pytest.raises(SetupError, match=r"nothing to report .*cannot be read"):
        cli.main(["report", str(tmp_path / "alone")])


def test_mistakes_are_one_message(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SetupError, match="there is no folder"):
        cli.main(["report", "/nowhere"])
    with pytest.raises(SetupError, match="nothing to report"):
        cli.main(["report", str(tmp_path / "empty")])
    with pytest.raises(SetupError, match="holds no scores"):
        cli.main(["report", str(runs[0]), f"--baseline={tmp_path / 'empty'}"])
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="cannot be written"):
        cli.main(["report", str(runs[0]), f"--output={tmp_path}/file/a.html"])


def test_the_folder_of_scores_may_be_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert cli.main(["report", str(runs[0] / "test"), f"--output={tmp_path}/a.html"]) == 0
    assert "seed_everything" in (tmp_path / "a.html").read_text()


def test_large_pictures_stay_within_the_budget(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write_run(tmp_path / "run", images=12, size=(96, 144))
    for picture in (run / "test/pictures").rglob("*.jpg"):
        Image.fromarray(rng.integers(0, 256, (900, 1350, 3), np.uint8)).save(picture)
    report(run, "--baseline", run)
    assert (run / "report.html").stat().st_size < BUDGET + 1_000_000


def test_the_worst_best_and_most_changed_images_are_chosen(runs: tuple[Path, Path]) -> None:
    scores, before = (read_scores(run / "test") for run in runs)
    groups, _ = image_groups(scores, runs[0] / "test", (before, runs[1] / "test"))
    with (runs[0] / "test/images.csv").open() as file:
        rows = list(csv.DictReader(file))[:12]  # those with pictures
    with (runs[1] / "test/images.csv").open() as file:
        old = {row["id"]: float(row["iou"]) for row in csv.DictReader(file)}
    rows.sort(key=lambda row: float(row["iou"]))
    changed = sorted(rows, key=lambda row: -abs(float(row["iou"]) - old[row["id"]]))
    expected = {
        "Worst images": rows[:4],
        "Best images": rows[-4:][::-1],
        "Most changed against the baseline": changed[:4],
    }
    for heading, images in groups.items():
        assert [image.id for image in images] == [row["id"] for row in expected[heading]]
    assert len(groups) == 3


def test_the_most_frequent_confusions_by_hand() -> None:
    matrix = [[8, 2, 0], [3, 1, 0], [0, 0, 0]]
    scores = Scores([], ["iou"], np.zeros((0, 1, 3, 3), int), {"confusion": matrix})
    shares = confusion_matrix(scores)
    assert np.array_equal(shares[:2], [[0.8, 0.2, 0], [0.75, 0.25, 0]])
    assert np.isnan(shares[2]).all()
    assert confusions(shares, ["a", "b", "c"]) == [("b", "a", 0.75), ("a", "b", 0.2)]


def test_curves_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/miou\n0,2.5,\n1,,0.25\n2,nan,inf\nx,1,1\n3,1.5,0.")
    curves = read_curves(path)
    assert curves == {"train/loss": [(0, 2.5), (3, 1.5)], "val/miou": [(1, 0.25), (3, 0.0)]}
    loss, scores = training_charts(curves, {"val/miou": [(1, 0.5)]})
    assert "train/loss goes from 2.5 at step 0 to 1.5 at step 3" in loss.alt
    assert [name for name, _ in scores.lines] == ["val/miou", "val/miou of the baseline"]
    # at equal scales the first point of the loss is at the left and the last is lower on the page
    ((_, points),) = loss.lines
    first, last = ([float(each) for each in point.split(",")] for point in points.split())
    assert first[0] < last[0]
    assert first[1] < last[1]


def test_a_reliability_diagram_without_pixels_is_left_out() -> None:
    bin_ = {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None}
    assert reliability_chart([bin_], 0.1) is None
    chart = reliability_chart(
        [bin_, {"low": 0.5, "high": 1, "count": 4, "confidence": 0.8, "accuracy": 0.6}], 0.2
    )
    assert "expected calibration error is 0.200" in chart.alt
    assert "confidence 0.80: accuracy 0.60, 100.0% of the pixels" in chart.alt


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(runs: tuple[Path, Path], tmp_path: Path) -> None:
    report(runs[0], "--baseline", runs[1])
    file = runs[0] / "report.html"
    long = write_run(tmp_path / "long", images=3, classes=["a", "n" * 300, *"cdefgh"])
    report(long)
    named = long / "report.html"
    cut = "getComputedStyle(document.querySelector('.stack')).getPropertyValue('--cut')"
    slider = "document.querySelector('input[type=range]')"

    async def work(page: Page) -> None:
        # a name that has no place for a line break
        await page.open(named, 400, False)
        assert await page.evaluate("document.documentElement.scrollWidth") == 400
        for width, dark in itertools.product((1280, 400), (False, True)):
            await page.open(file, width, dark)
            # nothing is wider than the window
            assert await page.evaluate("document.documentElement.scrollWidth") == width
            await page.screenshot(tmp_path / "page.png")
            with Image.open(tmp_path / "page.png") as shot:
                pixels = np.asarray(shot.convert("L"))
            assert (np.median(pixels) < 60) == dark
            assert pixels.std() > 15
        await page.evaluate("document.querySelector('#images').scrollIntoView()")
        for _ in range(60):  # the slider is reached by the tabulator key alone
            await page.press("Tab", 9)
            if await page.evaluate(f"document.activeElement === {slider}"):
                break
        else:
            raise AssertionError("no slider was reached")
        assert await page.evaluate(cut) == "50%"
        await page.press("ArrowRight", 39)
        await page.press("ArrowRight", 39)
        assert await page.evaluate(cut) == "52%"
        assert "52" in await page.evaluate(f"{slider}.getAttribute('aria-valuetext')")
        both = "[...document.querySelectorAll('.truth, .prediction')].map(e => e.clientHeight > 20)"
        shown = await page.evaluate(both)
        assert shown
        assert all(shown)
        await page.open(file, scripts=False)
        await page.screenshot(tmp_path / "without.png")
        assert page.complaints == []
        assert set(page.requests) == {file.as_uri(), named.as_uri()}

    with_page(work)
