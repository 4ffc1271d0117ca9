# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments at the public door: one sentence naming argument, expected and got.

Checks of values would synchronise with a GPU, so they run only under RLKERN_CHECK_VALUES=1.
"""

import os
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from rlkern.backends import on_host

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32)


def describe(x: object) -> str:
    """Returns '(2, 3) float32 on cpu' for a tensor, its type's name for anything else."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


def tensor(op: str, name: str, x: object, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """Returns x; raises TypeError unless it is a tensor of one of the dtypes, and no DTensor."""
    if not isinstance(x, Tensor) or x.dtype not in dtypes:
        expected = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        number = isinstance(x, Tensor) and not (x.is_complex() or x.dtype is torch.bool)
        hint = f" (compare it: {name} != 0)" if number and dtypes == (torch.bool,) else ""
        raise TypeError(f"{op}: {name} must be {expected}, got {describe(x)}{hint}")
    if type(x) is not Tensor:
        _whole(op, name, x)
    return x


def _whole(op: str, name: str, x: Tensor) -> None:
    """Raises TypeError if x is spread over ranks."""
    # Who has one has imported this; doing it here would make `import rlkern` eight times as long.
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(x, module.DTensor):
        raise TypeError(
            f"{op}: {name} must be a plain tensor, got a DTensor {tuple(x.shape)} spread over"
            " ranks: gather it (FSDP2: model.unshard(); else .full_tensor()); if it is split over"
            " the vocabulary, you may also pass .to_local() with group="
        )


def tensors(op: str, given: Mapping[str, object], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raises TypeError unless each, by its name, is a tensor of one of the dtypes."""
    for name, x in given.items():
        tensor(op, name, x, dtypes)


def like(
    op: str, name: str, x: object, shape: torch.Size, other: Tensor, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raises unless x is a tensor of this shape and one of these dtypes on other's device."""
    found = x if type(x) is Tensor and x.dtype in dtypes else tensor(op, name, x, dtypes)
    if found.shape != shape or found.device != other.device:
        expected = f"{tuple(shape)} on {other.device}"
        hint = _unshifted(op, name, found.shape, shape)
        raise ValueError(f"{op}: {name} must be {expected}, got {describe(x)}{hint}")


def _unshifted(op: str, name: str, found: torch.Size, shape: torch.Size) -> str:
    """Returns what to do where rows of T + 1 scores meet T tokens, else nothing."""
    scores = op.endswith(("token_logprob", "policy_loss")) and name in ("token", "mask")
    if not scores or len(shape) != 2 or found != (shape[0], shape[1] - 1):
        return ""
    what = "hidden" if op.startswith("linear") else "logits"
    return f" (nothing is shifted here: {what}[:, :-1] score token[:, 1:] of the same rows)"


def logits(op: str, x: object) -> None:
    """Raises unless x is (..., V) floating point with V ≥ 1 contiguous."""
    found = tensor(op, "logits", x, FLOATS)
    if found.ndim < 2 or found.shape[-1] == 0:
        raise ValueError(f"{op}: logits must be (..., V) with V > 0, got {describe(x)}")
    if found.stride(-1) != 1 and found.shape[-1] > 1:
        raise ValueError(
            f"{op}: logits must be contiguous in their last dimension (call .contiguous() "
            f"if a copy is what you want), got strides {found.stride()}"
        )


def sequence_bounds(
    op: str, cu_seqlens: Tensor | None, shape: torch.Size, device: torch.device
) -> Tensor | None:
    """Returns cu_seqlens as a checked int64 tensor: where each sequence of the flat rows begins.

    Whether they cover the rows is looked at where that costs no synchronisation.
    """
    if cu_seqlens is None:
        return None
    tensor(op, "cu_seqlens", cu_seqlens, INTEGERS)
    if len(shape) != 1 or cu_seqlens.ndim != 1 or cu_seqlens.device != device:
        raise ValueError(
            f"{op}: cu_seqlens must be (S + 1,) on {device} with flat (N,) rows, "
            f"got {describe(cu_seqlens)} and rows {tuple(shape)}"
        )
    if not torch.compiler.is_compiling() and (on_host(device) or checks_values()):
        bounds, rows = cu_seqlens.tolist(), shape[0]
        ends = bounds[:1] + bounds[-1:]
        if ends != [0, rows] or bounds != sorted(bounds):
            raise ValueError(
                f"{op}: cu_seqlens must rise from 0 to the number of rows {rows}, got {bounds[:8]}"
                + ("…" if len(bounds) > 8 else "")
            )
    return cu_seqlens.to(torch.int64).contiguous()


def overwritable(op: str, logits: Tensor) -> None:
    """Raises ValueError for a leaf, whose storage would end up as its own gradient."""
    if logits.is_leaf and logits.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: inplace=True overwrites the logits, so they must be a result that nothing "
            "else reads, got a leaf that requires a gradient"
        )


def whole_rows(op: str, companions: bool, group: object) -> None:
    """Raises ValueError if companions are asked for where a rank holds a slice of each row."""
    if companions and group is not None:
        raise ValueError(f"{op}: companions must be False with group, got True")


def token_values(op: str, token: Tensor, mask: Tensor | None, vocabulary: int) -> None:
    """Raises ValueError if a counted token is outside the vocabulary (a check of values)."""
    if not checks_values():
        return
    outside = (token < 0) | (token >= vocabulary)
    if mask is not None:
        outside &= mask
    if outside.any():
        worst = token[outside][0].item()
        raise ValueError(
            f"{op}: token must be in [0, {vocabulary}) where mask is True, got {worst}"
        )


def kept_values(op: str, keep: Tensor, mask: Tensor | None, vocabulary: int) -> None:
    """Raises ValueError if a counted row keeps an id twice or outside the vocabulary; of values."""
    if not checks_values():
        return
    ids = keep.reshape(-1, keep.shape[-1])
    ids = ids if mask is None else ids[mask.reshape(-1)]
    outside = (ids < -1) | (ids >= vocabulary)
    if outside.any():
        worst = ids[outside][0].item()
        raise ValueError(f"{op}: keep must be ids in [0, {vocabulary}) or -1, got {worst}")
    ordered = ids.sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        worst = ordered[:, 1:][twice][0].item()
        raise ValueError(f"{op}: keep must name each id of a row once, got {worst} twice")


def finite_values(op: str, name: str, x: Tensor | None, mask: Tensor) -> None:
    """Raises ValueError if a counted element is NaN or infinite; under RLKERN_CHECK_VALUES=1."""
    if x is not None and checks_values() and not x.detach()[mask].isfinite().all():
        raise ValueError(f"{op}: {name} must be finite where mask is True, got NaN or inf")


def positive_values(op: str, name: str, x: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError unless counted elements are positive; under RLKERN_CHECK_VALUES=1."""
    if not checks_values():
        return
    counted = x if mask is None else x.detach()[mask]
    wrong = counted[~((counted > 0) & counted.isfinite())]
    if wrong.numel():
        got = wrong[0].item()
        raise ValueError(f"{op}: {name} must be positive where mask is True, got {got}")


def bound(op: str, name: str, x: object, free: float) -> float:
    """Returns x as a float, free for None; raises unless it is a number, which may be infinite."""
    value = free if x is None else _as_float(op, name, x)
    if value != value:
        raise ValueError(f"{op}: {name} must be a number, got {x}")
    return value


def not_negative_values(op: str, name: str, x: Tensor | None, mask: Tensor) -> None:
    """Raises ValueError if a counted element is below 0; under RLKERN_CHECK_VALUES=1."""
    if x is not None and checks_values() and (x.detach()[mask] < 0).any():
        got = x[mask].min().item()
        raise ValueError(f"{op}: {name} must not be negative where mask is True, got {got}")


def unread_values(op: str, name: str, x: Tensor | None, weight: Tensor) -> None:
    """Raises ValueError if x asks something of a token of weight 0; under RLKERN_CHECK_VALUES=1.

    Such tokens are not read, and so is x there. NaN and infinity ask nothing: paddings hold them.
    """
    if x is None or not checks_values():
        return
    lost = x[(weight == 0) & x.isfinite() & (x != 0)]
    if lost.numel():
        got = lost[0].item()
        raise ValueError(f"{op}: {name} must be 0 where weight is 0, as no row is read, got {got}")


def number(op: str, name: str, x: object) -> float:
    """Returns x as a float; raises unless it is a finite number."""
    value = _as_float(op, name, x)
    if value - value != 0:  # math.isfinite would break the graph of a compiled caller
        raise ValueError(f"{op}: {name} must be finite, got {x}")
    return value


def numbers(op: str, given: Mapping[str, object]) -> list[float]:
    """Returns each, by its name, as a float; raises unless all are finite numbers."""
    return [number(op, name, x) for name, x in given.items()]


def _as_float(op: str, name: str, x: object) -> float:
    try:
        if not isinstance(x, str):
            return float(x)  # type: ignore[arg-type]
        got = repr(x)
    except (TypeError, ValueError, RuntimeError):
        got = describe(x) if isinstance(x, Tensor) else repr(x)
    raise TypeError(f"{op}: {name} must be a number, got {got}")


def ddof(op: str, x: object) -> None:
    """Raises ValueError unless x is what a variance's count is lessened by: 0 or 1."""
    if x not in (0, 1):
        raise ValueError(f"{op}: ddof must be 0 or 1, got {x}")


def checks_values() -> bool:
    """Returns whether checks of values are on."""
    return os.environ.get("RLKERN_CHECK_VALUES") == "1" and not torch.compiler.is_compiling()
