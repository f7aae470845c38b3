"""`pit improve --engine ray`: one job on the processes of a Ray cluster, by Ray Data.

One task reads the input and cuts it into parts; it so keeps the numbers that one process would give the rows. Actors
that hold the models take a part each and write its file (:mod:`pitlm.batch.parts`), so no row passes through the
process that leads. A killed actor is replaced and its part given to the next, which goes on from the part's journal.

Where there are GPUs and vLLM is installed, an actor runs the improver in vLLM by
:class:`pitlm.engines.vllm_engine.VLLMEngine`, and not by Ray's own processor (``ray.data.llm``). That one is a chain of
stages that answers each row once; the loop asks again, depending on what the gap model says. With it every round would
be a pass over the whole data set that drags along what has ended, and the gap model a second pool of GPUs. Neither a
GPU nor vLLM was at hand: that way is untested.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.text import Text

from pitlm.batch.improve_file import Setup
from pitlm.batch.job_progress import job_progress, summary
from pitlm.batch.parts import Part, PartedJob, cut
from pitlm.core.errors import InputError
from pitlm.core.recipe import ModelChoice
from pitlm.data.items import count_rows, read_items
from pitlm.data.readers import check_outside
from pitlm.io.console import make_console


def improve_parts(
    file: Path,
    output: Path,
    models: ModelChoice,
    settings: dict[str, Any],
    *,
    seed: int,
    workers: int | None,
    part_rows: int,
    force: bool = False,
) -> None:
    """Improve each answer of a file or folder into a folder of part files, going on from where an attempt was stopped.

    Args:
        settings: of the loop; those that are None come from the run's recipe, or from the recipe's defaults.
        workers: processes that hold the models; None is as many as there are GPUs, or else CPUs.
        part_rows: rows of a part.

    Raises:
        InputError: nothing to read, missing models, no cluster, another job under way for this output, or no row that
            could be improved.
    """
    next(read_items(file))  # what is wrong with the whole file shows before anything is started
    output, models, source = output.absolute(), _absolute(models), file.absolute() if file.exists() else file
    check_outside(source, output, option="-o")
    setup, console = Setup(models, settings, seed), make_console()
    with _cluster() as resources:
        gpus = int(resources.get("GPU", 0))
        inner = replace(models, engine="vllm" if gpus and find_spec("vllm") else "transformers")
        named = {"input": _stamp(source), "part_rows": part_rows, **setup.named, "engine": f"ray, {inner.engine}"}
        with PartedJob(output, named, fresh=force) as job:
            finished = job.finished()
            if finished:
                console.print(Text(f"{len(finished)} parts are finished already; going on from there."))
            rows, parts = 0, -1
            worker = (output, named, inner, settings, seed)
            with job_progress(count_rows(source), len(finished) * part_rows) as advance:
                count = workers or gpus or int(resources["CPU"])
                for part in _improved(source, part_rows, finished, worker, count, bool(gpus)):
                    if part["error"]:
                        raise InputError(part["error"])
                    if part["number"] not in finished:
                        advance(part["rows"], part["tokens"])
                    rows, parts = rows + part["rows"], parts if part["rows"] else part["number"]
            if parts < 0:
                raise RuntimeError("Ray Data ended before the input did")
            failed = job.finish(parts)
            said = summary(job, rows, failed, setup.calibration)
    for line in said:
        console.print(Text(line), soft_wrap=True)
    setup.doubt()


def _absolute(models: ModelChoice) -> ModelChoice:
    """Its folders by names that hold in other processes."""
    values: dict[str, Any] = {field.name: getattr(models, field.name) for field in fields(models)}
    for name, value in values.items():
        values[name] = value.absolute() if isinstance(value, Path) else value
    return ModelChoice(**values)


def _stamp(source: Path) -> str:
    """The input, by its name, its size and when it was written: the rows of finished parts are not compared again."""
    if not source.exists():
        return str(source)  # of a hub
    found = [path.stat() for path in ([source] if source.is_file() else sorted(source.rglob("*"))) if path.is_file()]
    return f"{source} ({sum(file.st_size for file in found)} bytes, {max(file.st_mtime_ns for file in found)})"


@contextmanager
def _cluster() -> Iterator[dict[str, float]]:
    """Ray's resources: of the cluster at RAY_ADDRESS, or of one on this machine that ends with the block."""
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


def _improved(
    source: Path, rows: int, finished: frozenset[int], worker: tuple[Any, ...], count: int, gpus: bool
) -> Iterator[dict[str, Any]]:
    """Have the parts improved by so many workers; yields each as it is done, an empty one among them after the last."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # a part a block: blocks are what workers are given
    parts = ray.data.from_items([{"source": str(source)}], override_num_blocks=1).flat_map(
        partial(_read_parts, rows=rows, finished=finished), num_cpus=0
    )
    # Ray Data's own default is what is wanted: actors that die are replaced, and what they had is given out again.
    done = parts.map_batches(
        _Worker,
        fn_constructor_args=worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=int(gpus),
    )
    yield from done.iter_rows()


def _read_parts(row: dict[str, str], *, rows: int, finished: frozenset[int]) -> Iterator[dict[str, Any]]:
    """The parts as rows of a data set; without their items those that were finished when the job began.

    What is yielded must not depend on what has been finished since: where this task is killed, Ray runs it again and
    leaves out as many rows as it had got.
    """
    number, error = -1, ""
    try:
        for part in cut(Path(row["source"]), rows):
            number = part.number
            items = b"" if number in finished else pickle.dumps(part.items)
            yield {"number": number, "rows": len(part.items), "items": items, "error": ""}
    except InputError as found:  # as a value: an exception would come wrapped in Ray's own
        error = str(found)
    yield {"number": number + 1, "rows": 0, "items": b"", "error": error}


class _Worker:
    """The process that holds the models; they are loaded for the first part that wants them."""

    def __init__(
        self, output: Path, named: dict[str, Any], models: ModelChoice, settings: dict[str, Any], seed: int
    ) -> None:
        self._job = PartedJob(output, named)
        self._told = models, settings, seed

    @cached_property
    def _setup(self) -> Setup:
        models, settings, seed = self._told
        return Setup(models, settings, seed)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        row = {name: values[0] for name, values in batch.items()}
        tokens, error = 0, str(row["error"])
        if row["items"]:
            try:
                tokens = self._job.improve(Part(int(row["number"]), pickle.loads(row["items"])), self._setup.job)
            except InputError as found:
                error = str(found)
        done = {"number": int(row["number"]), "rows": int(row["rows"]), "tokens": tokens, "error": error}
        return {name: [value] for name, value in done.items()}
