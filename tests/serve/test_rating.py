"""The rating page's interface, without a browser."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from pitlm.core.nouns import Prompt
from pitlm.core.verdicts import Comparison, Verdict
from pitlm.judge.votes import Votes
from pitlm.serve.rating import rating_app

SYSTEMS = ("zebra-17b", "walrus-3b")
COMPARISONS = [
    Comparison(Prompt.of(f"question {i}"), f"from the zebra's pen {i}", f"by w. {i}", f"secret-item-{i}", SYSTEMS)
    for i in range(6)
]


@pytest.fixture
def votes(tmp_path):
    return Votes(tmp_path / "votes.sqlite")


@pytest.fixture
def client(votes):
    return TestClient(rating_app(COMPARISONS, votes), base_url="http://127.0.0.1:8750")


def sheet(client, rater="ada"):
    return client.get("/api/ballots", params={"rater": rater}).json()


def vote(client, ballot, choice="left", rater="ada", **more):
    return client.post("/api/votes", json={"rater": rater, "ballot": ballot, "choice": choice, "seconds": 1.5, **more})


def shown(client, ballot, rater="ada"):
    return client.get(f"/api/ballots/{ballot}", params={"rater": rater}).json()


def test_a_vote_is_for_what_was_shown(client, votes):
    first, second = (row["ballot"] for row in sheet(client)[:2])
    for ballot in (first, second):  # always votes for the zebra, on either side
        vote(client, ballot, "left" if "zebra" in shown(client, ballot)["left"] else "right")
    assert [(row.first, row.verdict, row.judge) for row in votes.rows()] == [(SYSTEMS[0], Verdict.WIN, "ada")] * 2
    assert [row["rated"] for row in sheet(client)] == [True, True, False, False, False, False]
    assert not any(row["rated"] for row in sheet(client, "bob"))


def test_conversation_and_texts_arrive_whole(votes):
    turns = [{"role": r, "content": f"{r} <b>\n"} for r in ("system", "user", "assistant", "user")]
    app = rating_app([Comparison(Prompt.of(turns), "\u202e<i>", "", "i", SYSTEMS)], votes)
    client = TestClient(app, base_url="http://127.0.0.1:8750")
    got = shown(client, sheet(client)[0]["ballot"])
    assert got["conversation"] == turns
    assert {got["left"], got["right"]} == {"\u202e<i>", ""}


def test_nothing_that_is_served_names_a_system_an_item_or_the_order(client):
    ballots = [row["ballot"] for row in sheet(client)]
    answers = [client.get("/"), client.get("/api/ballots", params={"rater": "ada"})]
    answers += [client.get(f"/api/ballots/{key}", params={"rater": "ada"}) for key in ballots]
    answers += [vote(client, key) for key in ballots]
    answers += [client.post("/api/undo", json={"rater": "ada"}), vote(client, "nonsense"), client.get("/openapi.json")]
    for answer in answers:
        served = (answer.text + str(answer.headers)).lower()
        for word in (*SYSTEMS, "secret-item", "swapped", "first", "votes.sqlite"):
            assert word not in served
    assert {frozenset(a.json()) for a in answers[2:8]} == {frozenset({"conversation", "left", "right"})}


def test_undo_gives_back_the_ballot(client, votes):
    first = sheet(client)[0]["ballot"]
    vote(client, first)
    assert client.post("/api/undo", json={"rater": "ada"}).json() == {"ballot": first}
    assert client.post("/api/undo", json={"rater": "ada"}).json() == {"ballot": None}
    assert votes.rows() == []


def test_a_name_typed_again_is_the_same_rater(client, votes):
    ballot = sheet(client, "Jose\u0301  X ")[0]["ballot"]
    assert vote(client, ballot, rater=" José X").status_code == 200
    assert [row.judge for row in votes.rows()] == ["José X"]
    assert sheet(client, "José X")[0]["rated"]


@pytest.mark.parametrize("name", ["", "  ", "a" * 61, "a\u0000b", "a\u202eb", "a\u200bb"])
def test_a_name_that_cannot_be_seen_is_refused(client, votes, name):
    assert client.get("/api/ballots", params={"rater": name}).status_code == 422
    assert vote(client, "x", rater=name).status_code == 422
    assert votes.rows() == []


@pytest.mark.parametrize(
    "more",
    [
        {"choice": "first"},
        {"choice": None},
        {"seconds": -1},
        {"seconds": "NaN"},
        {"seconds": None},
        {"unknown": 1},
        {"ballot": 3},
        {"rater": ["ada"]},
    ],
)
def test_a_broken_vote_is_refused_and_nothing_is_kept(client, votes, more):
    assert vote(client, **{"ballot": sheet(client)[0]["ballot"], **more}).status_code == 422
    assert votes.rows() == []


@pytest.mark.parametrize(
    "more", ['"seconds": NaN', '"seconds": 1e999', '"seconds": 1, "rater": "\\ud800"', '"\\ud800": 1']
)
def test_what_json_cannot_repeat_is_refused_too(client, votes, more):
    ballot = sheet(client)[0]["ballot"]
    body = f'{{"rater": "ada", "ballot": "{ballot}", "choice": "left", {more}}}'
    refused = client.post("/api/votes", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["msg"]
    assert votes.rows() == []


def test_a_ballot_of_another_rater_is_no_ballot(client, votes):
    assert vote(client, sheet(client, "bob")[0]["ballot"]).status_code == 404
    assert shown(client, sheet(client, "bob")[0]["ballot"])["detail"].startswith("There is no such comparison")
    assert votes.rows() == []


def test_a_form_of_another_site_is_not_read(client, votes):
    body = '{"rater": "ada", "ballot": "x", "choice": "left", "seconds": 1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post("/api/votes", content=body, headers={"Content-Type": kind}).status_code == 422


def test_votes_that_cannot_be_written_are_an_error_and_not_a_loss_in_silence(client, votes):
    ballot = sheet(client)[0]["ballot"]
    votes.path.unlink()
    votes.path.mkdir()
    answer = vote(client, ballot)
    assert answer.status_code == 503
    assert "cannot be saved" in answer.json()["detail"]
    assert str(votes.path) not in answer.text  # the reply must not show the path


def test_the_policy_allows_the_page_s_own_script_and_nothing_else(client):
    answers = [client.get("/"), client.get("/")]
    nonces = []
    for answer in answers:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert (
            policy["default-src"]
            == policy["base-uri"]
            == policy["form-action"]
            == policy["frame-ancestors"]
            == "'none'"
        )
        nonces += re.fullmatch(r"'nonce-(\S{20,})'", policy["script-src"]).groups()
        assert policy["style-src"] == policy["script-src"]
        assert re.findall(r"<(?:script|style)[^>]*>", answer.text) == [
            f'<style nonce="{nonces[-1]}">',
            f'<script nonce="{nonces[-1]}">',
        ]
        assert not re.search(
            r"""(?:https?:)?//\w|\son\w+=|innerHTML|insertAdjacentHTML|document\.write|eval\(""", answer.text
        )
    assert nonces[0] != nonces[1]
