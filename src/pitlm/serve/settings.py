"""Settings of `pit serve`: models, upstream and limits."""

import json
from pathlib import Path

from pitlm.core.errors import loading
from pitlm.core.loop_section import LoopSection
from pitlm.core.recipe import Quantization, TemplateSection
from pitlm.core.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""

LOOPBACK = frozenset(f"[{host}]" if ":" in host else host for host in LOOPBACK_HOSTS)
"""The same addresses as a client's Host header names them."""


URLS = ("http://", "https://")


class Settings(Section):
    """Models, upstream and limits of `pit serve`. Several fields are options of the command.

    Attributes:
        upstream: base URL of the API behind the proxy, as its clients use it (with /v1).
        upstream_key: key for the upstream, in place of the client's own.
        improver: folder of an improver, or URL of an OpenAI-compatible server that runs the improver.
        improver_model: name of a remote improver on its server.
        improver_ask: words that ask a remote improver for a better answer, if it was trained with a `template.ask` of
            its own; default: those of a local gap model, else those of the packaged recipes.
        gap: folder of a gap model, or URL of another `pit serve` that runs the gap model.
        reward: folder of an R_P that has to agree with a local gap model.
        dtype: dtype of the weights of local models.
        quantize: how the weights of local models are held in memory.
        models_key: bearer token for a remote improver and gap model.
        token: bearer token that clients have to send; null asks for none.
        open_paths: paths that need no token; the page at / asks for the token and does nothing without it.
        hosts: names by which clients may call this server; null allows any name.
        improve_seconds: seconds for the improvement of one answer; then the client gets the best answer so far.
        upstream_seconds: seconds that the upstream may be silent before the client gets a 504.
        heartbeat: seconds between comments in a stream that waits for text.
        batch: most proposals or gaps in one batch of the models.
        concurrency: most requests to work on at once.
        queue: most requests that may wait; further requests get a 429.
        max_body: largest request, in MiB.
    """

    upstream: str | None = None
    upstream_key: str | None = None
    improver: str | None = None
    improver_model: str = "improver"
    improver_ask: str | None = None
    gap: str | None = None
    reward: str | None = None
    dtype: str = "float32"
    quantize: Quantization | None = None
    models_key: str | None = None
    loop: LoopSection = LoopSection()
    token: str | None = None
    open_paths: frozenset[str] = frozenset({"/", "/healthz"})
    hosts: frozenset[str] | None = LOOPBACK
    improve_seconds: PositiveFloat = 20.0
    upstream_seconds: PositiveFloat = 600.0
    heartbeat: PositiveFloat = 5.0
    batch: PositiveInt = 32
    concurrency: PositiveInt = 256
    queue: NonNegativeInt = 256
    max_body: PositiveFloat = 16

    @property
    def folders(self) -> dict[str, Path]:
        """Folders of the models that run on this machine, by role; a model behind a URL has none."""
        places = {"improver": self.improver, "gap": self.gap, "reward": self.reward}
        return {role: Path(place) for role, place in places.items() if place and not place.startswith(URLS)}

    @property
    def ask(self) -> str:
        """The user turn that asks a remote improver for a better answer: what the models were trained with.

        Raises:
            InputError: the card of a local gap model cannot be read.
        """
        if self.improver_ask is None and (gap := self.folders.get("gap")):
            with loading(gap / "pit.json", "model card"):
                return str(json.loads((gap / "pit.json").read_text(encoding="utf-8"))["ask"])
        return self.improver_ask or TemplateSection().ask
