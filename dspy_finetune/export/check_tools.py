"""The rules of tools, tool calls and tool messages.

In: messages and the row's list of tools. Out: issues in an `IssueLog`.
Not covered: whether the arguments fit the tool's schema: neither does the host look.
"""

from __future__ import annotations

import re
from typing import Any

from dspy_finetune.export.check_report import IssueLog
from dspy_finetune.export.check_text import decode_arguments, kind

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MAX_FUNCTIONS = 128


def check_function_name(log: IssueLog, line: int, path: str, name: Any) -> None:
    """A function's name has 1 to 64 letters, digits, underscores and hyphens."""
    if not isinstance(name, str) or not _NAME.match(name):
        found = f"{str(name)[:80]!r}" if isinstance(name, str) else kind(name)
        log.add(
            line, path, "function-name", f"the function's name is {found}; allowed are a-z A-Z 0-9 _ - (64 at most)"
        )


def check_tools(log: IssueLog, line: int, row: dict[str, Any], at: str = "") -> None:
    """The lists `tools` and `functions` and the flag beside them; `at` is the path of the object that holds them."""
    if "tools" in row and row["tools"] is not None:
        tools = row["tools"]
        if not isinstance(tools, list):
            log.add(line, f"{at}tools", "tools-invalid", f"tools are {kind(tools)}, not a list")
        else:
            for i, tool in enumerate(tools):
                _check_tool(log, line, f"{at}tools[{i}]", tool)
    if "functions" in row and row["functions"] is not None:
        functions = row["functions"]
        if not isinstance(functions, list) or not 1 <= len(functions) <= _MAX_FUNCTIONS:
            n = f"{len(functions)} of them" if isinstance(functions, list) else kind(functions)
            log.add(
                line, f"{at}functions", "tools-invalid", f"functions must be a list of 1 to {_MAX_FUNCTIONS}; found {n}"
            )
        else:
            for i, function in enumerate(functions):
                _check_function(log, line, f"{at}functions[{i}]", function)
    parallel = row.get("parallel_tool_calls", True)
    if not isinstance(parallel, bool):
        log.add(
            line,
            f"{at}parallel_tool_calls",
            "tools-invalid",
            f"parallel_tool_calls is {kind(parallel)}, not true or false",
        )


def _check_tool(log: IssueLog, line: int, path: str, tool: Any) -> None:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        log.add(line, path, "tools-invalid", 'a tool is {"type": "function", "function": {"name", "parameters"}}')
        return
    _check_function(log, line, f"{path}.function", tool["function"])


def _check_function(log: IssueLog, line: int, path: str, function: Any) -> None:
    if not isinstance(function, dict):
        log.add(line, path, "tools-invalid", f"a function is {kind(function)}, not an object")
        return
    check_function_name(log, line, f"{path}.name", function.get("name"))
    if not isinstance(function.get("parameters", {}), dict):
        log.add(
            line, f"{path}.parameters", "tools-invalid", f"parameters are {kind(function['parameters'])}, not an object"
        )
    if not isinstance(function.get("strict"), (bool, type(None))):
        log.add(line, f"{path}.strict", "tools-invalid", f"strict is {kind(function['strict'])}, not true or false")


def check_tool_calls(log: IssueLog, line: int, path: str, calls: Any) -> None:
    """The `tool_calls` of an assistant message."""
    if not isinstance(calls, list) or not calls:
        log.add(line, path, "tool-call-invalid", f"tool_calls are {'an empty list' if calls == [] else kind(calls)}")
        return
    for i, call in enumerate(calls):
        here = f"{path}[{i}]"
        if not isinstance(call, dict):
            log.add(line, here, "tool-call-invalid", f"a tool call is {kind(call)}, not an object")
            continue
        if not isinstance(call.get("id"), str) or not call["id"]:
            log.add(line, f"{here}.id", "tool-call-invalid", "the tool call has no id")
        if call.get("type") != "function":
            log.add(line, f"{here}.type", "tool-call-invalid", f'the type is {call.get("type")!r:.40}, not "function"')
        check_called_function(log, line, f"{here}.function", call.get("function"))


def check_called_function(log: IssueLog, line: int, path: str, function: Any) -> None:
    """The `function` of a tool call, or the older `function_call`: a name and arguments as a JSON string."""
    if not isinstance(function, dict):
        log.add(line, path, "tool-call-invalid", f"the called function is {kind(function)}, not an object")
        return
    check_function_name(log, line, f"{path}.name", function.get("name"))
    if "arguments" not in function:
        log.add(
            line, f"{path}.arguments", "tool-call-invalid", "the called function has no arguments", remedy='write "{}"'
        )
        return
    code, message, _ = decode_arguments(function["arguments"])
    if code is not None:
        log.add(line, f"{path}.arguments", code, message)


def check_conversation(log: IssueLog, line: int, path: str, messages: list[Any], tools: Any, *, complete: bool) -> None:
    """Calls and answers fit together: each answer has its call, each call its answer, each called tool is declared.

    Args:
        log: Where issues go.
        line: Line of the row.
        path: Path of the list of messages.
        messages: The conversation.
        tools: The row's list of tools, if any.
        complete: True where a call at the very end is the answer that is trained, not one that waits for its tool.
    """
    declared = _declared(tools)
    open_calls: dict[str, str] = {}
    made: set[str] = set()
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        here = f"{path}[{i}]"
        if message.get("role") == "tool":
            answered = message.get("tool_call_id")
            if isinstance(answered, str) and answered not in made:
                log.add(line, f"{here}.tool_call_id", "tool-call-id-unknown", f"no call has the id {answered[:60]!r}")
            open_calls.pop(answered, None) if isinstance(answered, str) else None
        if message.get("role") != "assistant":
            continue
        calls = message.get("tool_calls")
        for j, call in enumerate(calls if isinstance(calls, list) else []):
            if not isinstance(call, dict):
                continue
            if isinstance(call.get("id"), str):
                made.add(call["id"])
                if not (complete and i == len(messages) - 1):
                    open_calls[call["id"]] = f"{here}.tool_calls[{j}]"
            function = call.get("function")
            name = function.get("name") if isinstance(function, dict) else None
            if declared is not None and isinstance(name, str) and name not in declared:
                place = f"{here}.tool_calls[{j}].function.name"
                log.add(line, place, "tool-undeclared", f"the row's tools do not list {name[:64]!r}")
    for identity, place in open_calls.items():
        log.add(line, place, "tool-call-unanswered", f"no tool message answers the call {identity[:60]!r}")


def _declared(tools: Any) -> set[str] | None:
    if not isinstance(tools, list):
        return None
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return {f["name"] for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)}
