"""pitlm: implicit self-improvement (PIT, arXiv:2310.00898) learnt from preference pairs.

The names below are imported on first use, so that ``import pitlm`` stays light.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pitlm.core.nouns import Improvement, Preference, Prompt, Trace
    from pitlm.engines.generators import Improver
    from pitlm.loop.loop import improve
    from pitlm.models.scorers import GapModel, RewardModel

# On a CPU bitsandbytes warns of a kernel that it does without, as soon as peft imports it.
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)

__version__ = "0.1.0"

__all__ = ["GapModel", "Improvement", "Improver", "Preference", "Prompt", "RewardModel", "Trace", "improve"]

_HOME = {
    **dict.fromkeys(("GapModel", "RewardModel"), "pitlm.models.scorers"),
    **dict.fromkeys(("Improvement", "Preference", "Prompt", "Trace"), "pitlm.core.nouns"),
    "Improver": "pitlm.engines.generators",
    "improve": "pitlm.loop.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pitlm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
