# SPDX-License-Identifier: Apache-2.0
"""One episode of a learned policy as a moving picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gymnasium.error import DependencyNotInstalled

from rlkern.control import checkpoint
from rlkern.control.environments import Environments, make
from rlkern.control.evaluate import eval_options
from rlkern.control.learner import Learner
from rlkern.control.settings import Layer, Settings, declared, resolve
from rlkern.runs.errors import UserError
from rlkern.runs.folder import all_checkpoints

GIF, MP4 = ".gif", ".mp4"
RGB = "rgb_array"  # gymnasium's word for pictures as arrays


def check_target(target: Path) -> None:
    """Raises UserError for a file that no moving picture can be written to."""
    if target.suffix not in (GIF, MP4):
        raise UserError(f"render must be a file that ends in {GIF} or {MP4}, got {str(target)!r}")
    if not target.parent.is_dir():
        raise UserError(f"render must lie in a folder that exists, got {str(target)!r}")
    if target.suffix == MP4:
        try:
            import moviepy  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"render to {MP4} needs a package: pip install moviepy; {GIF} needs none"
            ) from error


def check_pictures(settings: Settings) -> None:
    """Raises UserError for an environment that draws no pictures, or lacks a package for them."""
    plain = make(settings.env, settings.env_options)
    drawn = RGB in plain.metadata.get("render_modes", ())
    plain.close()
    if not drawn:
        raise UserError(f"env {settings.env} draws no pictures; leave out --render")
    env = make(settings.env, {**settings.env_options, "render_mode": RGB})
    try:
        env.reset(seed=0)
        env.render()
    except DependencyNotInstalled as error:
        raise UserError(f"render of {settings.env} needs a package: {error}") from error
    finally:
        env.close()


def load(folder: Path) -> Learner:
    """Returns the learner of a run as its newest checkpoint holds it."""
    saved = all_checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} holds no checkpoint yet: let it run until it has saved one")
    values, tree = checkpoint.read(saved[-1])
    settings = resolve(Layer(str(saved[-1]), values))
    environments = Environments(
        settings.env, settings.env_options, settings.num_envs, settings.seed
    )
    learner = declared(settings).learner(settings, environments)
    learner.load(tree["learner"])
    return learner


def frames(learner: Learner, seed: int) -> tuple[list[np.ndarray], int]:
    """Returns the pictures (H, W, 3) uint8 of one episode without exploration, and how many are
    shown a second."""
    settings: Settings = learner.settings
    options = {**eval_options(learner), "render_mode": RGB}
    environments = Environments(settings.env, options, 1, seed)
    env = environments.copies[0]
    try:
        found = [np.asarray(env.render())]
        while not environments.finished:
            environments.step(learner.act(environments.observation))
            if not environments.finished:
                found.append(np.asarray(env.render()))
        return found, int(env.metadata.get("render_fps", 30))
    finally:
        environments.close()


def render(folder: Path, target: Path, seed: int = 0) -> int:
    """Returns how many pictures of a run's policy were written to a .gif or .mp4."""
    check_target(target)
    pictures, fps = frames(load(folder), seed)
    if target.suffix == GIF:
        _gif(pictures, fps, target)
    else:
        from moviepy import ImageSequenceClip

        ImageSequenceClip(pictures, fps=fps).write_videofile(str(target), logger=None)
    return len(pictures)


def _gif(pictures: list[np.ndarray], fps: int, target: Path) -> None:
    from PIL import Image

    first, *rest = (Image.fromarray(each) for each in pictures)
    # A GIF counts time in hundredths of a second, and viewers slow down what is below two.
    duration = max(20, round(1000 / fps))
    first.save(target, save_all=True, append_images=rest, duration=duration, loop=0)
