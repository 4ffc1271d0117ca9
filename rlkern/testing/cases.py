# SPDX-License-Identifier: Apache-2.0
"""The list of cases that tests and benchmarks draw from."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlkern.algorithms import Algorithm, algorithms
from rlkern.backends.eager.kl import KL_ESTIMATORS
from rlkern.backends.eager.token_objective import Rows as EagerRows


@dataclass(frozen=True)
class Case:
    """Shapes and peculiarities of one batch of sampled tokens."""

    name: str
    B: int = 2
    T: int = 3
    V: int = 21
    layout: str = "plain"  # plain, time_slice, padded_vocabulary
    values: str = "normal"  # normal, offset, wide, minus_infinity, confident
    mask: str = "ragged"  # full, ragged, garbage, holes, empty_sequence, none_counted
    temperature: float | str = 1.0  # a number, or "rows"
    softcap: float | None = None
    keep: str = "none"  # none, narrow, without_token, one, whole
    packed: bool = False  # B = 1: the T rows are flat, of sequences of which one is empty
    sequence_advantage: bool = False
    off_policy: bool = True
    correction: bool = False
    terms: bool = False  # penalty, entropy_weight and nll_weight
    algorithm: str = "grpo"
    coefficients: dict[str, Any] = field(default_factory=dict)
    about: str = "everything"  # or softmax, objective: what need not be run says nothing new

    def __str__(self) -> str:
        return self.name


_SHAPES = (
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
    Case("entropy", V=130, coefficients={"entropy_coef": 0.01}),
    Case("all_terms", V=5000, temperature="rows",
         coefficients={"kl_coef": 0.04, "entropy_coef": 0.01, "clip_high": 0.28}),
    Case("entropy_minus_infinity", V=9000, values="minus_infinity",
         coefficients={"entropy_coef": 0.01}),
)  # fmt: skip
_ENTROPY = {"entropy_coef": 0.01}
_SOFTMAXES = (
    Case("keep_narrow", V=515, keep="narrow", mask="full", coefficients=_ENTROPY),
    Case("keep_without_token", V=130, keep="without_token", coefficients=_ENTROPY),
    Case("keep_one", V=130, keep="one", mask="full", coefficients=_ENTROPY),
    Case("keep_whole", V=130, keep="whole", coefficients=_ENTROPY),
    Case("keep_minus_infinity", V=515, keep="narrow", values="minus_infinity"),
    Case("keep_garbage", B=3, T=4, V=130, keep="narrow", mask="garbage"),
    Case("keep_slice_temperature", V=1025, keep="narrow", layout="time_slice",
         temperature="rows"),
    Case("keep_wide_vocabulary", B=1, T=2, V=50257, keep="narrow", mask="full"),
    Case("softcap", V=1023, softcap=30.0),
    Case("softcap_wide", V=777, values="wide", softcap=20.0),
    Case("softcap_minus_infinity", V=515, values="minus_infinity", softcap=5.0),
    Case("softcap_temperature_entropy", V=1025, values="wide", softcap=10.0,
         temperature="rows", coefficients={"entropy_coef": 0.1}),
    Case("softcap_keep_everything", V=515, layout="padded_vocabulary", softcap=3.0,
         temperature="rows", keep="narrow", mask="garbage", B=3, T=4,
         coefficients={"entropy_coef": 0.1}),
)  # fmt: skip
_KL = {"kl_coef": 0.04, "entropy_coef": 0.01}
_CLAMPS = {"log_ratio_min": -0.2, "log_ratio_max": 0.1, "kl_max": 0.2}
_PACKED: dict[str, Any] = {"B": 1, "T": 11, "mask": "holes", "packed": True}
_OBJECTIVES = (
    *(Case(f"kl_{name}", V=130, coefficients={"kl_coef": 0.04, "kl_estimator": name})
      for name in KL_ESTIMATORS),
    *(Case(f"clamped_{name}", V=130, algorithm="cispo" if name == "k1" else "grpo",
           coefficients={**_KL, **_CLAMPS, "kl_estimator": name})
      for name in ("k1", "k1+", "k3", "k3+")),
    *(Case(f"clamped_{name}", B=3, T=4, V=130, algorithm=name, coefficients=_CLAMPS)
      for name in ("gspo", "gspo_token")),
    Case("dft", V=130, algorithm="dft", correction=True, coefficients=_KL, about="objective"),
    Case("correction", V=130, correction=True, coefficients=_KL),
    Case("terms", B=3, T=4, V=130, terms=True, correction=True, coefficients=_KL),
    Case("terms_on_policy", V=130, terms=True, off_policy=False, coefficients=_KL),
    Case("terms_garbage", B=3, T=4, V=130, terms=True, mask="garbage", coefficients=_KL),
    Case("terms_packed", V=130, **_PACKED, terms=True, algorithm="gspo", coefficients=_KL),
    *(Case(f"{level}_{name}", B=3, T=4, V=130, algorithm=name,
           coefficients={**_KL, "level": level, "kl_estimator": "level_k3"})
      for level, name in (("sequence", "dual_clip_ppo"), ("sequence", "cispo"),
                          ("sequence_token", "sapo"), ("product", "grpo"), ("token", "gspo"))),
    Case("sequence_without_tokens", B=3, T=4, V=130, mask="empty_sequence", coefficients=_KL),
    Case("packed", V=130, **_PACKED, correction=True, coefficients=_KL),
    Case("packed_sequence_advantage", V=130, **_PACKED, sequence_advantage=True),
)  # fmt: skip


def _of_algorithm(declared: Algorithm) -> list[Case]:
    """Returns cases of an algorithm; sequences matter where its ratio is not a token's."""
    terms = {k: x for k, x in _KL.items() if k in declared.defaults}
    plain = Case(declared.name, B=3, T=4, V=130, algorithm=declared.name, coefficients=terms,
                 correction=True, about="objective")  # fmt: skip
    if declared.level == "token":
        return [plain]
    name = f"{declared.name}_without_tokens"
    without = replace(plain, name=name, mask="empty_sequence", temperature="rows")
    return [plain, without, replace(plain, name=f"{declared.name}_packed", **_PACKED)]


# Algorithms that differ in their advantages or defaults alone are one formula here.
# What a statistic makes is a correction here.
_DECLARED = sorted(algorithms().values(), key=lambda a: bool(a.statistic))
_FORMULAS = {(a.gate, a.level): a for a in reversed(_DECLARED)}
CASES = (
    *_SHAPES,
    *(replace(case, about="softmax") for case in _SOFTMAXES),
    *(replace(case, about="objective") for case in _OBJECTIVES),
    *(case for declared in _FORMULAS.values() for case in _of_algorithm(declared)),
)


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
    correction: Tensor | None = None
    softcap: float | None = None
    keep: Tensor | None = None
    cu_seqlens: Tensor | None = None
    penalty: Tensor | None = None
    entropy_weight: Tensor | None = None
    nll_weight: Tensor | None = None

    def to(self, device: str, dtype: torch.dtype) -> "Batch":
        """Returns the same numbers elsewhere; the vectors widen with the logits."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def move(x):
            if not isinstance(x, Tensor):
                return x
            return x.to(device, wide) if x.is_floating_point() else x.to(device)

        rest = [move(x) for x in list(vars(self).values())[1:]]
        return Batch(self.logits.detach().to(device, dtype), *rest)

    @property
    def softmax(self) -> dict[str, Any]:
        """Returns the arguments that say which distribution the logits stand for."""
        return {"temperature": self.temperature, "softcap": self.softcap, "keep": self.keep}

    @property
    def rows(self) -> dict[str, Any]:
        """Returns the arguments of an objective beside the scores, the advantage and the mask."""
        names = (*EagerRows._fields[2:], "cu_seqlens")
        return {name: getattr(self, name) for name in names}


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
    if case.mask == "holes":
        return (torch.arange(case.B * case.T) % 4 != 2).reshape(shape)
    lengths = torch.arange(case.B).remainder(max(case.T, 1)) + 1
    if case.mask == "empty_sequence":
        lengths -= 1
    return torch.arange(case.T) < lengths.flip(0)[:, None]


def _kept(case: Case, token: Tensor, random: torch.Generator) -> Tensor | None:
    """Returns (B, T, K) ids, none of them twice in a row."""
    if case.keep == "none":
        return None
    V, shape = case.V, token.shape
    order = torch.rand(*shape, V, generator=random).argsort(-1)
    if case.keep == "whole":
        return order
    others = order[order != token[..., None]].reshape(*shape, V - 1)
    if case.keep == "without_token":
        return others[..., :5]
    if case.keep == "one":  # in every second row not the token
        first = torch.arange(shape.numel()).reshape(shape) % 2 == 0
        return torch.where(first, token, others[..., 0])[..., None]
    keep = torch.cat([others[..., :16], token[..., None], others[..., 16:20]], -1)
    unused = torch.arange(keep.shape[-1]) % 3 == torch.arange(shape.numel())[:, None] % 3
    keep.masked_fill_(unused.reshape(keep.shape), -1)
    keep[..., -1:, :] = -1  # the last row of a sequence keeps the whole vocabulary
    return keep


def _sparse(mask: Tensor, random: torch.Generator) -> Tensor:
    """Returns numbers above 0 at two thirds of the counted tokens, 0 elsewhere."""
    x = torch.rand(mask.shape, generator=random)
    return torch.where(mask & (x > 1 / 3), x, 0.0)


def _garbage(logits: Tensor, mask: Tensor, rows: list[Tensor | None]) -> None:
    """Overwrites what nobody counts, in place."""
    logits[: mask.shape[0], : mask.shape[1]][~mask] = torch.nan
    for x in rows:
        if x is not None:
            x[~mask] = torch.nan if x.is_floating_point() else -100


def make_batch(case: Case, dtype: torch.dtype, device: str = "cpu") -> Batch:
    """Returns the batch of a case: the same numbers on every device."""
    random = torch.Generator().manual_seed(len(case.name) * 1009 + case.V)
    logits, mask = _logits(case, dtype, random), _mask(case)
    # Tokens of probability 0 cannot be sampled: draw from the last 30 percent, which never is −inf.
    start = int(0.7 * case.V)
    token = torch.randint(start, case.V, (case.B, case.T), generator=random)
    if case.values == "confident" and token.numel():
        token[:, 0] = 3
    bounds = torch.tensor([0, 2, 2, case.T // 2, case.T]) if case.packed else None
    of_sequences = [len(bounds) - 1] if bounds is not None else [case.B]
    shape = of_sequences if case.sequence_advantage else [case.B, case.T]
    advantage = torch.randn(*shape, generator=random)
    near = -torch.log(torch.tensor(float(case.V)))
    old = near + 0.5 * torch.randn(case.B, case.T, generator=random)
    ref = near + 0.5 * torch.randn(case.B, case.T, generator=random)
    temperature: float | Tensor = 1.0
    if isinstance(case.temperature, float):
        temperature = case.temperature
    else:
        temperature = 0.5 + torch.rand(case.B, case.T, generator=random)
    keep = _kept(case, token, random)
    correction = torch.rand(case.B, case.T, generator=random) * 2 if case.correction else None
    terms = [_sparse(mask, random) if case.terms else None for _ in range(3)]
    if case.mask == "garbage":
        _garbage(logits, mask, [token, advantage, old, ref, correction, keep, *terms])
    batch = Batch(
        logits, token, advantage, mask, old if case.off_policy else None, ref, temperature,
        correction, case.softcap, keep, None, *terms,
    )  # fmt: skip
    rows: dict[str, Any] = vars(batch)
    if case.packed:
        rows = {n: x[0] if isinstance(x, Tensor) and x.ndim > 1 else x for n, x in rows.items()}
        rows["cu_seqlens"] = bounds
    moved: dict[str, Any] = {
        name: x.to(device) if isinstance(x, Tensor) else x for name, x in rows.items()
    }
    moved["logits"] = view_of(case, moved["logits"])
    return Batch(**moved)


def view_of(case: Case, stored: Tensor) -> Tensor:
    """Returns what a trainer would pass on: a slice of what is stored."""
    if case.layout == "time_slice":
        return stored[:, :-1]
    if case.layout == "padded_vocabulary":
        return stored[..., : case.V]
    return stored
