"""Write the tables of docs/performance.md from the CSVs that the other scripts have kept.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator

from in_turn import RESULTS, ROOT

PAGE = ROOT / "docs" / "performance.md"
SCRIPTS = ("step", "methods", "predict", "startup")
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


def count(number: str, name: str) -> str:
    """Return a number with its noun, such as `2 threads`."""
    return f"{number} {name}{'s' * (number != '1')}"


def written(page: str) -> str:
    """Return the page with the tables of the measurements as they are now."""
    for script in SCRIPTS:
        mark = MARK.format(script)
        head, found, rest = page.partition(mark)
        assert found, f"{PAGE} lacks {mark}"
        table = "\n".join(lines(read(script)))
        page = f"{head}{mark}\n{table}\n{END}{rest.partition(END)[2]}"
    return page


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
