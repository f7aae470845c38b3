"""`pit improve --engine ray`: one job that the processes of a Ray cluster share.

The process that leads reads the input, cuts it into parts, and gives each part to an actor that is free. The actors
hold the models and write the files of their parts themselves, so no answer passes through the process that leads. If an
actor is killed or cut off, another one gets its part; the part's journal says where to go on.

While the job is under way ``OUT.partial`` is a folder. ``job`` is the journal with the settings, which the process that
leads holds open; ``journals`` has the journals of parts that are not finished, ``parts`` the finished output files and
``failed`` the rows that could not be improved. When every part is there, ``parts`` becomes ``OUT`` in one step. Its
files, joined in order, equal the file that one process would have written.
If there are GPUs and vLLM is installed, an actor runs the improver in vLLM (docs/engines.md; untested, without a GPU).
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pitlm.batch.batch_job import BatchJob
from pitlm.batch.finished_rows import Journal, NothingImproved, Taken, failed_path, open_alone, write_failures
from pitlm.batch.improve_file import Setup, job_progress
from pitlm.core.errors import InputError
from pitlm.data.items import Failure, Item, read_items
from pitlm.data.readers import check_outside

PATTERN = "part-*.jsonl"
MADE = ("journals", "parts", "failed")
TRIES = 10
"""The job stops if a part was begun this often and never finished: its rows may be what kills the processes."""

PATIENCE = 600
"""Seconds to wait until another process lets go of a part. On a node that was cut off, it ends after a minute."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of the input. Their items keep the numbers that the rows have in the input."""

    number: int
    items: tuple[Item | Failure, ...]


def cut(file: Path, rows: int) -> Iterator[Part]:
    """Cut the input into parts of ``rows`` rows.

    Raises:
        InputError: ``file`` has nothing readable.
    """
    items = read_items(file)
    return (Part(number, part) for number, part in enumerate(iter(lambda: tuple(islice(items, rows)), ())))


class PartedJob:
    """The folder of a job in parts. The process that leads uses it as a context manager; the others only write parts.

    Args:
        output: the folder that the parts become in the end.
        settings: everything that changes an answer or the parts. The folder of another job is refused.
        fresh: begin anew, whatever is there, and replace ``output``.

    Attributes:
        rows: the number of rows of the input, once :meth:`unfinished` has come to its end.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.output = output
        self.folder = output.with_name(output.name + ".partial")
        self.failed_path = failed_path(output)
        self.rows = self._parts = 0
        self._settings, self._fresh = settings, fresh

    def __enter__(self) -> Self:
        """Begin the job, or go on with it.

        Raises:
            InputError: the folder has a job of other settings, or one that another process leads.
        """
        made = [self.folder / name for name in MADE]
        self._job = open_alone(self.folder / "job", self._settings, fresh=self._fresh, begins_without=made)
        shutil.rmtree(self.folder / "tries", ignore_errors=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._job.close()
        if not any(any((self.folder / name).glob("*")) for name in MADE):
            shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> frozenset[int]:
        """The numbers of the parts that are done."""
        ended = {path.name for name in ("parts", "failed") for path in (self.folder / name).glob(PATTERN)}
        under_way = {path.name for path in (self.folder / "journals").glob(PATTERN)}
        return frozenset(int(name[5:].removesuffix(".jsonl")) for name in ended - under_way)

    def unfinished(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield the parts of the input that are not done yet."""
        finished = self.finished()
        for part in parts:
            self.rows, self._parts = self.rows + len(part.items), self._parts + 1
            if part.number not in finished:
                yield part

    def improve(self, part: Part, make_job: Callable[[Iterator[Item | Failure]], BatchJob]) -> int:
        """Improve one part, going on from where an earlier attempt was killed. Any process may do this.

        If another process works on the part, wait for it: its node may have been cut off. Then its rows are finished.

        Returns:
            The number of tokens that were generated in this attempt.

        Raises:
            InputError: another process goes on working on this part, an engine can answer nothing at all, or the part
                was tried too often.
        """
        for _ in range(PATIENCE):
            with suppress(Taken):
                return self._improve(part, make_job)
            time.sleep(1)
        return self._improve(part, make_job)

    def _improve(self, part: Part, make_job: Callable[[Iterator[Item | Failure]], BatchJob]) -> int:
        name, tokens = f"part-{part.number:06}.jsonl", 0
        path, output, failures = (self.folder / kind / name for kind in MADE)
        if (output.exists() or failures.exists()) and not path.exists():
            return 0  # the process that finished this part was killed before it could say so
        with Journal(output, {**self._settings, "part": part.number}, files=(path, failures)) as journal:
            self._count(name, part)
            for finished in make_job(journal.unfinished(part.items)):
                tokens += journal.add(finished)
            with suppress(NothingImproved):  # a part may fail as a whole; the job may not
                journal.finish()
        return tokens

    def _count(self, name: str, part: Part) -> None:
        tries = self.folder / "tries" / name
        tries.parent.mkdir(exist_ok=True)
        with tries.open("a") as file:
            file.write(".")
        if tries.stat().st_size > TRIES:
            where = f"{part.items[0].where} to {part.items[-1].where}"
            raise InputError(
                f"{where}: {TRIES} processes died over these rows (out of memory?); what is finished is kept, and the "
                "same command goes on"
            )

    def finish(self) -> int:
        """Write the failures, and put the parts in the place of the output.

        Returns:
            How many rows failed.

        Raises:
            NothingImproved: every row failed.
            RuntimeError: a part is missing.
        """
        if lost := set(range(self._parts)) - self.finished():
            raise RuntimeError(f"{self.folder}: {len(lost)} of {self._parts} parts are missing, {min(lost)} the first")
        failed = write_failures(self.failed_path, _lines((self.folder / "failed").glob(PATTERN)))
        made = self.folder / "parts"
        if some := any(made.glob(PATTERN)):
            for left in made.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
            if self.output.exists():
                self.output.rename(self.folder / "replaced")
            made.rename(self.output)
        shutil.rmtree(self.folder)
        if not some:
            raise NothingImproved.of(self.failed_path, failed)
        return failed

    def made(self) -> Iterator[dict[str, Any]]:
        """The rows of the output, in the order of the input."""
        return map(json.loads, _lines(self.output.glob(PATTERN)))


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for path in sorted(files):
        with path.open(encoding="utf-8", newline="\n") as lines:
            yield from lines


def improve_parts(file: Path, output: Path, setup: Setup, *, force: bool = False) -> None:
    """Improve each answer of a file or folder into a folder of part files, going on from where an attempt was stopped.

    Raises:
        InputError: nothing to read, no cluster, another job under way for this output, or no row that could be
            improved.
    """
    output, source = output.absolute(), file.absolute() if file.exists() else file
    check_outside(source, output, option="-o")
    part_rows = setup.models.part_rows
    with _cluster() as resources:
        gpus = int(resources.get("GPU", 0))
        engine = "vllm" if gpus and find_spec("vllm") else "transformers"
        inner = setup.models.model_copy(update={"engine": engine})
        named = {"input": _stamp(source), "part_rows": part_rows, **setup.named, "engine": f"ray, {engine}"}
        count = inner.workers or gpus or int(resources["CPU"])
        with PartedJob(output, named, fresh=force) as job:
            done, worker = len(job.finished()), (output, named, inner, setup.loop, setup.seed)
            with job_progress(source, done * part_rows, f"{done} parts") as advance:
                for rows, tokens in _improved(job.unfinished(cut(source, part_rows)), worker, count, bool(gpus)):
                    advance(rows, tokens)
            setup.summarise(job, job.rows, job.finish())


def _stamp(source: Path) -> str:
    """Return the input's name, size and time of writing: a change must show, as finished rows are not compared."""
    if not source.exists():
        return str(source)  # the name of a data set on the hub
    found = [path.stat() for path in ([source] if source.is_file() else sorted(source.rglob("*"))) if path.is_file()]
    return f"{source} ({sum(file.st_size for file in found)} bytes, {max(file.st_mtime_ns for file in found)})"


@contextmanager
def _cluster() -> Iterator[dict[str, float]]:
    """Yield the resources of the cluster at RAY_ADDRESS, or of one on this machine that ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ours, address = not ray.is_initialized(), os.environ.get("RAY_ADDRESS")
    if ours:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(address, **options) if address else ray.init("local", include_dashboard=False, **options)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"RAY_ADDRESS: found no Ray cluster at {address} ({error})") from error
    try:
        yield ray.cluster_resources()
    finally:
        if ours:
            ray.shutdown()


def _improved(parts: Iterator[Part], worker: tuple[Any, ...], count: int, gpus: bool) -> Iterator[tuple[int, int]]:
    """Let ``count`` actors improve the parts. Yield the numbers of rows and generated tokens of each finished part.

    If an actor dies, or its node is cut off, its part goes to another actor. Ray's own pool would wait for the same
    actor, for which no node may have room.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    make = ray.remote(num_cpus=1, num_gpus=int(gpus))(_Worker).remote
    busy: dict[Any, tuple[Any, Part | None]] = {}  # by the result: the actor and its part; None while it starts
    idle: list[Any] = []
    back: list[Part | None] = []

    def give(actor: Any, part: Part | None) -> None:
        busy[actor.improve.remote(part)] = actor, part

    deaths = 0
    for _ in range(count):
        give(make(*worker), None)
    while back or not idle or any(part for _, part in busy.values()):
        [result], _ = ray.wait(list(busy))
        actor, part = busy.pop(result)
        try:
            yield ray.get(result)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError:
            deaths = 0 if part else deaths + 1
            if deaths > TRIES:
                raise
            ray.kill(actor)
            give(make(*worker), None)
            back += [part] if part else []
            actor = idle.pop() if idle else None
        if actor and (part := back.pop() if back else next(parts, None)):
            give(actor, part)
        elif actor:
            idle.append(actor)


class _Worker:
    """A process that holds the models. It loads them when it improves its first part."""

    def __init__(self, output: Path, named: Mapping[str, Any], *told: Any) -> None:
        self._job, self._told = PartedJob(output, named), told

    @cached_property
    def _setup(self) -> Setup:
        return Setup(*self._told)

    def improve(self, part: Part | None) -> tuple[int, int]:
        """Improve one part; returns its number of rows, and of tokens that were generated. None only says "started"."""
        return (len(part.items), self._job.improve(part, lambda items: self._setup.job(items))) if part else (0, 0)
