"""`pit doctor` at the command line."""

from __future__ import annotations

import json

import pytest

from pitlm.cli.main import EXTRAS, main
from pitlm.plan import hardware
from pitlm.run.folder import RECORD


@pytest.fixture
def pit(capsys, monkeypatch):
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    for name in hardware.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    return call


def test_the_machine_is_described_without_asking_anyone(pit, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    code, out, _ = pit("doctor", "--json", tmp_path / "machine.json")
    assert code == 0
    assert "offline (HF_HUB_OFFLINE)" in out
    assert "OMP_NUM_THREADS=3" in out
    figures = json.loads((tmp_path / "machine.json").read_text())
    assert figures["memory"] > 1e8
    assert figures["cores"] >= 1
    assert set(figures["missing"]) == set(EXTRAS)
    assert "can run" in out


def test_a_missing_extra_says_how_to_get_it(pit, monkeypatch):
    monkeypatch.setitem(EXTRAS, "train", {*EXTRAS["train"], "no_such_module"})
    _, out, _ = pit("doctor")
    assert "lacks no_such_module: pip install 'pitlm[train]'" in out
    assert "not pit run" in out
    assert "asked for files not in its cache" in out


def test_a_limit_of_the_container_counts_as_memory(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(hardware, "MEMORY_LIMIT", limit)
    assert hardware.look({}, tmp_path)["memory"] == 1_000_000
    limit.write_text("max\n")
    assert hardware.look({}, tmp_path)["memory"] > 1_000_000


def test_a_recipe_is_planned_for_a_card(pit, tmp_path):
    file = tmp_path / "plan.json"
    code, out, err = pit("doctor", "hh-llama-8b", "--hardware", "rtx4090", "--plan", "--price", "2", "--json", file)
    assert (code, err) == (0, "")
    assert "160,800 pairs" in out
    assert "8,030.3 million parameters" in out
    assert "ASSUMED" in out
    assert "DOES NOT FIT" in out
    plan = json.loads(file.read_text())
    assert [stage["name"] for stage in plan["stages"]][:2] == ["data", "policy-sft"]
    assert plan["seconds"] == pytest.approx(sum(stage["seconds"] for stage in plan["stages"]))
    assert plan["cost"] == pytest.approx(2 * plan["seconds"] / 3600)
    assert plan["fits"] is False
    for enough in (("--hardware", "rtx4090", "--devices", "4"), ("--hardware", "h100")):
        code, out, _ = pit("doctor", "hh-llama-8b", *enough)
        assert code == 0
        assert "GB: fits" in out


def test_what_a_run_took_is_shown_beside_its_plan(pit, tmp_path):
    # A record of an earlier version has no memory.
    stages = (("data", "done", 1.0, {}), ("gap", "done", 90.0, {"memory": 3e9}), ("rl-0-data", "started", 7.0, {}))
    for name, status, seconds, more in stages:
        record = dict.fromkeys(RECORD) | {"name": name, "status": status, "seconds": seconds, **more}
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "stage.json").write_text(json.dumps(record))
    file = tmp_path / "plan.json"
    asked = ("doctor", "hh-smol", "--hardware", "l4")
    code, out, _ = pit(*asked, "--beside", tmp_path / "run", "--json", file)
    assert code == 0
    plan = json.loads(file.read_text())
    assert plan["took"] == {"data": 1.0, "gap": 90.0}
    [gap] = [stage for stage in plan["stages"] if stage["name"] == "gap"]
    [line] = [line for line in out.splitlines() if line.startswith("gap ")]
    assert (plan["held"]["gap"], plan["held"]["data"]) == (3e9, None)
    assert line.endswith(f"1.5 min    3.0 GB{(gap['trained'] + gap['generated']) / 90:>10,.0f}")
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("took")] == [["took", "1.5", "min"]]
    assert "--beside" not in pit(*asked)[1]
    code, _, err = pit(*asked, "--beside", tmp_path)
    assert (code, "found no finished stage, expected the folder of a run of hh-smol" in err) == (2, True)


def test_pairs_and_settings_change_the_plan(pit):
    _, out, _ = pit("doctor", "quickstart", "--hardware", "l4", "--pairs", "1000000")
    assert "1,000,000 pairs" in out
    _, out, _ = pit("doctor", "quickstart", "--hardware", "l4", "--set", "data.pairs=500")
    assert "500 pairs" in out


def test_a_folder_called_pocket_is_not_the_pocket_world(pit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").mkdir()
    code, out, _ = pit("doctor", "quickstart", "--hardware", "l4")
    assert (code, "lengths known for the world pocket" in out) == (0, True)


def test_pairs_of_a_file_are_counted_and_measured(pit, tmp_path):
    file = tmp_path / "pairs.jsonl"
    turns = [{"role": "user", "content": "a" * 20}, {"role": "assistant", "content": "b" * 10}]
    rows = [
        {"prompt": [*turns, {"role": "user", "content": f"{number:010}"}], "chosen": "b" * 80, "rejected": "c" * 20}
        for number in range(7)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = pit("doctor", "hh-smol", "--data", file, "--hardware", "l4")
    assert code == 0
    assert "7 pairs; x 10, chosen 20, rejected 5 tokens" in out
    _, of_recipe, _ = pit("doctor", "hh-smol", "--set", f"data.source={file}", "--hardware", "l4")
    assert "7 pairs; x 10, chosen 20, rejected 5 tokens" in of_recipe
    limits = ("--set", "data.max_prompt_tokens=6", "--set", "data.max_response_tokens=8")
    _, trimmed, _ = pit("doctor", "hh-smol", "--data", file, "--hardware", "l4", *limits)
    assert "7 pairs; x 6, chosen 8, rejected 5 tokens" in trimmed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan"], "options of a plan and no recipe"),
        (["quickstart", "--devices", "2"], "--devices: found no --hardware"),
        (["quickstart", "--hardware", "abacus"], "'abacus' is not one of"),
        (["quickstrat"], "found no such recipe"),
        (["quickstart", "--set", "rl.bta"], "expected KEY=VALUE"),
        (["quickstart", "--set", "loop.ronds=2"], "did you mean 'rounds'?"),
        (["hh-llama-8b", "--hardware", "h100", "--set", "model.base=some/model"], "whose shape is not known here"),
        (["hh-smol", "--hardware", "l4", "--data", "nowhere.jsonl"], "nowhere.jsonl: found no such file"),
    ],
)
def test_mistakes_are_named(pit, arguments, message):
    code, _, err = pit("doctor", *arguments)
    assert code == 2
    assert message in " ".join(err.split())
