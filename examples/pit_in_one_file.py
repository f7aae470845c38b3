"""PIT (arXiv:2310.00898) in one file: learn from preference pairs how to improve an answer.

    .venv/bin/python examples/pit_in_one_file.py            # about four minutes on two CPU cores
    .venv/bin/python examples/pit_in_one_file.py --tiny     # seconds; too little training to learn anything

No rubric says what "better" means. The models learn it from pairs (x, y_w, y_l) in three steps:

    SFT     an improver M_PIT(y | x, y_ref) learns to write y_w when it reads y_l;
    gap     a reward model R_PIT learns how much better y is than y_ref;
    RL      the improver learns to write answers that R_PIT scores above y_ref.

The pocket world gives the pairs, and at the end the truth that judges. No model in training sees the truth. The
quickstart does better, with two of the five terms of Eq. 2, a larger beta and uneven folds.

Shapes: B rows in a batch (in RL: references), G samples for one reference, T tokens, V vocabulary, D hidden size.
"""

import copy
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid, softmax
from transformers import LlamaConfig, LlamaForCausalLM

from pitlm.core.nouns import Preference, Prompt
from pitlm.worlds.pocket import ASK, best_utility, make_preferences, utility, vocabulary

Ids = list[int]
Propose = Callable[[list[Prompt], list[str]], list[str]]
Gap = Callable[[list[Prompt], list[str], list[str]], list[float]]


@dataclass(frozen=True)
class Settings:
    pairs: int = 24_000
    hidden: int = 96
    layers: int = 2
    heads: int = 4
    mlp: int = 256
    batch: int = 32
    policy_lr: float = 3e-3
    policy_epochs: int = 2
    improver_lr: float = 2e-3
    improver_epochs: int = 2
    gap_lr: float = 2e-3
    gap_epochs: int = 2
    rl_lr: float = 3e-4
    rl_steps: int = 80  # in each stage of the curriculum
    group: int = 8  # G
    references: int = 8  # in one RL step, so a step has 8 x 8 samples
    beta: float = 0.1
    temperature: float = 0.4  # of the improver at inference; the paper's best
    rounds: int = 3
    items: int = 500  # prompts to evaluate on


TINY = Settings(pairs=600, hidden=32, mlp=64, policy_epochs=1, improver_epochs=1, gap_epochs=1, rl_steps=2, items=16)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens. Each word is a token, and each turn of the conversation opens with a mark.

PAD, END, USER, ASSISTANT = range(4)
WORDS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", *vocabulary()]
ID = {word: index for index, word in enumerate(WORDS)}
MAX_NEW = 32


def encode(text: str) -> Ids:
    return [ID[word] for word in text.split()]


def decode(ids: Ids) -> str:
    return " ".join(WORDS[token] for token in ids if token > ASSISTANT)


def policy_prompt(x: Prompt) -> Ids:
    return [USER, *encode(x.text), ASSISTANT]


def improver_prompt(x: Prompt, y_ref: str) -> Ids:
    """x, then y_ref as the assistant's turn, then a request that names no criterion: the goal stays implicit."""
    return [*policy_prompt(x), *encode(y_ref), USER, *encode(ASK), ASSISTANT]


def completion(y: str) -> Ids:
    return [*encode(y), END]


# ---------------------------------------------------------------------------------------------------------------------
# Models: two that write (policy and improver), one that scores.


def make_writer(s: Settings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=s.hidden,
        intermediate_size=s.mlp,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        initializer_range=s.hidden**-0.5,  # with the usual 0.02, narrow models learn copying slowly
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


class GapModel(nn.Module):
    """R_PIT: r_gap(x, y, y_ref). It reads exactly what the improver reads and writes."""

    def __init__(self, improver: LlamaForCausalLM) -> None:
        super().__init__()
        self.body = copy.deepcopy(improver.model)
        self.head = nn.Linear(improver.config.hidden_size, 1, bias=False)

    def forward(self, rows: Sequence[Ids]) -> Tensor:
        """Return one score for each row of prompt + completion; shape (B,)."""
        hidden_BTD = self.body(input_ids=pad_right(rows), use_cache=False).last_hidden_state
        last_B = torch.tensor([len(row) - 1 for row in rows])  # the end token, before any padding
        return self.head(hidden_BTD[torch.arange(len(rows)), last_B]).squeeze(-1)


def pad_right(rows: Sequence[Ids]) -> Tensor:
    """Shape (B, T). A causal model never attends to padding on the right, so it needs no mask."""
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def token_logps(model: LlamaForCausalLM, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
    """log M(y_t | prompt, y_<t) at the completions' tokens, 0 elsewhere; shape (B, T - 1)."""
    ids_BT = pad_right([p + y for p, y in zip(prompts, completions, strict=True)])
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    logp_BT = log_softmax(logits_BTV, -1).gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    place_T = torch.arange(1, ids_BT.shape[1])
    start_B1 = torch.tensor([[len(p)] for p in prompts])
    stop_B1 = torch.tensor([[len(p) + len(y)] for p, y in zip(prompts, completions, strict=True)])
    return logp_BT * ((place_T >= start_B1) & (place_T < stop_B1))


@torch.inference_mode()
def sample(model: LlamaForCausalLM, prompts: Sequence[Ids], temperature: float, max_new: int = MAX_NEW) -> list[Ids]:
    """Return one completion for each prompt, with its end token unless ``max_new`` cut it off."""
    # Pad on the left, so that all rows continue at the same place. Llama's positions are relative: a mask is enough.
    width = max(map(len, prompts))
    next_ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask_BT = (next_ids != PAD).long()
    cache, written, done_B = None, [], torch.zeros(len(prompts), dtype=torch.bool)
    while len(written) < max_new and not done_B.all():
        output = model(input_ids=next_ids, attention_mask=mask_BT, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        probability_BV = softmax(output.logits[:, -1] / temperature, -1)
        next_ids = torch.multinomial(probability_BV, 1).masked_fill(done_B[:, None], PAD)
        written.append(next_ids)
        done_B = done_B | (next_ids[:, 0] == END)
        mask_BT = torch.cat([mask_BT, torch.ones_like(next_ids)], 1)
    rows = torch.cat(written, 1).tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Training with a fixed set of rows: SFT and the gap model.


def batches(rows: Sequence, size: int, epochs: int, rng: random.Random) -> Iterator[list]:
    """Yield shuffled batches. Among 32 batches, rows of similar length go together, which saves most of the padding."""
    for _ in range(epochs):
        shuffled = rng.sample(list(rows), k=len(rows))
        for start in range(0, len(rows), 32 * size):
            chunk = sorted(shuffled[start : start + 32 * size], key=lambda row: sum(map(len, row)))
            cuts = list(range(0, len(chunk), size))
            yield from (chunk[cut : cut + size] for cut in rng.sample(cuts, k=len(cuts)))


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    """Take one gradient step."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


def schedule(part: float) -> float:
    """The share of the highest learning rate: it rises for the first twentieth, then falls to zero."""
    return min(1.0, 0.05 + 19 * part) * (1 - part)


def train(name: str, model: nn.Module, rows: Sequence, loss_of: Callable, epochs: int, lr: float, s: Settings) -> None:
    """Minimise ``loss_of(model, batch)``."""
    optimizer = torch.optim.Adam(model.parameters())
    plan = list(batches(rows, s.batch, epochs, random.Random(name)))
    for step, batch in enumerate(plan):
        loss = loss_of(model, batch)
        descend(model, optimizer, loss, lr * schedule(step / len(plan)))
        if step % 100 == 0 or step == len(plan) - 1:
            say(f"{name:<13} step {step:>4}/{len(plan)}  loss {loss.item():.3f}")


def sft_loss(model: LlamaForCausalLM, batch: Sequence[tuple[Ids, Ids]]) -> Tensor:
    """- log M(completion | prompt), per token. For the improver, the prompt shows (x, y_l) and the completion is
    y_w."""
    prompts, completions = zip(*batch, strict=True)
    return -token_logps(model, prompts, completions).sum() / sum(map(len, completions))


def gap_rows(pair: Preference) -> tuple[Ids, Ids, Ids, Ids]:
    """The rows of r^{w,l}, r^{w,w}, r^{l,l}, r^{l,w}; r^{i,j} is the gap of candidate y_i to reference y_j."""
    x, y_w, y_l = pair.prompt, pair.chosen, pair.rejected
    return tuple(improver_prompt(x, j) + completion(i) for i, j in ((y_w, y_l), (y_w, y_w), (y_l, y_l), (y_l, y_w)))


def gap_loss(wl_B: Tensor, ww_B: Tensor, ll_B: Tensor, lw_B: Tensor) -> Tensor:
    # Eq. 1 wants r^{w,l} >= r^{w,w} ~ r^{l,l} >= r^{l,w}; so each of these should be positive
    differences = (wl_B - ww_B, wl_B - ll_B, wl_B - lw_B, ww_B - lw_B, ll_B - lw_B)
    return -sum(logsigmoid(difference_B) for difference_B in differences).mean()  # Eq. 2


def gap_batch_loss(model: GapModel, batch: Sequence[tuple[Ids, Ids, Ids, Ids]]) -> Tensor:
    return gap_loss(*model([row for rows in zip(*batch, strict=True) for row in rows]).chunk(4))


# ---------------------------------------------------------------------------------------------------------------------
# Curriculum RL with RLOO (Ahmadian et al. 2024), which optimises exactly the paper's objective.


def penalised_reward(reward_BG: Tensor, logp_BG: Tensor, anchor_logp_BG: Tensor, beta: float) -> Tensor:
    return reward_BG - beta * (logp_BG - anchor_logp_BG)  # inside the expectation of Eq. 4 and Eq. 5


def leave_one_out(reward_BG: Tensor) -> Tensor:
    """Each sample's reward minus the mean of its siblings.

    A term that is equal in a whole group cancels. So does the level of r_gap, which Eq. 2 leaves free.
    """
    G = reward_BG.shape[1]
    siblings_BG = (reward_BG.sum(1, keepdim=True) - reward_BG) / (G - 1)
    return reward_BG - siblings_BG


def rloo_loss(reward_BG: Tensor, logp_BG: Tensor, anchor_logp_BG: Tensor, beta: float) -> Tensor:
    """Its gradient is that of minus (E[r_gap] - beta KL), estimated from the samples."""
    advantage_BG = leave_one_out(penalised_reward(reward_BG, logp_BG.detach(), anchor_logp_BG, beta))
    return -(advantage_BG * logp_BG).mean()


def rl_stage(
    name: str,
    improver: LlamaForCausalLM,
    anchor: LlamaForCausalLM,
    gap_model: GapModel,
    references: Sequence[tuple[Prompt, str]],
    s: Settings,
) -> LlamaForCausalLM:
    """One stage of the curriculum: maximise E_{y ~ M_PIT(.|x, y_ref)} [r_gap] - beta KL(M_PIT || M_PIT^SFT)."""
    improver = copy.deepcopy(improver)
    optimizer = torch.optim.Adam(improver.parameters())
    rng = random.Random(name)
    for step in range(s.rl_steps):
        rows = [row for row in rng.sample(references, k=s.references) for _ in range(s.group)]
        prompts = [improver_prompt(x, y_ref) for x, y_ref in rows]
        ys = sample(improver, prompts, temperature=1.0)
        with torch.no_grad():
            cut_off = torch.tensor([float(y[-1] != END) for y in ys])  # scored with an end token added, minus one point
            ended = [y if y[-1] == END else [*y, END] for y in ys]
            reward_BG = (gap_model([p + y for p, y in zip(prompts, ended, strict=True)]) - cut_off).view(-1, s.group)
            anchor_logp_BG = token_logps(anchor, prompts, ys).sum(1).view(-1, s.group)
        logp_BG = token_logps(improver, prompts, ys).sum(1).view(-1, s.group)
        loss = rloo_loss(reward_BG, logp_BG, anchor_logp_BG, s.beta)
        descend(improver, optimizer, loss, s.rl_lr * schedule(step / s.rl_steps))
        if step % 20 == 0 or step == s.rl_steps - 1:
            kl = (logp_BG - anchor_logp_BG).mean().item()
            truth = sum(utility(x, decode(y)) for (x, _), y in zip(rows, ys, strict=True)) / len(ys)
            reward = reward_BG.mean().item()
            say(f"{name:<13} step {step:>4}/{s.rl_steps}  reward {reward:.2f}  KL {kl:.2f}  truth {truth:.2f}")
    return improver


# ---------------------------------------------------------------------------------------------------------------------
# Inference: propose an answer, compare it with the best so far, stop when it is no better.


def write(model: LlamaForCausalLM, prompts: Sequence[Ids], temperature: float) -> list[str]:
    return [decode(y) for at in range(0, len(prompts), 256) for y in sample(model, prompts[at : at + 256], temperature)]


def proposer(improver: LlamaForCausalLM, temperature: float) -> Propose:
    return lambda xs, y_refs: write(improver, list(map(improver_prompt, xs, y_refs)), temperature)


@torch.inference_mode()
def calibrated_gaps(gap_model: GapModel, xs: list[Prompt], y_refs: list[str], ys: list[str]) -> list[float]:
    """r_gap(x, y, y_ref) - r_gap(x, y_ref, y_ref). Eq. 2 fixes no level, so we set "no change" to zero. Ours."""
    prompts = list(map(improver_prompt, xs, y_refs))
    raw_B = gap_model([p + completion(y) for p, y in zip(prompts, ys, strict=True)])
    equal_B = gap_model([p + completion(y_ref) for p, y_ref in zip(prompts, y_refs, strict=True)])
    return (raw_B - equal_B).tolist()


def improve(
    xs: list[Prompt], originals: list[str], propose: Propose, gap: Gap, rounds: int = 3, margin: float = 0.0
) -> tuple[list[str], list[str], list[list[tuple[str, float, bool]]]]:
    """y_i ~ M_PIT(. | x, y_{i-1}) as in the paper. The paper has no stop rule; this stop rule is ours.

    Returns the best responses, each loop's reason to stop, and each loop's rows (proposal, gap, accepted).
    """
    best, reasons, rows = list(originals), [""] * len(xs), [[] for _ in xs]
    for _ in range(rounds):
        active = [i for i, reason in enumerate(reasons) if not reason]
        if not active:
            break
        asked = [xs[i] for i in active], [best[i] for i in active]
        proposals = propose(*asked)
        for i, y, value in zip(active, proposals, gap(*asked, proposals), strict=True):
            accepted = y != best[i] and value > margin
            rows[i].append((y, value, accepted))
            if not accepted:
                reasons[i] = "converged" if y == best[i] else "accepted-none"
            else:
                best[i] = y
    return best, [reason or "rounds" for reason in reasons], rows


def delta(xs: list[Prompt], ours: list[str], theirs: list[str]) -> tuple[float, float, float]:
    """The paper's Delta, win rate minus lose rate, and its 95% interval over items, with one more item each way."""
    better = [utility(x, a) - utility(x, b) for x, a, b in zip(xs, ours, theirs, strict=True)]
    sign_N = torch.tensor(better).sign()
    more_M = torch.cat([sign_N, torch.tensor([1.0, -1.0])])
    centre, reach = more_M.mean().item(), 2 * more_M.std().item() / len(more_M) ** 0.5
    return sign_N.mean().item(), max(-1.0, centre - reach), min(1.0, centre + reach)


# ---------------------------------------------------------------------------------------------------------------------
# The whole method, in order.

START = time.time()


def say(line: str) -> None:
    print(f"{time.time() - START:>5.0f} s  {line}", flush=True)


def main(s: Settings) -> dict[str, dict[str, tuple[float, float, float]]]:
    torch.manual_seed(0)
    pairs = make_preferences(s.pairs, seed=0)
    # Three folds, as in the paper. No prompt is in two folds, and no test prompt is in any.
    sft_pairs, gap_pairs, rl_pairs = ([p for p in pairs if int(p.prompt.key, 16) % 3 == fold] for fold in range(3))
    known = {pair.prompt for pair in pairs}
    xs = [x for x in dict.fromkeys(pair.prompt for pair in make_preferences(2 * s.items, seed=1)) if x not in known]
    xs = xs[: s.items]

    # 1. SFT. Nothing is pretrained here, so the improver starts from the policy, which knows the language.
    policy = make_writer(s)
    rows = [(policy_prompt(p.prompt), completion(p.chosen)) for p in sft_pairs]
    train("policy SFT", policy, rows, sft_loss, s.policy_epochs, s.policy_lr, s)
    sft_improver = copy.deepcopy(policy)
    rows = [(improver_prompt(p.prompt, p.rejected), completion(p.chosen)) for p in sft_pairs]
    train("improver SFT", sft_improver, rows, sft_loss, s.improver_epochs, s.improver_lr, s)

    # 2. The gap reward model.
    gap_model = GapModel(sft_improver)
    train("gap model", gap_model, list(map(gap_rows, gap_pairs)), gap_batch_loss, s.gap_epochs, s.gap_lr, s)

    # 3. Curriculum RL. The anchor of the KL term is the SFT improver in both stages. The paper's M_P has had RLHF by
    # now. RLHF is not part of PIT, so our policy has only SFT.
    from_data = [(p.prompt, y) for p in rl_pairs for y in (p.rejected, p.chosen)]  # Eq. 4: y_ref in {y_l, y_w}
    stage_0 = rl_stage("RL stage 0", sft_improver, sft_improver, gap_model, from_data, s)
    rl_xs = random.Random(0).sample([p.prompt for p in rl_pairs], k=min(len(rl_pairs), s.rl_steps * s.references))
    answers = write(policy, list(map(policy_prompt, rl_xs)), temperature=1.0)  # Eq. 5: y_ref ~ M_P(.|x)
    from_policy = list(zip(rl_xs, answers, strict=True))
    pit = rl_stage("RL stage 1", stage_0, sft_improver, gap_model, from_policy, s)

    # The truth judges, on prompts that no model was trained on.
    originals = write(policy, list(map(policy_prompt, xs)), temperature=1.0)
    writers = {"SFT improver": sft_improver, "PIT, stage 0 only": stage_0, "PIT": pit}
    systems = {name: proposer(model, s.temperature)(xs, originals) for name, model in writers.items()}
    for name in ("SFT improver", "PIT"):
        propose = proposer(writers[name], s.temperature)
        found = improve(xs, originals, propose, partial(calibrated_gaps, gap_model), s.rounds)
        systems[f"{name}, loop"], reasons, traces = found
    print(f"\n{len(xs)} new prompts; a perfect answer is worth {sum(map(best_utility, xs)) / len(xs):.2f} on average")
    print(f"{'':<19}{'utility':>8}   {'Delta vs original':<24}Delta vs SFT improver")
    results = {}
    for name, ys in {"original": originals, **systems}.items():
        results[name] = {
            "original": delta(xs, ys, originals),
            "SFT improver": delta(xs, ys, systems["SFT improver"]),
        }
        points = [[100 * share for share in value] for value in results[name].values()]
        shown = "   ".join("{:+.1f} [{:+.1f}, {:+.1f}]".format(*value) for value in points)
        print(f"{name:<19}{sum(map(utility, xs, ys)) / len(xs):>8.2f}   {shown}")
    print("\nWhy PIT's loops stopped:", {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)})
    print(f"For example: {xs[0].text}\n  original     {originals[0]}")
    for y, value, accepted in traces[0]:
        print(f"  gap {value:+6.2f}   {y}   ({'accepted' if accepted else 'rejected'})")
    return results


if __name__ == "__main__":
    main(TINY if "--tiny" in sys.argv else Settings())
