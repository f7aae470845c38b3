"""Server-sent events, as the HTML standard reads them (9.2.6), each with the bytes that it came in."""

import re
from collections.abc import AsyncIterator

_LINE_END = re.compile(rb"\r\n|\n|\r")
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r){2}")


async def events(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream into server-sent events. Each keeps its final blank line, so the joined events equal the stream."""
    rest = b""
    async for part in stream:
        rest += part
        while match := _EVENT_END.search(rest):
            yield rest[: match.end()]
            rest = rest[match.end() :]
    if rest:
        yield rest


def event_data(event: bytes) -> bytes | None:
    """The data of one event, as the HTML standard reads it: all its lines of data, joined. None without such a line.

    Raises:
        ValueError: an event that no client takes for data: without a final blank line, without data, or an error.
    """
    fields: dict[bytes, list[bytes]] = {}
    for line in _LINE_END.split(event.removeprefix(b"\xef\xbb\xbf")):
        name, _, value = line.partition(b":")
        if name:  # else a blank line or a comment
            fields.setdefault(name, []).append(value.removeprefix(b" "))
    data = b"\n".join(fields[b"data"]) if b"data" in fields else None
    unclear = data is None or b"error" in fields.get(b"event", ()) or not _EVENT_END.search(event)
    if fields and unclear and not (data or b"").startswith(b"[DONE]"):
        raise ValueError(event)
    return data
