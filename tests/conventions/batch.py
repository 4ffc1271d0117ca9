# SPDX-License-Identifier: Apache-2.0
"""The tensors that the code lines of docs/conventions.md name."""

from types import SimpleNamespace

import torch

B, T, H, V = 8, 16, 5, 11
# Powers of 2, as B and T are: the weights of tokens are float32, and exact then.
LENGTHS = (8, 8, 4, 4, 2, 2, 2, 2)
# Tokens whose ratio is far from 1, by hand: the caps of the projects lie beyond what is drawn.
FAR = {(0, 0): 2.2, (1, 0): -3.2, (2, 1): 3.2, (3, 0): -2.2, (5, 0): -3.2, (7, 0): -3.2}
# The same of log π_old − log μ: products of answers lie on either side of the bounds.
FAR_OLD = {(0, 0): 1.2, (1, 1): 0.6, (2, 1): -0.9, (2, 4): 0.35, (3, 2): -1.0, (4, 0): 0.9}
FAR_OLD |= {(6, 0): 1.4, (7, 0): -2.3}
LEAVES = (
    "logprob", "entropy", "logits", "hidden", "head", "bias", "chosen", "rejected",
    "chosen_score", "rejected_score", "value", "q",
)  # fmt: skip


def _masks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (with holes, the same without four answers, the same lengths without holes)."""
    lengths = torch.tensor(LENGTHS)[:, None]
    place = torch.arange(T)
    straight = place < lengths
    mask = straight.clone()
    mask[0], mask[2] = place % 2 == 0, place % 3 == 1  # 8 tokens, 5 tokens
    mask[2, 13] = False
    sparse = mask.clone()
    sparse[[1, 3, 5, 7]] = False
    return mask, sparse, straight


def _log_probabilities(draw) -> dict[str, torch.Tensor]:
    """Returns log π, log π_old, log π_ref and log μ of the tokens, all negative."""
    logprob = -0.05 - 2.0 * draw(B, T).abs()
    d = 0.4 * draw(B, T)
    for (row, step), far in FAR.items():
        d[row, step] = far
        logprob[row, step] = -0.05 if far > 0 else -3.4
    old = (logprob - d).clamp(max=-0.01)
    ref = (logprob - 0.5 * draw(B, T)).clamp(max=-0.01)
    mismatch = 0.1 * draw(B, T)
    for (row, step), far in FAR_OLD.items():
        mismatch[row, step] = far
    rollout = (old - mismatch).clamp(max=-0.01)
    return {"logprob": logprob, "old": old, "ref": ref, "rollout": rollout}


def _answers(draw) -> dict[str, torch.Tensor]:
    """Returns rewards, groups, advantages, and log-probabilities of pairs of answers."""
    score = torch.tensor([2.0, -1.0, 0.5, 0.0, 3.0, 1.0, 0.0, 2.5], dtype=torch.float64)
    unscorable = score.clone()
    unscorable[2] = torch.nan
    return {
        "reward": score,
        "unscorable": unscorable,
        "rewards": torch.stack([score, draw(B)], dim=1),
        "reward_weight": torch.tensor([1.0, 0.25], dtype=torch.float64),
        "greedy_reward": draw(B),
        "group": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        "advantage": torch.tensor([1.5, 0.7, -1.2, -0.4, 0.3, 0.9, 0.0, -2.0], dtype=torch.float64),
        "desirable": torch.tensor([True, True, False, True, False, False, True, False]),
        "finished": torch.tensor([True, True, True, False, True, True, False, True]),
        "chosen": -6.0 + draw(B),
        "rejected": -6.0 + draw(B),
        "ref_chosen": -6.0 + draw(B),
        "ref_rejected": -6.0 + draw(B),
        "other": -6.0 + draw(B),
        "ref_other": -6.0 + draw(B),
        "chosen_length": torch.tensor([4, 3, 7, 2, 5, 6, 3, 4]),
        "rejected_length": torch.tensor([5, 6, 2, 4, 3, 3, 8, 4]),
        "chosen_score": draw(B),
        "rejected_score": draw(B),
        "margin": draw(B).abs(),
    }


def batch() -> SimpleNamespace:
    """Returns the tensors by name, the same numbers at each call; LEAVES require a gradient."""
    random = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    mask, sparse, straight = _masks()
    x = {"mask": mask, "sparse": sparse, "straight": straight, "everywhere": torch.ones(B, T) > 0}
    x |= _log_probabilities(draw) | _answers(draw)
    x["token_advantage"] = x["advantage"][:, None] + 0.3 * draw(B, T)
    x["entropy"] = 1.0 + draw(B, T).abs()
    x["token"] = torch.randint(V, (B, T), generator=random)
    x |= {"logits": 2.0 * draw(B, T, V), "hidden": draw(B, T, H), "head": draw(V, H)}
    x["hidden"][0] = 2.0 * x["head"][x["token"][0]]  # a good answer that has become likely
    x |= {"bias": draw(V), "token_reward": draw(B, T), "value": draw(B, T)}
    x["old_value"] = x["value"] + 0.5 * draw(B, T)
    x["target"] = x["value"] + draw(B, T)
    x |= {"q": draw(B, 4), "next_q": draw(B, 4), "action": torch.arange(B) % 4}
    x |= {"done": torch.arange(B) % 3 == 0, "last_value": draw(1)[0]}
    x["patchy"] = x["rollout"].clone()
    x["patchy"][[0, 4], [2, 0]] = torch.nan
    x["stale"], x["far_ref"] = x["old"].clone(), x["ref"].clone()
    x["stale"][7] = x["logprob"][7].detach() - 25.0  # A = −2
    x["stale"][4, 0] = x["logprob"][4, 0].detach() + 25.0  # A = 0.3; above 0, which nobody minds
    x["stale"][4, 1] = x["logprob"][4, 1].detach() + 10.0
    x["far_ref"][0], x["far_ref"][1] = x["logprob"][0] - 12.0, x["logprob"][1] + 3.0
    x["far_ref"] = x["far_ref"].detach()
    x["sum_pi_squared"] = x["old"].exp().square() + 0.5 * (1 - x["old"].exp()).square()
    x["terminated"], x["truncated"] = (torch.arange(T)[None] == step for step in (5, 9))
    x["final_value"] = draw(1, T)
    x["token_kl"] = x["old"] - x["ref"]
    x["last"] = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    for name in LEAVES:
        x[name].requires_grad_()
    return SimpleNamespace(**x)
