"""Write greedy completions with vLLM, timed.

Reads {"model", "rows", "end", "new_tokens", "rounds", "first", "batch"}; ``rows`` are token ids. The first ``first`` of
them are written uncounted. At most ``batch`` rows are written at once. Prints {"seconds", "completions"}: the seconds of
each round, and token ids up to the end token.
"""

import json
import os
import sys
import time

from vllm import LLM, SamplingParams

if __name__ == "__main__":  # vLLM's processes import this file again
    told = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM and its processes print on stdout until they end
    # Without a cache of prompts: a second round would find those of the first.
    limits = {"max_model_len": 512, "max_num_seqs": told["batch"], "enable_prefix_caching": False}
    llm = LLM(told["model"], dtype="float32", enforce_eager=True, disable_log_stats=True, **limits)
    how = SamplingParams(temperature=0, max_tokens=told["new_tokens"], stop_token_ids=[told["end"]], detokenize=False)
    rows = [{"prompt_token_ids": ids} for ids in told["rows"]]
    llm.generate(rows[: told["first"]], how, use_tqdm=False)
    seconds = []
    for _ in range(told["rounds"]):
        begin = time.perf_counter()
        made = llm.generate(rows, how, use_tqdm=False)
        seconds.append(time.perf_counter() - begin)
    completions = [list(one.outputs[0].token_ids) for one in made]
    print(json.dumps({"seconds": seconds, "completions": completions}), file=answer)
