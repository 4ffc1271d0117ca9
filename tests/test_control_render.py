# SPDX-License-Identifier: Apache-2.0
"""Pictures of an episode in a file, and what is asked for before a run that is to be drawn."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from rlkern import cli  # noqa: E402


def test_an_episode_is_rendered_and_a_bad_target_refused_first(tmp_path, capsys):
    from PIL import Image

    words = ["control", "--output_dir", str(tmp_path), "--env", "CliffWalking-v1", "--steps", "300",
             "--algorithm", "q_learning", "--eval_length", "5"]  # fmt: skip
    target = tmp_path / "episode.gif"
    assert cli.main([*words, "--render", str(target), "--name", "a"]) == 0
    with Image.open(target) as image:
        assert image.n_frames >= 1 and image.size[0] > 100
    assert cli.main([*words, "--render", str(tmp_path / "episode.avi"), "--name", "b"]) == 2
    assert "ends in .gif or .mp4" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("fps", "milliseconds"), [(30, 30), (50, 20), (100, 20)])
def test_a_gif_is_as_fast_as_its_environment_as_far_as_viewers_show_it(tmp_path, fps, milliseconds):
    from PIL import Image

    from rlkern.control.render import _gif

    target = tmp_path / "a.gif"
    _gif([np.full((4, 4, 3), shade, np.uint8) for shade in (0, 99)], fps, target)
    with Image.open(target) as image:
        assert image.info["duration"] == milliseconds


def test_a_package_that_the_pictures_need_is_asked_for_before_the_run(
    tmp_path, capsys, monkeypatch
):
    def missing(self):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    env = gymnasium.make("CliffWalking-v1").unwrapped
    monkeypatch.setattr(type(env), "render", missing)
    words = ["control", "--env", "CliffWalking-v1", "--algorithm", "q_learning"]
    words += ["--output_dir", str(tmp_path), "--render", str(tmp_path / "x.gif")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "render of CliffWalking-v1 needs a package: pygame is not installed" in said
    assert not list(tmp_path.iterdir())
