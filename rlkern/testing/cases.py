# SPDX-License-Identifier: Apache-2.0
"""The list of cases that tests and benchmarks draw from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Shapes and peculiarities of one batch of sampled tokens."""

    name: str
    B: int = 2
    T: int = 3
    V: int = 21
    layout: str = "plain"  # plain, time_slice, padded_vocabulary
    values: str = "normal"  # normal, offset, wide, minus_infinity, confident
    mask: str = "ragged"  # full, ragged, garbage, none_counted
    temperature: float | str = 1.0  # a number, or "rows"
    sequence_advantage: bool = False
    off_policy: bool = True
    algorithm: str = "grpo"
    coefficients: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("one_logit", B=1, T=1, V=1, mask="full"),
    Case("two_logits", B=1, T=4, V=2, mask="full"),
    Case("no_rows", B=0, T=3, V=21),
    Case("no_tokens", B=2, T=0, V=21),
    Case("characters", B=7, T=5, V=21),
    Case("on_policy", B=3, T=4, V=33, off_policy=False, sequence_advantage=True),
    Case("vector_minus_one", V=1023),
    Case("block", V=4096),
    Case("block_plus_one", V=4097),
    Case("gpt2", B=1, T=3, V=50257),
    Case("verl_trap", B=1, T=2, V=129920),
    Case("qwen", B=1, T=3, V=151936),
    Case("gemma", B=1, T=2, V=262144),
    Case("time_slice", V=515, layout="time_slice"),
    Case("padded_vocabulary", V=515, layout="padded_vocabulary"),
    Case("offset", V=777, values="offset"),
    Case("wide", V=777, values="wide"),
    Case("confident", V=777, values="confident"),
    Case("minus_infinity", V=9000, values="minus_infinity"),
    Case("garbage_under_mask", B=3, T=4, V=130, mask="garbage"),
    Case("nothing_counted", V=130, mask="none_counted"),
    Case("temperature", V=130, temperature=0.7),
    Case("temperature_per_row", V=130, temperature="rows"),
    Case("reinforce", V=130, algorithm="reinforce"),
    Case("ppo", V=130, algorithm="ppo", coefficients={"clip_high": 0.28}),
    Case("kl_k1", V=130, coefficients={"kl_coef": 0.04, "kl_estimator": "k1"}),
    Case("kl_k2", V=130, coefficients={"kl_coef": 0.04, "kl_estimator": "k2"}),
    Case("kl_k3", V=130, coefficients={"kl_coef": 0.04, "kl_estimator": "k3"}),
    Case("entropy", V=130, coefficients={"entropy_coef": 0.01}),
    Case("all_terms", V=5000, temperature="rows",
         coefficients={"kl_coef": 0.04, "entropy_coef": 0.01, "clip_high": 0.28}),
    Case("entropy_minus_infinity", V=9000, values="minus_infinity",
         coefficients={"entropy_coef": 0.01}),
)  # fmt: skip


@dataclass
class Batch:
    """Inputs of policy_loss, on one device; logits may be a strided view."""

    logits: Tensor
    token: Tensor
    advantage: Tensor
    mask: Tensor
    old_logprob: Tensor | None
    ref_logprob: Tensor
    temperature: float | Tensor

    def to(self, device: str, dtype: torch.dtype) -> "Batch":
        """Returns the same numbers elsewhere; the vectors widen with the logits."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def move(x):
            if not isinstance(x, Tensor):
                return x
            return x.to(device, wide) if x.is_floating_point() else x.to(device)

        rest = [move(x) for x in list(vars(self).values())[1:]]
        return Batch(self.logits.detach().to(device, dtype), *rest)


def _logits(case: Case, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    rows, vocabulary = case.T, case.V
    if case.layout == "time_slice":
        rows += 1
    if case.layout == "padded_vocabulary":
        vocabulary += 13
    x = torch.randn(case.B, rows, vocabulary, generator=random)
    if case.values == "offset":
        x += 1000 if dtype != torch.float16 else 100
    if case.values == "wide":
        x *= 30
    if case.values == "confident" and x.numel():
        x[..., 3] += 25
    if case.values == "minus_infinity":
        x[..., : int(0.7 * vocabulary)] = -torch.inf
    return x.to(dtype)


def _mask(case: Case) -> Tensor:
    shape = (case.B, case.T)
    if case.mask == "full":
        return torch.ones(shape, dtype=torch.bool)
    if case.mask == "none_counted":
        return torch.zeros(shape, dtype=torch.bool)
    lengths = torch.arange(case.B).remainder(max(case.T, 1)) + 1
    return torch.arange(case.T) < lengths.flip(0)[:, None]


def make_batch(case: Case, dtype: torch.dtype, device: str = "cpu") -> Batch:
    """Returns the batch of a case: the same numbers on every device."""
    random = torch.Generator().manual_seed(len(case.name) * 1009 + case.V)
    logits, mask = _logits(case, dtype, random), _mask(case)
    # Tokens of probability 0 cannot be sampled: draw from the last 30 percent, which never is −inf.
    start = int(0.7 * case.V)
    token = torch.randint(start, case.V, (case.B, case.T), generator=random)
    if case.values == "confident" and token.numel():
        token[:, 0] = 3
    advantage = torch.randn(
        case.B, *([] if case.sequence_advantage else [case.T]), generator=random
    )
    near = -torch.log(torch.tensor(float(case.V)))
    old = near + 0.5 * torch.randn(case.B, case.T, generator=random)
    ref = near + 0.5 * torch.randn(case.B, case.T, generator=random)
    temperature: float | Tensor = 1.0
    if isinstance(case.temperature, float):
        temperature = case.temperature
    else:
        temperature = (0.5 + torch.rand(case.B, case.T, generator=random)).to(device)
    if case.mask == "garbage":
        logits[: case.B, : case.T][~mask] = torch.tensor([torch.nan, torch.inf])[0]
        for x in (token, advantage, old, ref):
            x[~mask] = -100 if x is token else torch.nan
    batch = Batch(
        logits, token, advantage, mask, old if case.off_policy else None, ref, temperature
    )
    moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in vars(batch).items()}
    moved["logits"] = view_of(case, moved["logits"])
    return Batch(**moved)


def view_of(case: Case, stored: Tensor) -> Tensor:
    """Returns what a trainer would pass on: a slice of what is stored."""
    if case.layout == "time_slice":
        return stored[:, :-1]
    if case.layout == "padded_vocabulary":
        return stored[..., : case.V]
    return stored
