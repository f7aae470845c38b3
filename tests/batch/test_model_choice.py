"""What `pit improve` is told about models: which settings go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pitlm.batch.model_choice import ModelChoice
from pitlm.core.errors import InputError

RUN, MODEL = Path("run"), Path("model")


@pytest.mark.parametrize(
    "settings",
    [
        {"run": RUN},
        {"run": RUN, "gap": MODEL, "policy": MODEL},
        {"improver": MODEL, "gap": MODEL},
        {"engine": "endpoint", "model": "m", "gap": MODEL, "base_url": "http://x/v1"},
        {"engine": "endpoint", "model": "m", "run": RUN, "policy_url": "http://x/v1", "policy_model": "p"},
        {"engine": "ray", "run": RUN, "workers": 2, "part_rows": 1000, "tokens_per_batch": 64},
    ],
)
def test_settings_that_go_together(settings: dict[str, Any]) -> None:
    ModelChoice.of(settings).check(None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give --run (a finished run), or both --improver and --gap"),
        ({"improver": MODEL}, "give --run (a finished run), or both --improver and --gap"),
        ({"engine": "endpoint", "model": "m"}, "give --run (a finished run) or --gap"),
        ({"engine": "endpoint", "run": RUN}, "--model: found nothing, expected the improver's name on the server"),
        (
            {"engine": "endpoint", "run": RUN, "model": "m", "improver": MODEL},
            "--improver: found beside --engine endpoint, expected --model, its name on the server",
        ),
        ({"run": RUN, "model": "m"}, "--model: found beside --engine transformers, expected beside --engine endpoint"),
        # the default, but given
        (
            {"run": RUN, "engine": "vllm", "part_rows": 1000},
            "--part-rows: found beside --engine vllm, expected beside --engine ray",
        ),
        (
            {"run": RUN, "policy_url": "http://x/v1"},
            "--policy-model: found nothing, expected the model's name beside --policy-url",
        ),
        ({"run": RUN, "engine": "vlm"}, "--engine: found 'vlm', expected one of transformers, vllm, endpoint, ray"),
    ],
)
def test_settings_that_do_not_are_named_as_options(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelChoice.of(settings).check(None, None)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("prompt", "response", "message"),
    [
        (" \n", None, "--prompt: found nothing, expected the question that was answered"),
        ("q", "a\udcff", "--response: found bytes that are not UTF-8, expected text"),
        ("q\udcff", None, "--prompt: found bytes that are not UTF-8, expected text"),
    ],
)
def test_a_prompt_at_fault_is_named(prompt: str, response: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelChoice(run=RUN).check(prompt, response)
    assert str(caught.value) == message


def test_a_cluster_improves_files_only() -> None:
    with pytest.raises(InputError, match="--engine ray: found beside --prompt, expected beside FILE"):
        ModelChoice(run=RUN, engine="ray").check("q", "a")
