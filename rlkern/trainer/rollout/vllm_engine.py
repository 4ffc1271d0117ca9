# SPDX-License-Identifier: Apache-2.0
"""vLLM as the sampler: in this process, given token ids, with the trained weights put in place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlkern.runs.errors import UserError
from rlkern.trainer.models.policy import Policy
from rlkern.trainer.rollout.sampler import Sampling
from rlkern.trainer.rollout.text import Prompts
from rlkern.trainer.rows import Rows
from rlkern.trainer.settings import Settings

# The share of a GPU's memory that vLLM may take; the rest is for training, in the same process.
_MEMORY_SHARE = 0.3
# Weights are handed over as tensors, so the engine lives in this process; its threads stay ours.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_SEED_BITS = 2**53


class VllmEngine:
    """Samples with vLLM. Its log-probabilities are those of its own kernels, at the temperature and
    over the kept set: what is left to the trainer's is logged, and corrected by `correction`.
    """

    def __init__(self, settings: Settings, policy: Policy) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.policy = policy
        random = torch.get_rng_state()
        try:
            import vllm

            self._vllm = vllm
            with tempfile.TemporaryDirectory() as folder:
                policy.save(Path(folder))
                self._engine = vllm.LLM(model=folder, **_arguments(settings, policy))
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise UserError(
                f"vLLM did not start ({type(error).__name__}: {first}); use --rollout.engine model"
            ) from error
        # In this process vLLM seeds torch's generator, which is the run's.
        torch.set_rng_state(random)

    def refresh(self) -> None:
        """Puts the policy's weights in place of those that vLLM holds."""
        weights = iter(self.policy.model.state_dict().items())
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def sample(
        self, prompts: Prompts, sampling: Sampling, *, group_size: int, uniform: Tensor | None
    ) -> Rows:
        """Returns group_size answers to each prompt, row b seeded by its first number."""
        rows = [
            {"prompt_token_ids": token[real].tolist()}
            for token, real in zip(prompts.token, prompts.mask)
            for _ in range(group_size)
        ]
        numbers = torch.zeros(len(rows)) if uniform is None else uniform[:, 0]
        asked = [self._parameters(sampling, int(x * _SEED_BITS)) for x in numbers.tolist()]
        found = self._engine.generate(rows, asked, use_tqdm=False)
        return _rows(prompts, [answer.outputs[0] for answer in found], sampling)

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=seed,
            stop_token_ids=sampling.stop.tolist(),
            ignore_eos=True,  # `stop` holds it where it ends an answer
            logprobs=sampling.top_k if sampling.truncates else 0,
            detokenize=False,
        )


def _arguments(settings: Settings, policy: Policy) -> dict[str, Any]:
    """Returns how vLLM is started for a run."""
    return {
        "dtype": "bfloat16" if policy.low_precision else "float32",
        "seed": settings.seed,
        "max_model_len": policy.context,
        "gpu_memory_utilization": _MEMORY_SHARE,
        "enforce_eager": policy.device.type == "cpu",
        # A cached prefix would be that of the weights before the last step.
        "enable_prefix_caching": False,
        # At the temperature and over the kept set, as the trainer scores.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": max(1, settings.rollout.top_k),
    }


def _rows(prompts: Prompts, answers: list[Any], sampling: Sampling) -> Rows:
    """Returns the answers of vLLM as rows: token ids, log-probabilities and the kept ids."""
    device = prompts.token.device
    ids = [torch.tensor(list(answer.token_ids)) for answer in answers]
    scores = [
        torch.tensor([at[token].logprob for at, token in zip(answer.logprobs, answer.token_ids)])
        for answer in answers
    ]
    keep = None
    if sampling.truncates:
        keep = _kept([answer.logprobs for answer in answers]).to(device)
    token = pad_sequence(ids, batch_first=True).to(device)
    length = torch.tensor([len(row) for row in ids], device=device)
    mask = torch.arange(token.shape[1], device=device) < length[:, None]
    logprob = pad_sequence(scores, batch_first=True).to(device)
    return Rows(
        prompt=prompts.token,
        prompt_mask=prompts.mask,
        token=token,
        mask=mask,
        present=mask,
        rollout_logprob=logprob,
        keep=keep,
    )


def _kept(reported: list[list[dict[int, Any]]]) -> Tensor:
    """Returns the ids (B, T, K) that vLLM could have drawn: those it reports with a probability."""
    kept = [
        [sorted(i for i, at in step.items() if at.logprob > -torch.inf) for step in steps]
        for steps in reported
    ]
    width = max(len(ids) for steps in kept for ids in steps)
    rows = [torch.tensor([ids + [-1] * (width - len(ids)) for ids in steps]) for steps in kept]
    return pad_sequence(rows, batch_first=True, padding_value=-1)
