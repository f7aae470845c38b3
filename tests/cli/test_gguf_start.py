"""A run that starts from a GGUF file."""

from __future__ import annotations

import json

import pytest
from command_line import GOOD, lines
from gguf import GGMLQuantizationType
from gguf_files import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", tmp_path / "cache")


def start(cli, base, *options):
    settings = ("model.init=null", f"model.base={base}", "model.improver_start=base", "template.ask=better")
    chosen = [part for setting in settings for part in ("--set", setting)]
    return cli(
        "run", cli.recipe, "--data", cli.source("pairs.jsonl", lines(*GOOD)), "--out", cli.out, *chosen, *options
    )


def test_a_run_trains_from_a_gguf_file_and_a_changed_file_is_stale(cli, tmp_path, bases):
    file = write_gguf(tmp_path / "small.gguf", bases("bpe"), GGMLQuantizationType.Q8_0)
    code, _ = start(cli, file, "--until", "policy-sft")
    assert code == 0
    config = json.loads((cli.out / "policy-sft" / "model" / "config.json").read_text())
    assert (config["hidden_size"], config["num_key_value_heads"]) == (64, 2)
    assert "quantization_config" not in config
    write_gguf(file, bases("bpe"), GGMLQuantizationType.F32)
    code, message = start(cli, file, "--until", "policy-sft")
    assert code == 2
    assert "model.base" in message


def test_what_is_no_gguf_file_is_one_message(cli, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing that belongs there")
    code, message = start(cli, broken)
    assert code == 2
    assert "broken.gguf: cannot load a GGUF file" in message
    assert len(message.splitlines()) == 1
