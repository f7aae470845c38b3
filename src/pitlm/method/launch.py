"""Training on several processes: accelerate's launcher starts them, torch's agent watches them.

This module reads and checks a configuration, calls the launcher, and says in one line why a process died.
"""

import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import is_deepspeed_available
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record

from pitlm.core.errors import InputError, RankFailed, loading

KINDS = ("MULTI_GPU", "FSDP", "DEEPSPEED")
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals whose handlers torch's agent replaces and does not restore."""

SHOWN = 3
"""Failures in one message; further ones mostly say that a peer is gone."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How training is spread over processes.

    Attributes:
        config: file of a configuration of accelerate, as ``accelerate config`` writes it.
        processes: number of processes that train together, on all machines.
        sharded: whether each process holds only a part of the weights, gradients or optimizer state.
    """

    config: Path
    processes: int
    sharded: bool = False


def read_launch(path: Path) -> Launch:
    """Check a configuration against this machine. Without ``num_processes`` there is one process for each GPU.

    Raises:
        InputError: the file is no configuration of accelerate, its kind is not supported, or it cannot run here.
    """

    def refused(field: str, found: str, expected: str) -> InputError:
        return InputError.at(path, field=field, found=found, expected=expected)

    with loading(path, "configuration of accelerate"):
        config = load_config_from_file(str(path))
    kind = config.distributed_type.value
    if not isinstance(config, ClusterConfig) or kind not in KINDS:
        raise refused("distributed_type", kind, f"{', '.join(KINDS)} (CPUs: MULTI_GPU with use_cpu: true)")
    if kind != "MULTI_GPU" and config.use_cpu:
        raise refused("use_cpu", f"true with {kind}", "GPUs: weights are sharded there")
    if kind == "FSDP" and config.fsdp_config.get("fsdp_version", 1) != 2:
        raise refused("fsdp_version", "FSDP 1", "2")
    if kind == "DEEPSPEED" and not is_deepspeed_available():
        raise refused("distributed_type", kind, "deepspeed installed: pip install it")
    cards = torch.cuda.device_count()
    processes = config.num_processes if config.num_processes > 0 else cards * config.num_machines
    if not config.use_cpu and not 0 < processes <= cards * config.num_machines:
        found = f"{processes or 'none'}, and {cards or 'no'} GPUs here"
        raise refused("num_processes", found, "a GPU for each process, or use_cpu: true (--accelerate cpu)")
    return Launch(path, processes, sharded=kind != "MULTI_GPU")


def run_ranks(launch: Launch, module: str, arguments: Sequence[str]) -> None:
    """Run ``python -m module arguments`` in every process, and wait until all are done.

    Raises:
        RankFailed: a process ended early; the others have been stopped.
    """
    command = ["--config_file", str(launch.config), "--num_processes", str(launch.processes)]
    for name in ("elastic", "elastic.agent.server.api", "run"):
        # These loggers fill several screens; RankFailed says the same in a line.
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    stop = None
    try:
        launch_command(launch_command_parser().parse_args([*command, "--module", module, *arguments]))
    except ChildFailedError as error:
        raise RankFailed(failure_reason(error.failures, launch.processes)) from error
    except SignalException as error:
        stop = error.sigval
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop is not None:
        signal.raise_signal(stop)


def run_rank(work: Callable[[], None]) -> None:
    """Do the work of one process. The parent's :func:`run_ranks` reports what the work raises."""
    if torch.cuda.is_available():  # for models that are loaded before the trainer exists
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    record(work)()
    PartialState().destroy_process_group()


def failure_reason(failures: dict[int, ProcessFailure], processes: int) -> str:
    """One line about the first failure. The agent ends the others by SIGTERM, or they fail because a peer is gone."""
    own = {rank: failure for rank, failure in failures.items() if failure.exitcode != -signal.SIGTERM} or failures
    for rank, failure in own.items():
        if failure.exitcode < 0:
            return f"rank {rank} of {processes} was killed ({failure.signal_name()})"
    told: dict[str, int] = {}
    for rank, failure in own.items():
        recorded: Any = failure.message  # declared str; a dict if the process recorded its exception
        known = isinstance(recorded, dict)
        message = str(recorded["message"]).strip().splitlines()[0] if known else f"exit code {failure.exitcode}"
        told.setdefault(message, rank)
    return "; ".join([f"rank {rank} of {processes} failed: {message}" for message, rank in told.items()][:SHOWN])
