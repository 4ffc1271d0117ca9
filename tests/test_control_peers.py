# SPDX-License-Identifier: Apache-2.0
"""What the control suite is compared by with Stable-Baselines3."""

import sys

import pytest

pytest.importorskip("gymnasium")

from benchmarks import control_peers


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
