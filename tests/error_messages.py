"""Every message of an error or warning that the package can give, read from its source, for docs/troubleshooting.md.

`python -m tests.error_messages --write` writes the page's tables anew. A message is known by its constant text:
`f"{path}: no rows"` is `…: no rows`. Followed are variables, both arms of a condition, tables of texts, and functions
that put a text which they are given into an error.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.export import code_tables

PACKAGE = Path(__file__).parents[1] / "dspy_finetune"
PAGE = PACKAGE.parent / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- messages -->", "<!-- end of messages -->"
HOLE = "…"
SECOND = {"ApiError", "PydanticCustomError", "TooLarge", "TrainingFileError"}
"""Errors whose message is the second argument."""
STANDARD = ("ValueError", "TypeError", "RuntimeError", "PydanticCustomError", "BadParameter")
"""Errors of others that the package raises with a text of its own."""
NO_MESSAGES = {"HttpFailure"}
"""Errors that hold another's text."""
MOST = 12
"""Texts that one expression may stand for."""

CLASSES = {
    "DataError": (
        "The rows or the file are not as they must be.",
        "mend what the message names; `dspy-finetune check` and `dspy-finetune init` say more of a file",
    ),
    "RowError": ("One row is wrong.", "mend the row at the file and line that stand before the message"),
    "RowsError": ("Several rows are wrong; `.errors` holds them all.", "mend the rows that are listed"),
    "EmptyDatasetError": ("Nothing is left to work with.", "give rows, or loosen what leaves them out"),
    "LeakageError": (
        "The same item stands on two sides of a split.",
        "split items before pairs are made, or by `group_by`",
    ),
    "PromptMismatchError": (
        "The model was trained on another prompt than it is asked with.",
        "ask with the prompt that travels with the model",
    ),
    "AnswerError": (
        "The model's answer cannot be read; `.text` keeps it.",
        "look at the answer; `compare` and `bulk.predict` count it as a parse failure and go on",
    ),
    "NoAnswerError": (
        "The model gave no answer, or not the whole of one; `.reason` says why.",
        "raise `max_tokens` where it was cut off; rephrase where it was refused",
    ),
    "JudgeError": ("A judge gave no verdict that can be read.", "try another judge model, or a plainer rubric"),
    "UsageError": (
        "An argument or option is wrong (exit code 2).",
        "change the argument that the message names to what it says is accepted",
    ),
    "FileError": ("A file or folder cannot be read or written.", "see the reason at the message's end"),
    "JobError": ("A job did not do what was asked.", "look at it with `dspy-finetune jobs show ID`"),
    "JobFailedError": (
        "The host says that the job failed; `.code` and `.param` are the host's.",
        "mend the cause that the host names and start again",
    ),
    "JobCancelledError": ("The job was cancelled before it made a model.", "start it again with `new=True`"),
    "JobTimeoutError": (
        "Your deadline passed; the job goes on.",
        "follow it with `dspy-finetune jobs follow ID`, or `ft.attach(ID)`",
    ),
    "BudgetError": (
        "It would cost more than was allowed, or its price is not known.",
        "raise `max_usd`, or do less",
    ),
    "AmbiguousJobError": (
        "It cannot be known whether the job exists already; nothing was created.",
        "look with `dspy-finetune jobs list`, then `ft.attach(ID)` or `start(new=True)`",
    ),
    "HostError": (
        "A host answered with an error, or not at all; `.status`, `.code` and `.request_id` are its own.",
        "try again where `.retryable` is true; else mend what the host names",
    ),
    "MalformedResponseError": (
        "The host's answer is not what its API describes.",
        "look at the address: a proxy may have answered; following a job goes on by itself",
    ),
    "TrainingClosedError": ("The host no longer trains for you.", "train on another host: `Host.local()`, Azure"),
    "ModelGoneError": ("The model was shut down or deleted.", "make it again elsewhere: `dspy-finetune migrate`"),
    "LogprobsError": (
        "Log-probabilities are needed and the host sends none.",
        "use a host and model that give them, or do without probabilities",
    ),
    "MissingExtraError": ("An optional package is not installed.", "run the pip line of the message"),
    "Unparseable": (
        "A value cannot be read; it becomes a RowError with its row, or an AnswerError with the answer.",
        "write the value in a form that [values](values.md) lists, or declare the field's type",
    ),
    "ContextLengthError": ("A prompt is longer than the model reads.", "shorten it, or choose a longer model"),
    "ApiError": (
        "The local host refuses a request; the client shows it as a HostError with this text.",
        "change the parameter that is named",
    ),
    "PydanticCustomError": ("A parameter of a request to the local host is wrong.", "change the parameter"),
    "TooLarge": ("A request to the local host is too large.", "send less at a time"),
    "TrainingFileError": (
        "The local host cannot train on the file; the job fails with this text.",
        "run `dspy-finetune check FILE`",
    ),
    "MemoryShortError": (
        "The training run does not fit into the memory of the local host; the job fails with this text.",
        "take the setting that the message names, or a smaller base model",
    ),
    "RowFailedError": ("One row of a bulk run has no answer.", "run the command again: what has an answer is kept"),
    "JsonError": ("A request's body is no JSON.", "send JSON, as every client of OpenAI's does"),
    "ValueError": ("A value cannot be read; it becomes an error with its place.", "mend the value"),
    "TypeError": ("A value is of another type than is needed.", "give the type that is named"),
    "NoReplyError": ("The connection ended without a reply; it is tried again.", "see whether the host is up"),
    "_BadJsonValue": ("A part of a JSON file is broken; it becomes a RowError.", "mend the place that is named"),
    "warning": ("Said on the log; the work goes on.", "nothing has to be done; see whether it is meant"),
}
"""Every class of errors: what it means, and what to do where its message does not say so itself."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, order=True)
class Message:
    """One text that an error can have."""

    room: str
    """The subpackage, or the file on the ground floor."""
    text: str
    """Its constant text, with `…` for what is filled in."""
    kind: str
    """The error's class."""
    code: str
    """The error's code, where it has one."""
    remedy: str
    """What it says is to be done; empty where it says nothing."""


class Source:
    """All files of the package, with what is needed to follow a name to its texts."""

    def __init__(self) -> None:
        self.trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
        self.owners: dict[ast.AST, Function] = {}
        self.calls: list[tuple[Path, ast.Call]] = []
        self.functions: dict[str, list[Function]] = defaultdict(list)
        self.assigned: dict[tuple[Function | None, str], list[ast.expr]] = defaultdict(list)
        self.returned: dict[Function, list[ast.expr]] = defaultdict(list)
        self.classes: list[ast.ClassDef] = []
        for path, tree in self.trees.items():
            self._visit(path, tree, None)
        self.errors = {"ValueError", "TypeError", "RuntimeError", *STANDARD, "Exception", "ConnectionError"}
        for _ in range(4):
            self.errors |= {one.name for one in self.classes if any(_last(base) in self.errors for base in one.bases)}
        self.errors -= {"Exception", *NO_MESSAGES}

    def _visit(self, path: Path, node: ast.AST, owner: Function | None) -> None:
        for child in ast.iter_child_nodes(node):
            if owner is not None:
                self.owners[child] = owner
            if isinstance(child, ast.Call):
                self.calls.append((path, child))
            elif isinstance(child, ast.ClassDef):
                self.classes.append(child)
            elif isinstance(child, ast.Return) and owner is not None and child.value is not None:
                self.returned[owner].append(child.value)
            elif isinstance(child, (ast.Assign, ast.AnnAssign)) and child.value is not None:
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                for target in targets:
                    self.assigned[owner, _last(target)].append(child.value)
            if isinstance(child, Function):
                self.functions[child.name].append(child)
            self._visit(path, child, child if isinstance(child, Function) else owner)

    def texts(self, value: ast.expr | None, depth: int = 0) -> list[str]:
        """What an expression can read as, with holes."""
        if isinstance(value, ast.Constant):
            return [value.value if isinstance(value.value, str) else HOLE]
        if isinstance(value, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in value.values]
            constant = "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))
            # What is said already needs no more: a text for each value of each hole would only repeat it. The remedy at
            # its end is followed.
            is_told = len(re.findall(r"[a-z]{2,}", constant)) >= 3
            has_remedy = len(parts) > 1 and isinstance(parts[-2], ast.Constant) and str(parts[-2].value).endswith("; ")
            return self._joined(parts, 9 if is_told else depth, depth if has_remedy else None)
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            return self._joined([value.left, value.right], depth)
        if isinstance(value, ast.IfExp):
            return [*self.texts(value.body, depth), *self.texts(value.orelse, depth)]
        if isinstance(value, ast.BoolOp):
            return [text for one in value.values for text in self.texts(one, depth)]
        if depth > 2:
            return [HOLE]
        if isinstance(value, ast.Name):
            found = self._values(value)
        else:
            found = self._looked_up(value) or (self._results(value) if isinstance(value, ast.Call) else [])
        return [text for one in found for text in self.texts(one, depth + 1)] or [HOLE]

    def _joined(self, parts: list[ast.expr], depth: int, of_last: int | None = None) -> list[str]:
        depths = [depth] * (len(parts) - 1) + [depth if of_last is None else of_last]
        choices = [
            self.texts(part, at + (not isinstance(part, ast.Constant))) for part, at in zip(parts, depths, strict=True)
        ]
        return ["".join(one) for one in itertools.islice(itertools.product(*choices), MOST)]

    def _values(self, name: ast.Name) -> list[ast.expr]:
        """What was assigned to a name, in its function or around it."""
        function = self.owners.get(name)
        while function is not None:
            if name.id in _parameters(function):
                return []
            if inside := self.assigned.get((function, name.id)):
                return inside
            function = self.owners.get(function)
        return self.assigned.get((None, name.id), []) if name.id.strip("_").isupper() else []

    def _looked_up(self, value: ast.expr | None) -> list[ast.expr]:
        """The values of a table that an expression looks into."""
        default: list[ast.expr] = []
        if isinstance(value, ast.Subscript):
            table = value.value
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "get":
            table, default = value.func.value, value.args[1:]
        else:
            return []
        tables = [
            one
            for one in (self._values(table) if isinstance(table, ast.Name) else [table])
            if isinstance(one, ast.Dict)
        ]
        return [*(text for one in tables for text in one.values), *default] if tables else []

    def _results(self, call: ast.Call) -> list[ast.expr]:
        """What a function of the package returns, if it gives a text and no other has its name."""
        found = self.functions.get(_last(call.func), [])
        return self.returned[found[0]] if len(found) == 1 and _last(found[0].returns) == "str" else []


def _last(value: ast.AST | None) -> str:
    return value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""


def _parameters(function: Function) -> list[str]:
    every = function.args
    return [one.arg for one in (*every.posonlyargs, *every.args, *every.kwonlyargs)]


def _named(call: ast.Call, name: str) -> ast.expr | None:
    return next((one.value for one in call.keywords if one.arg == name), None)


@functools.cache
def messages() -> list[Message]:
    """All of them, without repetitions."""
    source = Source()
    # What makes an error of a text: (file or None for everywhere, name) -> (where the text stands, its name, class).
    makers: dict[tuple[Path | None, str], tuple[int, str, str]] = {
        (None, name): (int(name in SECOND), "problem", name) for name in source.errors
    }
    makers[None, "warning"] = (0, "msg", "warning")
    found: set[Message] = set()
    seen = -1
    done: set[ast.Call] = set()
    while len(makers) > seen:
        seen = len(makers)
        for path, call in source.calls:
            name = _last(call.func)
            maker = makers.get((path, name)) or makers.get((None, name))
            owner = source.owners.get(call)
            if maker is None or call in done or (owner is not None and owner.name == "__init__"):
                continue
            done.add(call)
            at, keyword, kind = maker
            value = _named(call, keyword) or (call.args[at] if at < len(call.args) else None)
            if isinstance(value, ast.Name) and owner is not None and value.id in _parameters(owner):
                parameters = [one for one in _parameters(owner) if one not in ("self", "cls")]
                where = path if owner.name.startswith("_") else None
                makers.setdefault((where, owner.name), (parameters.index(value.id), value.id, kind))
                continue
            code, remedy = (
                source.texts(_named(call, key))[0] if _named(call, key) else "" for key in ("code", "remedy")
            )
            room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
            found |= {one for text in source.texts(value) if (one := _message(room, kind, text, code, remedy))}
    return sorted(found)


def _message(room: str, kind: str, text: str, code: str, remedy: str) -> Message | None:
    if kind == "warning":
        text = re.sub(r"%[-+.\d]*[a-z]", HOLE, text)
    if kind == "PydanticCustomError":
        text = re.sub(r"\{\w+\}", HOLE, text)
    text = re.sub(f"{HOLE}+", HOLE, " ".join(text.split()))
    if len(re.sub(r"\W", "", text)) < 6:
        return None
    head, _, tail = text.rpartition("; ")
    if remedy.strip(f" {HOLE}") == "":
        remedy = ""
    if head and not tail.strip(f" .{HOLE}"):
        text = head
    elif not remedy and head and not re.match(r"(found|got|passed over|nothing)\b", tail):
        text, remedy = head, tail
    return Message(room=room, kind=kind, text=text.strip(" ;"), code=code.strip(HOLE), remedy=remedy.strip(" ;"))


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _quoted(text: str) -> str:
    mark = "``" if "`" in text else "`"
    return f"{mark}{' ' if mark == '``' else ''}{text}{' ' if mark == '``' else ''}{mark}".replace("|", "\\|")


def tables() -> str:
    """All classes and messages as Markdown."""
    found = messages()
    lines = ["### Classes", "", "| class | what it means | what to do |", "|---|---|---|"]
    lines += [f"| `{kind}` | {meaning} | {remedy} |" for kind, (meaning, remedy) in CLASSES.items()]
    for room, of_room in itertools.groupby(found, key=lambda one: one.room):
        lines += ["", f"### {room}", "", "| message | class | what to do |", "|---|---|---|"]
        for one in of_room:
            code = f" (`{one.code}`)" if one.code else ""
            lines.append(f"| {_quoted(one.text)} | `{one.kind}`{code} | {_cell(one.remedy or CLASSES[one.kind][1])} |")
    return "\n".join(lines) + "\n"


def frequent() -> Iterable[str]:
    """The messages that the page explains by hand."""
    page = PAGE.read_text(encoding="utf-8")
    begin = page.index("## Frequent messages")
    yield from re.findall(r"^\*\*`(.*)`\*\*$", page[begin : page.index("\n## ", begin + 1)], re.M)


def documented() -> str:
    """What stands between the two marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    return page[page.index(BEGIN) + len(BEGIN) + 2 : page.index(END) - 1]


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.startswith("| "))


def differences() -> list[str]:
    """What the page lacks (+), and what it holds and the code does not (-)."""
    code, page = list(_lines(tables())), list(_lines(documented()))
    return [f"+ {one}" for one in code if one not in set(page)] + [f"- {one}" for one in page if one not in set(code)]


if __name__ == "__main__":
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(
            f"{page[: page.index(BEGIN)]}{BEGIN}\n\n{tables()}\n{page[page.index(END) :]}", encoding="utf-8"
        )
        code_tables.write()
    else:
        print(tables())
