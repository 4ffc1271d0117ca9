# SPDX-License-Identifier: Apache-2.0
"""Which faults `make mutants` plants, and which are known to live."""

import ast
from pathlib import Path

from mutants import plant
from mutants.tool import Place, known_alive


def planted(text: str) -> list[str]:
    return [m.what for m in plant.mutants(text)]


def test_every_kind_of_fault_is_planted_and_leaves_python():
    text = (
        "x = not a and b <= 2\n"
        "y += f(z, size=-1, flag=True) * 2.5\n"
        "if x == y:\n    self.n = torch.amax(z)\n"
        "if n:\n    raise E('too ' + many)\n"
        "λ = [q for q in z if q is not None] if ok else c % d\n"
    )
    found = list(plant.mutants(text))
    kinds = {m.kind for m in found}
    assert kinds >= {"comparison", "arithmetic", "connective", "sign", "constant", "condition"}
    assert kinds >= {"min/max", "dropped size=", "removed"}
    for mutant in found:
        changed = mutant.planted(text)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)), mutant


def test_no_fault_is_planted_in_words_in_types_or_in_what_is_raised():
    assert planted('"""a"""\ndef f(x: int | None = None) -> 3 | 4:\n    "b"\n    return x\n') == []
    assert planted("raise E(f'{n + 1}', n - 1)\n") == ["raise E(f'{n + 1}', n - 1) → (removed)"]
    assert planted("@dataclass(frozen=True)\nclass C:\n    n: int = 1\n") == ["1 → 2"]
    assert planted("x = zip(a, b, strict=True)\ny = full(a, device=b)\n") == []
    assert planted("x = 'a' + b\nassert n > 1\nif TYPE_CHECKING:\n    n = 3\n") == []


def test_a_fault_binds_as_tightly_as_what_it_replaces():
    first = next(m for m in plant.mutants("x = (a + b) * c") if "a + b →" in m.what)
    assert first.planted("x = (a + b) * c") == "x = ((a - b)) * c"


def test_every_known_living_fault_is_one_that_can_be_planted():
    root = Path(plant.__file__).parents[2]
    for name, reason in known_alive().items():
        path = name.split(" | ")[0]
        planted_there = plant.mutants((root / path).read_text())
        assert name in {Place(path, m).known_as(root) for m in planted_there}, name
        assert reason.strip(), name
