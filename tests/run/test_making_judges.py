"""From a section to a judge: which fields go together, and judges from other packages."""

from __future__ import annotations

import pytest

from pitlm.core.errors import InputError
from pitlm.core.evaluation_section import JudgeSection
from pitlm.run.judges import check_section, make_judge


def option(field):
    return f"--{field.replace('_', '-')}"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "llm"}, "--model: found nothing, expected the model's name for --judge X"),
        ({"kind": "foreign"}, "--model: found nothing, expected a checkpoint for --judge X"),
        ({"kind": "truth", "model": "m"}, "--model: found beside --judge X"),
        ({"kind": "foreign", "model": "m", "max_cost": 1.0}, "--max-cost: found beside --judge X"),
        ({"kind": "truth", "template": "t"}, "--template: found beside --judge X"),
    ],
)
def test_fields_that_do_not_go_together(section, words):
    with pytest.raises(InputError) as refused:
        check_section(JudgeSection(**section), "--judge X", option)
    assert words in str(refused.value)


def test_the_fields_of_a_judge_from_another_package_are_its_own_matter():
    check_section(JudgeSection(kind="coin", base_url="http://localhost", price="1,1,1"), "--judge coin", option)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "llm", "model": "m", "base_url": "http://localhost/v1", "max_cost": 1.0}, "needs a price"),
        ({"kind": "llm", "model": "m", "base_url": "ftp://x"}, "expected a URL such as"),
        ({"kind": "nobody"}, "--judge: found 'nobody', expected one of llm, foreign, scripted"),
    ],
)
def test_a_judge_that_cannot_be_had(section, words):
    with pytest.raises(InputError) as refused:
        make_judge(JudgeSection(**section), "--judge")
    assert words in str(refused.value)
