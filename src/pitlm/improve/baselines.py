"""What PIT is compared with, each counting the tokens that it spends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from pitlm.core.nouns import Answer, Prompt

Advance = Callable[[int], None]


class Answerer(Protocol):
    """Answers prompts; :class:`pitlm.models.generators.Policy` is one."""

    def answer(
        self, prompts: Sequence[Prompt], *, temperature: float, seed: int, advance: Advance | None
    ) -> list[Answer]: ...


class Ranker(Protocol):
    """Scores responses; :class:`pitlm.RewardModel` is one."""

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Iterable[float]: ...


def best_of(
    prompts: Sequence[Prompt],
    originals: Sequence[str],
    *,
    policy: Answerer,
    reward: Ranker,
    samples: int,
    temperature: float,
    seed: int,
    advance: Advance | None = None,
) -> list[Answer]:
    """The best by R_P of the original and ``samples`` further answers of the policy.

    The counted tokens are those of the further answers, as the loop's are those of its proposals.
    """
    candidates = [[Answer(original)] for original in originals]
    for number in range(samples):
        for row, answer in zip(
            candidates,
            policy.answer(prompts, temperature=temperature, seed=seed + number, advance=advance),
            strict=True,
        ):
            row.append(answer)
    flat = [(prompt, answer.text) for prompt, row in zip(prompts, candidates, strict=True) for answer in row]
    scores = iter(reward.scores([prompt for prompt, _ in flat], [text for _, text in flat]))
    ranked = [max(zip(row, scores, strict=False), key=lambda pair: float(pair[1]))[0].text for row in candidates]
    return [
        Answer(best, sum(a.generated_tokens for a in row), sum(a.prompt_tokens for a in row))
        for row, best in zip(candidates, ranked, strict=True)
    ]
