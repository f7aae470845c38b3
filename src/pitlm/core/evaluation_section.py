"""The options of an evaluation in a recipe, and of a judge also on the command line."""

from typing import Annotated

from pydantic import Field, JsonValue

from pitlm.core.section import FilePath, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class JudgeSection(Section):
    """One judge, and how the judge is asked. Fields from `base_url` on are for `llm`, unless they say otherwise.

    Attributes:
        kind: truth: the true utility of the run's world; reward: the run's held-out reward model; foreign: any
            reward or gap model; llm: a language model behind an endpoint; scripted: replies from a file; or the name of
            a judge that another package adds.
        model: llm: name of the model; foreign: folder or hub name; scripted: JSON lines, two replies a pair.
        base_url: address of any OpenAI-compatible endpoint; default: OPENAI_BASE_URL.
        template: file with the prompt of the judge, in place of the built-in one.
        temperature: sampling temperature of the judge; 0 is greedy.
        max_tokens: longest reply of the judge, in tokens.
        seed: seed to send with each request, for servers that use it.
        body: further fields of each request; null removes a field, such as temperature.
        price: price of a million tokens: input,cached,output; or a JSON file {model: [input, cached, output]}.
        max_cost: start no further call once this much is spent; calls under way still finish; needs a price.
        concurrency: calls at the same time.
        timeout: seconds that the server may be silent.
        cache: file that stores the replies, so that you pay for no reply twice.
        retry_unparsable: how often to ask again after a reply without a verdict.
    """

    kind: str
    model: str | None = None
    base_url: str | None = None
    template: FilePath | None = None
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 1024
    seed: int | None = None
    body: dict[str, JsonValue] = {}
    price: str | None = None
    max_cost: PositiveFloat | None = None
    concurrency: int = Field(8, ge=1, le=256)
    timeout: PositiveFloat = 120.0
    cache: FilePath | None = None
    retry_unparsable: NonNegativeInt = 0


class EvaluationSection(Section):
    """Held-out comparison of the systems.

    Attributes:
        fresh_pairs: pairs of new policy answers to check R_PIT on.
        tokens: equal compute: tokens that every system may generate for each item; null: no limit.
        baselines: baselines to compare PIT with; null: all baselines of pitlm that apply to the recipe, and
            PIT after each earlier stage of the curriculum.
        self_refine: prompts of Self-Refine, each a file or the name of packaged prompts; the start model refines its
            answers by them.
        harm: let PIT also run with the margin that `pit calibrate` would choose for this share of answers made worse.
        judges: judges that say which answer is better; the headline shows the first; default: the true utility where
            it is known, the held-out reward model elsewhere.
    """

    items: PositiveInt = 400
    policy_temperature: NonNegativeFloat = 1.0
    fresh_pairs: PositiveInt = 400
    tokens: PositiveInt | None = None
    baselines: list[str] | None = None
    self_refine: list[str] = []
    harm: Fraction | None = None
    judges: list[JudgeSection] | None = Field(None, min_length=1)
    resamples: Annotated[int, Field(gt=0, le=10**5)] = 2000
    batch_size: PositiveInt = 128
