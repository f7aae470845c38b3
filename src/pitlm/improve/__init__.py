"""The loop that betters a response, and the baselines that it is compared with.

``from pitlm import improve`` finds this package, whatever ``pitlm`` itself says that ``improve`` is; so the package can
be called, and is then :func:`pitlm.improve.loop.improve`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pitlm.improve.loop import improve

        return improve(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
