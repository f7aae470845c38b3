"""`pit`: the root command. A verb's module is imported when the verb is named, so `pit --help` answers at once.

\b
Examples:
  pit run quickstart
  pit data inspect pairs.jsonl
  pit run hh-smol --data pairs.jsonl
  pit recipes show quickstart

`pit VERB --help` explains a verb, with examples.
"""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from io import StringIO, TextIOWrapper
from typing import NoReturn

import click

from pitlm import __version__
from pitlm.core.errors import InputError, Stopped, describe
from pitlm.io.visible import echo


@dataclass(frozen=True, slots=True)
class Verb:
    """The line that ``pit --help`` shows without importing the verb, and the function that does the verb's work."""

    help: str
    work: str


VERBS = {
    "run": Verb("Train and evaluate an improver from preference pairs.", "pitlm.run.run_recipe:run_recipe"),
    "data": Verb("Look at preference pairs, and cut them into folds.", "pitlm.data.dataset:load_preferences"),
    "calibrate": Verb("Choose the loop's margin for a promised rate of harm.", "pitlm.run.calibrate:calibrate_run"),
    "improve": Verb("Improve answers with a trained improver and gap model.", "pitlm.batch.improve_file:improve_file"),
    "judge": Verb("Let a judge compare two systems' answers, in both orders.", "pitlm.run.judges:judge_answer_files"),
    "rate": Verb("Let people compare two systems' answers, blinded, on a page.", "pitlm.serve.rating:serve_rating"),
    "evaluate": Verb("Compute win rates, tests and agreement from verdicts.", "pitlm.evaluate.summary:summarise"),
    "reproduce": Verb("Run the paper's experiments where the truth is known.", "pitlm.reproduce.reproduce:reproduce"),
    "serve": Verb("Run an OpenAI-compatible proxy that improves answers.", "pitlm.serve.app:run"),
    "export": Verb("Write a trained model for other engines, or push it to a hub.", "pitlm.run.export:deliver"),
    "recipes": Verb("List the packaged recipes, or print one.", "pitlm.core.packaged_recipes:recipe_names"),
    "doctor": Verb("Check this machine, and estimate a recipe's time and memory.", "pitlm.plan.plan:plan_run"),
}
"""Each verb is a function of its own name in ``pitlm.cli.NAME``: options, examples, and one call of its work."""


def load_verb(name: str) -> click.Command:
    """Import the command of a verb. Its help ends with the docstring of its module, without the first line."""
    module = import_module(f"pitlm.cli.{name}")
    command: click.Command = getattr(module, name)
    command.epilog = command.epilog or (module.__doc__ or "").partition("\n")[2]
    return command


# Set before anything heavy is imported, because the libraries read these once, at import. The user's values stay.
ENVIRONMENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}

# Errors that the user can mend; any other OSError is a fault of ours, and keeps its traceback.
USER_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY,
}  # fmt: skip

_CUT = "a checkpoint could not be written to its end, as when the disk is full"
KNOWN_WORDS = {
    os.strerror(errno.ENOSPC): os.strerror(errno.ENOSPC),
    "unexpected pos": _CUT,
    "basic_ios::clear": _CUT,
    "PytorchStreamWriter failed": _CUT,
}
"""Words in errors of torch and safetensors that have no errno, and the message for each."""

_MODULES = {
    "train": "torch trl transformers accelerate datasets peft tokenizers gguf tensorboard safetensors huggingface_hub",
    "evaluate": "numpy scipy statsmodels sklearn matplotlib pyarrow",
    "serve": "fastapi uvicorn httpx prometheus_client starlette",
    "qlora": "bitsandbytes",
    "vllm": "vllm",
    "ray": "ray",
}
EXTRAS = {extra: frozenset(names.split()) for extra, names in _MODULES.items()}
"""Modules that each extra of the package installs, by their import names."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; ``commands`` holds their names, for suggestions."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)  # in the order of use, not of the alphabet

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load_verb(cmd_name) if cmd_name in VERBS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(cls=LazyGroup, commands=[click.Command(name) for name in VERBS], epilog=(__doc__ or "").partition("\n")[2])
@click.version_option(__version__, prog_name="pit")
def pit() -> None:
    """Learn, from preference pairs, to make answers better (PIT, arXiv:2310.00898)."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `pit` and exit: 0 done, 1 failed, 2 for what the user can mend, 3 at a cost limit, 130 interrupted."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends a verb as Ctrl-C does, with its message
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # with >&- in the shell there is no stdout
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows only ASCII is no reason to fail
    try:
        code = pit.main(arguments, prog_name="pit", standalone_mode=False)
        sys.stdout.flush()  # here a closed pipe can still be caught; at interpreter exit it cannot
    except click.ClickException as error:
        error.show(shown := StringIO())
        echo(shown.getvalue(), nl=False, err=True)
        code = error.exit_code
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):  # no verb asks a person, so this is a fault of ours
            raise
        echo("Interrupted; run the same command again to go on.", err=True)
        code = 130
    except BrokenPipeError:
        # Discard the rest of the output, so that the interpreter's own flush at exit raises no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        echo(f"Error: {message}", err=True)
        code = getattr(error, "exit_code", 2)
    sys.exit(code if isinstance(code, int) else 0)


def user_message(error: Exception) -> str | None:
    """The message for an error that the user can mend, in one line if a library raised it; None for other errors."""
    if isinstance(error, InputError | Stopped):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = next((extra for extra, names in EXTRAS.items() if (error.name or "").split(".")[0] in names), None)
        return extra and f"{error.name} is not installed; this verb needs: pip install 'pitlm[{extra}]'"
    if isinstance(error, OSError) and error.errno in USER_ERRNOS:
        return ": ".join([*(str(name) for name in (error.filename,) if name is not None), os.strerror(error.errno)])
    if isinstance(error, UnicodeEncodeError):  # as in an argument or the name of a folder that is not UTF-8
        return f"found {describe(error.object)} with half a character, expected text that UTF-8 can hold"
    if str(error).startswith("Symlink loop"):
        return str(error)
    return next((message for words, message in KNOWN_WORDS.items() if words in str(error)), None)


if __name__ == "__main__":
    main()
