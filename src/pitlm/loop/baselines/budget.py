"""Equal compute: what is left of a system's work when its tokens run out."""

from __future__ import annotations

from dataclasses import replace

from pitlm.core.nouns import StopReason, Trace


def held_to(trace: Trace, tokens: int) -> Trace:
    """The trace as it would have been, had generation been cut off after so many tokens. Ours.

    A round that the budget does not cover to its end brings nothing, yet its tokens are spent. Scoring generates
    nothing, so it costs nothing here.
    """
    if trace.generated_tokens <= tokens:
        return trace
    spent = read = kept = 0
    for step in trace.rounds:
        if spent == tokens:
            break
        spent, read = spent + step.tokens, read + step.prompt_tokens
        if spent > tokens:
            break
        kept += 1
    else:  # the trace has tokens beyond its last round: something was asked that brought nothing
        read = trace.prompt_tokens if spent < tokens else read
    rounds, reason = trace.rounds[:kept], StopReason.TOKENS
    return replace(trace, rounds=rounds, stop_reason=reason, generated_tokens=tokens, prompt_tokens=read)
