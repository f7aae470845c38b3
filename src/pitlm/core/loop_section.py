"""The options of the loop in a recipe, on the command line and in requests."""

from pitlm.core.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class LoopSection(Section):
    """Inference: how one response is improved, and when to stop.

    Attributes:
        rounds: most rounds for one response.
        proposals: k: proposals of each round; the one with the largest gap may replace the answer.
        margin: a proposal replaces the answer only if its gap is above this margin; if none is set: the margin that
            `pit calibrate` stored beside the gap model, else 0.
        temperature: sampling temperature of the improver; 0 is greedy.
        tokens: most tokens to generate for one response.
        seconds: most seconds for one response, from its first round.
        cost: highest cost of one response. Only a refiner of your own tells costs; pitlm's engines tell none.
    """

    rounds: PositiveInt = 3
    proposals: PositiveInt = 1
    margin: NonNegativeFloat | None = None
    temperature: NonNegativeFloat = 0.4
    tokens: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    cost: PositiveFloat | None = None
