# SPDX-License-Identifier: Apache-2.0
"""Takes a tiny model through all that the trainer does with one."""

import logging
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from trainer_helpers import loaded, settings, small

import rlkern
from architectures.tiny import NOT_MADE, tiny_model, tokenizer
from rlkern.trainer import UserError, build
from rlkern.trainer.models.load import load_policy
from rlkern.trainer.models.policy import Policy, token_logprob
from rlkern.trainer.models.ways import Way
from rlkern.trainer.rollout.check import check_model, differences
from rlkern.trainer.rows import Rows

CPU = torch.device("cpu")
PROMPTS = ["12+34=", "abc+1234567="]
CLOSE = 1e-5
_HOW = {
    Way(True, True): "",
    Way(False, True): "; prompts of equal length are sampled together",
    Way(False, False): "; sampled without a cache",
}


def becomes(kind: str) -> str:
    """Returns what becomes of a kind: served, in which way if it is not the usual one, or refused,
    with the sentence. Served means trained on the very log-probabilities that the model gives; any
    fault that is no refusal is raised."""
    if kind in NOT_MADE:
        return f"not tried: {NOT_MADE[kind]}"
    policy = Policy(tiny_model(kind), tokenizer(), CPU)
    try:
        _agrees(policy)
        _is_fused(policy.model)
        with tempfile.TemporaryDirectory() as folder:
            _is_trained(policy, Path(folder))
    except (UserError, TypeError, ValueError) as error:
        if not isinstance(error, UserError) and not str(error).startswith("fused_head: "):
            raise
        # By how much, and of which folder, differs from machine to machine.
        said = re.sub(r", they differ by .*", "", str(error))
        return "refused: " + re.sub(r"model '/[^']*'", "what was saved", said).replace("|", " ")
    return f"served{_HOW[policy.passes.way]}"


def tried(kind: str) -> tuple[str, str]:
    """Returns the kind and what becomes of it; a fault that is no refusal begins with 'fault'."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    try:
        return kind, becomes(kind)
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return kind, f"fault: {type(error).__name__}: {first}"


def _agrees(policy: Policy) -> None:
    """The sampler, the trainer and the model over a row alone give one log-probability."""
    for share in (True, False):
        asked = settings(memory__share_prompts=share)
        check_model(policy, PROMPTS, asked, str)
        for who, worst in differences(policy, PROMPTS, asked).items():
            assert worst <= CLOSE, f"{who} is {worst:.3g} nats off, share_prompts {share}"


def _scores(model: Any, *, fused: bool) -> dict[str, torch.Tensor]:
    """Returns log-probs and entropy of some tokens, and the gradient of every weight."""
    random = torch.Generator().manual_seed(1)
    ids, token = torch.randint(3, 32, (2, 2, 12), generator=random)
    model.zero_grad()
    if fused:
        with rlkern.fused_head(model):
            out = model(input_ids=ids, use_cache=False, token=token)
    else:
        out = rlkern.token_logprob(model(input_ids=ids, use_cache=False).logits.contiguous(), token)
    (out.logprob.sum() + 0.3 * out.entropy.sum()).backward()
    grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {"logprob": out.logprob.detach(), "entropy": out.entropy.detach(), **grads}


def _is_fused(model: Any) -> None:
    """fused_head gives the values and the gradients of the model's logits."""
    expected, got = _scores(model, fused=False), _scores(model, fused=True)
    model.zero_grad()
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        worst = float((got[name] - x).norm()) / (1 + float(x.norm()))
        assert worst <= CLOSE, f"fused_head: {name} is {worst:.3g} off"


def _is_trained(policy: Policy, folder: Path) -> None:
    """One GRPO step of the model as a folder holds it moves it; saved and loaded it is the same."""
    policy.save(folder / "model")
    asked = small(folder, sft=None, model=str(folder / "model"), steps=1, eval__items=4)
    parts = loaded(asked)
    before = {name: x.detach().clone() for name, x in parts.policy.parameters().items()}
    run = build.begin(parts, folder, None, say=lambda _: None, after_step=lambda *_: None)
    run.learner.step(run.updater, lambda _: None)
    trained = run.parts.policy
    moved = [n for n, x in trained.parameters().items() if not torch.equal(x, before[n])]
    assert moved, "a step changes nothing"
    trained.save(folder / "trained")
    again = load_policy(folder / "trained", device=CPU, dtype="float32")
    torch.testing.assert_close(_answer(again), _answer(trained), rtol=0, atol=CLOSE)


@torch.no_grad()
def _answer(policy: Policy) -> torch.Tensor:
    prompt = torch.tensor([policy.tokenizer.encode(PROMPTS[0])])
    token = torch.tensor([policy.tokenizer.encode("46")])
    real = torch.ones_like(token).bool()
    rows = Rows(prompt=prompt, prompt_mask=torch.ones_like(prompt).bool(), token=token, mask=real,
                present=real, rollout_logprob=torch.zeros(token.shape))  # fmt: skip
    return token_logprob(policy, rows, settings())
