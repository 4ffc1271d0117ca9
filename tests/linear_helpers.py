# SPDX-License-Identifier: Apache-2.0
"""Hidden states and a head beside a batch, and the loss and scores of their logits by autograd."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

import rlkern
from rlkern.algorithms import algorithm as find_algorithm
from rlkern.testing.cases import Batch, Case, make_batch
from rlkern.testing.conformance import FLOOR_ULP

SOURCES = ("hidden", "weight", "bias", "lora_a", "lora_b")
LORA_SCALE, LOGIT_SCALE = 0.5, 1.5
TERMS = {"kl_coef": 0.3, "kl_estimator": "k2", "entropy_coef": 0.2}


class Problem(NamedTuple):
    """What both paths are given: the five sources by name, and the rows."""

    sources: dict[str, Tensor]
    batch: Batch
    case: Case

    def widened(self) -> "Problem":
        """Returns the same numbers in float64."""
        wide = {name: x.double() for name, x in self.sources.items()}
        return Problem(wide, self.batch.to("cpu", torch.float64), self.case)

    def leaves(self, wants=SOURCES) -> dict[str, Tensor]:
        """Returns copies of the sources, of which these require a gradient."""
        copies = {name: x.detach().clone() for name, x in self.sources.items()}
        return {name: x.requires_grad_(name in wants) for name, x in copies.items()}

    @property
    def objective(self) -> dict:
        """Returns the algorithm and its coefficients."""
        known = find_algorithm(self.case.algorithm).defaults
        own = {name: x for name, x in TERMS.items() if name in known or name == "kl_estimator"}
        return {"algorithm": self.case.algorithm, **own, **self.case.coefficients}


def problem(case: Case, dtype=torch.float32, head=None, H=6, R=3, sources=SOURCES) -> Problem:
    """Returns random sources of an (H, V) head; hidden states that do not count are NaN."""
    batch = make_batch(case, torch.float32)
    V, head = case.V, head or dtype
    random = torch.Generator().manual_seed(V + H)
    shapes = {"hidden": (*batch.mask.shape, H), "weight": (V, H), "bias": (V,),
              "lora_a": (R, H), "lora_b": (V, R)}  # fmt: skip
    made = {n: torch.randn(s, generator=random) * (0.3 if n != "hidden" else 1)
            for n, s in shapes.items() if n in sources}  # fmt: skip
    made["hidden"][~batch.mask] = torch.nan
    typed = {name: x.to(dtype if name == "hidden" else head) for name, x in made.items()}
    return Problem(typed, batch, case)


def head_options(leaves: dict[str, Tensor]) -> dict:
    """Returns the arguments beside hidden and weight that the sources make."""
    lora = None
    if "lora_a" in leaves:
        lora = rlkern.Lora(leaves["lora_a"], leaves["lora_b"], LORA_SCALE)
    return {"bias": leaves.get("bias"), "lora": lora, "logit_scale": LOGIT_SCALE}


def logits_of(leaves: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Returns the logits that autograd sees; rows that do not count are made of zeros."""
    hidden = torch.where(mask.unsqueeze(-1), leaves["hidden"], 0).to(leaves["weight"].dtype)
    z = linear(hidden, leaves["weight"], leaves.get("bias"))
    if "lora_a" in leaves:
        z = z + LORA_SCALE * linear(linear(hidden, leaves["lora_a"]), leaves["lora_b"])
    return LOGIT_SCALE * z


def loss_by_logits(task: Problem, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    b = task.batch
    logits = logits_of(leaves, b.mask)
    out = rlkern.policy_loss(
        logits, b.token, b.advantage, b.mask, **b.rows, **b.softmax, **task.objective
    )
    return {"loss": out.loss, "metrics": out.metrics}


def loss_by_linear(task: Problem, leaves: dict[str, Tensor], **options) -> dict[str, Tensor]:
    b = task.batch
    out = rlkern.linear_policy_loss(
        leaves["hidden"], leaves["weight"], b.token, b.advantage, b.mask, **head_options(leaves),
        **b.rows, **b.softmax, **task.objective, **options,
    )  # fmt: skip
    return {"loss": out.loss, "metrics": out.metrics}


def _numbers(x: Tensor, step: int) -> Tensor:
    return torch.arange(x.numel(), dtype=x.dtype).mul(step).sin().reshape(x.shape)


def _scores(out: rlkern.TokenLogprob) -> dict[str, Tensor]:
    used = out[:3]  # sum_pi_squared is a constant
    loss = sum((x * _numbers(x, 3 + i)).sum() for i, x in enumerate(used))
    return {"loss": loss, **out._asdict()}


def scores_by_logits(task: Problem, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    b = task.batch
    logits = logits_of(leaves, b.mask)
    return _scores(rlkern.token_logprob(logits, b.token, mask=b.mask, **b.softmax))


def scores_by_linear(task: Problem, leaves: dict[str, Tensor], **options) -> dict[str, Tensor]:
    b = task.batch
    return _scores(
        rlkern.linear_token_logprob(
            leaves["hidden"],
            leaves["weight"],
            b.token,
            mask=b.mask,
            **head_options(leaves),
            **b.softmax,
            **options,
        )  # fmt: skip
    )


PATHS = {"loss": (loss_by_linear, loss_by_logits), "scores": (scores_by_linear, scores_by_logits)}


def evaluated(path, task: Problem, wants=SOURCES, factor: float = 1.0, **options):
    """Returns a path's outputs, and the gradient of each source that is wanted."""
    leaves = task.leaves(wants)
    found = path(task, leaves, **options)
    if wants:
        (factor * found["loss"]).backward()
    grads = {f"grad_{name}": x.grad for name, x in leaves.items() if name in wants}
    return {**{name: x.detach() for name, x in found.items()}, **grads}


def misses(got: dict, task: Problem, path, wants=SOURCES, **options) -> list[str]:
    """Returns what is further from float64 than twice the logits path's own error allows."""
    with rlkern.use_backend("eager"):
        eager = evaluated(path, task, wants, **options)
        oracle = evaluated(path, task.widened(), wants, **options)
    assert got.keys() == oracle.keys()
    wide = task.widened()
    logits = logits_of(wide.sources, wide.batch.mask)
    logit = logits.abs().max().item() if logits.numel() else 0.0
    found = []
    for name, expected in oracle.items():
        x, own = got[name].double(), eager[name].double()
        assert got[name].dtype == eager[name].dtype and x.shape == expected.shape, name
        if not expected.numel():
            continue
        same = (x == expected) | (x.isnan() & expected.isnan())
        error = torch.where(same, 0.0, (x - expected).abs().nan_to_num(torch.inf)).max()
        largest = expected.nan_to_num(0.0, 0.0, 0.0).abs().max()
        if name == "loss":  # of terms that may cancel
            largest = max([largest, *(g.abs().sum() for n, g in oracle.items() if "grad" in n)])
        floor = FLOOR_ULP * torch.finfo(got[name].dtype).eps * largest
        # Either path rounds the logits to the dtype of the head, to bits of its own: a sum
        # of two products and its scaling, by half a unit in the last place of the largest each.
        step = torch.finfo(task.sources["weight"].dtype).eps * largest * max(1.0, logit)
        bound = 2 * (own - expected).abs().nan_to_num(0.0).max() + floor + 2 * step
        if error > bound:
            found.append(f"{name}: error {error:.2e}, bound {bound:.2e}")
    return found


def same_bits(x: dict, y: dict) -> bool:
    assert x.keys() == y.keys()
    return all(torch.equal(x[name], y[name]) for name in x)
