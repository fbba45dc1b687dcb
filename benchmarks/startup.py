"""Measure the processor's time of commands that only print.

    python benchmarks/startup.py [--rounds 3] [--keep]

Each command runs in a process of its own. The rows `import` are the same without this project.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import in_turn

COMMANDS = {
    "import lightning": ["-c", "import lightning"],
    "import torch": ["-c", "import torch"],
    "--help": ["cli.py", "--help"],
    "configs --help": ["cli.py", "configs", "--help"],
    "compare --help": ["cli.py", "compare", "--help"],
    "fit --help": ["cli.py", "fit", "--help"],
    "fit with a wrong option": ["cli.py", "fit", "--model.no_such_option", "1"],
}


def seconds(words: list[str]) -> float:
    """Return the processor's time of a Python process, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words], cwd=in_turn.ROOT, capture_output=True, check=False, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    options = in_turn.parser(__doc__, rounds=3).parse_args()
    runs = {name: lambda words=words: seconds(words) for name, words in COMMANDS.items()}
    times = in_turn.in_turn(runs, options.rounds)
    title = "Processor time of a command"
    found = in_turn.rows(title, times, "import lightning", options.threads)
    in_turn.finish("startup", found, options.keep)


if __name__ == "__main__":
    main()
