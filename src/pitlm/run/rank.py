"""One of the processes that do the training of a stage together: ``python -m pitlm.run.rank RUN STAGE``.

accelerate's launcher starts it. Nothing heavy is imported before messages go to their file.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Train. Messages go to ``rank-N.log`` in the stage's folder; only rank 0 shows its progress on the console."""
    parent = os.getppid()
    if sys.platform == "linux":  # otherwise this process would outlive a launcher that was killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    root, stage, rank = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
    log = os.open(root / stage / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, sys.stderr.fileno())
    if rank != "0":
        os.dup2(log, sys.stdout.fileno())

    from pitlm.method.launch import run_rank

    run_rank(lambda: train(root, stage))
    sys.stdout.flush()
    os._exit(0)  # threads of gloo that outlive the interpreter sometimes abort the process; all files are written


def train(root: Path, stage: str) -> None:
    """Do the training of one stage of the run in ``root``, together with the other ranks."""
    from pitlm.core.recipe_file import load_recipe
    from pitlm.models.loading import quiet
    from pitlm.run.context import Context, Trained
    from pitlm.run.stage_work import do_work
    from pitlm.run.stages import build_stages

    quiet()
    recipe = load_recipe(root / "recipe.json")
    stages = {found.name: found for found in build_stages(recipe, contents=False)}
    with suppress(Trained):
        do_work(Context(recipe, root, rank=True), stages[stage], root / stage)


if __name__ == "__main__":
    main()
