"""Two processes train what one process trains: the same losses and weights, each row once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from builders import rl_section, train_section
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from two_ranks import GROUP, train_all

from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import LAUNCHES, find_launch, find_recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.method import launch
from pitlm.method.common import share_of_batch
from pitlm.method.launch import Launch, failure_reason, read_launch, run_ranks
from pitlm.run.run_recipe import check_launch

TRAININGS = ("sft", "lora", "reward", "gap", "rl")
STEPS = {"sft": 6, "lora": 3, "reward": 3, "gap": 4, "rl": 3}


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    """The folders of one process and of two."""
    root = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}", prepend=":")
        run_ranks(Launch(find_launch("cpu"), 2), "two_ranks", [str(root / "two"), str(bases("words"))])
    train_all(root / "one", bases("words"))
    return root / "one", root / "two"


def logged(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.mark.parametrize("training", TRAININGS)
def test_two_processes_have_the_losses_and_weights_of_one(runs, training):
    one, two = (run / training for run in runs)
    steps, found = logged(one), logged(two)
    assert [row["step"] for row in found] == list(range(1, STEPS[training] + 1))
    assert len(steps) == len(found)
    # float32 sums in another order change a loss by some 1e-7, and after AdamW's steps a weight by some 1e-6
    for name in ("loss", "grad_norm", "accuracy", "kl", "reward", "num_tokens"):
        expected = [row[name] for row in steps if name in row]
        assert [row[name] for row in found if name in row] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    weights, *others = (torch.load(folder / "ended-0.pt") for folder in (one, two))
    others.append(torch.load(two / "ended-1.pt"))
    for other in others:
        for name, weight in weights.items():
            torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-5)
    assert torch.load(two / "ended-0.pt").keys() == weights.keys()


@pytest.mark.parametrize("training", TRAININGS)
def test_both_ranks_end_with_the_same_weights_to_the_last_bit(runs, training):
    first, second = (torch.load(runs[1] / training / f"ended-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(second[name], weight) for name, weight in first.items())


def test_each_sample_of_the_batch_is_scored_on_one_rank(runs):
    """The ranks share the references of one process: whole groups on each rank, no group on both."""
    one, two = (run / "rl" for run in runs)
    asked, *shares = (
        json.loads((folder / f"asked-{rank}.json").read_text()) for folder, rank in ((one, 0), (two, 0), (two, 1))
    )
    batch, half = 16, 8
    assert len(asked) == 3 * batch
    for step in range(3):
        parts = [row for share in shares for row in share[step * half : (step + 1) * half]]
        assert parts == asked[step * batch : (step + 1) * batch]
    assert half % GROUP == 0


def test_files_are_written_once(runs):
    one, two = (run / "rl" for run in runs)
    measured = [[json.loads(line) for line in (run / "probe.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [row["step"] for row in measured[1]] == [0, 2, 3]
    assert measured[0] == measured[1]
    for training in TRAININGS:
        assert {
            path.name for path in (runs[1] / training).iterdir() if not path.name.startswith(("ended", "asked"))
        } == {path.name for path in (runs[0] / training).iterdir() if not path.name.startswith(("ended", "asked"))}


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones(runs, bases, tmp_path, monkeypatch):
    """FSDP2 over gloo with the packaged configuration: the trees, the probe, the anchor's check, the saved model."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}", prepend=":")
    run_ranks(Launch(find_launch("fsdp2"), 2), "two_ranks", [str(tmp_path), str(bases("words")), "sharded"])
    for training in TRAININGS:
        one, sharded = runs[0] / training, tmp_path / training
        losses = [[row["loss"] for row in logged(folder)] for folder in (one, sharded)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
        weights, trained = (torch.load(folder / "ended-0.pt") for folder in (one, sharded))
        file = "adapter_model.safetensors" if training == "lora" else "model.safetensors"
        saved, loaded = (load_file(folder / "model" / file) for folder in (one, sharded))
        assert trained.keys() == weights.keys()
        assert saved.keys() <= loaded.keys()  # a tied head is written twice
        for expected, found in ((weights, trained), (saved, loaded)):
            for name, weight in expected.items():
                torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("processes", "share"), [(1, 24), (2, 12), (3, 8), (4, 6), (6, 4), (12, 2)])
def test_a_batch_is_shared_by_all_processes(processes, share):
    assert share_of_batch(train_section(batch_size=24, accumulation=2), processes) == share


@pytest.mark.parametrize(
    ("section", "processes", "multiple"),
    [
        (train_section(batch_size=24, accumulation=2), 8, 16),
        (train_section(batch_size=24), 5, 5),
        (rl_section(batch_size=24, group=4), 4, 16),
        (rl_section(batch_size=48, accumulation=3, group=8), 4, 96),
    ],
)
def test_a_batch_that_cannot_be_shared_says_what_could(section, processes, multiple):
    with pytest.raises(InputError, match=f"batch_size: found {section.batch_size}, expected a multiple of {multiple}:"):
        share_of_batch(section, processes)


def test_every_section_of_a_recipe_is_checked_before_anything_starts():
    quickstart = find_recipe("quickstart")
    check_launch(load_recipe(quickstart), Launch(Path(), 8))
    with pytest.raises(InputError, match=r"^curriculum\.rl\.batch_size: found 64, expected a multiple of 128"):
        check_launch(load_recipe(quickstart), Launch(Path(), 16))
    with pytest.raises(InputError, match=r"^gap\.batch_size: found 36, expected a multiple of 8"):
        check_launch(load_recipe(quickstart, {"gap.batch_size": "36"}), Launch(Path(), 8))


def test_four_bits_are_not_sharded():
    recipe = load_recipe(find_recipe("hh-llama-8b"), {"peft.quantize": "nf4"})
    check_launch(recipe, Launch(Path("ddp.yaml"), 1))
    with pytest.raises(InputError, match=r"^peft\.quantize: found nf4 and fsdp2\.yaml, which shards, expected"):
        check_launch(recipe, Launch(Path("fsdp2.yaml"), 1, sharded=True))


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp2", "zero2", "zero3"])
def test_accelerate_understands_the_packaged_configurations(name):
    """Without GPUs or DeepSpeed, this tests only how accelerate reads the files."""
    assert sorted(path.stem for path in LAUNCHES.glob("*.yaml")) == ["cpu", "ddp", "fsdp2", "zero2", "zero3"]
    command = ["--config_file", str(find_launch(name)), "--num_processes", "2", "--module", "pitlm.run.rank", "a"]
    arguments, config, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (arguments.num_processes, arguments.main_process_port, arguments.mixed_precision) == (2, 0, "no")
    assert (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed) == {
        "cpu": (True, False, False),
        "ddp": (True, False, False),
        "fsdp2": (False, True, False),
        "zero2": (False, False, True),
        "zero3": (False, False, True),
    }[name]
    if name == "fsdp2":
        assert arguments.fsdp_version == 2
        assert arguments.fsdp_cpu_ram_efficient_loading is False
    if name.startswith("zero"):
        assert arguments.zero_stage == int(name[-1])
    assert config.use_cpu is (name == "cpu")


def test_a_named_file_is_read_and_cards_are_counted(tmp_path, monkeypatch):
    assert read_launch(find_launch("cpu")) == Launch(LAUNCHES / "cpu.yaml", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert read_launch(find_launch("ddp")).processes == 4
    mine = tmp_path / "mine.yaml"
    mine.write_text(find_launch("fsdp2").read_text() + "num_processes: 3\n")
    assert read_launch(find_launch(str(mine))) == Launch(mine, 3, sharded=True)
    mine.write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_machines": 2}))
    assert read_launch(mine).processes == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_procs": 2}, "unknown keys"),
        ({"distributed_type": "NO"}, "field 'distributed_type': found NO, expected MULTI_GPU, FSDP, DEEPSPEED"),
        ({"distributed_type": "MULTI_CPU"}, "CPUs: MULTI_GPU with use_cpu: true"),
        ({"distributed_type": "FSDP", "fsdp_config": {}}, "field 'fsdp_version': found FSDP 1, expected 2"),
        ({"distributed_type": "FSDP", "use_cpu": True}, "field 'use_cpu': found true with FSDP"),
        ({"distributed_type": "DEEPSPEED"}, "expected deepspeed installed"),
        ({}, "field 'num_processes': found none, and no GPUs here, expected .*--accelerate cpu"),
        ({"num_processes": 2}, "field 'num_processes': found 2, and no GPUs here"),
    ],
)
def test_a_configuration_that_cannot_run_says_why(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(launch, "is_deepspeed_available", lambda: False)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", **changes}))
    with pytest.raises(InputError, match=message):
        read_launch(path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "compute_environment: MOON"])
def test_what_is_no_configuration_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot load a configuration of accelerate"):
        read_launch(path)


def test_an_unknown_name_lists_those_that_there_are():
    with pytest.raises(InputError, match="expected a YAML file or one of cpu, ddp, fsdp2, zero2, zero3"):
        find_launch("fsdp")


def failed(rank: int, exitcode: int, message: str = "", folder: Path | None = None) -> tuple[int, ProcessFailure]:
    path = folder / f"{rank}.json" if folder else Path("none")
    if message:
        path.write_text(json.dumps({"message": {"message": message, "extraInfo": {"timestamp": "1"}}}))
    return rank, ProcessFailure(rank, 1, exitcode, str(path))


def test_the_reason_is_what_died_by_itself(tmp_path):
    """The agent ends the other ranks with SIGTERM, and ranks that wait for the dead rank fail."""
    lost = "RuntimeError: Connection closed by peer\nat length"
    killed = dict([failed(0, 1, lost, tmp_path), failed(1, -9), failed(2, -15)])
    assert failure_reason(killed, 3) == "rank 1 of 3 was killed (SIGKILL)"
    raised = dict([failed(0, -15), failed(1, 1, "ValueError: no\nmore", tmp_path)])
    assert failure_reason(raised, 2) == "rank 1 of 2 failed: ValueError: no"
    alike = dict(failed(rank, 1, f"ValueError: {text}", tmp_path) for rank, text in enumerate("aab"))
    assert failure_reason(alike, 3) == "rank 0 of 3 failed: ValueError: a; rank 2 of 3 failed: ValueError: b"
    assert failure_reason(dict([failed(1, 3)]), 2) == "rank 1 of 2 failed: exit code 3"
    assert failure_reason(dict([failed(0, -15), failed(1, -15)]), 2) == "rank 0 of 2 was killed (SIGTERM)"
