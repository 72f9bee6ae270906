"""Preferences as a graph: contradictions (A > B and B > A) and cycles (A > B, B > C, C > A).

In: pairs of texts, the better one first, with their lines. Out: issues that print the circle.
A cycle of preferences has no order that a model could learn. One shortest cycle is reported for each knot of texts
that are in circles together (strongly connected component); the rest of a knot mostly falls away when that one is
mended.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from dspy_finetune.export.check_codes import CODES
from dspy_finetune.export.check_report import Issue

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
