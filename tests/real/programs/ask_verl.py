"""Scores as verl's own reward manager gets them from examples/verl/pit_reward.py.

Reads {"example", "prompt", "reference", "answers"}; PIT_URL names the server. Prints the score of each answer and what
verl logs beside it.
"""

import asyncio
import importlib.util
import json
import sys

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager


class Characters:
    """A tokenizer of one token a character."""

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids.tolist()))


def batch_of(told, answer):
    """One sample as verl's rollout gives it, with two tokens of padding."""
    ids = torch.tensor([[*map(ord, answer), 0, 0]])
    prompt = torch.ones(1, 3, dtype=torch.long)
    mask = torch.cat([torch.ones_like(prompt), (ids > 0).long()], dim=1)
    extra = {"prompt": told["prompt"], "reference": told["reference"]}
    others = {"data_source": "pairs", "reward_model": {"ground_truth": ""}, "extra_info": extra}
    plain = {name: np.array([value], dtype=object) for name, value in others.items()}
    return DataProto.from_dict({"prompts": prompt, "responses": ids, "attention_mask": mask}, non_tensors=plain)


async def main(told):
    spec = importlib.util.spec_from_file_location("pit_reward", told["example"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    manager = NaiveRewardManager(OmegaConf.create({}), Characters(), module.compute_score)
    manager.loop = asyncio.get_running_loop()
    return [await manager.run_single(batch_of(told, answer)) for answer in told["answers"]]


print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
