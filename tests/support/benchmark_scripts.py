"""The scripts of `benchmarks`, as modules that import each other by name as from their folder."""

import importlib.util
import sys
from types import ModuleType

from places import ROOT


def script(name: str) -> ModuleType:
    """Run a script and return its module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
