"""One experiment: what varies, what is measured, and what the paper says. Each experiment is a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from pitlm.core.packaged_recipes import find_packaged
from pitlm.core.recipe_file import read_tree
from pitlm.core.section import NonNegativeInt, Section

EXPERIMENTS = Path(__file__).with_name("experiments")
"""Folder of the packaged experiments, one YAML file each."""


Measure = Literal["systems", "rounds", "trust", "starts", "gaps", "health", "seconds", "failures"]
"""What can be measured: the functions of :mod:`pitlm.reproduce.measures`."""

T = TypeVar("T")
Some = Annotated[T, Field(min_length=1)]


class Experiment(Section):
    """One experiment. It gives one table: a row for each system or variant, and a column for each figure.

    Attributes:
        order: place of the experiment on the page of results.
        title: the question, as a heading.
        paper: what the paper or its reviewers say.
        variants: the runs by name, each with the settings that differ from the recipe, by dotted key.
        measure: name of the function that reads the figures from the folder of a run.
        rows: a list of rows of the measure, or a mapping from the name in the table to [variant, row]; default: all.
        figures: figures to show, with the one that the claims are about first; default: all.
        claims: pairs of rows. The first of a pair is expected to have the larger figure.
        examples: number of answers to show that PIT made worse, the worst first.
        finding: what the table shows, where that needs more words than the claims have.
    """

    order: int
    title: str
    paper: str
    variants: Some[dict[str, dict[str, Any]]] = {"": {}}
    measure: Measure = "systems"
    rows: Some[list[str]] | Some[dict[str, tuple[str, str]]] | None = None
    figures: Some[list[str]] | None = None
    claims: list[tuple[str, str]] = []
    examples: NonNegativeInt = 0
    finding: str = ""

    @model_validator(mode="after")
    def _names_fit(self) -> Experiment:
        places = [*self.rows.values()] if isinstance(self.rows, dict) else []
        if unknown := {variant for variant, _ in places} - self.variants.keys():
            raise ValueError(f"'rows': found the variant '{min(unknown)}', expected one of {', '.join(self.variants)}")
        for variant, changes in self.variants.items():
            if "seed" in changes:
                raise ValueError(f"'variants': found a seed in '{variant}', expected none; give --seed")
        return self

    def label(self, variant: str, row: str) -> str | None:
        """The name in the table of one row of the measure of a variant; None if the table does not show the row."""
        if isinstance(self.rows, dict):
            return next((name for name, place in self.rows.items() if place == (variant, row)), None)
        if self.rows is not None and row not in self.rows:
            return None
        if len(self.variants) == 1:
            return row
        return variant if self.rows is not None and len(self.rows) == 1 else f"{variant}: {row}"


def experiment_names() -> list[str]:
    """The packaged experiments, in the order of the page of results."""
    return sorted((path.stem for path in EXPERIMENTS.glob("*.yaml")), key=lambda name: find_experiment(name).order)


def find_experiment(name: str) -> Experiment:
    """The packaged experiment of this name, or the experiment in the YAML file of this name.

    Raises:
        InputError: neither is there, or the file holds something else.
    """
    path = find_packaged(name, EXPERIMENTS, "experiment")
    return Experiment.of(read_tree(path, "experiment"), str(path))
