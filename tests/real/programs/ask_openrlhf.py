"""Rewards as OpenRLHF's own code fetches them: one sample for each answer, many at once.

Reads {"url", "example", "label", "answers"}. Without an example OpenRLHF's own executor asks the url; with an example
its class runs. Prints reward, scores and logs of each sample.
"""

import asyncio
import importlib.util
import json
import sys
from types import SimpleNamespace

import torch
from openrlhf.utils.agent import SingleTurnAgentExecutor


class Characters:
    """A tokenizer of one token a character."""

    def __call__(self, text, add_special_tokens, return_tensors):
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return "".join(f"[{message['role']}]{message['content']}" for message in messages) + "[assistant]"


class OneAnswer:
    """An engine that gives one answer, in the form of vLLM's."""

    def __init__(self, answer):
        self.answer = answer

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        ids = list(map(ord, self.answer))
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=ids, text=self.answer, finish_reason="stop", logprobs=None)]
        )


def make_executor(told):
    if not told["example"]:
        return SingleTurnAgentExecutor(told["url"])
    spec = importlib.util.spec_from_file_location("agent_func", told["example"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.AgentExecutor()


async def main(told):
    executor, sampling = make_executor(told), SimpleNamespace(max_tokens=200, logprobs=None)
    samples = (
        executor.execute("[user]x[assistant]", told["label"], sampling, 4096, Characters(), OneAnswer(answer))
        for answer in told["answers"]
    )
    found = await asyncio.gather(*samples)
    return [{name: sample[name] for name in ("reward", "scores", "extra_logs")} for sample in found]


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
