"""R_PIT inside DSPy and mellea: the examples, a real `pit serve --gap`, and a scripted language model."""

from __future__ import annotations

import pytest
from real_engines import ROOT, engine, pit_serve, read_rows
from scripted_upstream import Upstream, completion, reply, served

from pitlm.models.scorers import GapModel

EXAMPLES = str(ROOT / "examples")
ADVICE = '[[ ## discussion ## ]]\nToo long.\n\n[[ ## advice ## ]]\n{"self": "Be brief."}\n\n[[ ## completed ## ]]'


class Answers(Upstream):
    """Gives the next answer to each question, in DSPy's form if ``form`` has it, and the same advice to each criticism."""

    def __init__(self, answers, form="{}"):
        super().__init__()
        self.answers, self.form = list(answers), form

    async def complete(self, request, receive, send):
        advice = "advice" in str(request["messages"]) and "[[ ##" in self.form
        text = ADVICE if advice else self.form.format(self.answers.pop(0))
        await reply(send, 200, completion({**request, "metadata": {"say": text}}))


@pytest.fixture(scope="module")
def case(pocket_models, pocket_answers):
    """A question, answers by their gap to the second-worst, the worst first; and the server of the gap model."""
    rows = read_rows(pocket_answers)
    question, model = rows[0]["prompt"], GapModel.from_pretrained(pocket_models["gap"])
    texts = list(dict.fromkeys(row["response"] for row in rows))
    reference = texts[0]
    gaps = {text: model.gap(question, text, reference) for text in texts[1:]}
    worse = [text for text in texts[1:] if gaps[text] < -0.1]
    better = [text for text in texts[1:] if gaps[text] > 0.1]
    assert len(worse) >= 3
    assert better
    with pit_serve("frameworks", "--gap", pocket_models["gap"]) as url:
        yield {"question": question, "reference": reference, "worse": worse, "better": better[0], "url": url}


def asked(name, program, case, answers, form="{}", **more):
    scripted = Answers([case["reference"], *answers], form)
    with served(scripted) as api:
        told = {"examples": EXAMPLES, "api": f"{api}/v1", "question": case["question"], **more}
        return engine(name).ask(program, told, PIT_URL=case["url"]), len(scripted.answers)


FORM = "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"


@pytest.mark.real("dspy")
@pytest.mark.parametrize("search", ["BestOfN", "Refine"])
def test_dspy(case, search):
    """examples/dspy_better.py: the first answer that R_PIT prefers; else the reference, the first answer."""
    worse, better = case["worse"], case["better"]
    assert asked("dspy", "ask_dspy.py", case, [worse[0], better, worse[1]], FORM, search=search) == (better, 1)
    assert asked("dspy", "ask_dspy.py", case, worse[:3], FORM, search=search) == (case["reference"], 0)


@pytest.mark.real("mellea")
def test_mellea(case):
    """examples/mellea_better.py: the first answer that meets the requirement; else the reference, the first answer."""
    worse, better = case["worse"], case["better"]
    assert asked("mellea", "ask_mellea.py", case, [worse[0], better, worse[1]]) == (better, 1)
    assert asked("mellea", "ask_mellea.py", case, worse[:3]) == (case["reference"], 0)
