"""Best-of-N with a scripted policy and reward."""

from __future__ import annotations

import torch

from pitlm.core.nouns import Answer, Prompt
from pitlm.improve.baselines import best_of

PROMPTS = [Prompt.of("one"), Prompt.of("two"), Prompt.of("three")]


class Policy:
    def __init__(self) -> None:
        self.calls = []

    def answer(self, prompts, *, temperature, seed, advance=None):
        self.calls.append((temperature, seed))
        number = len(self.calls)
        return [Answer(f"{prompt.text}-{number}", generated_tokens=number, prompt_tokens=100) for prompt in prompts]


class Reward:
    """A table of scores; it checks that each response comes beside its own prompt."""

    SCORES = {
        "one-0": 5.0,
        "one-1": 1.0,
        "one-2": 2.0,
        "two-0": 0.0,
        "two-1": 3.0,
        "two-2": 2.0,
        "three-0": 0.0,
        "three-1": 1.0,
        "three-2": 4.0,
    }

    def scores(self, prompts, responses):
        assert all(response.startswith(prompt.text + "-") for prompt, response in zip(prompts, responses, strict=True))
        return torch.tensor([self.SCORES[response] for response in responses])


def run(samples):
    policy = Policy()
    originals = [f"{prompt.text}-0" for prompt in PROMPTS]
    answers = best_of(PROMPTS, originals, policy=policy, reward=Reward(), samples=samples, temperature=0.9, seed=5)
    return answers, policy


def test_the_highest_score_wins_and_the_original_takes_part():
    assert [answer.text for answer in run(2)[0]] == ["one-0", "two-1", "three-2"]
    assert [answer.text for answer in run(1)[0]] == ["one-0", "two-1", "three-1"]


def test_all_samples_are_paid_for_whichever_wins():
    answers, _ = run(2)
    assert {(answer.generated_tokens, answer.prompt_tokens) for answer in answers} == {(1 + 2, 200)}


def test_samples_have_seeds_of_their_own():
    _, policy = run(2)
    assert len({seed for _, seed in policy.calls}) == 2
    assert {temperature for temperature, _ in policy.calls} == {0.9}
