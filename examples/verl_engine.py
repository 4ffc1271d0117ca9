# SPDX-License-Identifier: Apache-2.0
"""verl's own FSDP2 engine on a CPU, with rlkern's head, advantage and loss inside.

    pip install verl
    python examples/verl_engine.py                                   one process
    torchrun --nproc_per_node 2 examples/verl_engine.py              two, the weights sharded
    python examples/verl_engine.py --algorithm gspo --updates 20     another of rlkern's algorithms

verl's workers hold this engine; the example leaves out Ray and the sampler. A random model of two
layers gets random answers. Answers with more even tokens have a higher reward, so the engine makes
even tokens likelier. verl runs only on accelerators, so a small platform class stands in for one.
"""

import argparse
import contextlib
import os
import tempfile
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM
from verl.plugin.platform import PlatformBase, set_platform

import rlkern.integrations
from rlkern.integrations import verl as rlkern_verl

VOCABULARY, PROMPT, ANSWER, GROUP = 64, 4, 8, 4


class CpuPlatform(PlatformBase):
    """The CPU as verl sees an accelerator: what a device has and a CPU has not does nothing."""

    device_name, vendor_name, device_module = "cpu", "cpu", torch.cpu

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def nvtx_range(self, msg):
        return contextlib.nullcontext()

    def is_ipc_supported(self):
        return False

    def ray_noset_envvars(self):
        return []

    def _nothing(self, *unused):
        return None

    manual_seed_all = manual_seed
    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = visible_devices_envvar = ray_resource_name = _nothing


set_platform(CpuPlatform())  # before the engine, which asks for the device when it is imported

from verl.models.transformers import monkey_patch  # noqa: E402
from verl.trainer.config import CheckpointConfig  # noqa: E402
from verl.trainer.ppo.core_algos import get_adv_estimator_fn  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.workers import config as settings  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding  # noqa: E402

# Where TRL is installed, verl 0.9.1 imports a class of it that TRL 1.13 dropped.
monkey_patch.is_trl_available = lambda: False


def save_model(folder: str, tied: bool = False) -> None:
    """Writes a random model of two layers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_attention_heads=2, tie_word_embeddings=tied, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_engine(folder: str, fused: bool = True) -> FSDPEngineWithLMHead:
    """Returns verl's engine over the model in a folder; fused as model.use_fused_kernels."""
    engine = FSDPEngineWithLMHead(
        settings.HFModelConfig(
            path=folder,
            load_tokenizer=False,
            override_config={"attn_implementation": "sdpa"},
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            use_fused_kernels=fused,
            fused_kernel_options={"impl_backend": "torch"},
        ),
        settings.FSDPEngineConfig(
            strategy="fsdp2",
            mixed_precision={"param_dtype": "fp32"},
            use_torch_compile=False,
        ),
        settings.FSDPOptimizerConfig(lr=1e-2, total_training_steps=100),
        CheckpointConfig(),
    )
    engine.initialize()
    return engine


def answers(rows: int, seed: int, fused: bool = True):
    """Returns random answers to random prompts, four to each, as verl's engine takes them."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.randint(VOCABULARY, (rows // GROUP, PROMPT), generator=draw)
    prompts = prompts.repeat_interleave(GROUP, 0)
    responses = torch.randint(VOCABULARY, (rows, ANSWER), generator=draw)
    length = torch.randint(ANSWER // 2, ANSWER + 1, (rows, 1), generator=draw)
    response_mask = (torch.arange(ANSWER) < length).long()
    attention_mask = torch.cat([torch.ones_like(prompts), response_mask], 1)
    padded = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses], 1),
        "attention_mask": attention_mask,
        "position_ids": attention_mask.cumsum(1) - 1,
        "response_mask": response_mask,
    }
    batch = left_right_2_no_padding(tu.get_tensordict(padded))
    tu.assign_non_tensor(
        batch,
        temperature=1.0,
        use_fused_kernels=fused,
        use_remove_padding=False,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=rows // 2,
        global_batch_size=rows * dist.get_world_size(),
        calculate_entropy=True,
    )
    return batch


def scores(engine, batch) -> torch.Tensor:
    """Returns log π (B, T) of the answers' tokens."""
    with engine.eval_mode():
        found = engine.infer_batch(batch.copy())["model_output"]["log_probs"]
    return no_padding_2_padding(found, batch)


def update(engine, batch, actor) -> dict:
    """Returns verl's metrics of one update, two micro-batches long."""
    with engine.train_mode():
        return engine.train_batch(batch.copy(), partial(ppo_loss, actor))["metrics"]


def configured(algorithm: str) -> tuple[str, settings.FSDPActorConfig]:
    """Returns verl's advantage estimator and actor options for one of rlkern's algorithms."""
    lines = OmegaConf.from_dotlist(rlkern_verl.configuration(algorithm))
    options = OmegaConf.to_container(lines.actor_rollout_ref.actor)
    policy_loss = settings.PolicyLossConfig(**options.pop("policy_loss"))
    actor = settings.FSDPActorConfig(
        strategy="fsdp2", rollout_n=GROUP, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss,
        **options,
    )  # fmt: skip
    return lines.algorithm.adv_estimator, actor


def even_over_odd(engine, batch) -> float:
    """Returns how many times as likely an even token of these answers is as an odd one."""
    even = batch["responses"] % 2 == 0
    logprob, mask = scores(engine, batch), batch["response_mask"].bool()
    return (logprob[mask & even].mean() - logprob[mask & ~even].mean()).exp().item()


def train(folder: str, algorithm: str, updates: int) -> None:
    """Trains on one batch of each process, and prints what it does."""
    say = print if dist.get_rank() == 0 else (lambda *_: None)
    engine = make_engine(folder)
    batch = answers(32, seed=dist.get_rank())
    advantage, actor = configured(algorithm)
    before = even_over_odd(engine, batch)

    even = (batch["responses"] % 2 == 0) * batch["response_mask"]
    mask = batch["response_mask"]
    prompt = np.repeat(np.arange(len(mask) // GROUP), GROUP)
    batch["old_log_probs"] = scores(engine, batch)
    # The share of even tokens, whenever they come.
    reward = even / mask.sum(1, keepdim=True)
    batch["advantages"], _ = get_adv_estimator_fn(advantage)(reward, mask, index=prompt)
    for step in range(updates):
        metrics = update(engine, batch, actor)
        say(f"update {step + 1}: gradient norm {metrics['grad_norm']:.3f}")
    calls = sum(rlkern.integrations.status()[1].calls.values())
    after = even_over_odd(engine, batch)
    say(f"even tokens over odd ones {before:.2f} -> {after:.2f}; rlkern scored {calls} batches")


def main() -> None:
    """Trains as the options say, in as many processes as torchrun started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", default="cfpo", help="of rlkern.algorithms()")
    parser.add_argument("--updates", type=int, default=5)
    given = parser.parse_args()

    # `import verl` has done both already where rlkern is installed, not only on the path.
    if rlkern.integrations.status()[1].calls is None:
        rlkern.integrations.patch("verl")
        rlkern_verl.register()
    with tempfile.TemporaryDirectory() as folder:
        alone = {} if "RANK" in os.environ else {"rank": 0, "world_size": 1}
        where = f"file://{folder}/meeting" if alone else "env://"
        dist.init_process_group("gloo", init_method=where, **alone)
        save_model(folder)
        train(folder, given.algorithm, given.updates)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
