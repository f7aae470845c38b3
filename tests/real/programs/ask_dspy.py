"""Run examples/dspy_better.py in DSPy. Reads {"examples", "api", "question", "search"}; prints the final answer."""

import json
import sys

import dspy

told = json.load(sys.stdin)
sys.path.insert(0, told["examples"])
from dspy_better import Better  # noqa: E402

dspy.configure(lm=dspy.LM("openai/any", api_base=told["api"], api_key="none", cache=False))
answers = Better(dspy.Predict("question -> answer"), search=getattr(dspy, told["search"]), n=3)
print(json.dumps(answers(question=told["question"]).answer))
