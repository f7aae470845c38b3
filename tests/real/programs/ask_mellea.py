"""Run examples/mellea_better.py in mellea. Reads {"examples", "api", "question"}; prints the final answer."""

import json
import sys

from mellea import start_session

told = json.load(sys.stdin)
sys.path.insert(0, told["examples"])
from mellea_better import improved  # noqa: E402

session = start_session("openai", "any", base_url=told["api"], api_key="none")
print(json.dumps(improved(session, told["question"], budget=3)))
