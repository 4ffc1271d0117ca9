# SPDX-License-Identifier: Apache-2.0
"""What people are told whose settings do not suit an algorithm that learns with networks."""

import pytest
import torch

pytest.importorskip("gymnasium")

from rlkern import cli  # noqa: E402
from rlkern.control import algorithms  # noqa: E402
from rlkern.control.declaration import BOX, DISCRETE  # noqa: E402

DEEP = [each for each in algorithms().values() if each.observations == BOX]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--algorithm", "ppo", "--batch_size", "63"], "batch_size must divide rollout·num_envs"),
        (["--algorithm", "reinforce", "--num_envs", "2"], "num_envs must be 1 for reinforce"),
        (["--algorithm", "sac"], "needs box actions"),
        (["--algorithm", "dqn", "--env", "Pendulum-v1"], "needs discrete actions"),
        (["--algorithm", "dqn", "--buffer_size", "1", "--num_envs", "2"], "at least num_envs"),
        (["--algorithm", "a3c", "--device", "cuda"], "device must be"),
        (["--algorithm", "ppo", "--hidden", "0"], "hidden must be"),
    ],
)
def test_bad_settings_get_one_sentence_and_nothing_is_written(flags, sentence, tmp_path, capsys):
    assert cli.main(["control", "--output_dir", str(tmp_path), *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("algorithm", DEEP, ids=lambda each: each.name)
def test_a_gpu_that_is_not_there_is_not_used(algorithm, tmp_path, capsys):
    flags = ["--algorithm", algorithm.name, "--device", "cuda", "--output_dir", str(tmp_path)]
    env = "CartPole-v1" if DISCRETE in algorithm.actions else "Pendulum-v1"
    assert cli.main(["control", "--env", env, *flags]) == 2
    assert "device must be" in capsys.readouterr().err and not list(tmp_path.iterdir())
