"""The checks between rows: duplicates, contradictions, rows on both sides of a split.

In: two 64-bit hashes and a line number per row. Out: issues. Memory is bounded: beyond `_IN_MEMORY` rows the hashes
(20 bytes a row) wait in a temporary file, and the rows that may stand twice are looked at some at a time.
Hashes are Python's own, keyed anew in each process; two different rows of two million meet by chance once in ten
million files.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import weakref
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO

from dspy_finetune.export.checks.codes import CODES
from dspy_finetune.export.checks.report import Issue, IssueLog

_IN_MEMORY = 150_000
"""Rows whose hashes are kept in memory: 3 MB, and as much again while they are read back. A file of no more is first
asked as a whole whether any prompt stands twice: sets of the hashes take 5 MB.
"""
_AT_ONCE = 30_000
"""Repeated rows whose hashes are compared together: their dicts take up to 10 MB, those of two million 500 MB."""
_MARKS = 1 << 22
"""Most bytes of the marks that tell which prompts may stand twice."""

Seen = tuple[int, int, int]
"""A row: the hash of its prompt, that of its output, its line."""


def pair_hash(chosen: int, rejected: int) -> int:
    """One hash of two outputs, the same in both orders but for its last bit, which says which came first.

    So a duplicate and a reversed preference are told apart without a third hash.
    """
    if chosen < rejected:
        return hash((chosen, rejected)) | 1
    return hash((rejected, chosen)) & ~1


class SeenRows:
    """The hashes of the rows seen so far."""

    def __init__(self) -> None:
        self._columns = _columns()
        self._spilled: IO[bytes] | None = None
        self._pieces: list[int] = []  # rows of each piece of the temporary file

    def __len__(self) -> int:
        return sum(self._pieces) + len(self._columns[0])

    def add(self, line: int, prompt: int, outputs: tuple[int, ...]) -> None:
        """Remember a row: the hashes of its prompt, and of its output or of the preferred and the rejected one."""
        self.add_hashes(line, prompt, pair_hash(*outputs) if len(outputs) == 2 else outputs[0] if outputs else 0)

    def add_hashes(self, line: int, prompt: int, output: int) -> None:
        """Remember a row whose outputs are one hash already."""
        prompts, answers, lines = self._columns
        prompts.append(prompt)
        answers.append(output)
        lines.append(line & 0xFFFFFFFF)
        if len(prompts) >= _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        # Without room for a temporary file the hashes stay where they are: the check goes on, in more memory.
        with contextlib.suppress(OSError):
            if self._spilled is None:
                self._spilled = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the rows
                weakref.finalize(self, self._spilled.close)
            self._spilled.seek(20 * sum(self._pieces))
            for column in self._columns:
                self._spilled.write(column.tobytes())
            self._spilled.flush()
            self._pieces.append(len(self._columns[0]))
            self._columns = _columns()

    def _parts(self) -> Iterator[tuple[array[int], array[int], array[int]]]:
        """The columns, piece by piece, in the order of the rows."""
        if self._spilled is not None:
            self._spilled.seek(0)
            for n in self._pieces:
                columns = _columns()
                for column in columns:
                    column.frombytes(self._spilled.read(n * column.itemsize))
                yield columns
        yield self._columns

    def _prompts(self) -> Iterator[int]:
        for prompts, _, _ in self._parts():
            yield from prompts

    def _rows(self, marks: _Marks, bucket: int, n_buckets: int) -> Iterator[Seen]:
        """Those rows of a bucket whose prompts stand twice, but for a few that do not."""
        return (
            (prompt, output, line)
            for part in self._parts()
            for prompt, output, line in zip(*part, strict=True)
            if prompt % n_buckets == bucket and marks.is_repeated(prompt)
        )

    def report(self, log: IssueLog, *, preferences: bool) -> None:
        """Report duplicates and contradictions."""
        if not self._pieces and _are_distinct(self._columns[0]):
            return
        marks, n_buckets = _repeated(self)
        for bucket in range(n_buckets):
            _report_rows(log, self._rows(marks, bucket, n_buckets), preferences=preferences)

    def report_overlap(self, log: IssueLog, validation: SeenRows) -> None:
        """Report the rows and prompts that are in the validation rows as well."""
        marks, n_buckets = _repeated(self, validation)
        for bucket in range(n_buckets):
            _report_overlap(log, self._rows(marks, bucket, n_buckets), validation._rows(marks, bucket, n_buckets))


def _are_distinct(hashes: array[int]) -> bool:
    """Whether no hash stands twice; a half at a time, which takes half the memory of a set of all."""
    middle = len(hashes) // 2
    first = set(hashes[:middle])
    if len(first) < middle or not first.isdisjoint(hashes[middle:]):
        return False
    del first
    return len(set(hashes[middle:])) == len(hashes) - middle


def _repeated(*sets: SeenRows) -> tuple[_Marks, int]:
    """Marks that tell which prompts stand twice, and in how many parts to look at their rows one after the other.

    Marked twice over: of a million different prompts some 60,000 share a slot of the first marks, and a hundred of
    those one of the second, which other bits of the hash name.
    """
    first = _Marks(sum(map(len, sets)))
    n_shared = sum([first.add(rows._prompts()) for rows in sets])
    if not n_shared:
        return first, 0
    second = _Marks(4 * n_shared, shift=32)
    n_repeated = sum([second.add(filter(first.is_repeated, rows._prompts())) for rows in sets])
    # The first row of each repeated prompt was not counted.
    return second, 2 * n_repeated // _AT_ONCE + 1 if n_repeated else 0


class _Marks:
    """Two bits for each of some slots; a prompt's hash, from the bit `shift` on, names its slot.

    Different prompts may share a slot, and then look repeated: marks say which prompts need no closer look.
    """

    def __init__(self, n_rows: int, *, shift: int = 0) -> None:
        size = 1
        while size < min(4 * n_rows, _MARKS):
            size *= 2
        self._bits = bytearray(size)
        self._mask = size - 1
        self._shift = shift

    def add(self, prompts: Iterable[int]) -> int:
        """Mark prompts; how many of them found their slot marked."""
        bits, mask, shift, n_repeated = self._bits, self._mask, self._shift, 0
        for prompt in prompts:
            prompt >>= shift
            # Four slots to a byte, two bits each: seen, and seen again.
            at, seen = (prompt >> 2) & mask, 1 << ((prompt & 3) << 1)
            found = bits[at]
            if found & seen:
                n_repeated += 1
                bits[at] = found | seen << 1
            else:
                bits[at] = found | seen
        return n_repeated

    def is_repeated(self, prompt: int) -> bool:
        """Whether a prompt's slot was marked twice."""
        prompt >>= self._shift
        return bool(self._bits[(prompt >> 2) & self._mask] & 2 << ((prompt & 3) << 1))


def _columns() -> tuple[array[int], array[int], array[int]]:
    return array("q"), array("q"), array("I")


def _report_rows(log: IssueLog, rows: Iterable[Seen], *, preferences: bool) -> None:
    groups: dict[int, dict[int, int]] = {}
    for prompt, output, line in rows:
        group = groups.setdefault(prompt, {})
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


def _report_overlap(log: IssueLog, mine: Iterable[Seen], theirs: Iterable[Seen]) -> None:
    known: dict[int, dict[int, int]] = {}
    for prompt, output, line in theirs:
        known.setdefault(prompt, {}).setdefault(output, line)
    for prompt, output, line in mine:
        outputs = known.get(prompt)
        if outputs is None:
            continue
        same = outputs.get(output)
        if same is not None:
            found = f"the row is also line {same} of the validation file"
            log.add(line, "", "train-validation-overlap", found)
        else:
            first = next(iter(outputs.values()))
            found = f"line {first} of the validation file has the same prompt and another output"
            log.add(line, "", "train-validation-same-prompt", found)


# Preferences as a graph: contradictions (A > B and B > A) and cycles (A > B, B > C, C > A).
#
# In: pairs of texts, the better one first, with their lines. Out: issues that print the circle.
# A cycle of preferences has no order that a model could learn. One shortest cycle is reported for each knot of texts
# that are in circles together (strongly connected component); the rest of a knot mostly falls away when that one is
# mended.

MAX_REPORTED = 100
"""Cycles, and contradictions, that are listed."""

_SIDE = r"^(?:[ \t]*\[\[ ## \w+_{0} ## \]\]\s*\n|[ \t]*(?:\w+[ _])?{0}[ \t]*[:.)][ \t]*)(?P<text>\S.*)$"
_A = re.compile(_SIDE.format("a"), re.IGNORECASE | re.MULTILINE)
_B = re.compile(_SIDE.format("b"), re.IGNORECASE | re.MULTILINE)
_CHOICE = re.compile(
    r"\s*[\"'*(\[]*(?:\[\[ ## \w+ ## \]\]\s*)?"
    r"(?:(?:I(?: would|'d)? )?(?:choose|prefer|pick)|(?:the )?(?:answer|choice)(?: is)?|preferred)?"
    r"[:\s*(]*(?P<choice>[AB])(?=[\"'*)\]]*(?:[\s]*$|[:.,;)\n]|\s+[-–—]|\s*\[\[))",
    re.IGNORECASE,
)


def pair_of(question: str) -> tuple[str, str] | None:
    """The two texts of a pairwise question ("A: ..." and "B: ..." on lines of their own), or None.

    >>> pair_of("Which is better?\\nA: First\\nB: Second")
    ('First', 'Second')
    """
    a, b = _A.search(question), _B.search(question)
    return (a["text"].strip(), b["text"].strip()) if a and b else None


def choice_of(answer: str) -> str | None:
    """`A` or `B`, if the answer begins with a choice.

    >>> choice_of("I would choose B: Second. It is better.")
    'B'
    """
    found = _CHOICE.match(answer)
    return found["choice"].upper() if found else None


class PairGraph:
    """Texts as nodes; an edge from the better to the worse one, with the first line that says so."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], int] = {}
        self._names: list[str] = []
        self._worse: list[dict[int, int]] = []

    def add(self, line: int, better: str, worse: str, *, within: str = "") -> None:
        """Add a preference; `within` keeps apart texts that are compared in different places."""
        if better != worse:
            self._worse[self._node(better, within)].setdefault(self._node(worse, within), line)

    def _node(self, text: str, within: str) -> int:
        node = self._ids.setdefault((within, text), len(self._names))
        if node == len(self._names):
            self._names.append(text)
            self._worse.append({})
        return node

    def contradictions(self) -> Iterator[tuple[int, int]]:
        """Pairs of nodes that are preferred both ways."""
        for a, worse in enumerate(self._worse):
            for b in worse:
                if a < b and a in self._worse[b]:
                    yield a, b

    def cycles(self) -> Iterator[list[int]]:
        """One shortest cycle of at least three texts for each knot, contradictions left out."""
        graph = [{b for b in worse if a not in self._worse[b]} for a, worse in enumerate(self._worse)]
        for knot in _components(graph):
            members = set(knot)
            # The shortest circle through the first few texts of the knot: exact for small knots, short for large ones.
            found = [path for start in sorted(knot)[:50] if (path := _shortest(graph, start, members))]
            if found:
                yield min(found, key=len)

    def issues(self) -> Iterator[Issue]:
        """The issues of the graph."""
        for i, (a, b) in enumerate(self.contradictions()):
            if i == MAX_REPORTED:
                break
            first, second = self._worse[a][b], self._worse[b][a]
            if first > second:
                a, b, first, second = b, a, second, first
            found = f"{self._shown(a)} > {self._shown(b)} in line {first}, and the other way round here"
            yield _issue("preference-contradiction", second, found)
        for i, cycle in enumerate(self.cycles()):
            if i == MAX_REPORTED:
                break
            edges = list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
            lines = [self._worse[a][b] for a, b in edges]
            steps = [
                f"{self._shown(a)} > {self._shown(b)} (line {line})" for (a, b), line in zip(edges, lines, strict=True)
            ]
            yield _issue("preference-cycle", max(lines), ", ".join(steps))

    def _shown(self, node: int) -> str:
        name = " ".join(self._names[node].split())
        return repr(name if len(name) <= 60 else name[:59] + "…")


def _issue(code: str, line: int, message: str) -> Issue:
    about = CODES[code]
    return Issue(line=line, path="", severity=about.severity, code=code, message=message, remedy=about.remedy)


def _components(graph: list[set[int]]) -> Iterator[list[int]]:
    """Strongly connected components of more than one node: Tarjan's algorithm, without recursion."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in range(len(graph)):
        if root in order:
            continue
        work = [(root, iter(graph[root]))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, children = work[-1]
            for child in children:
                if child not in order:
                    order[child] = low[child] = len(order)
                    stack.append(child)
                    on_stack.add(child)
                    work.append((child, iter(graph[child])))
                    break
                if child in on_stack:
                    low[node] = min(low[node], order[child])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == order[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    if len(component) > 1:
                        yield component


def _shortest(graph: list[set[int]], start: int, members: set[int]) -> list[int]:
    """The shortest way from a node back to itself, breadth first."""
    came_from: dict[int, int] = {}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for child in sorted(graph[node] & members):
            if child == start:
                path = [node]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if child not in came_from:
                came_from[child] = node
                waiting.append(child)
    return []
