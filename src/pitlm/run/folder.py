"""A run folder: one folder for each stage, with a fingerprint; done stages are skipped, interrupted ones resumed."""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pitlm import __version__
from pitlm.core.errors import InputError, describe, loading, refuse_device
from pitlm.core.recipe import Recipe
from pitlm.core.recipe_file import load_recipe
from pitlm.io.atomic import write_text

FORMAT = 2
"""Part of every fingerprint; to be raised when the files of a stage change their meaning."""

RECORD = {"name", "status", "fingerprint", "version", "seconds", "needs", "settings", "result"}
"""The fields of ``stage.json``."""

SHOWN = 8
"""Changed settings that are listed in a message that refuses a run."""


class Status(StrEnum):
    """The state of a stage in a run folder."""

    MISSING = "missing"
    STARTED = "started"
    STALE = "stale"
    DONE = "done"


@dataclass(frozen=True)
class Stage:
    """One step of a run: settings and earlier stages in, one folder out.

    Attributes:
        settings: everything that changes the outcome, as plain JSON values.
        needs: names of the stages whose folders this stage reads.
    """

    name: str
    settings: Mapping[str, Any]
    needs: Sequence[str]


AnyStage = TypeVar("AnyStage", bound=Stage)

Listener = Callable[[str, str, float], None]
"""Called with (stage, "skip" | "start" | "resume" | "done", seconds that the stage took)."""


class RunFolder:
    """The folder of one run.

    Raises:
        InputError: the folder holds something else, or another process works in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        marker = root / "run.json"
        if root.exists() and not root.is_dir():
            raise InputError(f"{root}: found a file, expected a folder for the run")
        if root.is_dir() and not marker.is_file() and any(root.iterdir()):
            raise InputError(f"{root}: found a folder that holds other files, expected an empty folder or a run")
        self._new = not marker.is_file()
        self._made = not root.is_dir()
        if self._new:
            write_text(marker, json.dumps({"format": FORMAT, "version": __version__}) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process; the lock goes when the process ends, however it ends."""
        refuse_device(self.root / "run.lock")
        with (self.root / "run.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.root}: another process is working on this run") from error
            for left in self.root.rglob(".*.tmp"):  # unfinished files of processes that were killed
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            yield

    def status(self, stage: Stage, fingerprint: str) -> Status:
        record = stage_record(self.root, stage.name)
        if record is None:
            return Status.MISSING
        return Status.STALE if record["fingerprint"] != fingerprint else Status(record["status"])

    def execute(
        self,
        stages: Sequence[AnyStage],
        work: Callable[[AnyStage, Path], dict[str, Any]],
        *,
        recipe: Mapping[str, Any],
        update: bool = False,
        listener: Listener,
    ) -> None:
        """Bring every stage up to date, in order.

        Args:
            work: does a stage in its folder, from where an interrupted attempt stopped, and returns the stage's result
                for ``stage.json``. There ``memory``, the most bytes that the stage held, stands beside its seconds.
            recipe: the whole configuration, written to ``recipe.json`` if the run is not refused.
            update: redo stages whose settings or inputs have changed; their folders are replaced.

        Raises:
            InputError: a stage is stale and ``update`` is off; the message names the settings that differ. Or the work
                found a fault in its input; then a new stage is removed again, and a replaced stage is restored.
        """
        with self.locked():
            prints = fingerprints(stages)
            statuses = {stage.name: self.status(stage, prints[stage.name]) for stage in stages}
            if not update:
                self._refuse_stale(stages, statuses)
            path = self.root / "recipe.json"
            before = path.read_text(encoding="utf-8") if path.is_file() else None
            write_text(path, json.dumps(dict(recipe), indent=2, ensure_ascii=False) + "\n")
            for stage in stages:
                if statuses[stage.name] is Status.DONE:
                    listener(stage.name, "skip", 0.0)
                    continue
                try:
                    self._execute(stage, partial(work, stage), prints[stage.name], statuses[stage.name], listener)
                except InputError:
                    if before is not None:
                        write_text(path, before)
                    raise
                before = None  # from here on the folder holds a run of the new recipe

    def _execute(
        self, stage: Stage, work: Callable[[Path], dict[str, Any]], fingerprint: str, status: Status, tell: Listener
    ) -> None:
        folder, earlier = self.root / stage.name, self.root / f".{stage.name}.earlier"
        if status is Status.STALE:
            shutil.rmtree(earlier, ignore_errors=True)
            folder.rename(earlier)
        folder.mkdir(parents=True, exist_ok=True)
        tell(stage.name, "resume" if status is Status.STARTED else "start", 0.0)

        about: dict[str, Any] = {"name": stage.name, "fingerprint": fingerprint, "version": __version__}
        about |= {"needs": list(stage.needs), "settings": dict(stage.settings)}

        def write(status: Status, seconds: float, result: dict[str, Any] | None, memory: int | None = None) -> None:
            record = {**about, "status": status, "seconds": round(seconds, 2), "memory": memory, "result": result}
            write_text(folder / "stage.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")

        spent = self._spent(folder)
        write(Status.STARTED, spent, None)
        begin = time.perf_counter()
        try:
            result = work(folder)
        except InputError:
            if status is Status.STALE:
                shutil.rmtree(folder)
                earlier.rename(folder)
            elif status is Status.MISSING:
                self._withdraw(folder)
            raise
        seconds = spent + time.perf_counter() - begin
        write(Status.DONE, seconds, result, result.pop("memory", None))
        shutil.rmtree(earlier, ignore_errors=True)
        tell(stage.name, "done", seconds)

    def _spent(self, folder: Path) -> float:
        """Seconds that interrupted attempts at a stage took, each up to the last file that it wrote."""
        record = stage_record(self.root, folder.name)
        if record is None:
            return 0.0
        times = [path.lstat().st_mtime for path in (folder / "stage.json", *folder.rglob("*"))]
        return float(record["seconds"]) + max(times) - times[0]

    def _withdraw(self, folder: Path) -> None:
        """Remove a stage whose input has a fault; if it was the first stage of a new run, remove the run."""
        shutil.rmtree(folder)
        if self._new and not any(path.is_dir() for path in self.root.iterdir()):
            for name in ("run.json", "run.lock", "recipe.json"):
                (self.root / name).unlink(missing_ok=True)
            if self._made and not any(self.root.iterdir()):
                self.root.rmdir()

    def _refuse_stale(self, stages: Sequence[Stage], statuses: Mapping[str, Status]) -> None:
        stale = [stage for stage in stages if statuses[stage.name] is Status.STALE]
        if not stale:
            return
        where: dict[str, list[str]] = {}
        for stage in stale:
            record = stage_record(self.root, stage.name) or {}
            for change in _changes(record.get("settings", {}), json.loads(json.dumps(stage.settings))):
                where.setdefault(change, []).append(stage.name)
        lines = [f"{change} ({', '.join(names)})" for change, names in where.items()]
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        listed = [*lines[:SHOWN], *more] or ["its inputs or the stage format"]
        raise InputError(
            f"{self.root}: this folder holds a run with other settings:\n  " + "\n  ".join(listed) + "\n"
            "Choose another folder with --out, or redo the stages that changed with --update."
        )


def stored_recipe(root: Path) -> Recipe:
    """The recipe of an earlier run.

    Raises:
        InputError: the folder holds no run.
    """
    path = root / "recipe.json"
    if not path.is_file():
        raise InputError(f"{root}: found no recipe.json, expected the folder of a run")
    return load_recipe(path)


def stage_record(root: Path, name: str) -> dict[str, Any] | None:
    """The contents of a stage's ``stage.json``, or None if there is no such file.

    Raises:
        InputError: the file is not what :class:`RunFolder` writes.
    """
    path = root / name / "stage.json"
    if not path.is_file():
        return None
    with loading(path, "record of a stage (delete the stage's folder, then `pit run` makes the stage again)"):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        float(record["seconds"] + (record.get("memory") or 0))  # both are numbers
        if record["status"] not in list(Status) or not RECORD.issubset(record):
            raise ValueError(f"found {describe(record)}, expected the fields that `pit run` writes")
    return record


def stage_result(root: Path, name: str) -> dict[str, Any]:
    """The result of a finished stage.

    Raises:
        InputError: the stage is not done.
    """
    record = stage_record(root, name)
    if record is None or record["status"] != Status.DONE:
        raise InputError(f"{root}: stage '{name}' is not done; run `pit run` on it first")
    result: dict[str, Any] = record["result"]
    return result


def is_current(root: Path, name: str) -> bool:
    """Whether a stage is done, and none of the stages that it needs was made again since."""
    record = stage_record(root, name)
    if record is None or record["status"] != Status.DONE:
        return False
    needs = [stage_record(root, need) for need in record["needs"]]
    found = [need["fingerprint"] for need in needs if need is not None and need["status"] == Status.DONE]
    return len(found) == len(needs) and record["fingerprint"] == _fingerprint(record["settings"], found)


def fingerprints(stages: Sequence[Stage]) -> dict[str, str]:
    """Each stage's fingerprint: a hash of its settings and of the fingerprints of the stages that it needs."""
    prints: dict[str, str] = {}
    for stage in stages:
        prints[stage.name] = _fingerprint(stage.settings, [prints[name] for name in stage.needs])
    return prints


def _fingerprint(settings: Mapping[str, Any], needs: Sequence[str]) -> str:
    basis = {"format": FORMAT, "settings": dict(settings), "needs": list(needs)}
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:16]


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _changes(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [f"{path}: found {old!r}, now {new!r}"]
