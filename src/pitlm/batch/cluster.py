"""`pit improve --engine ray`: one job on the processes of a Ray cluster.

The process that leads reads the input, cuts it into parts, and gives each part to an actor that is free. The actors
hold the models and write the files of their parts themselves (:mod:`pitlm.batch.parted_job`), so no answer passes
through the process that leads. Ray replaces an actor that is killed and gives it the same part again; the part's
journal says where to go on.

Where there are GPUs and vLLM is installed, an actor runs the improver in vLLM by
:class:`pitlm.engines.vllm_engine.VLLMEngine`, and not by Ray's own processor (``ray.data.llm``). That processor is a
chain of stages that answers each row once, but the loop asks again, depending on what the gap model says. With it every
round would be a pass over the whole data set, and the gap model a second pool of GPUs. Neither a GPU nor vLLM was at
hand: this way is untested.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.text import Text

from pitlm.batch.improve_file import Setup
from pitlm.batch.job_progress import job_progress, print_summary
from pitlm.batch.model_choice import ModelChoice
from pitlm.batch.parted_job import Part, PartedJob, cut
from pitlm.core.errors import InputError
from pitlm.core.recipe import LoopSection
from pitlm.data.items import count_rows, read_items
from pitlm.data.readers import check_outside
from pitlm.io.console import make_console


def improve_parts(
    file: Path, output: Path, models: ModelChoice, loop: LoopSection, *, seed: int, force: bool = False
) -> None:
    """Improve each answer of a file or folder into a folder of part files, going on from where an attempt was stopped.

    Args:
        loop: settings that are not set in it come from the run's recipe.

    Raises:
        InputError: nothing to read, missing models, no cluster, another job under way for this output, or no row that
            could be improved.
    """
    next(read_items(file))  # what is wrong with the whole file shows before anything is started
    # Absolute names, which hold in other processes too.
    output, source = output.absolute(), file.absolute() if file.exists() else file
    folders = {name: value.absolute() for name, value in models if isinstance(value, Path)}
    models = models.model_copy(update=folders)
    check_outside(source, output, option="-o")
    setup, part_rows = Setup(models, loop, seed), models.part_rows
    with _cluster() as resources:
        gpus = int(resources.get("GPU", 0))
        inner = models.model_copy(update={"engine": "vllm" if gpus and find_spec("vllm") else "transformers"})
        named = {"input": _stamp(source), "part_rows": part_rows, **setup.named, "engine": f"ray, {inner.engine}"}
        with PartedJob(output, named, fresh=force) as job:
            finished = job.finished()
            if finished:
                make_console().print(Text(f"{len(finished)} parts are finished already; going on from there."))
            rows = parts = 0

            def unfinished() -> Iterator[Part]:
                nonlocal rows, parts
                for part in cut(source, part_rows):
                    rows, parts = rows + len(part.items), parts + 1
                    if part.number not in finished:
                        yield part

            count = models.workers or gpus or int(resources["CPU"])
            with job_progress(count_rows(source), len(finished) * part_rows) as advance:
                for done in _improved(unfinished(), (output, named, inner, loop, seed), count, bool(gpus)):
                    advance(*done)
            failed = job.finish(parts)
            print_summary(job, rows, failed, setup.calibration)
    setup.doubt()


def _stamp(source: Path) -> str:
    """Return the input's name, its size and when it was written: rows of finished parts are not compared again."""
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
    """Have the parts improved by ``count`` actors; yields rows and generated tokens of each part as it is done."""
    import ray
    from ray.util.actor_pool import ActorPool

    # An actor that dies is replaced, and gets the part again that it had.
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(gpus), "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(**options)(_Worker)
    pool: Any = ActorPool([actor.remote(*worker) for _ in range(count)])
    try:
        for part in parts:
            if not pool.has_free():
                yield pool.get_next_unordered()
            pool.submit(lambda free, given: free.improve.remote(given), part)
        while pool.has_next():
            yield pool.get_next_unordered()
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


class _Worker:
    """The process that holds the models; they are loaded for the first part that wants them."""

    def __init__(
        self, output: Path, named: Mapping[str, Any], models: ModelChoice, loop: LoopSection, seed: int
    ) -> None:
        self._job = PartedJob(output, named)
        self._told = models, loop, seed

    @cached_property
    def _setup(self) -> Setup:
        return Setup(*self._told)

    def improve(self, part: Part) -> tuple[int, int]:
        """Improve one part; returns its number of rows, and of tokens that were generated."""
        return len(part.items), self._job.improve(part, lambda items: self._setup.job(items))
