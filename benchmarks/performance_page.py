"""Write the tables and the plot of docs/performance.md from the CSVs that other scripts have kept.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import growth
from in_turn import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
SCRIPTS = ("step", "methods", "metrics", "predict", "startup", "growth")
MARK = "<!-- made by benchmarks/performance_page.py: {} -->\n"
END = "<!-- end -->\n"


def read(script: str) -> list[dict[str, str]]:
    """Return the rows that a script has kept."""
    with (RESULTS / f"performance_{script}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines(rows: list[dict[str, str]]) -> Iterator[str]:
    """Yield the lines of the tables of one script."""
    for title in dict.fromkeys(row["table"] for row in rows):
        part = [row for row in rows if row["table"] == title]
        memory = any(row["mib"] for row in part)
        first = part[0]
        yield f"**{title}** ({count(first['threads'], 'thread')}, {first['rounds']} rounds)"
        yield ""
        yield f"| run | ms | beside {first['beside']} | middle half |" + " MiB |" * memory
        yield "|---|---:|---:|---:|" + "---:|" * memory
        for row in part:
            values = row["name"], row["ms"], f"{row['ratio']}x", f"{row['low']} to {row['high']}"
            yield "| " + " | ".join([*values, *[row["mib"]] * memory]) + " |"
        yield ""
        yield f"Measured on {first['date']} at commit {first['commit']}: {first['machine']}."
        yield ""


def growth_lines(rows: list[dict[str, str]]) -> Iterator[str]:
    """Yield the lines of the tables of `growth.py`."""
    for axis in dict.fromkeys(row["table"] for row in rows):
        head, body = growth.table(rows, axis)
        yield f"**{axis[0].upper()}{axis[1:]}** ({count(rows[0]['threads'], 'thread')})"
        yield ""
        yield "| " + " | ".join(head) + " |"
        yield "|---" + "|---:" * (len(head) - 1) + "|"
        for line in body:
            yield "| " + " | ".join(line) + " |"
        yield ""
    first = rows[0]
    yield f"Measured on {first['date']} at commit {first['commit']}: {first['machine']}."
    yield ""


def plot(tables: dict[str, list[dict[str, str]]], path: Path) -> None:
    """Draw the ratios of steps, with the middle half of the rounds.

    Args:
        tables: Rows by title.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure

    heights = [len(rows) for rows in tables.values()]
    figure = Figure(figsize=(9, 0.27 * sum(heights) + len(heights)), dpi=100, layout="constrained")
    panels = figure.subplots(len(tables), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, tables.items(), strict=True):
        for place, row in enumerate(rows):
            ratio, low, high = (float(row[name]) for name in ("ratio", "low", "high"))
            others = "loop" in row["name"] or row["name"].startswith("plain")
            axes.barh(place, ratio, 0.6, color="0.7" if others else "tab:blue")
            axes.plot([low, high], [place, place], color="0.2", lw=1.5)
            axes.text(max(ratio, high) + 0.02, place, f"{ratio:.2f}x", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        axes.set_title(f"{title}, beside {rows[0]['beside']}", fontsize=9, loc="left")
        axes.axvline(1, color="0.3", lw=0.8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def count(number: str, name: str) -> str:
    """Return a number with its noun, such as `2 threads`."""
    return f"{number} {name}{'s' * (number != '1')}"


def written(page: str) -> str:
    """Return the page with the tables of the measurements as they are now."""
    for script in SCRIPTS:
        mark = MARK.format(script)
        head, found, rest = page.partition(mark)
        assert found, f"{PAGE} lacks {mark}"
        made = growth_lines if script == "growth" else lines
        table = "\n".join(made(read(script)))
        page = f"{head}{mark}\n{table}\n{END}{rest.partition(END)[2]}"
    return page


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    rows = [*read("step"), *read("methods")]
    titles = dict.fromkeys(row["table"] for row in rows)
    tables = {title: [row for row in rows if row["table"] == title] for title in titles}
    plot(tables, PAGE.with_suffix(".png"))


if __name__ == "__main__":
    main()
