import sys
from pathlib import Path

from tiny_run import tiny_run

sys.path.insert(0, str(Path(__file__).parent))  # for `damage` and `forked`

__all__ = ["tiny_run"]
