"""The verb `report`: one HTML page about a run, which needs no other file and no network.

lightning-seg report RUN [--baseline RUN2] [--output FILE.html]
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import Namespace

import lightning_seg
from lightning_seg import __version__
from lightning_seg.commands import report_parts
from lightning_seg.commands.comparison import Comparison, compare_sides, percent
from lightning_seg.commands.next_step import as_typed
from lightning_seg.commands.report_charts import (
    Points,
    read_curves,
    reliability_chart,
    training_charts,
)
from lightning_seg.commands.report_images import image_groups, legend, listed_pictures
from lightning_seg.commands.sides import VERBS_WITH_SCORES, Side, read_side, scores_folder
from lightning_seg.errors import SetupError
from lightning_seg.files import write_whole
from lightning_seg.run_folder import CONFIG
from lightning_seg.scores import SUMMARY, Scores, read_scores
from lightning_seg.training import PretrainingModule

CURVES = "metrics.csv"
PAGE = Path(__file__).parent / "report_page"


@dataclass
class Run:
    """What the folder of a run holds.

    Attributes:
        folder: The folder.
        place: The folder of its scores.
        scores: Its scores; None where there are none.
        config: The text of its configuration; empty where there is none.
        curves: The curves of its training.
        missing: Sentences on what is missing, and the command that makes it; empty if unknown.
    """

    folder: Path
    place: Path
    scores: Scores | None = None
    config: str = ""
    curves: dict[str, Points] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)


def report(options: Namespace) -> int:
    """Write the page of a run.

    Args:
        options: The options of the verb, parsed.

    Returns:
        The exit code, 0.

    Raises:
        SetupError: There is nothing to report, the baseline has no scores or cannot be compared,
            or the page cannot be written.
    """
    run = read_run(Path(options.run).expanduser())
    output = Path(options.output or run.folder / "report.html").expanduser()
    text = page(run, Path(options.baseline).expanduser() if options.baseline else None)
    try:
        with write_whole(output) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{output} cannot be written: {error}", option="output") from error
    for sentence, command in run.missing:
        print(f"note: {sentence}{f' Next: {command}' * bool(command)}")
    print(f"written: {output} ({len(text) / 1e6:.1f} MB); next: open it in a browser")
    return 0


def read_run(folder: Path) -> Run:
    """Read what there is in the folder of a run.

    Raises:
        SetupError: There is nothing.
    """
    if not folder.is_dir():
        raise SetupError(f"there is no folder {folder}")
    run = Run(folder, folder)
    try:
        run.place = scores_folder(folder)
        run.scores = read_scores(run.place)
    except SetupError as error:
        command = _test_command(folder)
        damaged = any((place / SUMMARY).is_file() for place in (folder, run.place))
        message = f"{error}." if damaged or run.place != folder else "There are no scores."
        if _trains_an_encoder(folder):
            message, command = "This training is of an encoder, which has no scores of classes.", ""
        run.missing.append((message, command))
    if run.place == folder and run.scores and folder.name in VERBS_WITH_SCORES:
        run.folder = folder.parent  # the folder of scores was named
    config = run.folder / CONFIG
    if config.is_file():
        run.config = config.read_text(encoding="utf-8", errors="replace")
    else:
        run.missing.append((f"There is no {CONFIG}, so the configuration is not known.", ""))
    if run.scores is None or run.place != run.folder:  # else it is the table of the classes
        run.curves = read_curves(run.folder / CURVES)
    if not run.curves:
        text = (
            f"There is no {CURVES} with curves of the training: the CSV logger writes it, also "
            "beside other loggers (-c configs/logger/csv.yaml)."
        )
        run.missing.append((text, ""))
    if run.scores is None and not run.config and not run.curves:
        raise SetupError(
            f"there is nothing to report in {folder}: {run.missing[0][0]} There is no {CONFIG} "
            f"and no {CURVES}"
        )
    return run


def _trains_an_encoder(folder: Path) -> bool:
    """Return whether a run's configuration names a method that trains an encoder alone."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        name = str(config["model"]["class_path"]).rpartition(".")[2]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return False
    return isinstance(method := getattr(lightning_seg, name, None), type) and issubclass(
        method, PretrainingModule
    )


def _test_command(folder: Path) -> str:
    """Return the command that leaves scores; empty where the run has no configuration."""
    if not (folder / CONFIG).is_file():
        return ""
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
    best = [path for path in checkpoints if path.stem.startswith("best")] or checkpoints
    checkpoint = str(best[-1]) if best else "FILE"
    return as_typed("test", ["-c", str(folder / CONFIG), "--ckpt_path", checkpoint])


def page(run: Run, baseline: Path | None) -> str:
    """Return the HTML of a run's page.

    Args:
        run: The run; what the page lacks is added to `missing`.
        baseline: The folder of the baseline, or None.

    Raises:
        SetupError: The baseline has no scores, or cannot be compared.
    """
    import jinja2  # imported here, because it takes long

    other = _baseline_side(run, baseline)
    values: dict[str, Any] = {
        "title": _title(run),
        "facts": _facts(run),
        "charts": training_charts(run.curves, read_curves(baseline / CURVES) if baseline else {}),
        "config": run.config,
        "command": _command(run),
        "version": __version__,
    }
    if run.scores is not None:
        values |= _score_parts(run, run.scores, other)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(**values, missing=run.missing)


def _baseline_side(run: Run, baseline: Path | None) -> Side | None:
    if baseline is None:
        return None
    if run.scores is None:
        raise SetupError(f"{run.folder} has no scores to compare with a baseline")
    name = "baseline" if baseline.resolve().name == run.folder.resolve().name else baseline.name
    return read_side(name, [baseline])


def _score_parts(run: Run, scores: Scores, other: Side | None) -> dict[str, Any]:
    """Return the values of the template's sections on scores and images."""
    comparison: Comparison | None = None
    if other is not None:
        own = Side(run.folder.resolve().name, [scores], [run.place])
        comparison = compare_sides(other, own, 0.95, 1, 10_000, 0)
    before = (other.runs[0], other.folders[0]) if other else None
    classes = report_parts.class_lines(scores, comparison)
    bands = report_parts.bands(scores, comparison)
    matrix = report_parts.confusion_matrix(scores)
    groups, shown = image_groups(scores, run.place, before)
    chart = _reliability(scores)
    for there, what in (
        (bands, "counts of pixels near boundaries"),
        (matrix is not None, "confusion matrix"),
        (chart, "calibration"),
        (groups, "pictures"),
    ):
        if not there:
            run.missing.append((f"The scores in {run.place} hold no {what}.", ""))
    return {
        "headline": report_parts.headline(scores, before[0] if before else None, comparison),
        "comparison": comparison,
        "confidence": percent(0.95),
        "classes": classes,
        "classes_in_short": report_parts.in_short(classes, "classes"),
        "bands": bands,
        "bands_in_short": report_parts.in_short(bands, "scores"),
        "matrix": _small_matrix(matrix, scores),
        "confusions": [] if matrix is None else report_parts.confusions(matrix, scores.classes),
        "names": scores.classes,
        "reliability": chart,
        "groups": groups,
        "images": len(scores.ids),
        "pictured": len(listed_pictures(scores, run.place)),
        "legend": legend(scores, shown),
    }


def _small_matrix(matrix: Any, scores: Scores) -> list[list[float | None]]:
    """Return the rows of a matrix of few classes, with None for NaN."""
    if matrix is None or not 1 < len(scores.classes) <= report_parts.MOST_IN_MATRIX:
        return []
    return [[None if np.isnan(each) else each for each in row] for row in matrix.tolist()]


def _reliability(scores: Scores) -> Any:
    """Return the reliability diagram; None where the scores hold none, or one of another form."""
    try:
        calibration = scores.summary["calibration"]
        return reliability_chart(calibration["bins"], calibration.get("ece"))
    except (TypeError, KeyError, AttributeError):
        return None


def _title(run: Run) -> str:
    summary = run.scores.summary if run.scores else {}
    method, data = (str(summary.get(each) or "") for each in ("method", "data"))
    parts = [method.removesuffix("Module"), data.removesuffix("DataModule")]
    return " on ".join(part for part in parts if part) or run.folder.resolve().name


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return what was evaluated, as names and values."""
    summary = run.scores.summary if run.scores else {}
    facts = {
        "folder": run.folder.resolve().name,
        "network": summary.get("network"),
        "images": len(run.scores.ids) if run.scores else None,
        "scores by": summary.get("verb"),
        "seed": summary.get("seed"),
        "checkpoint": summary.get("checkpoint"),
        "version": summary.get("version"),
        "commit": summary.get("commit"),
        "tested": str(summary.get("created") or "")[:16].replace("T", " "),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _command(run: Run) -> str:
    words = run.scores.summary.get("command") if run.scores else None
    if not isinstance(words, list) or not words:
        return _test_command(run.folder)
    python = ["python"] if str(words[0]).endswith(".py") else []
    return shlex.join([*python, *map(str, words)])
