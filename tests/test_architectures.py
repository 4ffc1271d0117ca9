# SPDX-License-Identifier: Apache-2.0
"""A spread of the classes that transformers registers, each through all that a run does with a
model; `make models` tries every one and writes the page that these are held to."""

import pytest
from trainer_helpers import compiled  # noqa: F401

transformers = pytest.importorskip("transformers")

from architectures.page import PAGE, line, text  # noqa: E402
from architectures.serve import becomes  # noqa: E402
from architectures.tiny import KINDS  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled")
# Plain and sliding attention, scales and softcaps, learned positions, mixtures with and without a
# loss for the router, text parts of wrappers, hybrids, state spaces, one that cannot make the cache
# it names, and those that are refused.
SPREAD = [
    kind
    for kind in "llama qwen3 gemma3_text gemma3 gpt2 bloom opt mpt cohere2 phi3 bart roberta"
    " mixtral qwen3_moe gpt_oss deepseek_v3 glm4_moe granitemoe llama4_text qwen3_5_text qwen3_next"
    " lfm2 jamba bamba falcon_h1 granitemoehybrid mamba rwkv blt prophetnet xlnet".split()
    if kind in KINDS
]
RECORDED = PAGE.read_text(encoding="utf-8").split("\n")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SPREAD)
def test_what_becomes_of_a_class_is_what_the_page_says(kind):
    found = becomes(kind)
    if f"transformers {transformers.__version__} " in "\n".join(RECORDED):
        assert line(kind, found).strip() in RECORDED
    else:
        assert found.startswith(("served", "refused"))


@pytest.mark.skipif(
    f"transformers {transformers.__version__} " not in "\n".join(RECORDED),
    reason="the page is of another transformers",
)
def test_the_page_has_a_row_for_every_class_and_nine_in_ten_are_served():
    rows = dict(x.strip("| ").split(" | ", 1) for x in RECORDED if x.startswith("| "))
    table = {kind: rows[kind].split(" | ", 1)[1] for kind in KINDS}
    assert text(table) == "\n".join(RECORDED)
    assert sum(x.startswith("served") for x in table.values()) >= 0.9 * len(KINDS)
    assert not any(x.startswith("fault") for x in table.values())
