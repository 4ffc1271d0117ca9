# SPDX-License-Identifier: Apache-2.0
"""What the control suite is compared by with Stable-Baselines3."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from benchmarks import control_page, control_peers


@pytest.mark.parametrize("name", control_peers.PAIRS)
def test_every_setting_is_handed_over_or_known_to_be(name):
    settings = control_peers.settings_of(name, 0, 1.0)
    given = control_peers.arguments(name, settings)
    assert {"gamma", "learning_rate"} <= given.keys()
    assert given["gamma"] == settings.discount


def test_a_setting_that_has_no_equivalent_is_refused():
    settings = control_peers.settings_of("sac", 0, 1.0)
    with pytest.raises(ValueError, match="has no argument in SB3"):
        control_peers.arguments("ppo", settings)


def test_a_share_in_which_nothing_is_learnt_is_refused_before_a_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["control_peers", "--only", "ddpg", "--share", "0.5"])
    monkeypatch.setattr(control_peers, "pair", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(SystemExit):
        control_peers.main()
    assert (
        "learns, which it does after 10000 steps; got 0.5, 10000 steps" in capsys.readouterr().err
    )


def test_both_sides_are_measured_on_the_same_episodes_whatever_they_do(monkeypatch):
    settings = control_peers.settings_of("td3", 5, 1.0)
    begun: dict[str, list] = {who: [] for who in control_peers.SIDES}
    for push, who in enumerate(begun):

        def act(observation, own=begun[who], push=push):
            own.append(observation.tolist())
            return np.full((1, 1), push, np.float32)

        monkeypatch.setitem(control_peers.SIDES, who, lambda _, act=act: (1.0, act))
    returns = {who: control_peers.measured(who, settings)["return"] for who in begun}
    one, other = begun.values()  # an episode of Pendulum has 200 steps
    assert one[::200] == other[::200] and one != other
    assert len({str(first) for first in one[::200]}) == control_peers.EPISODES
    assert len(set(returns.values())) == 2


@pytest.mark.parametrize(
    "starts, said",
    [
        ([None, None], "begin in other states on each side:"),
        (["the same", None], "begin in other states on each side for dqn:"),
        (["the same", "the same"], "begin in the same states on both sides:"),
    ],
)
def test_the_page_says_which_returns_have_other_starts(starts, said, tmp_path, monkeypatch):
    record = json.loads(control_peers.RECORDS.read_text().splitlines()[-1])
    record.pop("starts", None)
    lines = [
        {**record, "algorithm": name, **({"starts": start} if start else {})}
        for name, start in zip(("ppo", "dqn"), starts)
    ]
    place = tmp_path / "results/control/peers.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(control_page, "__file__", str(tmp_path / "page.py"))
    assert said in control_page._peers()[0]
