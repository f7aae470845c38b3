"""Exporting: another engine's eyes see the same model, and a hub gets the same bytes."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from builders import preference, train_section, workbench
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pitlm.cli.main import main
from pitlm.core.config import LoopSection, LoraSection
from pitlm.core.nouns import Improvement, Prompt
from pitlm.models.calibration import ALONE, Calibration, save_calibrations
from pitlm.models.generators import Improver
from pitlm.models.scorers import GapModel
from pitlm.pipeline.rows import improver_rows
from pitlm.text.template import Template
from pitlm.train.sft import train_sft

X, Y_REF = Prompt.of("lamp price 9 ?"), "the lamp ."


def pit(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    return stop.value.code


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "improver"
    assert pit("export", tiny_run.root, "-o", folder) == 0
    return folder


def test_an_engine_that_knows_nothing_of_pitlm_writes_what_the_improver_writes(exported, tiny_run):
    """Conversation and response in, by transformers alone: its own tokenizer, template and generation settings."""
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported)
    asked = [*X.as_messages(), {"role": "assistant", "content": Y_REF}]
    shown = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ours = Improver.from_pretrained(tiny_run.root / "rl-1-policy" / "model")
    assert shown["input_ids"][0].tolist() == ours.encode(X, Y_REF)
    written = model.generate(**shown, do_sample=False)[0, shown["input_ids"].shape[1] :]
    [answer] = ours.propose([X], [Y_REF], temperature=0)
    assert tokenizer.decode(written, skip_special_tokens=True).strip() == answer.text
    settings = GenerationConfig.from_pretrained(exported)
    assert (settings.do_sample, settings.temperature, settings.top_p, settings.top_k) == (True, 0.4, 1.0, 0)
    assert settings.max_new_tokens == 16
    assert Improver.from_pretrained(exported).propose([X], [Y_REF], temperature=0) == [answer]


def test_the_card_has_data_recipe_results_and_health_and_no_path_of_this_machine(exported, tiny_run):
    card = (exported / "README.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["library_name"] == "transformers"
    evaluation = json.loads((tiny_run.root / "evaluation" / "stage.json").read_text())["result"]
    for line in evaluation["systems"]:
        if line["name"] != "original":
            delta = [f"{100 * line['delta'][part]:+.1f}%".replace("-", "−") for part in ("estimate", "low", "high")]
            assert f"{delta[0]} [{delta[1]}, {delta[2]}]" in body or "0.0%" in body
            assert f"| {line['name']} |" in body
    fresh = json.loads((tiny_run.root / "gap" / "stage.json").read_text())["result"]["health"]["fresh_pairs"]
    assert f"| Fresh pairs of the policy's own answers | {100 * fresh['estimate']:.1f}% [" in body
    assert "pocket, seed 0. Read 300 rows: 300 kept." in body
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])["gap"]["learning_rate"] == 2e-3
    assert "vllm serve improver" in body
    assert str(tiny_run.root.parent) not in card
    assert "/" + str(exported).split("/")[1] + "/" not in card


def test_a_gap_model_says_the_same_and_brings_its_calibration(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.root, run)
    known = Calibration(ALONE, 0.25, 0.02, 0.9, 40, "truth", LoopSection(), (0.1,), (1.0,))
    save_calibrations(run / "gap" / "model", {ALONE: known})
    assert pit("export", run, "--model", "gap", "-o", tmp_path / "gap") == 0
    assert pit("export", run / "gap", "-o", tmp_path / "half", "--dtype", "bfloat16") == 0
    items = [Improvement(X, Y_REF, y) for y in ("the price is 9 .", "no .")]
    ours, theirs = (GapModel.from_pretrained(folder) for folder in (run / "gap" / "model", tmp_path / "gap"))
    assert torch.equal(ours.gaps(items), theirs.gaps(items))
    assert theirs.margin == 0.25
    card = (tmp_path / "gap" / "README.md").read_text()
    assert "a margin of 0.25: at most 2.0% of the answers are made worse" in card
    assert "pipeline_tag: text-classification" in card
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "gap" / "model.safetensors"
    ).stat().st_size


@pytest.fixture(scope="module")
def adapted(bases, tmp_path_factory):
    """An improver trained with LoRA, outside of a run."""
    bench = workbench(tmp_path_factory.mktemp("adapted"), bases("llama3"), peft=LoraSection(r=4, alpha=8))
    rows = improver_rows([preference()] * 4, bench.tokenizer, Template(bench.card.ask))
    train_sft(rows, rows, train_section(max_steps=2, epochs=2), bench, "SFT")
    return bench.model_folder


def test_an_adapter_over_the_base_is_the_merged_model(adapted, bases, tmp_path):
    assert pit("export", adapted, "-o", tmp_path / "adapter", "--adapter") == 0
    assert pit("export", adapted, "-o", tmp_path / "merged") == 0
    assert not list((tmp_path / "adapter").glob("model*"))
    over = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases("llama3")), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    asked = [{"role": "user", "content": "is it small ?"}, {"role": "assistant", "content": "no"}]
    shown = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    torch.testing.assert_close(over(**shown).logits, merged(**shown).logits, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "exported without a finished run" in card


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of a hub when it uploads small files, and what it was given."""

    def __init__(self, refuse: int | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.created: dict[str, object] = {}
        self.refuse = refuse
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, self.headers.get("authorization")))
        answer: dict[str, object] = {}
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            answer = {"url": f"{self.server.url}/owner/name"}
        elif self.path == "/api/models/owner/name/preupload/main":
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif self.path == "/api/models/owner/name/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{self.server.url}/owner/name/commit/{'a' * 40}", "commitOid": "a" * 40}
        text = json.dumps(answer).encode()
        self.send_response(self.server.refuse or 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(request):
    server = Hub(getattr(request, "param", None))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def environment(monkeypatch, hub: Hub | None, token: str | None = "hf_secret") -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if hub else "1")
    monkeypatch.setenv("HF_ENDPOINT", hub.url if hub else "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def test_a_hub_gets_the_folder_that_was_exported(shell, tiny_run, hub, monkeypatch):
    environment(monkeypatch, hub)
    done = shell("export", tiny_run.root, "-o", "improver", "--push-to-hub", "owner/name", "--private")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/owner/name" in done.stdout
    assert hub.created == {"name": "name", "organization": "owner", "visibility": "private"}
    written = {path.name: path.read_bytes() for path in (shell.folder / "improver").iterdir()}
    assert hub.files == written
    assert {"README.md", "model.safetensors", "chat_template.jinja", "generation_config.json"} <= hub.files.keys()
    assert b"vllm serve owner/name" in hub.files["README.md"]
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


@pytest.mark.parametrize("hub", [403], indirect=True)
def test_a_hub_that_refuses_is_one_line(shell, tiny_run, hub, monkeypatch):
    environment(monkeypatch, hub)
    done = shell("export", tiny_run.root, "--push-to-hub", "owner/name")
    assert done.returncode == 2
    assert f"--push-to-hub owner/name: the hub at {hub.url}" in done.stderr
    assert "403" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "found neither -o nor --push-to-hub"),
        (["{run}", "-o", "{out}", "--private"], "--private: found no --push-to-hub"),
        (["{out}", "-o", "{out}"], "found no run, stage or model of pitlm"),
        (["{run}/gap", "--model", "gap", "-o", "{out}"], "found no run, expected one: --model chooses"),
        (["{run}", "-o", "{out}", "--adapter"], "--adapter: found none over a base"),
        (["{run}", "-o", "{out}", "--adapter", "--dtype", "float16"], "--dtype: found --adapter beside it"),
        (["{run}", "-o", "{run}/out"], "found a folder of what is exported"),
        (["{run}/gap", "-o", "{run}/gap/model", "--force"], "found a folder of what is exported"),
        (["{run}/gap/model", "-o", "{run}/gap/../gap/model", "--force"], "found a folder of what is exported"),
        (["{run}", "-o", "{full}"], "found a folder with other files in it"),
        (["{run}", "-o", "{full}/notes.txt"], "found a file, expected the folder to write"),
        (["{run}", "--push-to-hub", "not a name"], "--push-to-hub: found 'not a name', expected OWNER/NAME"),
        (["{run}", "--push-to-hub", "owner/name"], "--push-to-hub: found HF_HUB_OFFLINE set"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tiny_run, tmp_path, capsys, arguments, message):
    full, out = tmp_path / "full", tmp_path / "out"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    places = {"run": tiny_run.root, "out": out, "full": full}
    assert pit("export", *(argument.format(**places) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]


def test_an_unfinished_run_says_what_is_missing(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.root, run, ignore=shutil.ignore_patterns("rl-1-policy", "evaluation"))
    assert pit("export", run, "-o", tmp_path / "out") == 2
    assert "found no trained improver" in capsys.readouterr().err
    assert pit("export", run / "rl-0-data", "-o", tmp_path / "out") == 0
    assert "exported without a finished run" in (tmp_path / "out" / "README.md").read_text()


def test_an_earlier_export_is_replaced_only_when_asked(adapted, tmp_path, capsys):
    assert pit("export", adapted, "-o", tmp_path / "out") == 0
    (tmp_path / "out" / "old").write_text("")
    assert pit("export", adapted, "-o", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert pit("export", adapted, "-o", tmp_path / "out", "--force") == 0
    assert not (tmp_path / "out" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_a_failed_export_leaves_what_was_there(tmp_path):
    from pitlm.runs.atomic import atomic_folder

    kept = Path(tmp_path / "kept")
    kept.mkdir()
    (kept / "file").write_text("old")

    def fail() -> None:
        with atomic_folder(kept) as folder:
            (folder / "file").write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert (kept / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
