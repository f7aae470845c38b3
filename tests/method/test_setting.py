"""What a stage opens of its run."""

from __future__ import annotations

from tiny_run import RECIPE

from pitlm.core.recipe import Recipe
from pitlm.engines.generators import Improver, Policy
from pitlm.models.scorers import GapModel
from pitlm.run.context import Context


def test_every_model_that_writes_keeps_to_the_batch_of_the_recipe(monkeypatch, tmp_path):
    context = Context(Recipe.of({**RECIPE, "evaluation": {"batch_size": 7}}, "mine.yaml"), tmp_path)
    for kind in (Policy, Improver, GapModel):
        monkeypatch.setattr(kind, "from_pretrained", lambda folder, bases, kind=kind: kind.__new__(kind))
    assert [context.open(kind, "any").batch_size for kind in (Policy, Improver)] == [7, 7]
    assert not hasattr(context.open(GapModel, "gap"), "batch_size")
