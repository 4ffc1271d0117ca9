# SPDX-License-Identifier: Apache-2.0
"""Algorithms whose processes learn at once: how they go on, and how they end."""

import importlib
import multiprocessing
import time

import pytest
import torch

pytest.importorskip("gymnasium")

from control_helpers import quiet, run  # noqa: E402

from rlkern.control import algorithms, of, train  # noqa: E402
from rlkern.control.environments import Environments  # noqa: E402

UNREPEATABLE = [each for each in algorithms().values() if not each.repeats]


def made(algorithm, env: str, **values):
    """Returns a learner in its environments."""
    settings = of(algorithm=algorithm.name, env=env, **{**algorithm.quick, **values})
    torch.manual_seed(0)
    environments = Environments(env, settings.env_options, settings.num_envs, 0)
    return algorithm.learner(settings, environments)


@pytest.mark.parametrize("algorithm", UNREPEATABLE, ids=lambda each: each.name)
def test_a_run_of_processes_goes_on_from_its_weights_and_leaves_no_process(algorithm, tmp_path):
    settings = {"algorithm": algorithm.name, "env": "CartPole-v1", "name": "x", "eval_episodes": 1,
                "num_envs": 1}  # fmt: skip
    first = run(tmp_path, **settings, steps=100)
    again = of(output_dir=str(tmp_path), **settings, steps=100)
    assert train(again, resume=True, display=quiet()) == first
    second = run(tmp_path, **settings, steps=400, resume=True)
    assert first["steps"] < 200 and second["steps"] >= 400
    assert second["episodes"] > first["episodes"]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("algorithm", UNREPEATABLE, ids=lambda each: each.name)
def test_a_process_that_does_not_end_is_ended(algorithm, monkeypatch):
    module = importlib.import_module(algorithm.learner.__module__)
    monkeypatch.setattr(module, "_LAST_SECONDS", 0.1)
    learner = made(algorithm, "CartPole-v1")
    deaf = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    deaf.start()
    learner.started = [deaf]
    learner.close()
    assert not deaf.is_alive()


@pytest.mark.parametrize("algorithm", UNREPEATABLE, ids=lambda each: each.name)
def test_a_process_whose_parent_was_killed_ends_without_a_word(algorithm):
    learner = made(algorithm, "CartPole-v1")
    module = importlib.import_module(algorithm.learner.__module__)
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    weights = learner.weights.vector.data
    orphan = context.Process(
        target=module.work, args=(learner.settings, 0, weights, learner.statistics, its)
    )
    orphan.start()
    its.close()
    mine.send(5)
    mine.close()  # while it works: there is nobody to tell, and nobody to ask
    orphan.join(60)
    assert orphan.exitcode == 0
