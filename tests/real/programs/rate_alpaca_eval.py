"""Rate files of annotations with AlpacaEval's own functions.

Reads {"files", "gamed"}: ``gamed`` is a table in the place of the one that alpaca-eval loads from a hub. Prints the win
rate of each file, as judged and at equal lengths, in percent.
"""

import json
import sys
import warnings

from alpaca_eval.metrics import glm_winrate

warnings.simplefilter("ignore")
told = json.load(sys.stdin)
glm_winrate.hf_hub_download = lambda **_: told["gamed"]
found = []
for path in told["files"]:
    with open(path, encoding="utf-8") as file:
        rows = json.load(file)
    rates = glm_winrate.get_length_controlled_winrate(rows, save_weights_dir=None, is_warn_extreme_changes=False)
    found.append([rates["win_rate"], rates["length_controlled_winrate"]])
print(json.dumps(found))
