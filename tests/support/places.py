"""Where the checkout is, and the shared data beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
SHARED = ROOT.parent / "shared"
