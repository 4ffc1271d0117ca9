# SPDX-License-Identifier: Apache-2.0
"""Which groups of answers TRL's GRPOTrainer trains on: DAPO's dynamic sampling and DUPO's refill.

TRL keeps groups whose rewards agree. Their advantage is 0, but their tokens count in the loss's
denominator. A mix-in before the trainer changes that and nothing else:

    class Trainer(DynamicSampling, GRPOTrainer):
        rounds = 8

Both work on what the trainer makes of a batch, before it is shuffled and split into steps: the
advantages, the loss and all options stay TRL's, and a batch without such groups is TRL's own.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import rlkern
from rlkern.integrations._patch import checked
from rlkern.integrations._target import Target, Trainer
from rlkern.integrations.trl import TRAINER as TRL

_OVERRIDDEN = Trainer(
    "trl",
    TRL.versions,
    tuple(
        Target("trl.trainer.grpo_trainer", f"GRPOTrainer.{name}", signature)
        for name, signature in (
            ("_generate_and_score_completions", "(self, inputs)"),
            ("_calculate_rewards", "(self, inputs, prompts, completions, completion_ids_list)"),
        )
    ),
)
# What fills a row that is shorter than another round's; prompts are filled on the left.
_FILL: dict[str, float | None] = {
    "prompt_ids": None, "completion_ids": None,  # the tokenizer's pad token
    "prompt_mask": 0, "completion_mask": 0, "tool_mask": 1, "advantages": 0,
    "old_per_token_logps": 0, "ref_per_token_logps": 0, "sampling_per_token_logps": 0,
    "importance_sampling_ratio": 1,
}  # fmt: skip
Rows = dict[str, Tensor]


def _widened(name: str, x: Tensor, width: int, pad_token: int) -> Tensor:
    missing = width - x.shape[-1] if x.ndim > 1 else 0
    if not missing:
        return x
    fill = _FILL[name]
    sides = (missing, 0) if name.startswith("prompt") else (0, missing)
    return torch.nn.functional.pad(x, sides, value=pad_token if fill is None else fill)


def joined(parts: list[Rows], pad_token: int) -> Rows:
    """Returns the rows of several batches of TRL as one, padded to the longest.

    >>> short = {"completion_mask": torch.tensor([[1]]), "advantages": torch.tensor([0.5])}
    >>> longer = {"completion_mask": torch.tensor([[1, 1]]), "advantages": torch.tensor([-0.5])}
    >>> joined([short, longer], pad_token=0)["completion_mask"].tolist()
    [[1, 0], [1, 1]]
    """
    rows = {}
    for name in parts[0]:
        width = max(part[name].shape[-1] for part in parts)
        rows[name] = torch.cat([_widened(name, part[name], width, pad_token) for part in parts])
    return rows


def taken(rows: Rows, index: Tensor) -> Rows:
    """Returns some of the rows, a place of the index each."""
    return {name: x[index] for name, x in rows.items()}


def emptied(rows: Rows) -> Rows:
    """Returns the rows without a token that counts: they train nothing."""
    return {**rows, "completion_mask": torch.zeros_like(rows["completion_mask"])}


class _MixedGroups:
    """What the mix-ins share: the rewards of the last batch, and the rows of all processes."""

    # Attributes of the GRPOTrainer that stands behind in the class's bases.
    accelerator: Any
    args: Any
    model: Any
    num_generations: int
    reward_weights: Tensor
    state: Any
    train_dataset: Any
    _metrics: Any
    _step: int
    _tokenizer: Any
    _rewards_per_func: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = [each.__name__ for each in cls.__mro__]
        mixed = [n for n in names if n in ("DynamicSampling", "DuplicatedGroups")]
        if len(mixed) > 1:
            raise TypeError(f"{cls.__name__}: {' and '.join(mixed)} cannot be combined")
        trainer = "GRPOTrainer"
        if trainer in names and names.index(trainer) < names.index(_MixedGroups.__name__):
            raise TypeError(f"{cls.__name__}: {mixed[0]} must stand before {trainer} in its bases")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        if "GRPOTrainer" not in (each.__name__ for each in type(self).__mro__):
            raise TypeError(f"{name}: must be a GRPOTrainer, whose groups of answers are chosen")
        checked(_OVERRIDDEN)
        super().__init__(*args, **kwargs)
        for key, allowed in (
            ("scale_rewards", ("group", "none")),
            ("multi_objective_aggregation", ("sum_then_normalize",)),
        ):
            if (given := getattr(self, key)) not in allowed:
                raise ValueError(
                    f"{name}: {key} must be {' or '.join(allowed)}, so that a group's advantages"
                    f" do not depend on groups that are dropped, got {given!r}"
                )

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        behind: Any = super()
        found = behind._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_per_func = found
        return found

    def _reward_and_group(self) -> tuple[Tensor, Tensor]:
        """Returns the reward (N,) of each answer of all processes, NaN if no function gave one,
        and the number of its group."""
        each = self._rewards_per_func
        reward = (each * self.reward_weights.to(each.device)).nansum(1)
        reward = reward.masked_fill(each.isnan().all(1), torch.nan)
        group = torch.arange(len(reward), device=reward.device) // self.num_generations
        return reward, group

    def _of_all_processes(self, output: dict[str, Any]) -> Rows:
        from accelerate.utils import gather_object

        rows = {name: x for name, x in output.items() if name != "num_items_in_batch"}
        if unknown := rows.keys() - _FILL:
            raise ValueError(
                f"{type(self).__name__}: a batch must be text, whose columns are known, got"
                f" {', '.join(sorted(unknown))}"
            )
        if self.accelerator.num_processes == 1:
            return rows
        parts = gather_object([{name: x.cpu() for name, x in rows.items()}])
        device = self.accelerator.device
        return {k: x.to(device) for k, x in joined(parts, self._tokenizer.pad_token_id).items()}

    def _share(self, rows: Rows, count: int) -> dict[str, Tensor]:
        """Returns this process's rows, as TRL's own function does."""
        counted = rows["completion_mask"] * rows.get("tool_mask", 1)
        first = self.accelerator.process_index * count
        own = {name: x[first : first + count] for name, x in rows.items()}
        return {**own, "num_items_in_batch": counted.sum()}

    def _draw(self, number: int) -> random.Random:
        """Returns a source of random numbers, the same in all processes, of this batch."""
        part = self._step % self.args.gradient_accumulation_steps
        return random.Random(f"{self.args.seed} {self.state.global_step} {part} {number}")

    def _note(self, **groups: int) -> None:
        for name, value in groups.items():
            self._metrics["train"][f"groups/{name}"].append(float(value))


class DynamicSampling(_MixedGroups):
    """Samples until a batch is full of groups whose rewards differ: DAPO's dynamic sampling.

    Each round asks for a whole batch of other prompts, drawn from train_dataset, and groups whose
    rewards agree are dropped. After the last round the places that are left stay empty: they hold
    answers without a token that counts. TRL's own metrics are means over all rounds.

    Paper: arXiv 2503.14476, eq. 11.

    rounds  the most rounds for a batch
    logs    groups/sampled, groups/dropped for equal rewards, groups/empty places of the batch
    Raises ValueError for a train_dataset that cannot be indexed, for rewards that are scaled by the
    batch, and for batches of images.
    """

    rounds = 10

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        from datasets import IterableDataset

        super().__init__(*args, **kwargs)
        if isinstance(self.train_dataset, IterableDataset):
            raise ValueError(
                "DynamicSampling: train_dataset must be one that can be indexed, got an"
                " IterableDataset"
            )
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(
                f"DynamicSampling: rounds must be an int of at least 1, got {self.rounds!r}"
            )

    def _other_prompts(self, number: int, count: int) -> list[dict[str, Any]]:
        """Returns this process's inputs of a further round, each prompt once an answer."""
        total, data = count * self.accelerator.num_processes, self.train_dataset
        chosen = self._draw(number).sample(range(len(data)), total // self.num_generations)
        repeated = [i for i in chosen for _ in range(self.num_generations)]
        first = self.accelerator.process_index * count
        return [data[i] for i in repeated[first : first + count]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        behind: Any = super()
        output = behind._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        size, found, mixed = self.num_generations, list[Rows](), self._mixed()
        wanted, sampled, dropped = len(mixed), len(mixed), int((~mixed).sum())
        if not dropped:
            self._note(sampled=sampled // size, dropped=0, empty=0)
            return output
        rows = self._of_all_processes(output)
        for number in range(1, self.rounds + 1):
            found.append(taken(rows, mixed.nonzero().flatten()[:wanted]))
            wanted -= len(found[-1]["advantages"])
            if not wanted or number == self.rounds:
                break
            others = self._other_prompts(number, len(inputs))
            rows = self._of_all_processes(behind._generate_and_score_completions(others))
            mixed = self._mixed()
            sampled, dropped = sampled + len(mixed), dropped + int((~mixed).sum())
        found.append(emptied(taken(rows, (~mixed).nonzero().flatten()[:wanted])))
        self._note(sampled=sampled // size, dropped=dropped // size, empty=wanted // size)
        return self._share(joined(found, self._tokenizer.pad_token_id), len(inputs))

    def _mixed(self) -> Tensor:
        return rlkern.sampling.mixed_groups(*self._reward_and_group())


class DuplicatedGroups(_MixedGroups):
    """Fills the places of groups whose rewards agree with copies of the batch's others: DUPO.

    Nothing more is sampled. The groups to copy are drawn as rlkern.sampling.refill_index says. If
    all groups' rewards agree, all places stay empty: the step's loss is 0.

    Paper: arXiv 2507.02592, DUPO.

    logs    groups/refilled places of the batch, groups/empty
    Raises ValueError for rewards that are scaled by the batch, and for batches of images.
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        behind: Any = super()
        output = behind._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        reward, group = self._reward_and_group()
        mixed = rlkern.sampling.mixed_groups(reward, group)
        places = int((~mixed).sum()) // self.num_generations
        none = not bool(mixed.any())
        self._note(refilled=0 if none else places, empty=places if none else 0)
        if not places:
            return output
        rows = self._of_all_processes(output)
        if none:
            return self._share(emptied(rows), len(inputs))
        generator = torch.Generator().manual_seed(self._draw(0).getrandbits(62))
        index = rlkern.sampling.refill_index(reward, group, generator=generator)
        return self._share(taken(rows, index), len(inputs))
