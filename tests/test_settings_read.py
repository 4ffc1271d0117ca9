# SPDX-License-Identifier: Apache-2.0
"""Every key that a run takes is read by it, in one file; every other key is refused."""

import pytest
from rich.console import Console
from settings_helpers import recorded
from trainer_helpers import any_algorithm, compiled  # noqa: F401

from rlkern.algorithms import declarations
from rlkern.runs.errors import UserError
from rlkern.runs.settings.layers import alternatives, dotted, leaves
from rlkern.trainer import train
from rlkern.trainer.settings import Layer, Settings, dump, resolve
from rlkern.trainer.show.display import Display

pytestmark = pytest.mark.usefixtures("compiled")

# Alternatives are told apart by their class, and a group that is off has nothing to read.
BY_CLASS = {"groups.kind", "correction", "lora", "sft", "optimizer.decay", "reward.adaptive"}
SHORT = {
    "steps": 2,
    "eval__items": 8,
    "eval__every": 1,
    "sft": {"steps": 2, "batch": 4, "target": 1.0},
    "optimizer__decay": "linear",
    "output__save_every": 1,
    "output__sample_every": 1,
}
# What else an algorithm needs for a run of two steps from random weights.
MORE = {
    "dapo": {"groups__rounds": 2},
    "intellect2": {"groups__rounds": 2},
    "ppo": {"reward__adaptive": {"target": 1.0, "horizon": 1000.0}},
    "grpo": {"lora": {"rank": 2}, "correction": {"kind": "mask", "low": 0.5}},
    "rloo": {"correction": "truncate", "optimizer__decay": None},
}
# How many files read a key, where more than one does: what identifies a run and where it starts,
# what splits it, the form of the loss, which decides what must be there before it, and what needs a
# package to be written.
BY_COUNT = {
    2: "teacher data.train task reward.functions reward.weights rollout.max_new_tokens output.log"
    " output.completions lora.targets optimizer.lr sft.steps rollout.group_size critic.warmup",
    3: "coefficients reward.kl_coef steps loss.path batch.micro_batches eval.batch pairs.source",
    4: "algorithm loss.kind rollout.temperature memory.share_prompts",
    5: "model",
    6: "seed batch.prompts",
}
SEVERAL = {key: count for count, keys in BY_COUNT.items() for key in keys.split()}
# {algorithm: {key: files that read it}} of the runs that were made.
READERS: dict[str, dict[str, set[str]]] = {}


def ran(tmp_path, name):
    """Returns (settings, readers by key) of a short run of an algorithm."""
    more = {**SHORT, **MORE.get(name, {})}
    if declarations()[name].learns_from in ("pairs", "judged"):
        more["pairs__items"] = 24
    with recorded() as readers:
        settings = any_algorithm(tmp_path, name, **more)
        train(settings, display=Display(Console(quiet=True)))
    READERS[name] = readers
    return settings, readers


@pytest.mark.parametrize("name", declarations())
def test_a_run_reads_every_key_that_it_takes(tmp_path, name):
    settings, readers = ran(tmp_path, name)
    assert not [key for key in dotted(Settings, dump(settings)) if key not in {*readers, *BY_CLASS}]


def test_one_file_reads_a_key(tmp_path):
    found: dict[str, set[str]] = {}
    for name in "grpo rloo ppo dapo dupo a_star_po gdpo dpo kto reward_model".split():
        if name not in READERS:
            ran(tmp_path / name, name)
        for key, files in READERS[name].items():
            found.setdefault(key, set()).update(files)
    other = {key: sorted(x) for key, x in found.items() if len(x) != SEVERAL.get(key, 1)}
    assert not other, "another file reads it, or it is no exception any more"
    assert SEVERAL.keys() <= found.keys()


@pytest.mark.parametrize("name", declarations())
def test_a_key_that_an_algorithm_does_not_read_is_refused(tmp_path, name):
    taken = dotted(Settings, dump(any_algorithm(tmp_path, name)))
    open_groups = (
        "lora.",
        "correction.",
        "sft.",
        "optimizer.decay.",
        "reward.adaptive.",
        "groups.",
    )
    refused = 0
    for key, info in leaves(Settings):
        if key in taken or key.startswith(open_groups) or key == "coefficients":
            continue
        value = info.default if info.default is not None else 1
        with pytest.raises(UserError, match=rf"^a flag: {key} is read by runs that "):
            resolve(Layer("", {"algorithm": name, "sft": None}), Layer("a flag", {key: value}))
        refused += 1
    assert refused or declarations()[name].online


def test_every_alternative_is_refused_where_it_is_not_chosen():
    for key, kind in (
        ("groups.rounds", "duplicate"),
        ("groups.by", "dynamic"),
        ("groups.by", "all"),
    ):
        given = {"groups.kind": kind, key: 3}
        with pytest.raises(UserError, match=rf"{key} is read only with groups.kind"):
            resolve(Layer("", given))
    with pytest.raises(UserError, match=r"correction.low is read only with correction.kind trun"):
        resolve(Layer("", {"correction": {"kind": "sequence_truncate", "low": 0.5}}))
    assert len(alternatives(Settings, ("groups",))) == 3
