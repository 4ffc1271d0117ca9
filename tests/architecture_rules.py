# SPDX-License-Identifier: Apache-2.0
"""The rules of the layout: to which files each applies, and texts that it must not let pass."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from import_rules import (
    against_the_arrows,
    circles,
    missing_doors,
    other_doors,
    registered_elsewhere,
    unknown_parts,
)
from layout_rules import (
    banners,
    broken_names,
    device_branches,
    foreign_headers,
    long_files,
    many_parameters,
    missing_licence,
    named_algorithms,
    private_paths,
)


class Rule(NamedTuple):
    check: Callable[[Path, str], list[str]]
    applies: Callable[[Path], bool]
    bad: dict[str, tuple[str, ...]]  # texts that the rule must not let pass, by path


def library(path: Path) -> bool:
    return path.suffix == ".py" and path.parts[0] in {"rlkern", "kernels", "benchmarks"}


def packaged(path: Path) -> bool:
    return path.suffix == ".py" and path.parts[0] in {"rlkern", "kernels"}


def python(path: Path) -> bool:
    return path.suffix == ".py"


def door(path: Path) -> bool:
    return path.parts[:2] == ("rlkern", "ops") and not path.name.startswith("_")


def source(path: Path) -> bool:
    return path.suffix in SOURCES


def commented(path: Path) -> bool:
    return source(path) or path.suffix in {"", ".toml", ".yaml", ".yml"}


def readable(path: Path) -> bool:
    return path.suffix not in {".png", ".txt"} or path.parts[0] == "requirements"


def outside(*places: str) -> Callable[[Path], bool]:
    """Returns the predicate of library files that lie in none of these places."""
    return lambda path: library(path) and not path.as_posix().startswith(places)


SOURCES = {".py", ".cpp", ".h", ".cu", ".cuh"}
MAY_ASK_DEVICE = (
    "rlkern/backends/__init__.py",
    "rlkern/backends/memory.py",
    "rlkern/backends/cuda/",
    "rlkern/runs/device.py",
    "rlkern/testing/",
    "rlkern/trainer/",
    "rlkern/cli/bench.py",
    "rlkern/doctor.py",
    "benchmarks/",
)
# These name algorithms: their own folder, the cases and sizes that all of them are measured with,
# and what has another project's names or writes a page about some of them.
MAY_NAME_ALGORITHMS = (
    "rlkern/algorithms/",
    "rlkern/control/",
    "rlkern/testing/",
    "rlkern/integrations/",
    "benchmarks/control_peers.py",
)
LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"
NINE = ", ".join("abcdefghi")
FOR_TYPES = "if TYPE_CHECKING:\n    from "

RULES = {
    "arrows": Rule(
        against_the_arrows,
        packaged,
        {
            "rlkern/ops/gae.py": (
                "import rlkern.trainer.loop\n",
                "def f():\n    from rlkern.trainer import loop\n",
                "from ..trainer import loop\n",
                "from rlkern import trainer\n",
                "load('rlkern.trainer.loop')\n",
                "importlib.import_module('..trainer.loop', __package__)\n",
                "import benchmarks.run\n",
            ),
            "rlkern/trainer/rows.py": (
                FOR_TYPES + "rlkern.trainer.loop import train\n",
                "from . import loop\n",
                "from .loop import train\n",
                "import trainer_helpers\n",
            ),
            "kernels/triton/gae.py": (
                "import rlkern\n",
                "from rlkern import policy_loss\n",
                "from rlkern import *\n",
            ),
            "rlkern/__init__.py": ("from rlkern.trainer import loop\n",),
            "rlkern/backends/cpu/gae.py": ("from rlkern.backends.triton import gae\n",),
            "rlkern/control/loop.py": ("from rlkern.trainer.rows import Rows\n",),
            "rlkern/integrations/trl.py": ("from rlkern.trainer.rows import Rows\n",),
        },
    ),
    "places": Rule(
        unknown_parts,
        packaged,
        {
            "rlkern/misc/x.py": ("",),
            "rlkern/x.py": ("",),
            "rlkern/trainer/x.py": ("",),
            "kernels/pallas/x.py": ("",),
        },
    ),
    "circles": Rule(
        circles,
        library,
        {
            "rlkern/ops/_check.py": (
                "from rlkern.ops.gae import gae\n",
                "def f():\n    from .gae import gae\n",
                "from . import gae\n",
                FOR_TYPES + "rlkern.ops._rows import as_grid\n",
            ),
            "benchmarks/report.py": ("importlib.import_module('benchmarks.readme').main()\n",),
        },
    ),
    "door": Rule(
        missing_doors,
        door,
        {
            "rlkern/ops/gae.py": (
                "def estimates(): ...\n",
                "class Gae: ...\n",
                "from rlkern.ops._steps import gae\n",
            )
        },
    ),
    "front doors": Rule(
        other_doors,
        lambda p: p in (Path("rlkern/__init__.py"), Path("rlkern/_exports.py")),
        {
            "rlkern/__init__.py": ("from rlkern.ops._objective import policy_loss\n",),
            "rlkern/_exports.py": (
                "from rlkern.ops._objective import policy_loss\n",
                "from rlkern.ops.gae import estimates as gae\n",
                "from rlkern.ops import _objective\n\npolicy_loss = _objective.made\n",
            ),
        },
    ),
    "registration": Rule(
        registered_elsewhere,
        lambda p: library(p) and p != Path("rlkern/ops/_library.py"),
        {
            "rlkern/ops/gae.py": ("f = register('vtrace(Tensor x) -> Tensor', g, h)\n",),
            "rlkern/ops/_rows.py": ("f = register('gae(Tensor x) -> Tensor', g, h)\n",),
            "rlkern/trainer/x.py": (
                "@torch.library.custom_op('rlkern::gae', mutates_args=())\ndef f(): ...\n",
                "LIBRARY.define('gae(Tensor x) -> Tensor')\n",
            ),
        },
    ),
    "algorithms": Rule(
        named_algorithms,
        lambda p: (
            library(p) and (outside(*MAY_NAME_ALGORITHMS)(p) or p.stem in ("registry", "__init__"))
        ),
        {
            "rlkern/algorithms/registry.py": ("y = name == 'grpo'\n",),
            "rlkern/trainer/x.py": (
                "y = name in ('grpo', 'z')\n",
                "if algorithm == 'other':\n    pass\n",
                "match name:\n    case 'grpo' | 'z':\n        pass\n",
                "SPECIAL = 'grpo', 'dapo'\n",
                "y = {'grpo': 1}[name]\n",
                "y = name.startswith('grpo')\n",
                "y = name in 'a grpo'.split()\n",
                "from rlkern.algorithms.grpo import ALGORITHM\n",
                "from rlkern.algorithms import grpo\n",
                "if declared.gate == 'ppo_clip':\n    pass\n",
            ),
        },
    ),
    "devices": Rule(
        device_branches,
        outside(*MAY_ASK_DEVICE),
        {
            "rlkern/ops/gae.py": (
                "y = x.device.type == 'cuda'\n",
                "y = 1 if x.is_cuda else 2\n",
                "kind = x.device.type\nif kind == 'cuda':\n    pass\n",
                "y = x.device.type in FAST\n",
                "y = str(x.device).startswith('cuda')\n",
                "y = torch.cuda.is_available()\n",
                "y = {'a': 1}[x.device.type]\n",
                "match x.device.type:\n    case 'cuda':\n        pass\n",
                "def unsupported(x):\n    return x.device.type == 'cuda'\n",
            )
        },
    ),
    "headers": Rule(
        foreign_headers,
        lambda p: p.parts[0] == "csrc",
        {
            "csrc/math/x.h": ("#include <torch/all.h>\n", '#include "cpu/rows.h"\n'),
            "csrc/bindings/x.cpp": ("#  include <ATen/ATen.h>\n",),
            "csrc/cpu/x.cpp": ("#include <Python.h>\n", '#include "bindings/tensor.h"\n'),
        },
    ),
    "length": Rule(
        long_files,
        source,
        {"rlkern/x.py": ("x = 1\n" * 301, "x = 1\n" * 300 + "x"), "csrc/x.h": ("//\n" * 301,)},
    ),
    "parameters": Rule(
        many_parameters,
        python,
        {
            "rlkern/x.py": (
                f"def f({NINE}): ...\n",
                f"async def f({NINE}): ...\n",
                f"f = lambda {NINE}: 0\n",
                f"class A:\n    def gae(self, {NINE}): ...\n",
            ),
            "rlkern/ops/gae.py": (f"def _forward({NINE}): ...\n",),
            "kernels/triton/gae.py": (f"def gae({NINE}): ...\n",),
            "examples/x.py": (f"def f({NINE}): ...\n",),
        },
    ),
    "licence": Rule(
        missing_licence,
        lambda p: p.suffix in {*SOURCES, ".toml"},
        {"rlkern/x.py": ('"""x."""\n', '"""x."""\n' + LICENCE, "")},
    ),
    "machines": Rule(
        private_paths,
        readable,
        {"x.md": ("see /" + "root/x\n", "in /" + "tmp/x\n"), "Makefile": ("cd /" + "home/x\n",)},
    ),
    "names": Rule(
        broken_names,
        lambda p: commented(p) and p.parts[0] not in {"tests"} or p.suffix == ".md",
        {
            "README.md": ("see `rlkern/reference/" + "gae.py`\n", "`rlkern.kernels." + "gae`\n"),
            "rlkern/ops/gae.py": ('"""Twin of csrc/math/' + 'gae.h."""\n', "# rlkern.ga" + "es\n"),
        },
    ),
    "banners and notes": Rule(
        banners,
        commented,
        {
            "x.py": (
                "# " + "-----\n",
                "# == x ==\n".replace("==", "==="),
                "# ─" + "───\n",
                "# TO" + "DO later\n",
                "# to" + "do: later\n",
            ),
            "x.cpp": ("/" + "*****/\n", "// " + "~~~~\n"),
            "Makefile": ("# XX" + "X\n",),
        },
    ),
}
