"""The section that describes the models of `pit improve` and the engine that runs them; its fields are options."""

from pathlib import Path

from pitlm.core.errors import InputError
from pitlm.core.nouns import is_unicode
from pitlm.core.section import PositiveInt, Section
from pitlm.engines.engine import ENGINES
from pitlm.io.named_parts import part_names

OF_ENGINE = {"base_url": "endpoint", "model": "endpoint", "workers": "ray", "part_rows": "ray"}
"""Settings that only one engine takes."""


class ModelChoice(Section):
    """The models of a batch job and what runs them. A model that is not named is the run's.

    Attributes:
        run: Folder of a finished run, which gives the models and the settings.
        improver: Folder of an improver, instead of the run's.
        gap: Folder of a gap model, instead of the run's.
        policy: Folder of the model that answers rows without a response, instead of the run's policy.
        policy_url: Address of an OpenAI-compatible server that answers rows without a response.
        policy_model: Name of the model on the server of --policy-url.
        engine: Engine that runs the improver: transformers (this process), vllm (needs the extra 'vllm'), endpoint (a
            server), ray (a Ray cluster, needs the extra 'ray'), or an engine of another package.
        base_url: Address of the OpenAI-compatible server of --engine endpoint.
        model: Name of the improver on the server of --engine endpoint.
        tokens_per_batch: Tokens in one batch, prompts included; more is faster and takes more memory. Default:
            16384.
        workers: Processes of --engine ray; each loads the models. Default: one for each GPU, or one for each CPU core
            where there are no GPUs.
        part_rows: Rows in each part that a worker of --engine ray takes. Larger parts keep vLLM busier.
    """

    run: Path | None = None
    improver: Path | None = None
    gap: Path | None = None
    policy: Path | None = None
    policy_url: str | None = None
    policy_model: str | None = None
    engine: str = "transformers"
    base_url: str | None = None
    model: str | None = None
    tokens_per_batch: PositiveInt | None = None
    workers: PositiveInt | None = None
    part_rows: PositiveInt = 1000

    def check(self, prompt: str | None, response: str | None) -> None:
        """Refuse options that do not go together.

        Args:
            prompt: the prompt whose answer is improved; None if a file is improved.

        Raises:
            InputError: the option at fault, what was found and what was expected.
        """
        for name, text in (("--prompt", prompt), ("--response", response)):
            if text is not None and not is_unicode(text):
                raise InputError(f"{name}: found bytes that are not UTF-8, expected text")
        if prompt is not None and not prompt.strip():
            raise InputError("--prompt: found nothing, expected the question that was answered")
        engines = [*part_names("pitlm.engines", ENGINES), "ray"]
        if self.engine not in engines:
            raise InputError(f"--engine: found '{self.engine}', expected one of {', '.join(engines)}")
        for option, engine in OF_ENGINE.items():
            if option in self.model_fields_set and self.engine != engine:
                name = "--" + option.replace("_", "-")
                raise InputError(f"{name}: found beside --engine {self.engine}, expected beside --engine {engine}")
        if self.engine == "endpoint":
            if self.model is None:
                raise InputError("--model: found nothing, expected the improver's name on the server")
            if self.improver is not None:
                raise InputError("--improver: found beside --engine endpoint, expected --model, its name on the server")
            if self.run is None and self.gap is None:
                raise InputError("give --run (a finished run) or --gap")
        elif self.run is None and (self.improver is None or self.gap is None):
            raise InputError("give --run (a finished run), or both --improver and --gap")
        if self.policy_url is not None and self.policy_model is None:
            raise InputError("--policy-model: found nothing, expected the model's name beside --policy-url")
        if self.engine == "ray" and prompt is not None:
            raise InputError("--engine ray: found beside --prompt, expected beside FILE")
