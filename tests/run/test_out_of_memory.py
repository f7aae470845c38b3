"""A stage that needs more memory than there is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_run import RECIPE

from pitlm.core.errors import MemoryFull
from pitlm.core.recipe import Recipe
from pitlm.run import stage_work
from pitlm.run.context import Context
from pitlm.run.folder import RunFolder
from pitlm.run.stages import build_stages

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nProcess 1 has 79 GiB in use."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    MemoryError(),
]
STAGES = {stage.name: stage for stage in build_stages(Recipe(**RECIPE))}


def work(name, error, monkeypatch, tmp_path):
    def fail(*given):
        raise error

    for part in ("train_on_pairs", "train_stage", "evaluate"):
        monkeypatch.setattr(stage_work, part, fail)
    stage_work.do_work(Context(Recipe(**RECIPE), tmp_path), STAGES[name], tmp_path)


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("policy-sft", "the 8 rows of a micro-batch (raise policy_sft.accumulation"),
        ("gap", "raise gap.accumulation or set gap.gradient_checkpointing"),
        ("rl-1-policy", "raise curriculum.rl.accumulation"),
        ("evaluation", "evaluation.batch_size (16)"),
    ],
)
def test_full_memory_is_one_line_that_names_the_stage_and_what_to_lower(name, setting, error, monkeypatch, tmp_path):
    with pytest.raises(MemoryFull) as told:
        work(name, error, monkeypatch, tmp_path)
    message = str(told.value)
    assert message.startswith(f"{name}: the memory is full (")
    assert setting in message
    assert len(message.splitlines()) == 1


def test_after_its_training_a_stage_can_only_sample_less_at_once(monkeypatch, tmp_path):
    """R_PIT is checked on fresh answers after its training. A change of the training would begin it anew."""
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(MemoryFull) as told:
        work("gap", FULL[0], monkeypatch, tmp_path)
    assert "evaluation.batch_size (16)" in str(told.value)
    assert "micro-batch" not in str(told.value)


def test_other_errors_keep_their_traceback(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="shapes do not match"):
        work("gap", RuntimeError("shapes do not match"), monkeypatch, tmp_path)


def test_a_stage_that_filled_the_memory_keeps_its_checkpoints(monkeypatch, tmp_path):
    def fail(context, kind, needs, folds, section, folder):
        (folder / "checkpoints").mkdir()
        raise FULL[0]

    monkeypatch.setattr(stage_work, "train_on_pairs", fail)
    context = Context(Recipe(**RECIPE), tmp_path)
    stage = replace(STAGES["policy-sft"], needs=[])
    for _ in range(2):
        with pytest.raises(MemoryFull):
            RunFolder(tmp_path).execute([stage], partial(stage_work.do_work, context), recipe=RECIPE, listener=print)
        assert (tmp_path / "policy-sft" / "checkpoints").is_dir()
        (tmp_path / "policy-sft" / "checkpoints").rmdir()
