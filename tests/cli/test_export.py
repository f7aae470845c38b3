"""`pit export`: options at fault are one message, before any model is read; tests/run/test_export.py exports models."""

from __future__ import annotations

import pytest
from builders import generator_checkpoint
from command_line import Cli


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], "give -o (a folder), or --push-to-hub (a name), or both"),
        (["-o", "OUT", "--private"], "--private: found without --push-to-hub, expected beside it"),
        (["-o", "OUT", "--adapter", "--dtype", "float16"], "--dtype: found beside --adapter"),
        (["-o", "OUT", "--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["-o", "OUT", "--model", "judge"], "'judge' is not one of 'improver', 'policy', 'gap', 'reward'"),
        (["-o", "OUT"], "found no such folder, expected that of a run, a stage or a model"),
    ],
)
def test_options_of_export_at_fault_are_named(cli: Cli, options: list[str], wanted: str) -> None:
    given = [option.replace("OUT", str(cli.out)) for option in options]
    assert wanted in cli.refused("export", cli.tmp_path / "nowhere", *given)
    assert not cli.out.exists()


def test_a_model_is_exported_once_and_replaced_when_asked(cli: Cli, bases) -> None:
    source = generator_checkpoint(bases("words"), cli.tmp_path / "model", "improver")
    assert cli("export", source, "-o", cli.out)[0] == 0
    written = (cli.out / "pit.json").read_bytes()
    assert (cli.out / "README.md").is_file()
    assert "give another -o, or --force" in cli.refused("export", source, "-o", cli.out)
    assert cli("export", source, "-o", cli.out, "--force", "--dtype", "bfloat16")[0] == 0
    assert (cli.out / "pit.json").read_bytes() == written
