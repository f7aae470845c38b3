"""The options of a judge, in a recipe and on the command line."""

from typing import Any

from pydantic import Field

from pitlm.core.section import FilePath, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class JudgeSection(Section):
    """One judge, and how the judge is asked. Fields from `base_url` on are for `llm`, unless they say otherwise."""

    kind: str = Field(
        description="truth: the hidden utility of the pocket world; reward: the run's held-out reward model; foreign: "
        "any reward or gap model; llm: a language model behind an endpoint; scripted: replies from a file; or the name "
        "of a judge that another package adds"
    )
    model: str | None = Field(
        None,
        description="llm: name of the model; foreign: folder or hub name; scripted: JSON lines, two replies a pair",
    )
    base_url: str | None = Field(
        None, description="address of any OpenAI-compatible endpoint; default: OPENAI_BASE_URL"
    )
    template: FilePath | None = Field(
        None, description="file with the prompt of the judge, in place of the built-in one"
    )
    temperature: NonNegativeFloat = Field(0.0, description="sampling temperature of the judge; 0 is greedy")
    max_tokens: PositiveInt = Field(1024, description="longest reply of the judge, in tokens")
    seed: int | None = Field(None, description="seed that is sent with each request, for servers that heed it")
    body: dict[str, Any] = Field(
        default_factory=dict, description="further fields of each request; null removes a field, such as temperature"
    )
    price: str | None = Field(
        None,
        description="price of a million tokens: input,cached,output; or a JSON file {model: [input, cached, output]}",
    )
    max_cost: PositiveFloat | None = Field(
        None, description="start no further call once this much is spent; calls under way are kept; needs a price"
    )
    concurrency: int = Field(8, ge=1, le=256, description="calls at the same time")
    timeout: PositiveFloat = Field(120.0, description="seconds that the server may be silent")
    cache: FilePath | None = Field(None, description="file where replies are kept, so that none is paid for twice")
    retry_unparsable: NonNegativeInt = Field(
        0, description="how many more times a reply without a verdict is asked for"
    )
