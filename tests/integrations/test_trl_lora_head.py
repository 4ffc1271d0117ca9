# SPDX-License-Identifier: Apache-2.0
"""LoRA on the head inside TRL: what plain PyTorch makes of the adapter, and no run without it."""

import inspect

import pytest
import torch

pytest.importorskip("trl")

import trl  # noqa: E402
from peft import LoraConfig  # noqa: E402

from rlkern.integrations import PatchError, patch, status  # noqa: E402

from .trl_runs import TRAINERS, compared, logged, made  # noqa: E402

TRIED = ("dpo", "grpo", "kto", "rloo", "sft")


def lora(**options) -> LoraConfig:
    named = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "lm_head"], **options}
    return LoraConfig(task_type="CAUSAL_LM", **named)


@pytest.fixture
def admitted():
    """Patches TRL for LoRA on the head."""
    with patch("trl"), patch("trl-lora-head"):
        yield


def moved(model) -> torch.nn.Module:
    """Returns the head of a model with adapters, none of whose matrices is zero any more."""
    head = model.get_output_embeddings()
    generator = torch.Generator().manual_seed(3)
    for layer in (head.lora_A["default"], head.lora_B["default"]):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) / 4
    return head


def scored(model, head, ids, fused: bool):
    """Returns the log-probabilities of a text, and their gradients to the adapter."""
    model.zero_grad()
    if fused:
        logprob = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    else:
        logits = model(input_ids=ids).logits[:, :-1]
        logprob = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    (logprob * torch.linspace(-1, 1, logprob.shape[1])).sum().backward()
    adapters = head.lora_A["default"].weight, head.lora_B["default"].weight
    return logprob.detach(), [x.grad.clone() for x in adapters]


@pytest.mark.parametrize("kind", TRIED)
def test_each_trainer_scores_and_trains_the_adapter_as_pytorch_does(
    kind, model, tmp_path, admitted
):
    trained = made(kind, model, tmp_path, peft_config=lora()).model.eval()
    head = moved(trained)
    ids = torch.randint(3, 39, (2, 7), generator=torch.Generator().manual_seed(0))
    ours, our_grads = scored(trained, head, ids, fused=True)
    eager, eager_grads = scored(trained, head, ids, fused=False)
    torch.testing.assert_close(ours, eager)
    torch.testing.assert_close(our_grads, eager_grads)
    with trained.disable_adapter():
        base = trained(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        plain = trained(input_ids=ids).logits[:, :-1].log_softmax(-1)
    torch.testing.assert_close(base, plain.gather(-1, ids[:, 1:, None]).squeeze(-1))
    assert (base - ours).abs().max() > 1e-2


class EagerGRPO(trl.GRPOTrainer):
    """Scores answers by the logits that the model itself makes."""

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, **options
    ):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
        log_pi = (logits[:, -logits_to_keep - 1 : -1] / self.temperature).log_softmax(-1)
        answer = input_ids[:, -logits_to_keep:, None]
        entropy = -(log_pi.exp() * log_pi).sum(-1)
        return log_pi.gather(-1, answer).squeeze(-1), entropy, None


def test_a_grpo_run_logs_what_eager_logits_log(model, tmp_path, admitted):
    options = {"beta": 0.04, "num_iterations": 2, "temperature": 0.7, "peft_config": lora()}
    ours = logged(made("grpo", model, tmp_path, **options))
    calls = dict(status()[0].calls)
    eager = logged(made("grpo", model, tmp_path, trainer_type=EagerGRPO, **options))
    assert sum(calls.values()) > 0 and status()[0].calls == calls  # eager logits asked for none
    assert len(ours) == len(eager) >= 4 and all(entry["grad_norm"] > 0 for entry in ours[:-1])
    for one, other in zip(compared(ours), compared(eager)):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4, nan_ok=True)


def test_trl_refuses_the_head_without_the_opt_in(model, tmp_path):
    with patch("trl"), pytest.raises(ValueError, match="adapter would never be trained"):
        made("grpo", model, tmp_path, peft_config=lora())


def test_the_opt_in_needs_rlkern_to_score(model, tmp_path):
    with pytest.raises(PatchError, match=r"needs patch\('trl'\) before it"):
        patch("trl-lora-head")
    with patch("trl"), patch("trl-lora-head"):
        trained = made("sft", model, tmp_path, peft_config=lora()).model
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(RuntimeError, match=r'leave out; call rlkern.integrations.patch\("trl"\)'):
        trained(input_ids=ids, labels=ids, fused_lm_head=True)


@pytest.mark.parametrize(
    "options,kind,expected",
    [
        ({"use_dora": True}, "grpo", "must be plain LoRA, got DoRA"),
        ({}, "grpo", "cast_lm_head_to_fp32 must be False"),
    ],
)
def test_what_cannot_be_served_is_refused_by_the_constructor(
    options, kind, expected, model, tmp_path, admitted
):
    cast = {} if options else {"cast_lm_head_to_fp32": True}
    with pytest.raises(ValueError, match=expected):
        made(kind, model, tmp_path, peft_config=lora(**options), **cast)


def test_the_constructors_ask_for_an_adapter_where_we_think():
    """The class that is replaced is read for the head alone; GRPO reads it for a cast, too."""
    for kind in TRIED:
        source = inspect.getsource(inspect.getmodule(TRAINERS[kind][0]))
        uses = source.count("BaseTunerLayer") - 1  # its import
        assert uses == (2 if kind == "grpo" else 1), kind
        assert "isinstance(model.get_output_embeddings(), BaseTunerLayer)" in source
