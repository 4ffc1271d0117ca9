# SPDX-License-Identifier: Apache-2.0
"""docs/notes.md: the study notes part by part, each with its formula, its operation, its file and a
command.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rlkern.compare.markdown import table


class Part(NamedTuple):
    """One part of the notes.

    formula    as text
    operation  a public name of rlkern, or the file of the algorithm if it needs none
    file       where the formula stands
    command    what runs it in under three minutes on two cores; "" for what only others use
    curve      a plot below docs/, "" for none
    """

    name: str
    formula: str
    operation: str
    file: str
    command: str
    curve: str = ""


def _control(name: str, env: str) -> str:
    return f"rlkern control --algorithm {name} --env {env}"


def _train(name: str) -> str:
    return f"rlkern train --config configs/algorithms/{name}.yaml"


_CLASSIC = "rlkern/control/algorithms"
_LLM = "rlkern/algorithms"
_WALK, _CLIFF, _POLE, _PENDULUM = "RandomWalk5-v0", "CliffWalking-v1", "CartPole-v1", "Pendulum-v1"

PARTS = (
    Part("Return", "G_t = Σ_k γ^k·r_{t+k}", "discounted_return",
         "rlkern/ops/discounted_return.py", ""),
    Part("Value and advantage", "A(s, a) = Q(s, a) − V(s)", "gae", "rlkern/ops/gae.py", ""),
    Part("Monte Carlo", "V(s) ← mean of the returns G that followed s", "discounted_return",
         f"{_CLASSIC}/mc_first_visit.py", _control("mc_first_visit", _WALK)),
    Part("TD(0)", "V(s) ← V(s) + α·(r + γ·V(s') − V(s))", "",
         f"{_CLASSIC}/td_zero.py", _control("td_zero", _WALK)),
    Part("TD(n)", "V(s) ← V(s) + α·(Σ_{k<n} γ^k·r_k + γⁿ·V(s_n) − V(s))", "n_step_return",
         f"{_CLASSIC}/td_n.py", _control("td_n", _WALK)),
    Part("TD(λ)", "V ← V + α·δ·e,  e ← γλ·e + ∇V(s)", "lambda_return",
         f"{_CLASSIC}/td_lambda.py", _control("td_lambda", _WALK)),
    Part("SARSA", "Q(s, a) ← Q(s, a) + α·(r + γ·Q(s', a') − Q(s, a))", "",
         f"{_CLASSIC}/sarsa.py", _control("sarsa", _CLIFF), "control/cliffwalking-v1.png"),
    Part("Q-learning", "Q(s, a) ← Q(s, a) + α·(r + γ·max_a' Q(s', a') − Q(s, a))", "",
         f"{_CLASSIC}/q_learning.py", _control("q_learning", _CLIFF),
         "control/cliffwalking-v1.png"),
    Part("DQN", "ℓ = huber(Q(s, a) − (r + γ·max_a' Q⁻(s', a')))", "td_loss",
         f"{_CLASSIC}/dqn.py", _control("dqn", _POLE), "control/cartpole-v1.png"),
    Part("REINFORCE", "∇J = E[G_t·∇log π(a_t | s_t)]", "policy_loss",
         f"{_CLASSIC}/reinforce.py", _control("reinforce", _POLE), "control/cartpole-v1.png"),
    Part("REINFORCE on language models", "ℓ = −A·log π(o_t),  A = R − mean(R)", "policy_loss",
         f"{_LLM}/reinforce.py", _train("reinforce"), "algorithms/reinforce.png"),
    Part("Baseline", "∇J = E[(G_t − V(s_t))·∇log π(a_t | s_t)]", "policy_loss",
         f"{_CLASSIC}/reinforce_baseline.py", _control("reinforce_baseline", _POLE),
         "control/cartpole-v1.png"),
    Part("Actor–critic: A2C", "A = r + γ·V(s') − V(s), or several steps of it", "gae",
         f"{_CLASSIC}/a2c.py", _control("a2c", _POLE), "control/cartpole-v1.png"),
    Part("A3C", "A2C by several processes on one model", "gae",
         f"{_CLASSIC}/a3c.py", _control("a3c", _POLE), "control/cartpole-v1.png"),
    Part("DDPG", "max Q(s, μ(s))", "value_loss", f"{_CLASSIC}/ddpg.py",
         _control("ddpg", _PENDULUM), "control/pendulum-v1.png"),
    Part("TD3", "y = r + γ·min(Q₁⁻, Q₂⁻)(s', μ⁻(s') + noise)", "value_loss",
         f"{_CLASSIC}/td3.py", _control("td3", _PENDULUM), "control/pendulum-v1.png"),
    Part("SAC", "max E[min(Q₁, Q₂)(s, a) − α·log π(a | s)]", "value_loss",
         f"{_CLASSIC}/sac.py", _control("sac", _PENDULUM), "control/pendulum-v1.png"),
    Part("TRPO", "max E[r·A] with KL(π_old ‖ π) ≤ δ", "token_logprob",
         f"{_CLASSIC}/trpo.py", _control("trpo", _POLE), "control/cartpole-v1.png"),
    Part("Importance sampling", "r_t = π(o_t) / π_old(o_t)", "policy_loss",
         "rlkern/backends/eager/levels.py", ""),
    Part("PPO", "ℓ = −min(r·A, clip(r, 1 − ε, 1 + ε)·A)", "policy_loss",
         f"{_CLASSIC}/ppo.py", _control("ppo", _POLE), "control/cartpole-v1.png"),
    Part("PPO on language models: sample, score, GAE(γ, λ), K epochs, value loss", "as above, "
         "A by GAE over tokens, KL to the start in the reward", "policy_loss",
         f"{_LLM}/ppo.py", _train("ppo"), "algorithms/ppo.png"),
    Part("DPO", "ℓ = −log σ(β·(h⁺ − h⁻)),  h = log π − log π_ref", "preference_loss",
         f"{_LLM}/dpo.py", _train("dpo"), "algorithms/dpo.png"),
    Part("GRPO", "A = (R − mean of the group) / std of the group", "group_advantage",
         f"{_LLM}/grpo.py", _train("grpo"), "algorithms/grpo.png"),
    Part("Leave-one-out (RLOO)", "A_i = R_i − mean of the others of the group",
         "group_advantage", f"{_LLM}/rloo.py", _train("rloo"), "algorithms/rloo.png"),
    Part("DAPO", "GRPO with dynamic sampling, clip-higher, a mean over tokens, overlong shaping",
         "policy_loss", f"{_LLM}/dapo.py", _train("dapo"), "algorithms/dapo.png"),
    Part("DUPO", "DAPO whose dropped groups are refilled by copies of others", "policy_loss",
         f"{_LLM}/dupo.py", _train("dupo"), "algorithms/dupo.png"),
    Part("GSPO", "s = (π(o) / π_old(o))^(1/|o|), clipped per answer", "policy_loss",
         f"{_LLM}/gspo.py", _train("gspo"), "algorithms/gspo.png"),
)  # fmt: skip

# What ties the parts together, and the test that holds it.
IDENTITIES = (
    ("PPO at ratio 1 has the gradient of REINFORCE",
     "tests/test_identities.py::test_ppo_without_an_old_policy_has_the_gradient_of_reinforce"),
    ("GAE at λ = 1 is the return minus the baseline",
     "tests/test_identities.py::test_gae_with_lambda_one_is_returns_minus_value"),
    ("GAE at λ = 0 is the one-step error of TD(0)",
     "tests/test_identities.py::test_gae_with_lambda_zero_is_the_one_step_error"),
    ("the λ-return is one step at λ = 0 and Monte Carlo at λ = 1",
     "tests/test_returns.py::test_the_lambda_return_is_one_step_at_zero_and_monte_carlo_at_one"),
    ("leave-one-out is the centred reward times G / (G − 1)",
     "tests/test_identities.py::test_leave_one_out_is_centered_times_n_over_n_minus_one"),
    ("GSPO of answers of one token is PPO",
     "tests/test_objective.py::test_gspo_of_sequences_of_one_token_is_ppo"),
)  # fmt: skip

_HEAD = (
    "# The study notes, part by part",
    "The notes that this library follows go from the return of an episode to GSPO. Each line is"
    " one part of them: the formula, the operation that computes it, the file where it stands, and"
    " a command that runs it, mostly in under three minutes on two cores"
    " ([the classic algorithms](control.md); the language models are [tiny ones that learn"
    " two-digit sums](algorithms.md)). `make docs` writes this page, and a test tries its"
    " commands.",
)


def page() -> str:
    """Returns docs/notes.md."""
    rows = []
    for part in PARTS:
        operation = f"`rlkern.{part.operation}`" if part.operation else "a table"
        curve = f"[curve]({part.curve})" if part.curve else ""
        file = f"[{Path(part.file).name}](../{part.file})"
        command = f"`{part.command}`" if part.command else ""
        rows.append((part.name, part.formula, operation, file, command, curve))
    head = ("part", "formula", "operation", "file", "run it", "its curve")
    tied = [(text, f"`{test}`") for text, test in IDENTITIES]
    return "\n\n".join((
        *_HEAD,
        table(head, rows),
        "The notes' last table compares the algorithms: [language models](algorithms.md),"
        " [classic ones](control.md).",
        "## What ties them together",
        table(("identity", "test"), tied),
    )) + "\n"  # fmt: skip
