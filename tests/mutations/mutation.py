"""What a mutation is: one text of one file replaced by another."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    file: str  # below fgo_jax/
    old: str  # occurs exactly once in the file
    new: str
    wrong: str  # what the package then does
    tests: tuple[str, ...]  # below tests/, files or `file::test`; one must fail

    @property
    def path(self) -> Path:
        return ROOT / "fgo_jax" / self.file

    def applied(self, text: str) -> str:
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.file} holds {self.old!r} {text.count(self.old)} times, not once."
            )
        return text.replace(self.old, self.new)


def mutations(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    """Mutations of one file, each as (old, new, wrong); `tests` holds names between spaces."""
    return [Mutation(file, *change, tuple(tests.split())) for change in changes]
