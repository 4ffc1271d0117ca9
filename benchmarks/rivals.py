# SPDX-License-Identifier: Apache-2.0
"""Which row of rlkern does the work of a row of somebody else."""

from collections.abc import Collection

# {how the row of somebody else begins: who that is}; what follows names the work, as for rlkern.
RIVALS = {
    "torch_compile": "torch.compile", "compile": "torch.compile", "eager": "eager",
    "python_loop": "a loop in Python", "torch": "torch's own", "liger": "Liger", "cut": "CCE",
}  # fmt: skip
# Work that rlkern names otherwise. A supervised loss is that of log-probabilities; where they were
# not timed, it stands beside the policy loss, which does more.
NAMES = {
    "_linear_grpo": ("_linear_policy_loss", ""),
    "_linear_cross_entropy": ("_logprob_and_backward", "_linear_policy_loss", ""),
    "_cross_entropy": ("_linear_policy_loss", ""),
}


def pair(name: str, rows: Collection[str]) -> tuple[str, str] | None:
    """Returns who a row is of, and the row of rlkern that does this work; None if there is none.

    >>> pair("eager_gspo", {"eager_gspo": 2.0, "rlkern_gspo_in_place": 1.0})
    ('eager', 'rlkern_gspo_in_place')
    >>> pair("torch_compile", {"torch_compile": 2.0, "rlkern_in_place": 1.0})
    ('torch.compile', 'rlkern_in_place')
    >>> ours = {"rlkern": 1.0, "rlkern_logprob_and_backward": 1.0}
    >>> pair("torch_linear_cross_entropy", ours)
    ("torch's own", 'rlkern_logprob_and_backward')
    >>> pair("memcpy_of_the_logits", {"rlkern": 1.0}) is None
    True
    """
    begin = next((x for x in RIVALS if name == x or name.startswith(f"{x}_")), None)
    if begin is None:
        return None
    work = name.removeprefix(begin).removesuffix("_in_place")
    names = [f"rlkern{x}{end}" for x in (work, *NAMES.get(work, ())) for end in ("_in_place", "")]
    return next(((RIVALS[begin], x) for x in names if x in rows), None)
