"""What `pit serve` serves, and within which limits."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pitlm.core.recipe import LoopSection, Quantization, TemplateSection
from pitlm.core.section import PositiveFloat, PositiveInt, Section

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""

LOOPBACK = frozenset(f"[{host}]" if ":" in host else host for host in LOOPBACK_HOSTS)
"""The same addresses as a client's Host header names them."""


URLS = ("http://", "https://")


class Settings(Section):
    """What `pit serve` serves; several fields are options of the command."""

    upstream: str | None = Field(
        None, description="base URL of the API behind the proxy, as a client would have it (with its /v1)"
    )
    upstream_key: str | None = Field(None, description="key for the upstream, in place of the client's own")
    improver: str | None = Field(
        None, description="folder of an improver, or URL of an OpenAI-compatible server that has it"
    )
    improver_model: str = Field("improver", description="name of a remote improver on its server")
    improver_ask: str = Field(
        TemplateSection().ask, description="turn that a remote improver was trained with ('ask' in its pit.json)"
    )
    gap: str | None = Field(None, description="folder of a gap model, or URL of another `pit serve` that has it")
    reward: str | None = Field(None, description="folder of an R_P that has to agree with a gap model of this machine")
    dtype: str = Field("float32", description="dtype of the weights of models of this machine")
    quantize: Quantization | None = Field(None, description="how weights of models of this machine are held")
    models_key: str | None = Field(None, description="bearer token for a remote improver and gap model")
    loop: LoopSection = LoopSection()
    token: str | None = Field(None, description="bearer token that clients have to send; null asks for none")
    open_paths: frozenset[str] = Field(
        frozenset({"/", "/healthz"}),
        description="paths that need no token; the page at / asks for the token, and is of no use without it",
    )
    hosts: frozenset[str] | None = Field(
        LOOPBACK, description="names by which clients may call this server; null allows any name"
    )
    improve_seconds: PositiveFloat = Field(
        20.0, description="seconds for the improvement of one answer; then the best so far is sent"
    )
    upstream_seconds: PositiveFloat = Field(
        600.0, description="seconds that the upstream may be silent before the client gets a 504"
    )
    heartbeat: PositiveFloat = Field(5.0, description="seconds between comments in a stream that waits for text")
    batch: PositiveInt = Field(32, description="most proposals or gaps that the models make together")
    concurrency: PositiveInt = Field(256, description="most requests that are worked on at once")
    queue: Annotated[int, Field(ge=0)] = Field(256, description="most requests that wait; further ones get a 429")
    max_body: PositiveFloat = Field(16, description="largest request, in MiB")

    @property
    def folders(self) -> dict[str, Path]:
        """Folders of the models that run on this machine, by role; a model behind a URL has none."""
        places = {"improver": self.improver, "gap": self.gap, "reward": self.reward}
        return {role: Path(place) for role, place in places.items() if place and not place.startswith(URLS)}

    @property
    def body_bytes(self) -> int:
        """Bytes of the largest request body."""
        return int(self.max_body * 2**20)
