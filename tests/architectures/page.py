# SPDX-License-Identifier: Apache-2.0
"""docs/models.md: what becomes of each class."""

from pathlib import Path

import transformers

from architectures.tiny import KINDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
_HEAD = """# Models

Which causal language models of transformers {version} the trainer and `rlkern.fused_head` serve.
`make models` builds a tiny random model of every class that transformers registers and takes it
through all that a run does; this page is what came of it, and `tests/test_architectures.py` holds a
spread of the classes to it. {served} of {count} are served.

**Served** means that the sampler, the trainer and the model's own forward over a row without
padding give sampled tokens the same log-probabilities, to 1e-5 on average, that `fused_head` gives
the values of the model's logits and the gradient of every weight, that a GRPO step trains it, and
that it is the same after it was saved and loaded. The checkpoints of a class may ask for more than
the class does. So each run repeats the first of these checks on its own model before it takes a
step, to within rounding, and stops with a sentence that names the class if it fails.

- **Padding.** Most models see no padding on the left of a row. Those that count positions
  themselves, or carry a state from token to token, do; their prompts of equal length are sampled
  together, and their rows are scored with padding on the right. A few are sampled without a cache,
  because the one that transformers keeps for them gives other numbers: each token costs a pass over
  its whole row.
- **Sharing prompts.** `memory.share_prompts` needs a cache of keys and values only. Hybrids and
  state-space models run whole rows all the same.
- **Mixtures of experts.** If the model's configuration says `output_router_logits`, the loss for
  the router is added as transformers adds it, with the configuration's coefficient. It is a mean
  over the tokens of whole rows, padding left out, so prompts are not shared. In micro-batches it is
  the mean of theirs.
- **Images and sound.** Models in such wrappers are trained on text.
- **Rotary embeddings that change with the length** (`longrope`, `dynamic`). A cache would hold keys
  of two kinds, so rows may be as long as the length at which they change, and no longer.
- **Adapters of PEFT** may be of any kind that is made of layers inside the model. The head may have
  plain LoRA, with its bias, and a trained copy (`modules_to_save`); other adapters of the head, and
  kinds that run the model with inputs of their own (prompt tuning and its family, X-LoRA), are
  refused in a sentence.

| type | class | |
| --- | --- | --- |
"""


def line(kind: str, found: str) -> str:
    """Returns the row of the table for one kind."""
    return f"| {kind} | {KINDS[kind]} | {found} |\n"


def text(table: dict[str, str]) -> str:
    """Returns the page of a whole table, by kind."""
    served = sum(found.startswith("served") for found in table.values())
    head = _HEAD.format(version=transformers.__version__, served=served, count=len(table))
    return head + "".join(line(kind, found) for kind, found in table.items())
