# SPDX-License-Identifier: Apache-2.0
"""Flags that end episodes inside a sequence, against each episode by itself."""

import math

import pytest
import torch
from test_returns import backend, rollouts  # noqa: F401

import rlkern


def episodes(seed=5):
    """Returns flags of ends, also at masked steps, and values of the states of a cut."""
    random = torch.Generator().manual_seed(seed)
    *_, mask, _ = rollouts()
    terminated, truncated = torch.rand(2, *mask.shape, generator=random) < 0.25
    final_value = torch.randn(mask.shape, generator=random, dtype=torch.float64)
    return {
        "terminated": terminated,
        "truncated": truncated,
        "final_value": final_value.masked_fill(~(truncated & mask & ~terminated), math.nan),
    }


def apart(mask, bootstrap, ends):
    """Returns the steps of each episode as (row, its counted steps, the value after them)."""
    for b in range(len(mask)):
        steps = []
        for t in mask[b].nonzero().flatten().tolist():
            steps.append(t)
            if ends["terminated"][b, t]:
                yield b, steps, 0.0
            elif ends["truncated"][b, t]:
                yield b, steps, ends["final_value"][b, t].item()
            else:
                continue
            steps = []
        if steps:
            yield b, steps, bootstrap[b].item()


OF_EPISODES = {
    "discounted_return": lambda r, v, q, m, **o: rlkern.discounted_return(r, m, discount=0.9, **o),
    "reward_to_go": lambda r, v, q, m, **o: rlkern.reward_to_go(r, m, **o),
    "gae": lambda r, v, q, m, **o: rlkern.gae(r, v, m, discount=0.9, gae_lambda=0.7, **o).advantage,
    "gae target": lambda r, v, q, m, **o: rlkern.gae(r, v, m, discount=0.9, **o).target,
    "lambda_return": lambda r, v, q, m, **o: rlkern.lambda_return(r, v, m, discount=0.9, **o),
    "n_step_return 1": lambda r, v, q, m, **o: rlkern.n_step_return(r, v, m, n=1, **o),
    "n_step_return 3": lambda r, v, q, m, **o: rlkern.n_step_return(r, v, m, n=3, **o),
    "vtrace": lambda r, v, q, m, **o: rlkern.vtrace(q, r, v, m, discount=0.9, **o).advantage,
    "vtrace target": lambda r, v, q, m, **o: rlkern.vtrace(q, r, v, m, **o).target,
    "retrace": lambda r, v, q, m, **o: rlkern.retrace(q, r, v.sin(), v, m, discount=0.9, **o),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_EPISODES)
def test_flags_cut_a_row_into_episodes_that_do_not_see_each_other(name):
    reward, value, log_ratio, mask, bootstrap = rollouts()
    ends, call = episodes(), OF_EPISODES[name]
    got = call(reward, value, log_ratio, mask, bootstrap=bootstrap, **ends)
    expected = torch.zeros_like(got)
    for b, steps, after in apart(mask, bootstrap, ends):
        alone = [x[b, steps][None] for x in (reward, value, log_ratio, mask)]
        expected[b, steps] = call(*alone, bootstrap=torch.tensor([after], dtype=torch.float64))[0]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    keep = torch.arange(13) < torch.tensor([[9], [13], [1], [0], [7], [4]])
    bounds = torch.nn.functional.pad(keep.sum(-1).cumsum(0), (1, 0))
    flat = [x[keep] for x in (reward, value, log_ratio, mask & keep)]
    options = {k: x[keep] for k, x in ends.items()}
    packed = call(*flat, bootstrap=bootstrap, cu_seqlens=bounds, **options)
    padded = call(reward, value, log_ratio, mask & keep, bootstrap=bootstrap, **ends)
    torch.testing.assert_close(packed, padded[keep], rtol=1e-12, atol=1e-12)


def test_flags_that_end_nothing_change_nothing_and_whitening_still_works():
    reward, value, _, mask, bootstrap = rollouts()
    options = {"discount": 0.9, "bootstrap": bootstrap, "whiten": True, "ddof": 0}
    plain = rlkern.gae(reward, value, mask, **options)
    flagged = rlkern.gae(reward, value, mask, terminated=~mask, **options)
    for x, y in zip(plain, flagged):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "changed,error,sentence",
    (
        ({"truncated": True}, ValueError, "truncated and final_value must be given together"),
        ({"final_value": 1.0}, ValueError, "truncated and final_value must be given together"),
        ({"terminated": 1.0}, TypeError, "terminated must be bool, got"),
        ({"truncated": True, "final_value": math.nan}, ValueError, "final_value must be finite"),
        ({"truncated": True, "final_value": True}, TypeError, "final_value must be float64"),
    ),
)
def test_bad_ends_are_refused_in_a_sentence(changed, error, sentence):
    reward, mask = torch.ones(2, 3).double(), torch.ones(2, 3).bool()
    given = {k: torch.full((2, 3), x) for k, x in changed.items()}
    given = {k: x.double() if x.is_floating_point() else x for k, x in given.items()}
    with pytest.raises(error, match=f"^gae: {sentence}"):
        rlkern.gae(reward, reward, mask, **given)
    with pytest.raises(ValueError, match=r"terminated must be \(2, 3\) on cpu, got \(2, 2\)"):
        rlkern.gae(reward, reward, mask, terminated=mask[:, :2])
