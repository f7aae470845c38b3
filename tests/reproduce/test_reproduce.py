"""`pit reproduce`, end to end on a tiny recipe, and its figures against hand arithmetic."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import RECIPE, Shell

from pitlm.core.errors import InputError
from pitlm.core.packaged_recipes import find_recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.reproduce import measures
from pitlm.reproduce.experiment import Experiment, experiment_names, find_experiment
from pitlm.reproduce.iterations import FILE
from pitlm.reproduce.page import shown, tables
from pitlm.reproduce.reproduce import figures

T_OF_ONE_DEGREE = 12.7062  # the 97.5th percentile of Student's t, from a printed table


def done(root: Path, stage: str, result: dict[str, Any]) -> Path:
    """Write the record of a finished stage; return its folder."""
    folder = root / stage
    folder.mkdir(parents=True, exist_ok=True)
    record = {"name": stage, "status": "done", "fingerprint": "0", "version": "0", "seconds": 7.5, "needs": []}
    (folder / "stage.json").write_text(json.dumps({**record, "settings": {}, "result": result}))
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def a_run(root: Path, pit: list[float], sft: list[float], original: list[float]) -> Path:
    """Write the folder of a run whose two systems have these utilities."""
    folder = done(root, "evaluation", {"judges": {"true utility": {}}, "gaps": {"PIT": [0.5] * len(pit)}})
    systems = {"SFT-only improver": sft, "PIT": pit}
    other = {"item": "0", "first": "PIT", "judge": "another judge", "scores": [9.0, 0.0]}
    verdicts = [
        {"item": str(n), "first": name, "judge": "true utility", "scores": [values[n], original[n]]}
        for n in range(len(pit))
        for name, values in systems.items()
    ]
    lines(folder / "verdicts.jsonl", [other, *verdicts])
    items = []
    for n in range(len(pit)):
        answers = {"original": f"before {n}", "SFT-only improver": "a b c", "PIT": f"after {n}"}
        criteria = {"original": {"rude": 1}, "SFT-only improver": {"rude": 1}, "PIT": {"rude": n % 2}}
        prompt = [{"role": "user", "content": f"question {n}"}]
        items.append({"item": str(n), "prompt": prompt, "answers": answers, "criteria": criteria})
        items[-1]["tokens"] = {name: [4, 5, 6] for name in answers}
    lines(folder / "items.jsonl", items)
    return root


def improved(root: Path, start: str, utilities: list[list[float]], gaps: list[list[float]], kept: list[float]) -> None:
    """Append rows of the iterations: for each item the utility of all versions, the gaps, and what the stop rule kept."""
    folder = done(root, "iterations", {})
    before = (folder / FILE).read_text() if (folder / FILE).exists() else ""
    lines(
        folder / FILE,
        [
            {
                "start": start,
                "item": n,
                "utility": u,
                "reward": [-x for x in u],
                "gap": g,
                "gap to the policy": 0.25,
                "kept": {"utility": k, "reward": -k, "gap": 1.0},
            }
            for n, (u, g, k) in enumerate(zip(utilities, gaps, kept, strict=True))
        ],
    )
    (folder / FILE).write_text(before + (folder / FILE).read_text())


def test_the_answers_of_each_system(tmp_path: Path) -> None:
    found = measures.systems(a_run(tmp_path, pit=[2.0, 1.0, 0.0], sft=[0.0, 0.0, 0.0], original=[1.0, 1.0, 1.0]))
    assert list(found) == ["original", "SFT-only improver", "PIT"]
    assert found["PIT"]["Delta"] == [100.0, 0.0, -100.0]
    assert found["PIT"]["utility"] == [2.0, 1.0, 0.0]
    assert found["original"]["utility"] == [1.0, 1.0, 1.0]
    assert found["original"]["Delta"] == [0.0, 0.0, 0.0]
    assert found["SFT-only improver"]["words"] == [3, 3, 3]
    assert (found["PIT"]["tokens written"], found["PIT"]["tokens read"]) == ([5, 5, 5], [6, 6, 6])


@pytest.fixture
def iterated(tmp_path: Path) -> Path:
    root = a_run(tmp_path, pit=[2.0, 0.0], sft=[0.0, 0.0], original=[1.0, 1.0])
    rising, falling = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    improved(root, "PIT", [rising, falling], [[1.0, -1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0, 1.0]], [5.0, 4.0])
    improved(root, "SFT-only improver", [rising, rising], [[1.0] * 5] * 2, [0.0, 0.0])
    improved(root, "y_w", [falling, falling], [[1.0] * 5] * 2, [6.0, 5.0])
    return root


def test_quality_and_elo_by_round(iterated: Path) -> None:
    found = measures.rounds(iterated)
    assert found["PIT, round 1"]["utility"] == [1.0, 4.0]
    assert found["PIT, round 5"]["utility"] == [5.0, 4.0]
    assert found["PIT, 5 rounds, stop rule"]["utility"] == [5.0, 4.0]
    assert found["SFT-only improver, round 5"]["Elo"][0] > found["SFT-only improver, round 1"]["Elo"][0]


def test_trust_leaves_out_versions_of_equal_worth(iterated: Path) -> None:
    found = measures.trust(iterated)
    assert found["PIT, round 1"]["right, % of changes"] == [100.0, 0.0]  # the gap rises twice, the utility once
    assert found["PIT, round 1"]["better, % of all"] == [100.0, 0.0]
    assert found["PIT, round 2"]["right, % of changes"] == [0.0]  # the second item has not changed


def test_starts_gaps_and_failures(iterated: Path) -> None:
    starts = measures.starts(iterated)
    assert list(starts) == ["from the policy", "from y_w"]
    assert starts["from y_w"]["Delta"] == [100.0, 0.0]
    assert starts["from the policy"]["Delta"] == [100.0, -100.0]
    assert starts["from the policy"]["Delta by R_P"] == [-100.0, 100.0]
    assert starts["from the policy"]["Delta by R_PIT"] == [100.0, 100.0]
    gaps = measures.gaps(iterated)
    assert (gaps["y_w"]["gap"], gaps["PIT"]["above 0, %"]) == ([0.25, 0.25], [100.0, 100.0])
    failures = measures.failures(iterated)
    assert (failures["less rude"]["of answers, %"], failures["worse"]["of answers, %"]) == ([100.0, 0.0], [0.0, 100.0])
    [worst] = measures.worst(iterated, 3)
    assert worst == {"prompt": "question 1", "before": "before 1", "after": "after 1", "change": -1.0}


def an_experiment(**given: Any) -> Experiment:
    return Experiment.of({"order": 1, "title": "A question?", "paper": "Nothing.", **given})


def test_figures_over_seeds_by_hand(tmp_path: Path) -> None:
    """Means of 1 and 3: the interval of two seeds is 2 plus or minus t times 1; the differences are 0 and 2."""
    runs = {
        ("", 0): a_run(tmp_path / "0", pit=[0.0, 2.0], sft=[1.0, 1.0], original=[0.0, 0.0]),
        ("", 1): a_run(tmp_path / "1", pit=[3.0, 3.0], sft=[1.0, 1.0], original=[0.0, 0.0]),
    }
    experiment = an_experiment(figures=["utility"], claims=[["PIT", "SFT-only improver"], ["SFT-only improver", "PIT"]])
    found = figures(experiment, runs)
    assert found["seeds"] == [0, 1]
    cell = found["table"]["PIT"]["utility"]
    assert cell["mean"] == pytest.approx([2.0, 2.0 - T_OF_ONE_DEGREE, 2.0 + T_OF_ONE_DEGREE], abs=1e-3)
    assert cell["seeds"][0] == pytest.approx([1.0, 1.0 - T_OF_ONE_DEGREE, 1.0 + T_OF_ONE_DEGREE], abs=1e-3)
    assert cell["seeds"][1] == [3.0, 3.0, 3.0]
    there, back = found["claims"]
    assert there["difference"] == pytest.approx([1.0, 1.0 - T_OF_ONE_DEGREE, 1.0 + T_OF_ONE_DEGREE], abs=1e-3)
    assert there["verdict"] == back["verdict"] == "undecided"
    assert [-value for value in back["difference"]] == pytest.approx([there["difference"][i] for i in (0, 2, 1)])


@pytest.mark.parametrize(
    ("pit", "verdict"), [([3.0, 3.1], "holds"), ([0.1, 0.05], "reversed"), ([1.0, 1.1], "undecided")]
)
def test_the_verdict_on_a_claim(tmp_path: Path, pit: list[float], verdict: str) -> None:
    runs = {("", 0): a_run(tmp_path, pit=pit, sft=[1.1, 1.0], original=[0.0, 0.0])}
    found = figures(an_experiment(figures=["utility"], claims=[["PIT", "SFT-only improver"]]), runs)
    assert found["claims"][0]["verdict"] == verdict


def test_other_items_are_compared_by_their_means_alone(tmp_path: Path) -> None:
    runs = {
        ("few", 0): a_run(tmp_path / "few", pit=[1.0], sft=[0.0], original=[0.0]),
        ("many", 0): a_run(tmp_path / "many", pit=[1.0, 2.0], sft=[0.0, 0.0], original=[0.0, 0.0]),
    }
    experiment = an_experiment(
        variants={"few": {}, "many": {}}, rows=["PIT"], figures=["utility"], claims=[["many", "few"]]
    )
    [claim] = figures(experiment, runs)["claims"]
    assert (claim["difference"], claim["verdict"]) == ([0.5, None, None], "undecided")


def test_rows_of_a_table_get_the_names_that_are_given(tmp_path: Path) -> None:
    runs = {("", 0): a_run(tmp_path, pit=[1.0, 1.0], sft=[0.0, 0.0], original=[0.0, 0.0])}
    experiment = an_experiment(rows={"after RL": ["", "PIT"], "before RL": ["", "SFT-only improver"]})
    assert list(figures(experiment, runs)["table"]) == ["after RL", "before RL"]
    assert an_experiment(variants={"a": {}, "b": {}}, rows=["PIT", "original"]).label("a", "PIT") == "a: PIT"


def test_a_claim_about_no_row_is_refused(tmp_path: Path) -> None:
    runs = {("", 0): a_run(tmp_path, pit=[1.0], sft=[0.0], original=[0.0])}
    with pytest.raises(InputError, match="'claims': found 'PTI', expected some of original, SFT-only improver, PIT"):
        figures(an_experiment(claims=[["PTI", "original"]]), runs)


@pytest.mark.parametrize(
    ("cell", "figure", "text"),
    [
        ([3.14, 1.0, 5.2], "Delta", "+3.1 [+1.0, +5.2]"),
        ([0.5, 0.25, 0.75], "utility", "0.50 [0.25, 0.75]"),
        ([12.34, None, None], "Elo", "12.3"),
        ([-0.5, -1.0, 0.0], "gap", "-0.50 [-1.00, +0.00]"),
    ],
)
def test_a_cell_as_text(cell: list[float | None], figure: str, text: str) -> None:
    assert shown(cell, figure) == text


@pytest.mark.parametrize("name", experiment_names())
def test_the_settings_of_each_packaged_experiment_exist(name: str) -> None:
    for changes in find_experiment(name).variants.values():
        load_recipe(find_recipe("paper"), {key: json.dumps(value) for key, value in changes.items()})


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two small experiments on a tiny recipe, and what the command wrote."""
    folder = tmp_path_factory.mktemp("reproduced")
    tiny = {**RECIPE, "template": {"ask": "better", "today": "2026-01-01"}, "policy_rl": RECIPE["curriculum"]["rl"]}
    tiny["improver_dpo"] = {"learning_rate": 1e-3, "max_steps": 4, "batch_size": 8}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    heat = {"order": 1, "title": "Is 0.4 better than 2?", "paper": "Yes.", "rows": ["PIT"], "claims": [["0.4", "2.0"]]}
    heat["variants"] = {"0.4": {}, "2.0": {"loop.temperature": 2.0}}
    (folder / "heat.yaml").write_text(yaml.safe_dump(heat))
    command = ("reproduce", "judges", "heat.yaml", "--recipe", "tiny.yaml", "--quick")
    shown = Shell(folder)(*command, "--page", "page.md", "--json", "figures.json")
    assert shown.returncode == 0, shown.stderr
    (folder / "shown.txt").write_text(shown.stdout)
    return folder


HEAT = "2.0-" + hashlib.sha256(b'{"loop.temperature": 2.0}').hexdigest()[:8]
"""The folder of a variant: its name, and a digest of its changes."""


def test_the_tables_are_printed_and_written(reproduced: Path) -> None:
    found = json.loads((reproduced / "figures.json").read_text())
    page = (reproduced / "page.md").read_text()
    assert list(found) == ["judges", "heat.yaml"]
    assert page == tables(found, "page.pictures")
    assert tables(found) in (reproduced / "shown.txt").read_text()
    assert "- 0.4 minus 2.0: " in page
    assert (reproduced / "page.pictures" / "heat.svg").read_text().count("<svg") == 1
    assert "](page.pictures/heat.svg)" in page
    assert list(found["judges"]["table"]["from the policy"])[:3] == ["Delta", "Delta by R_P", "Delta by R_PIT"]


def test_runs_share_what_they_have_in_common(reproduced: Path) -> None:
    first, second = (reproduced / "runs" / "reproduce" / "seed-0" / name for name in ("as-it-is", HEAT))
    model = "gap/model/model.safetensors"
    assert (first / model).samefile(second / model)
    assert not (first / "evaluation" / "verdicts.jsonl").samefile(second / "evaluation" / "verdicts.jsonl")


def test_a_second_call_only_reads(reproduced: Path) -> None:
    again = Shell(reproduced)("reproduce", "heat.yaml", "--recipe", "tiny.yaml", "--seed", 0)
    assert again.returncode == 0
    assert "━" not in again.stdout  # no stage was run
    assert "- 0.4 minus 2.0: " in again.stdout


def test_every_packaged_experiment_finds_its_rows(reproduced: Path) -> None:
    """On one run in place of all variants: the rows, the figures and the claims are those of a real run."""
    root = reproduced / "runs" / "reproduce" / "seed-0" / "as-it-is"
    found = {}
    for name in experiment_names():
        experiment = find_experiment(name)
        found[name] = figures(experiment, {(variant, 0): root for variant in experiment.variants})
        assert found[name]["table"]
        if isinstance(experiment.rows, dict):
            assert set(found[name]["table"]) == set(experiment.rows)
    assert list(found["seconds"]["table"])[:3] == ["data", "policy-sft", "reward"]
    assert f"## {found['curriculum']['title']}" in tables(found)


def test_bad_input_is_one_line(reproduced: Path) -> None:
    shell = Shell(reproduced)
    assert "nonsense: found no such experiment" in shell("reproduce", "nonsense").stderr
    assert "found --quick and --seed, expected one" in shell("reproduce", "judges", "--quick", "--seed", 3).stderr
    (reproduced / "judges.yaml").write_text("{order: 1, title: a, paper: b}")  # its picture would be that of `judges`
    twice = shell("reproduce", "judges", "judges.yaml", "--recipe", "tiny.yaml", "--quick")
    assert (twice.returncode, "names that differ" in twice.stderr) == (2, True)
    (reproduced / "judges.yaml").unlink()
    for text, words in {
        "order: 1": "is missing",
        "{order: 1, title: a, paper: b, measure: luck}": "'systems', 'rounds'",
        "{order: 1, title: a, paper: b, variants: {a: {loop.heat: 1}}}": "loop.heat",
        "{order: 1, title: a, paper: b, variants: {a: {loop.rounds: many}}}": "bad.yaml: variant 'a': tiny.yaml: key 'loop.rounds'",
        "{order: 1, title: a, paper: b, variants: {a: {seed: 1}}}": "found a seed in 'a', expected none",
        "{order: 1, title: a, paper: b, rows: {x: [c, PIT]}}": "found the variant 'c', expected one of",
        "{order: 1, title: a, paper: b, rows: []}": "at least 1 item",
        "{order: 1, title: a, paper: b, variants: {a: {data.source: x.jsonl}}}": "without a known truth",
    }.items():
        (reproduced / "bad.yaml").write_text(text)
        refused = shell("reproduce", "bad.yaml", "--recipe", "tiny.yaml", "--out", "new")
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert words in refused.stderr
    refused = shell("reproduce", "judges", "--recipe", "tiny.yaml", "--page", "page.md")
    assert "page.md: exists already" in refused.stderr
    assert not (reproduced / "new").exists()


def test_rows_and_figures_that_no_run_has_are_named(reproduced: Path) -> None:
    shell = Shell(reproduced)
    for text, words in {
        "{order: 1, title: a, paper: b, figures: [utilty]}": "mine.yaml: 'figures': found 'utilty', expected some of Delta,",
        "{order: 1, title: a, paper: b, rows: [PTI]}": "mine.yaml: 'rows': found 'PTI', expected some of original,",
        "{order: 1, title: a, paper: b, claims: [[PIT, PTI]]}": "mine.yaml: 'claims': found 'PTI', expected some of",
    }.items():
        (reproduced / "mine.yaml").write_text(text)
        refused = shell("reproduce", "mine.yaml", "--recipe", "tiny.yaml", "--quick")
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert words in refused.stderr


def test_runs_of_another_recipe_are_kept(reproduced: Path) -> None:
    other = yaml.safe_load((reproduced / "tiny.yaml").read_text())
    other["gap"]["max_steps"] = 5
    (reproduced / "other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    refused = Shell(reproduced)("reproduce", "judges", "--recipe", "other.yaml", "--quick")
    assert refused.returncode == 2
    assert "gap" in refused.stderr
    assert "--update" in refused.stderr


def test_a_changed_loop_makes_new_iterations(reproduced: Path) -> None:
    """Not those of the run beside it, which has another temperature."""
    (reproduced / "hot.yaml").write_text(
        "{order: 1, title: a, paper: b, measure: rounds, figures: [utility],"
        " variants: {cold: {loop.temperature: 0.01}, hot: {loop.temperature: 3.0}}}"
    )
    done = Shell(reproduced)("reproduce", "hot.yaml", "--recipe", "tiny.yaml", "--quick", "--json", "hot.json")
    assert done.returncode == 0, done.stderr
    table = json.loads((reproduced / "hot.json").read_text())["hot.yaml"]["table"]
    assert table["cold: PIT, round 3"] != table["hot: PIT, round 3"]


def test_a_measure_without_a_value_is_a_dash(tmp_path: Path) -> None:
    """A version that equals the version before is neither better nor worse, and in a small run all may be equal."""
    level, rising = [[1.0] * 6] * 2, [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 2
    runs = {("", seed): tmp_path / str(seed) for seed in (0, 1)}
    for root, utilities in zip(runs.values(), (level, rising), strict=True):
        improved(root, "PIT", utilities, [[1.0] * 5] * 2, [0.0, 0.0])
    experiment = an_experiment(measure="trust", rows=["PIT, round 2"], figures=["right, % of changes"])
    cell = figures(experiment, runs)["table"]["PIT, round 2"]["right, % of changes"]
    assert [shown(own, "right, %") for own in cell["seeds"].values()] == ["-", "100.0 [100.0, 100.0]"]
    assert shown(cell["mean"], "right, %") == "100.0 [100.0, 100.0]"
    assert (
        shown(
            figures(experiment, {("", 0): tmp_path / "0"})["table"]["PIT, round 2"]["right, % of changes"]["mean"], ""
        )
        == "-"
    )


def test_the_experiments_are_listed(reproduced: Path) -> None:
    listed = Shell(reproduced)("reproduce", "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == experiment_names()


@pytest.mark.slow
def test_every_experiment_with_one_seed(tmp_path: Path) -> None:
    """The whole of `pit reproduce --quick`: half an hour on one core."""
    done = Shell(tmp_path).process("reproduce", "--quick", "--json", "figures.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found) == experiment_names()
    verdicts = {(claim["first"], claim["second"]): claim["verdict"] for claim in found["baselines"]["claims"]}
    assert verdicts["PIT", "original"] == verdicts["PIT", "SFT-only improver"] == "holds"
