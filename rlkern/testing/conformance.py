# SPDX-License-Identifier: Apache-2.0
"""Compares a backend with the float64 reference, and its error with the reference's own.

The bound has no hand-picked tolerance: error ≤ 2 · (eager's error in the tested dtype) + a few ulp.
    python -m rlkern.testing.conformance --backend triton --device cuda
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import rlkern
from rlkern.testing.cases import CASES, Batch, Case, make_batch

FLOOR_ULP = 4
Outputs = dict[str, Tensor]


def _leaf(logits: Tensor) -> Tensor:
    # A clone of the storage behind the view, so that a strided view stays strided.
    base = logits._base if logits._base is not None else logits
    copy = base.clone().as_strided(logits.shape, logits.stride(), logits.storage_offset())
    return copy.requires_grad_()


def _upstream(x: Tensor, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=random).to(x.device, x.dtype)


def run_token_logprob(case: Case, batch: Batch, inplace: bool = False) -> Outputs:
    """Returns the results of token_logprob and the gradient of a random combination of them."""
    leaf = _leaf(batch.logits)
    logits = leaf * 1 if inplace else leaf
    out = rlkern.token_logprob(
        logits, batch.token, temperature=batch.temperature, mask=batch.mask, inplace=inplace
    )
    torch.autograd.backward(out, [_upstream(x, i) for i, x in enumerate(out)])
    return {**out._asdict(), "grad_logits": leaf.grad}  # type: ignore[dict-item]


def run_policy_loss(case: Case, batch: Batch, inplace: bool = False) -> Outputs:
    """Returns loss, metrics and gradient of policy_loss."""
    leaf = _leaf(batch.logits)
    logits = leaf * 1 if inplace else leaf
    out = rlkern.policy_loss(
        logits, batch.token, batch.advantage, batch.mask, old_logprob=batch.old_logprob,
        ref_logprob=batch.ref_logprob, temperature=batch.temperature, algorithm=case.algorithm,
        inplace=inplace, **case.coefficients,
    )  # fmt: skip
    out.loss.backward()
    return {"loss": out.loss, "metrics": out.metrics, "grad_logits": leaf.grad}  # type: ignore[dict-item]


def run_token_objective(case: Case, batch: Batch) -> Outputs:
    """Returns loss, metrics and gradients of token_objective near the old policy."""
    base = batch.ref_logprob + 0.3 * _upstream(batch.ref_logprob, 7)
    logprob = torch.where(batch.mask, base, torch.nan).detach().requires_grad_()
    entropy = _upstream(base, 8).abs().requires_grad_()
    out = rlkern.token_objective(
        logprob, batch.advantage, batch.mask, entropy=entropy, old_logprob=batch.old_logprob,
        ref_logprob=batch.ref_logprob, algorithm=case.algorithm, **case.coefficients,
    )  # fmt: skip
    out.loss.backward()
    return {
        "loss": out.loss,
        "metrics": out.metrics,
        "grad_logprob": logprob.grad,  # type: ignore[dict-item]
        "grad_entropy": entropy.grad,  # type: ignore[dict-item]
    }


def run_reverse_scan(case: Case, batch: Batch) -> Outputs:
    """Returns the scan of the batch's vectors, as long as its vocabulary, and both gradients."""
    length = min(case.V, 1500)
    bias = _upstream(batch.ref_logprob.new_empty(case.B, length), 1).requires_grad_()
    decay = (_upstream(bias, 2).sigmoid() * 1.02).detach()
    decay[:, :: max(length // 3, 1)] = 0
    decay.requires_grad_()
    x = rlkern.reverse_scan(bias, decay)
    x.backward(_upstream(x, 3))
    return {"x": x, "grad_bias": bias.grad, "grad_decay": decay.grad}  # type: ignore[dict-item]


def run_group_advantage(case: Case, batch: Batch) -> Outputs:
    """Returns every kind of group advantage of rewards in ragged groups, one of them NaN."""
    n = case.V if case.V < 1000 else 1000
    reward = _upstream(batch.ref_logprob.new_empty(n), 1)
    reward[n // 2] = torch.nan
    group = (torch.arange(n, device=reward.device) * 7919 % 101).sqrt().long()
    kinds = ("normalized", "centered", "leave_one_out")
    return {kind: rlkern.group_advantage(reward, group, kind=kind) for kind in kinds}


RUNS: dict[str, Callable[..., Outputs]] = {
    "token_logprob": run_token_logprob,
    "token_logprob (in place)": lambda c, b: run_token_logprob(c, b, inplace=True),
    "policy_loss": run_policy_loss,
    "policy_loss (in place)": lambda c, b: run_policy_loss(c, b, inplace=True),
    "token_objective": run_token_objective,
    "reverse_scan": run_reverse_scan,
    "group_advantage": run_group_advantage,
}
# The logits play no part in these: one dtype and the small cases are enough.
VECTOR_OPERATIONS = ("token_objective", "reverse_scan", "group_advantage")


class Comparison(NamedTuple):
    """The worst output of one operation: its error and what was allowed."""

    output: str
    error: float
    eager_error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


def _error(x: Tensor, oracle: Tensor) -> float:
    x, oracle = x.detach().double().cpu(), oracle.detach().cpu()
    same = (x == oracle) | (x.isnan() & oracle.isnan())
    return torch.where(same, 0.0, (x - oracle).abs().nan_to_num(torch.inf)).max().item()


def _scale(name: str, oracle: Outputs) -> float:
    # A loss is a sum of terms that may cancel; together they are as large as its gradient.
    terms = [x.abs().sum() for k, x in oracle.items() if name == "loss" and k.startswith("grad_")]
    finite = oracle[name][oracle[name].isfinite()].abs()
    largest = finite.max() if finite.numel() else torch.zeros(())
    return max([largest, *terms]).item()


def compare(
    operation: str, case: Case, backend: str, dtype: torch.dtype, device: str
) -> Comparison:
    """Returns the comparison of the output that comes nearest to its bound."""
    run = RUNS[operation]
    batch = make_batch(case, dtype, device)
    with rlkern.use_backend("eager"):
        oracle = run(case, batch.to("cpu", torch.float64))
        eager = run(case, batch)
    with rlkern.use_backend(backend):
        got = run(case, batch)
    results = []
    for name, expected in oracle.items():
        if not expected.numel():
            assert got[name].shape == expected.shape
            continue
        floor = FLOOR_ULP * torch.finfo(got[name].dtype).eps * _scale(name, oracle)
        eager_error = _error(eager[name], expected)
        bound = 2 * eager_error + floor
        results.append(Comparison(name, _error(got[name], expected), eager_error, bound))
    return max(results, key=lambda c: c.error / c.bound if c.bound else c.error,
               default=Comparison("(empty)", 0.0, 0.0, 0.0))  # fmt: skip


def applicable(operation: str, case: Case, dtype: torch.dtype) -> bool:
    """Returns whether this combination says anything that another does not."""
    if operation in VECTOR_OPERATIONS:
        return dtype == torch.float32 and case.V < 2000
    return True


def row(backend: str, operation: str, case: Case, dtype: torch.dtype, c: Comparison) -> str:
    """Returns one line of the conformance table."""
    kind = str(dtype).removeprefix("torch.")
    verdict = "ok" if c.passed else "FAILED"
    return (
        f"{backend:<7} {operation:<25} {case.name:<23} {kind:<9} {c.output:<13} "
        f"error {c.error:.2e}  eager {c.eager_error:.2e}  bound {c.bound:.2e}  {verdict}"
    )


def main() -> None:
    """Prints the conformance table of one backend on one device; exits with 1 if a line fails."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backend", default="cpu", choices=("triton", "cpu", "eager"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    failed = count = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for operation in RUNS:
            for case in CASES:
                if not applicable(operation, case, dtype):
                    continue
                result = compare(operation, case, arguments.backend, dtype, arguments.device)
                print(row(arguments.backend, operation, case, dtype, result), flush=True)
                count, failed = count + 1, failed + (not result.passed)
    print(f"{count - failed} passed, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
