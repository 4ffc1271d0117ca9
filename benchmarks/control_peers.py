# SPDX-License-Identifier: Apache-2.0
"""The control suite beside Stable-Baselines3: same settings, same networks, runs in turn.

    python -m benchmarks.control_peers [--seeds 0,1,2] [--only ppo,dqn] [--share 1.0] [--threads 1]

Each run is a process of its own; the two of a seed take turns of a second, so that what else the
machine does meanwhile slows both. Environment steps a second are those of learning, start and
evaluation apart, by processor time, in which a process that waits for its turn has no part. The
return is the mean of 20 episodes without exploration; a seed has the same ones for both, which this
library plays. `--share 0.2` takes a fifth of the steps, for speed alone. Lines go to
benchmarks/results/control/peers.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import processes

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks/results/control/peers.jsonl"
# {algorithm: environment}, with rlkern's recipe for it.
PAIRS = {
    "a2c": "CartPole-v1", "ppo": "CartPole-v1", "dqn": "CartPole-v1",
    "ddpg": "Pendulum-v1", "td3": "Pendulum-v1", "sac": "Pendulum-v1",
}  # fmt: skip
# rlkern's key: Stable-Baselines3's argument.
_COMMON = {"learning_rate": "learning_rate", "discount": "gamma"}
_ON = {**_COMMON, "rollout": "n_steps", "gae_lambda": "gae_lambda", "entropy_coef": "ent_coef",
       "value_coef": "vf_coef", "max_grad_norm": "max_grad_norm"}  # fmt: skip
_OFF = {**_COMMON, "buffer_size": "buffer_size", "batch_size": "batch_size",
        "learning_starts": "learning_starts", "train_every": "train_freq",
        "updates": "gradient_steps"}  # fmt: skip
_ACTOR = {**_OFF, "tau": "tau"}
ARGUMENTS = {
    "a2c": _ON,
    "ppo": {**_ON, "batch_size": "batch_size", "epochs": "n_epochs", "clip": "clip_range"},
    "dqn": {**_OFF, "target_every": "target_update_interval", "epsilon": "exploration_initial_eps",
            "epsilon_end": "exploration_final_eps", "exploration_share": "exploration_fraction",
            "max_grad_norm": "max_grad_norm"},
    "ddpg": _ACTOR,
    "td3": {**_ACTOR, "policy_every": "policy_delay", "target_noise": "target_policy_noise",
            "target_noise_clip": "target_noise_clip"},
    "sac": _ACTOR,
}  # fmt: skip
# Keys that decide nothing of the learning, or that the code below hands over itself.
_HANDLED = frozenset(
    "algorithm env env_options steps num_envs seed max_seconds device threads name output_dir log"
    " log_every eval_every eval_episodes eval_length save_every hidden anneal noise"
    " noise_correlation alpha learn_alpha target_entropy".split()
)
EPISODES = 20
# Actions (1, …) for observations (1, …).
Act = Callable[[Any], Any]
TURN_SECONDS = 1.0


def settings_of(algorithm: str, seed: int, share: float) -> Any:
    """Returns rlkern's settings of a run."""
    from rlkern.control.settings import of

    own = of(algorithm=algorithm, env=PAIRS[algorithm], seed=seed)
    return own if share == 1 else own.model_copy(update={"steps": int(own.steps * share)})


def arguments(algorithm: str, settings: Any) -> dict[str, Any]:
    """Returns what Stable-Baselines3 is given; Raises ValueError for a key that has no equivalent
    there."""
    values, table = settings.model_dump(), ARGUMENTS[algorithm]
    unknown = values.keys() - table.keys() - _HANDLED
    if unknown:
        raise ValueError(f"{algorithm}: {', '.join(sorted(unknown))} has no argument in SB3")
    found = {table[key]: value for key, value in values.items() if key in table}
    if values.get("anneal"):
        rate, clip = values["learning_rate"], values.get("clip")
        found["learning_rate"] = lambda left: rate * left
        if clip is not None:
            found["clip_range"] = lambda left: clip * left
    return found


def mean_return(act: Act, settings: Any) -> float:
    """Returns the mean return of the episodes of a seed in which `act` gives the actions (1, …) of
    observations (1, …)."""
    from rlkern.control.evaluate import EVALUATION_SEED, play

    found = play(act, settings.env, {}, EPISODES, settings.seed + EVALUATION_SEED)
    return statistics.fmean(each.total for each in found)


def ours(settings: Any) -> tuple[float, Act]:
    """Returns (environment steps a second, what acts without exploration) of rlkern."""
    import torch

    from rlkern.control.environments import Environments
    from rlkern.control.settings import declared

    torch.manual_seed(settings.seed)
    environments = Environments(settings.env, {}, settings.num_envs, settings.seed)
    learner = declared(settings).learner(settings, environments)
    started = time.process_time()
    while environments.steps < settings.steps:
        learner.iterate()
    seconds = time.process_time() - started
    return environments.steps / seconds, learner.act


def theirs(settings: Any) -> tuple[float, Act]:
    """Returns the same of Stable-Baselines3."""
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise

    name = settings.algorithm
    env = make_vec_env(settings.env, n_envs=settings.num_envs, seed=settings.seed)
    given = arguments(name, settings)
    hidden = list(settings.hidden)
    policy: dict[str, Any] = {"net_arch": hidden}
    if hasattr(settings, "gae_lambda"):  # tanh, and a network for the values
        policy = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": torch.nn.Tanh}
    if getattr(settings, "noise", 0):
        import numpy as np

        width = env.action_space.shape[0]
        given["action_noise"] = NormalActionNoise(np.zeros(width), np.full(width, settings.noise))
    if hasattr(settings, "learn_alpha"):
        given["ent_coef"] = f"auto_{settings.alpha}" if settings.learn_alpha else settings.alpha
    make: Callable[..., Any] = getattr(sb3, name.upper())
    model = make("MlpPolicy", env, seed=settings.seed, device="cpu", policy_kwargs=policy, **given)
    started = time.process_time()
    model.learn(settings.steps)
    seconds = time.process_time() - started
    return model.num_timesteps / seconds, lambda seen: model.predict(seen, deterministic=True)[0]


SIDES: dict[str, Callable[[Any], tuple[float, Act]]] = {"rlkern": ours, "sb3": theirs}


def measured(who: str, settings: Any) -> dict[str, float]:
    """Returns the speed of one side's run, and the mean return of what it learned."""
    speed, act = SIDES[who](settings)
    return {"steps_a_second": speed, "return": mean_return(act, settings)}


def one(who: str, algorithm: str, seed: int, share: float, threads: int) -> None:
    """Prints a line of JSON about one run in this process."""
    import torch

    torch.set_num_threads(threads)
    print(json.dumps(measured(who, settings_of(algorithm, seed, share))))


def pair(algorithm: str, seed: int, share: float, threads: int) -> dict[str, dict[str, float]]:
    """Returns what a process each of rlkern and of Stable-Baselines3 measured, turn by turn."""
    words = [sys.executable, "-m", "benchmarks.control_peers", "--only", algorithm,
             "--seeds", str(seed), "--share", str(share), "--threads", str(threads)]  # fmt: skip
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for who in SIDES:
            running[who] = subprocess.Popen([*words, "--one", who], cwd=ROOT, env=variables,
                                            stdout=subprocess.PIPE, text=True)  # fmt: skip
            running[who].send_signal(signal.SIGSTOP)
        while any(each.returncode is None for each in running.values()):
            for each in running.values():
                _turn(each)
    finally:
        for each in running.values():
            each.kill()
    found = {}
    for who, each in running.items():
        said = each.communicate()[0]
        if each.returncode:
            raise RuntimeError(f"{who} {algorithm}, seed {seed}, ended with {each.returncode}")
        found[who] = json.loads(said.splitlines()[-1])
    return found


def _turn(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TURN_SECONDS)
            return
        process.send_signal(signal.SIGSTOP)


def main() -> int:
    """Returns 0 after all pairs ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(PAIRS))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    seeds, names = [int(word) for word in given.seeds.split(",")], given.only.split(",")
    if given.one:
        one(given.one, names[0], seeds[0], given.share, given.threads)
        return 0
    for name in names:
        settings = settings_of(name, seeds[0], given.share)
        before = getattr(settings, "learning_starts", 0)
        if settings.steps <= before:
            parser.error(f"--share must be so much that {name} learns, which it does after {before}"
                         f" steps; got {given.share:g}, {settings.steps} steps")  # fmt: skip
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        pairs = [pair(name, seed, given.share, given.threads) for seed in seeds]
        line: dict[str, Any] = {
            "algorithm": name, "env": PAIRS[name], "seeds": seeds, "share": given.share,
            "threads": given.threads, "clock": "processor time", "starts": "the same",
            "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        for who in SIDES:
            for key in ("return", "steps_a_second"):
                line[f"{who}_{key}"] = statistics.median(each[who][key] for each in pairs)
        line["ratio"] = line["rlkern_steps_a_second"] / line["sb3_steps_a_second"]
        with RECORDS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name} {PAIRS[name]}: rlkern {line['rlkern_steps_a_second']:.0f} steps/s,"
              f" return {line['rlkern_return']:.1f}; SB3 {line['sb3_steps_a_second']:.0f},"
              f" {line['sb3_return']:.1f}; ratio {line['ratio']:.2f}", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(processes.stoppable(main))
