"""The process that holds the improver and the gap model, and answers the requests of the server."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from pitlm.core.errors import InputError
from pitlm.core.loop_section import LoopSection
from pitlm.core.nouns import Improvement
from pitlm.engines.engine import Engine, Finished, WriteRequest
from pitlm.loop.calibration import margin_for
from pitlm.loop.live_loop import Unavailable
from pitlm.loop.loop import GapScorer
from pitlm.serve.settings import Settings

SLICE_SECONDS = 0.01
"""How long the improver writes before the process looks for new requests."""

Reply = tuple[int, Any]
"""The key of a request with its answer, its gap, or the exception that its client gets."""


@dataclass(frozen=True, slots=True)
class GapRequest:
    """A request for one gap."""

    key: int
    item: Improvement


Request = WriteRequest | GapRequest


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """The models that the process has loaded; either may be missing.

    Attributes:
        make_engine: makes an engine around the improver; called again when that engine has failed.
    """

    make_engine: Callable[[], Engine] | None
    scorer: GapScorer | None


def load_models(settings: Settings) -> LoadedModels:
    """Load the models that run on this machine. Adapters over the same base share the base's weights.

    With an R_P in the settings, the scorer asks the gap model and R_P, and both have to agree. This function imports
    torch, so only the models' own process may call it.

    Raises:
        InputError: a folder has no checkpoint of the right kind.
    """
    # Otherwise MKL's sums depend on where a buffer lies, and the same seed could give another answer.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    from pitlm.engines.generators import Improver
    from pitlm.engines.local_engine import LocalEngine
    from pitlm.models.adapters import Bases
    from pitlm.models.loading import quiet
    from pitlm.models.scorers import load_gaps

    quiet()
    bases, folders = Bases(settings.dtype, settings.quantize), settings.folders
    scorer = load_gaps(folders["gap"], folders.get("reward"), bases) if "gap" in folders else None
    if "improver" not in folders:
        return LoadedModels(None, scorer)
    model = Improver.from_pretrained(folders["improver"], bases=bases)
    return LoadedModels(lambda: LocalEngine(model), scorer)


def work(pipe: Connection, load: Callable[[], LoadedModels]) -> None:
    """Load the models, then work on requests until the server's end of the pipe is gone.

    First the process sends the gap model's margin and whether the improver's engine is exact; or, if loading failed, an
    InputError. Then it receives lists of new requests. It answers each list, also an empty list, with the replies that
    are ready after about ``SLICE_SECONDS``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process when its requests are done
    try:
        models = load()
        margin = margin_for(models.scorer, LoopSection())
    except InputError as error:
        return pipe.send(InputError(str(error)))
    except ModuleNotFoundError as error:
        wanted = f"{error.name} is not installed, which local models need: pip install 'pitlm[train]'"
        return pipe.send(InputError(wanted))
    writing = _Writing(models.make_engine) if models.make_engine is not None else None
    pipe.send((margin, writing is None or writing.engine.exact))
    with suppress(EOFError, BrokenPipeError):
        while True:
            new: list[Request] = pipe.recv()
            replies: list[Reply] = []
            pairs = [request for request in new if isinstance(request, GapRequest)]
            if models.scorer is not None and pairs:
                replies += _replies(partial(_gaps, models.scorer), pairs, "gap model")
            if writing is not None:
                replies += writing.write([request for request in new if isinstance(request, WriteRequest)])
            pipe.send(replies)


class _Writing:
    """The improver's engine. A request that fails leaves the other requests unharmed."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self.engine, self._make = make_engine(), make_engine
        self._begun: dict[int, WriteRequest] = {}

    def write(self, new: Sequence[WriteRequest]) -> list[Reply]:
        """Take new requests and write, for a while or until an answer is finished."""
        replies: list[Reply] = []
        for request in new:
            self._begun[request.key] = request
            try:
                self.engine.submit(request)
            except Exception:
                replies += _replies(self._anew, [request], "improver")
        until = time.monotonic() + SLICE_SECONDS
        while self.engine.pending and not replies and time.monotonic() < until:
            try:
                replies = list(map(_reply, self.engine.step()))
            except Exception:  # out of memory, or a request on which the model fails: write each by itself
                self.engine = self._make()
                for request in self._begun.values():
                    replies += _replies(self._anew, [request], "improver")
        for key, _ in replies:
            del self._begun[key]
        return replies

    def _anew(self, requests: Sequence[WriteRequest]) -> list[Reply]:
        """Answer requests in a new engine, which holds nothing of earlier requests."""
        return list(map(_reply, self._make().write(requests)))


def _reply(finished: Finished) -> Reply:
    return finished.key, finished.answer or Unavailable("the improver failed")


def _gaps(scorer: GapScorer, requests: Sequence[GapRequest]) -> list[Reply]:
    gaps = scorer.gaps([request.item for request in requests])
    return [(request.key, float(gap)) for request, gap in zip(requests, gaps, strict=True)]


def _replies(work: Callable[[Any], list[Reply]], requests: Sequence[Request], model: str) -> list[Reply]:
    """Work on requests together. If that fails (out of memory, a pair that is too long), work on each by itself.

    No exception may quote a conversation to a client. So the client gets the message of an InputError, which names
    lengths only, and of any other exception just the type.
    """
    try:
        return work(requests)
    except Exception as error:
        if len(requests) > 1:
            return [reply for request in requests for reply in _replies(work, [request], model)]
        refusal = Unavailable(f"{type(error).__name__} in the {model}")
        return [(requests[0].key, InputError(str(error)) if isinstance(error, InputError) else refusal)]
