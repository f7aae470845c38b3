"""A run as its training stages see it: recipe, folds of pairs, models by stage, and the workbench of one training."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from peft import LoraConfig
from transformers import PreTrainedModel, set_seed

from pitlm.core.nouns import Preference, Score
from pitlm.core.recipe import LoraSection, Quantization, Recipe
from pitlm.data.folds import read_folds
from pitlm.data.template import Template, dated_template
from pitlm.engines.generators import Generator, Improver, Policy
from pitlm.models.adapters import Bases
from pitlm.models.loading import Card, HFTokenizer, Kind, load_model, load_tokenizer
from pitlm.models.scorers import GapModel, RewardModel

Model = TypeVar("Model", Policy, Improver, GapModel, RewardModel)


@dataclass(frozen=True, slots=True)
class Workbench:
    """Where and how one stage trains, apart from its algorithm.

    Attributes:
        folder: the stage's own folder, for checkpoints, metrics and the final model.
        start: the checkpoint that training starts from.
        card: the kind of model, its request and its longest answer.
        peft: the adapter to train; None trains all weights.
        report_to: trackers of the trainer.
    """

    folder: Path
    start: Path
    tokenizer: HFTokenizer
    card: Card
    seed: int
    dtype: str = "float32"
    peft: LoraSection | None = None
    report_to: Sequence[str] = field(default_factory=list)

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def quantize(self) -> Quantization | None:
        """How the weights under the adapter are held while the adapter trains."""
        return self.peft.quantize if self.peft else None

    def load(self) -> PreTrainedModel:
        """The model to train: one that writes or one that scores, as the card says.

        A new score head or adapter is drawn from the stage's own seed. Otherwise it would depend on the earlier work of
        the process, and a run that was interrupted here would make a different model.
        """
        set_seed(self.seed)
        return load_model(self.start, self.tokenizer, self.dtype, self.quantize, writes=self.card.writes)

    def lora(self) -> LoraConfig | None:
        """The adapter's configuration; a reward head is trained and saved in full beside the adapter."""
        if self.peft is None:
            return None
        return LoraConfig(
            r=self.peft.r,
            lora_alpha=self.peft.alpha,
            lora_dropout=self.peft.dropout,
            target_modules=self.peft.target_modules,
            task_type="CAUSAL_LM" if self.card.writes else "SEQ_CLS",
            modules_to_save=None if self.card.writes else ["score"],
        )


@dataclass(frozen=True)
class Setting(ABC):
    """One run: its recipe and its root folder, which has one folder for each stage."""

    recipe: Recipe
    root: Path

    @abstractmethod
    def train(self, folder: Path, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Call ``work``, here or in several processes that train together; return the last evaluation's metrics."""

    @abstractmethod
    def quality(self, bases: Bases) -> Score:
        """The quality by which RL is watched, from the judge; ``bases`` opens a judge that is a model."""

    def model(self, stage: str) -> Path:
        """The folder in which a stage keeps its model."""
        return self.root / stage / "model"

    @property
    def start(self) -> str | Path:
        """The checkpoint that policy and improver start from."""
        return self.recipe.model.base or self.root / "data" / "base"

    @cached_property
    def tokenizer(self) -> HFTokenizer:
        """The tokenizer of all models of the run. Its chat template prints the day on which the run started."""
        tokenizer = load_tokenizer(self.start)
        if self.recipe.template.today is not None and isinstance(tokenizer.chat_template, str):
            tokenizer.chat_template = dated_template(tokenizer.chat_template, self.recipe.template.today)
        return tokenizer

    @property
    def template(self) -> Template:
        return Template(self.recipe.template.ask)

    @cached_property
    def folds(self) -> dict[str, list[Preference]]:
        return read_folds(self.root / "data")

    def seed(self, purpose: str) -> int:
        """A seed for one purpose, so that no two purposes share a stream of random numbers."""
        return int.from_bytes(hashlib.sha256(f"{self.recipe.seed}/{purpose}".encode()).digest()[:4]) % 2**31

    def card(self, kind: Kind) -> Card:
        data = self.recipe.data
        return Card(kind, self.recipe.template.ask, data.max_new_tokens or data.max_response_tokens)

    def bench(self, folder: Path, start: str | Path, kind: Kind) -> Workbench:
        """The workbench of one training stage, with a seed of its own."""
        model, card, seed = self.recipe.model, self.card(kind), self.seed(folder.name)
        how = model.dtype, self.recipe.peft, self.recipe.report_to
        return Workbench(folder, Path(start), self.tokenizer, card, seed, *how)

    def start_model(self, max_new_tokens: int | None = None, bases: Bases | None = None) -> Policy:
        """The model that policy and improver start from, as it is before any training.

        Args:
            max_new_tokens: longest answer; default: as the recipe says.
            bases: opens the model beside other models.
        """
        longest = max_new_tokens or self.card("policy").max_new_tokens
        policy = Policy.of_chat_model(self.start, max_new_tokens=longest, bases=bases or self.bases())
        policy.batch_size = self.recipe.evaluation.batch_size
        policy.tokenizer.chat_template = self.tokenizer.chat_template
        return policy

    def bases(self) -> Bases:
        """A new object that opens models of the run. The models that it opens share the base of the run in memory."""
        return Bases(self.recipe.model.dtype, self.recipe.quantize)

    def open(self, kind: type[Model], stage: str, bases: Bases | None = None) -> Model:
        """Load the model that a stage made."""
        model = kind.from_pretrained(self.model(stage), bases=bases or self.bases())
        if isinstance(model, Generator):
            model.batch_size = self.recipe.evaluation.batch_size
        return model
