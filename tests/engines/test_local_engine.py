"""A model in this process: it writes the model's own answers, and reports requests that it cannot answer."""

from __future__ import annotations

import pytest
from builders import generator_checkpoint
from engine_requests import REFERENCES, X, drain, requests

from pitlm.core.errors import InputError
from pitlm.core.nouns import Prompt
from pitlm.engines.engine import WriteRequest
from pitlm.engines.local_engine import LocalEngine
from pitlm.models.generators import Policy


def test_a_local_engine_writes_what_the_model_does(improver, bases, tmp_path):
    expected = improver.propose(X, REFERENCES, temperature=0.0)
    engine = LocalEngine(improver)
    assert engine.hungry
    for request in requests():
        engine.submit(request)
    assert engine.pending == 3
    found = drain(engine)
    assert [found[n, 0].answer for n in range(3)] == expected
    assert (engine.pending, engine.step()) == (0, [])

    policy = Policy.from_pretrained(generator_checkpoint(bases("words"), tmp_path / "policy", "policy"))
    first = LocalEngine(policy)
    for request in requests():
        first.submit(request)
    found = drain(first)
    assert [found[n, 0].answer for n in range(3)] == policy.answer(X, temperature=0.0)


def test_what_does_not_fit_the_window_is_refused_before_it_costs_anything(improver):
    engine = LocalEngine(improver)
    with pytest.raises(InputError, match="found a conversation of"):
        engine.submit(WriteRequest((0, 0), Prompt.of("price " * 500), "a", 0.0, 0))
    assert engine.pending == 0


def test_a_template_that_refuses_a_role_is_that_rows_fault(improver):
    improver.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match="the chat template refuses this conversation: System role not supported"):
        LocalEngine(improver).submit(requests()[0])
