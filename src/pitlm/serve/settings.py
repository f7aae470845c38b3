"""What `pit serve` serves, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from pitlm.core.recipe import LoopSection, Quantization, TemplateSection

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
"""What a server may be bound to that only this machine reaches."""

LOOPBACK = frozenset(f"[{host}]" if ":" in host else host for host in LOOPBACK_HOSTS)
"""The same as a client's Host header names them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What `pit serve` serves.

    Attributes:
        upstream: base URL of the API in front of which the proxy stands, or None: then only scoring and improving.
        upstream_key: sent to it in place of the client's; needed where clients send ``token``.
        improver, gap: a checkpoint's folder, or the base URL of a server that has it.
        reward: the folder of an R_P that has to agree with a gap model of this machine.
        dtype, quantize: of the weights of models of this machine.
        improver_model, improver_ask: a remote improver's name, and the turn that it was trained with.
        models_key: bearer token for remote improver and gap model.
        token: what clients have to send; None asks for none.
        open_paths: need no token; the page at ``/`` asks for it, and is of no use without.
        hosts: names by which clients may call this server; None takes any.
        improve_seconds: for the improvement of one answer, after which the best so far stands.
        upstream_seconds: of the upstream's silence.
        heartbeat: seconds between comments in a stream that has nothing to say yet.
        concurrency: requests worked on at once.
        queue: requests that may wait beside them; more are told to come again (429).
        body_bytes: the largest request body.
        batch: proposals or gaps that the models make together, at most.
    """

    upstream: str | None = None
    upstream_key: str | None = None
    improver: str | None = None
    gap: str | None = None
    reward: str | None = None
    dtype: str = "float32"
    quantize: Quantization | None = None
    improver_model: str = "improver"
    improver_ask: str = TemplateSection().ask
    models_key: str | None = None
    loop: LoopSection = field(default_factory=LoopSection)
    token: str | None = None
    open_paths: frozenset[str] = frozenset({"/", "/healthz"})
    hosts: frozenset[str] | None = LOOPBACK
    improve_seconds: float = 20.0
    upstream_seconds: float = 600.0
    heartbeat: float = 5.0
    concurrency: int = 256
    queue: int = 256
    body_bytes: int = 16 * 2**20
    batch: int = 32
