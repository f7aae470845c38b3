"""On several threads too, a row's score does not depend on the rows beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Without the variable that a batch job sets, one group in twelve has another score beside others (34 of the 400 here).
SCORE = """
import random, sys
from pathlib import Path
import torch
from pitlm.batch.model_choice import ModelChoice
from pitlm.core.loop_section import LoopSection
from pitlm.models.trees import score_groups
from pitlm.models.trees import enable_trees
from pitlm.batch.improve_file import Setup
from transformers import LlamaConfig, LlamaForSequenceClassification

Setup(ModelChoice(improver=Path(sys.argv[1]), gap=Path(sys.argv[2])), LoopSection(), 0)
torch.manual_seed(0)
model = LlamaForSequenceClassification(LlamaConfig(
    vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
    num_labels=1, initializer_range=0.1,
)).eval()
enable_trees(model)
rng = random.Random(0)
draw = lambda least, most: [rng.randrange(1, 64) for _ in range(rng.randint(least, most))]
groups = [[x + draw(2, 12), x + draw(2, 12)] for x in (draw(8, 24) for _ in range(400))]
alone = [score_groups(model, [group])[0] for group in groups]
print(sum(not torch.equal(a, b) for a, b in zip(alone, score_groups(model, groups))))
"""


def test_a_batch_job_scores_alike_whatever_is_beside_it_on_two_threads(models: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    command = [sys.executable, "-c", SCORE, models / "improver", models / "gap"]
    # A thread that waits sleeps: where both cores are busy, spinning takes the time of the thread that it waits for.
    environment |= {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
