"""Self-Refine (Madaan et al. 2023, arXiv:2303.17651): a chat model criticises its own answer and rewrites it.

As in its Algorithm 1: fb_t = M(p_fb, x, y_t); stop where fb_t says so; y_{t+1} = M(p_refine, x, y_0, fb_0, ..., y_t,
fb_t), the earlier rounds kept in view. Two variants: the last answer, and the best one by the model's own scores, with
which the paper chooses where quality goes up and down. Ours: the best by a gap model; a rubric that is asked about one
criterion at a time, for models too small to hold it whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pitlm.core.errors import InputError
from pitlm.core.nouns import Advance, Answer, Improvement, Prompt, Round, StopReason, Trace
from pitlm.loop.baselines.chat import Chat, Conversation
from pitlm.loop.baselines.guide import Guide
from pitlm.loop.loop import GapScorer


def self_refine(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    chat: Chat,
    guide: Guide,
    rounds: int = 3,
    best: bool = False,
    gap: GapScorer | None = None,
    temperature: float = 0.7,
    seed: int = 0,
    advance: Advance | None = None,
) -> list[Trace]:
    """Feedback, then refine, until the feedback asks for nothing more or the rounds are spent; one trace each.

    A reply that failed is asked for again in the next round; the answer stays as it was.
    Every reply is paid for, feedback included. A round of the trace is one rewrite with the feedback that it took to
    have it; with ``best`` by own scores also the feedback that scores it, the last answer's included.

    Args:
        best: keep the best answer in place of the last: by the model's own scores, or by ``gap`` to the original.
        temperature: PIT's paper found 0.6 to 0.8 best for Self-Refine.

    Returns:
        Traces that stopped as ``CONVERGED`` where the feedback asked for nothing more, else as ``ROUNDS``.

    Raises:
        InputError: fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"rounds: found {rounds}, expected at least 1")
    drafts = [_Draft(prompt, [response]) for prompt, response in zip(prompts, responses, strict=True)]
    talk = _Talk(chat, guide, temperature, seed)
    for _ in range(rounds):
        active = [draft for draft in drafts if not draft.satisfied]
        talk.criticise(active)
        unsatisfied = [draft for draft in active if not draft.satisfied]
        talk.rewrite(unsatisfied)
        if advance is not None:
            advance(len(active) - len(unsatisfied))
    active = [draft for draft in drafts if not draft.satisfied]
    if best and gap is None:
        talk.criticise(active, to_score=True)
    if best and gap is not None:
        _score(drafts, gap)
    if advance is not None:
        advance(len(active))
    return [draft.trace(best=best, scored_by_feedback=gap is None) for draft in drafts]


@dataclass
class _Spent:
    """What some replies cost."""

    tokens: int = 0
    prompt_tokens: int = 0

    def add(self, answer: Answer) -> None:
        self.tokens += answer.generated_tokens
        self.prompt_tokens += answer.prompt_tokens

    def __add__(self, other: _Spent) -> _Spent:
        return _Spent(self.tokens + other.tokens, self.prompt_tokens + other.prompt_tokens)


@dataclass
class _Draft:
    """One response on its way: y_0 to y_t, the feedback on y_t, and what each took.

    Attributes:
        complaints: question and feedback of whatever is to be mended in y_t.
        steps: response, question and feedback of every rewrite so far.
    """

    prompt: Prompt
    versions: list[str]
    satisfied: bool = False
    complaints: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str, str]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    criticised: list[_Spent] = field(default_factory=list)
    rewritten: list[_Spent] = field(default_factory=list)

    def trace(self, *, best: bool, scored_by_feedback: bool) -> Trace:
        rounds = []
        top = self.scores[0] if self.scores else 0.0
        for number, version in enumerate(self.versions[1:]):
            spent = self.rewritten[number]
            if best and scored_by_feedback:
                spent += sum(self.criticised[number + 1 : number + 2], self.criticised[0] if number == 0 else _Spent())
            else:
                spent += self.criticised[number]
            score = self.scores[number + 1] if number + 1 < len(self.scores) else -math.inf
            gap = score - top if math.isfinite(score) and math.isfinite(top) else 0.0
            rounds.append(Round(version, gap, not best or score > top, **vars(spent)))
            top = max(top, score) if best else score
        total = sum([*self.criticised, *self.rewritten], _Spent())
        reason = StopReason.CONVERGED if self.satisfied else StopReason.ROUNDS
        return Trace(self.prompt, self.versions[0], tuple(rounds), reason, total.tokens, total.prompt_tokens)


@dataclass
class _Talk:
    """Asks the model, one question about all drafts at a time; each call has a seed of its own."""

    chat: Chat
    guide: Guide
    temperature: float
    seed: int

    def criticise(self, drafts: Sequence[_Draft], *, to_score: bool = False) -> None:
        """Feedback on each draft's y_t; ``to_score`` leaves it at the score."""
        for draft in drafts:
            draft.criticised.append(_Spent())
            draft.scores.append(0.0)
            draft.complaints = {}
        heard = dict.fromkeys(map(id, drafts), not to_score)
        for question in self.guide.questions:
            asked = [self.guide.ask(draft.prompt, draft.versions[-1], question) for draft in drafts]
            for draft, reply in zip(drafts, self._complete(asked), strict=True):
                score = self.guide.score_of(reply.text) if reply else None
                draft.scores[-1] += -math.inf if score is None else score
                if reply is None:
                    heard[id(draft)] = False
                    continue
                draft.criticised[-1].add(reply)
                if not self.guide.satisfied(reply.text):
                    draft.complaints[question] = reply.text
        for draft in drafts:
            draft.satisfied = not draft.complaints and heard[id(draft)]

    def rewrite(self, drafts: Sequence[_Draft]) -> None:
        """y_{t+1} of each draft, through its complaints one after the other."""
        texts = {id(draft): draft.versions[-1] for draft in drafts}
        for draft in drafts:
            draft.rewritten.append(_Spent())
        for question in self.guide.questions:
            asked = [draft for draft in drafts if question in draft.complaints]
            steps = [[*draft.steps, (texts[id(draft)], question, draft.complaints[question])] for draft in asked]
            shown = [self.guide.rewrite(draft.prompt, own) for draft, own in zip(asked, steps, strict=True)]
            for draft, own, reply in zip(asked, steps, self._complete(shown), strict=True):
                if reply is not None:
                    draft.steps = own
                    draft.rewritten[-1].add(reply)
                    texts[id(draft)] = reply.text
        for draft in drafts:
            draft.versions.append(texts[id(draft)])

    def _complete(self, conversations: Sequence[Conversation]) -> Sequence[Answer | None]:
        if not conversations:
            return []
        self.seed += 1
        return self.chat.complete(conversations, temperature=self.temperature, seed=self.seed)


def _score(drafts: Sequence[_Draft], gap: GapScorer) -> None:
    """Every version by its gap to the original, in place of the model's own scores."""
    asked = [
        Improvement(draft.prompt, draft.versions[0], version) for draft in drafts for version in draft.versions[1:]
    ]
    gaps = iter([float(value) for value in gap.gaps(asked)] if asked else [])
    for draft in drafts:
        draft.scores = [0.0, *(next(gaps) for _ in draft.versions[1:])]
