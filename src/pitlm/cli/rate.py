"""`pit rate`: people judge two systems' answers on a page.

\b
Examples:
  pit rate before.jsonl after.jsonl --votes votes.sqlite
  pit rate before.jsonl after.jsonl --votes votes.sqlite --host 0.0.0.0
  pit rate --export verdicts.jsonl --votes votes.sqlite

FIRST and SECOND hold two systems' answers to the same prompts. Open the address that is printed; Ctrl-C ends the
server. Nobody sees which system wrote which answer. Several people may rate at once, each under a name. If you give
the same command later, they go on where they stopped. With a --host other than this machine's own, the address holds a
secret: give raters the whole address.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from pitlm.cli.options import FILE, PATH, check_output
from pitlm.core.errors import InputError
from pitlm.core.verdicts import VerdictRow
from pitlm.io.visible import echo


@click.command()
@click.argument("first", type=PATH, required=False)
@click.argument("second", type=PATH, required=False)
@click.option("--votes", "file", type=FILE, required=True, help="SQLite file that keeps the votes; made if missing.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8750, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option(
    "-o", "--export", type=PATH, help="Write the votes that count to this file as verdicts, and serve nothing."
)
@click.option("--force", is_flag=True, help="Replace the file of verdicts.")
def rate(
    first: Path | None, second: Path | None, file: Path, host: str, port: int, export: Path | None, force: bool
) -> None:
    """Let people say which of two systems' answers is better, side by side and blinded, in a browser."""
    from pitlm.data.items import read_comparisons
    from pitlm.io.atomic import write_json_lines
    from pitlm.judge.votes import Votes

    if export is not None:
        if first is not None:
            raise InputError("--export: found beside FIRST, expected --votes alone")
        if not file.exists():
            raise InputError.at(file, found="no such file", expected="the votes of an earlier `pit rate`")
        check_output(export, force, "the verdicts")
        rows = Votes(file).rows()
        write_json_lines(export, [row.as_dict() for row in rows])
        echo(f"Verdicts written to {export}: {_by_rater(rows)}")
        return
    if first is None or second is None:
        raise InputError("give two files of answers, FIRST and SECOND, or --export")

    from pitlm.serve.rating import serve_rating

    comparisons = read_comparisons(first, second)
    votes = Votes(file)

    def ready(url: str) -> None:
        echo(f"{len(comparisons)} pairs of answers to rate at {url}\nVotes go to {file}. Ctrl-C ends.")

    # A person ends the server with Ctrl-C; at certain moments the server itself swallows the signal.
    with suppress(KeyboardInterrupt):
        serve_rating(comparisons, votes, host=host, port=port, ready=ready)
    echo(f"\nStopped. Votes in {file}: {_by_rater(votes.rows())}")


def _by_rater(rows: Sequence[VerdictRow]) -> str:
    return ", ".join(f"{rater} {count}" for rater, count in Counter(row.judge for row in rows).items()) or "none"
