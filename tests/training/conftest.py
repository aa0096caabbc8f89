"""Makes the tiny models of `tiny.py` importable by the tests beside it, and by the runs that they start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
