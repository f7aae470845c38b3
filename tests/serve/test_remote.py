"""Improver and gap model of other servers, on loopback."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from scripted_upstream import served

from pitlm.core.errors import InputError
from pitlm.core.nouns import Improvement, Prompt
from pitlm.loop.live_loop import ProposalRequest, Unavailable
from pitlm.serve.remote import RemoteImprover, RemoteScorer
from pitlm.serve.settings import Settings

X = Prompt.of("2 + 2 ?")


def remotely(use, kind, *replies, **settings):
    """Run a coroutine function with a remote model behind a server that gives these replies in turn."""
    asked, left = [], list(replies)

    async def server(scope, receive, send):
        body = (await receive())["body"]
        asked.append((scope["method"], scope["path"], json.loads(body or b"null"), dict(scope["headers"])))
        status, content = left.pop(0)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content.encode()})

    async def main(url):
        remote = kind(f"{url}/v1", **settings)
        try:
            return await use(remote)
        finally:
            await remote.aclose()

    with served(server) as url:
        return asyncio.run(main(url)), asked


def proposed(content="Four, sir .", end="stop", usage=True):
    message = {"choices": [{"message": {"content": content}, "finish_reason": end}]}
    return 200, json.dumps(message | ({"usage": {"completion_tokens": 4, "prompt_tokens": 20}} if usage else {}))


def improver(base, *, model, ask, key=None):
    there = Settings(improver=base, improver_model=model, improver_ask=ask, models_key=key)
    return RemoteImprover(there, retries=0)


def propose(max_tokens=None, seed=None):
    return lambda remote: remote.propose(ProposalRequest(X, "Four .", 0.4, seed, max_tokens))


def test_a_remote_improver_is_asked_as_the_local_gap_model_was_trained(tmp_path):
    (tmp_path / "pit.json").write_text('{"kind": "gap", "ask": "better", "max_new_tokens": 9}', encoding="utf-8")
    assert Settings(improver="http://there", gap=str(tmp_path)).ask == "better"
    assert Settings(improver="http://there", gap=str(tmp_path), improver_ask="Do better.").ask == "Do better."
    assert Settings(improver="http://there", gap="http://there").ask == "Please write a better answer."
    (tmp_path / "pit.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"pit\.json"):
        _ = Settings(improver="http://there", gap=str(tmp_path)).ask


def test_a_remote_improver_is_asked_as_it_was_trained():
    settings = {"model": "mine", "ask": "Do better.", "key": "sk"}
    answer, asked = remotely(propose(9, 3), improver, proposed(), **settings)
    assert (answer.text, answer.generated_tokens, answer.prompt_tokens) == ("Four, sir .", 4, 20)
    method, path, body, headers = asked[0]
    assert (method, path, headers[b"authorization"]) == ("POST", "/v1/chat/completions", b"Bearer sk")
    turns = [("user", "2 + 2 ?"), ("assistant", "Four ."), ("user", "Do better.")]
    assert body == {
        "model": "mine",
        "messages": [{"role": role, "content": content} for role, content in turns],
        "temperature": 0.4,
        "seed": 3,
        "max_tokens": 10,
    }


def test_a_remote_proposal_that_was_cut_off_counts_as_too_long():
    answer, _ = remotely(propose(9), improver, proposed(end="length", usage=False), model="m", ask="a")
    assert answer.generated_tokens > 9


@pytest.mark.parametrize("reply", [(503, "{}"), (200, "nonsense"), (200, "[]"), (200, '{"choices": []}')])
def test_a_remote_improver_that_makes_no_sense_is_unavailable(reply):
    with pytest.raises(Unavailable, match="improver"):
        remotely(propose(), improver, reply, model="m", ask="a")


def test_a_remote_gap_model_is_another_pit_serve():
    async def use(remote):
        gaps = [await remote.gap(Improvement(X, "a", "b")) for _ in range(2)]
        return gaps, await remote.margin(), await remote.margin()

    replies = (200, '{"gap": -1.5}'), (200, '{"gap": null}'), (200, '{"margin": null}')
    ((first, second), *margins), asked = remotely(use, RemoteScorer, *replies)
    assert first == -1.5
    assert math.isnan(second)
    assert margins == [math.inf, math.inf]
    assert asked[0][:2] == ("POST", "/v1/score")
    assert asked[0][2] == {"prompt": [{"role": "user", "content": "2 + 2 ?"}], "reference": "a", "response": "b"}
    assert [row[0] for row in asked] == ["POST", "POST", "GET"]


@pytest.mark.parametrize("margin", ["-99", "NaN", "-Infinity", "-1e-9"])
def test_a_margin_that_is_none_accepts_nothing(margin):
    async def use(remote):
        return await remote.margin()

    found, _ = remotely(use, RemoteScorer, (200, f'{{"margin": {margin}}}'))
    assert found == math.inf


def test_a_remote_gap_model_that_makes_no_sense_is_unavailable():
    for reply in ((200, '{"gap": "high"}'), (200, "[]"), (404, "{}")):
        with pytest.raises(Unavailable, match="gap model"):
            remotely(lambda remote: remote.gap(Improvement(X, "a", "b")), RemoteScorer, reply)
