"""The checks between rows: duplicates, contradictions, rows on both sides of a split.

In: two 64-bit hashes and a line number per row, 20 bytes in all, so that files of millions of rows fit. Out: issues.
Hashes are Python's own, keyed anew in each process; two different rows of two million meet by chance once in ten
million files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from dspy_finetune.export.check_report import IssueLog

_PER_BUCKET = 50_000
"""Rows looked at together: a dict of that many hashes takes 8 MB, of two million 300 MB."""
_AT_ONCE = 150_000
"""Up to so many rows are first asked together whether any prompt stands twice: a set of their hashes takes 10 MB."""


class SeenRows:
    """The hashes of the rows seen so far."""

    def __init__(self) -> None:
        self._prompts = array("q")
        self._outputs = array("q")
        self._lines = array("I")

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, line: int, prompt: int, outputs: tuple[int, ...]) -> None:
        """Remember a row.

        Two outputs become one hash that is the same in both orders but for its last bit, which says which came first:
        so a duplicate and a reversed preference are told apart without a third hash.
        """
        if len(outputs) == 2:
            low, high = sorted(outputs)
            output = (hash((low, high)) & ~1) | (outputs[0] == low)
        else:
            output = outputs[0] if outputs else 0
        self.add_hashes(line, prompt, output)

    def add_hashes(self, line: int, prompt: int, output: int) -> None:
        """Remember a row whose hashes are made already."""
        self._prompts.append(prompt)
        self._outputs.append(output)
        self._lines.append(line & 0xFFFFFFFF)

    def add_many(self, line: int, prompts: list[int], outputs: list[int]) -> None:
        """Remember rows of consecutive lines whose hashes are made already."""
        self._prompts.extend(prompts)
        self._outputs.extend(outputs)
        self._lines.extend(range(line, line + len(prompts)))

    def _buckets(self, n: int) -> Iterator[list[int]]:
        """Indexes of the rows, those of equal prompts in the same bucket."""
        if n == 1:
            yield list(range(len(self._prompts)))
            return
        for bucket in range(n):
            yield [i for i, prompt in enumerate(self._prompts) if prompt % n == bucket]

    def report(self, log: IssueLog, *, preferences: bool) -> None:
        """Report duplicates and contradictions."""
        if len(self._prompts) <= _AT_ONCE and len(set(self._prompts)) == len(self._prompts):
            return
        n = len(self._prompts) // _PER_BUCKET + 1
        for bucket in self._buckets(n):
            if len({self._prompts[i] for i in bucket}) < len(bucket):
                self._report_bucket(log, bucket, preferences=preferences)

    def _report_bucket(self, log: IssueLog, bucket: list[int], *, preferences: bool) -> None:
        groups: dict[int, dict[int, int]] = {}
        for i in bucket:
            line, output = self._lines[i], self._outputs[i]
            group = groups.setdefault(self._prompts[i], {})
            if output in group:
                log.add(line, "", "duplicate-row", f"the row is the same as line {group[output]}")
                continue
            if preferences and output ^ 1 in group:
                found = f"the outputs that line {group[output ^ 1]} prefers and rejects are reversed here"
                log.add(line, "", "preference-reversed", found)
            elif group and not preferences:
                first = next(iter(group.values()))
                log.add(line, "", "conflicting-rows", f"line {first} has the same prompt and another output")
            group[output] = line

    def report_overlap(self, log: IssueLog, validation: SeenRows) -> None:
        """Report the rows and prompts that are in the validation rows as well."""
        n = max(len(self), len(validation)) // _PER_BUCKET + 1
        for mine, theirs in zip(self._buckets(n), validation._buckets(n), strict=True):
            known: dict[int, dict[int, int]] = {}
            for i in theirs:
                known.setdefault(validation._prompts[i], {}).setdefault(validation._outputs[i], validation._lines[i])
            for i in mine:
                outputs = known.get(self._prompts[i])
                if outputs is None:
                    continue
                line = outputs.get(self._outputs[i])
                if line is not None:
                    log.add(
                        self._lines[i],
                        "",
                        "train-validation-overlap",
                        f"the row is also line {line} of the validation file",
                    )
                else:
                    line = next(iter(outputs.values()))
                    found = f"line {line} of the validation file has the same prompt and another output"
                    log.add(self._lines[i], "", "train-validation-same-prompt", found)
