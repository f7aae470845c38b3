"""An engine for a model in vLLM, with vLLM's own continuous batching. It needs the extra ``vllm``."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from pitlm.core.nouns import Answer
from pitlm.engines.engine import Engine, Finished, ModelSource, WriteRequest
from pitlm.engines.generators import WRITERS, Generator
from pitlm.models.loading import load_model, save
from pitlm.models.lora import is_adapter

WAITING = 512
"""The engine asks for requests until this many are pending."""


class VLLMEngine(Engine):
    """A policy or an improver in vLLM.

    Args:
        model: only its tokenizer, its template and its limits are used here.
        options: arguments of ``vllm.EngineArgs``.
    """

    def __init__(self, model: Generator, path: Path, **options: Any) -> None:
        import vllm

        self.model = model
        self._vllm = vllm
        # vLLM would run a float32 checkpoint in half precision, whose greedy text is another.
        options = {"dtype": str(model.model.dtype).removeprefix("torch."), **options}
        self._engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(model=str(path), **options))
        self._requests: dict[str, tuple[Any, int]] = {}
        self._submitted = 0

    @classmethod
    def open(cls, source: ModelSource) -> Self:
        """Let vLLM load the checkpoint in ``source.folder``, an adapter as a merged copy that is then deleted.

        vLLM decides how many requests run at once.
        """
        assert source.folder is not None
        model = WRITERS[source.kind].from_pretrained(source.folder, weights=False)
        if not is_adapter(source.folder):
            return cls(model, source.folder)
        with TemporaryDirectory() as folder:  # vLLM reads the weights now
            whole = load_model(source.folder, model.tokenizer, str(model.model.dtype).removeprefix("torch."))
            save(whole, model.tokenizer, model.card, Path(folder))
            return cls(model, Path(folder))

    @property
    def pending(self) -> int:
        return len(self._requests)

    @property
    def hungry(self) -> bool:
        return self.pending < WAITING

    def submit(self, request: WriteRequest) -> None:
        ids = self.model.encode(request.prompt, request.reference)
        name = str(self._submitted)
        limits = {"max_tokens": self.model.card.max_new_tokens, "stop_token_ids": [self.model.tokenizer.eos_token_id]}
        parameters = self._vllm.SamplingParams(temperature=request.temperature, seed=request.seed, **limits)
        self._engine.add_request(name, {"prompt_token_ids": ids}, parameters)
        self._requests[name] = request.key, len(ids)
        self._submitted += 1

    def step(self) -> list[Finished]:
        finished = []
        for output in self._engine.step():
            if output.finished:
                key, prompt_tokens = self._requests.pop(output.request_id)
                written = list(output.outputs[0].token_ids)
                text = self.model.tokenizer.decode(written, skip_special_tokens=True)
                finished.append(Finished(key, Answer(text.strip(), len(written), prompt_tokens)))
        return finished
