"""The table of codes: what each fault is called, how grave it is, what to do, and where the rule comes from.

In: nothing. Out: `CODES`, from which issues take severity and remedy, and which docs/troubleshooting.md repeats (a test
compares them). A code is an error only where a host's schema, guide or server states the rule; everything else is a
warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]

SCHEMA = "OpenAI's API description"
GUIDE = "OpenAI's guides"
SERVER = "OpenAI's server messages"
JSON = "JSON (RFC 8259)"
LINT = "this library"
AZURE = "Azure's guide"
TOGETHER = "Together's guide and client"
FIREWORKS = "Fireworks' guide"


@dataclass(frozen=True, kw_only=True)
class Code:
    """One kind of fault."""

    severity: Severity
    """`error`: the host refuses it; `warning`: it spoils the training; `info`: worth knowing."""
    meaning: str
    """What is wrong, in one sentence."""
    remedy: str
    """What to do, in one sentence."""
    source: str
    """Where the rule comes from."""
    fixable: bool = False
    """True where `fix` mends it whenever nothing has to be guessed."""


def _error(meaning: str, remedy: str, source: str, *, fixable: bool = False) -> Code:
    return Code(severity="error", meaning=meaning, remedy=remedy, source=source, fixable=fixable)


def _warning(meaning: str, remedy: str, source: str = LINT, *, fixable: bool = False) -> Code:
    return Code(severity="warning", meaning=meaning, remedy=remedy, source=source, fixable=fixable)


def _info(meaning: str, remedy: str, *, fixable: bool = False) -> Code:
    return Code(severity="info", meaning=meaning, remedy=remedy, source=LINT, fixable=fixable)


_FIX = "run `dspy-finetune check FILE --fix OUT`, or "


def by_hand(remedy: str) -> str:
    """The remedy for a fault that the fix leaves as it is."""
    return remedy.removeprefix(_FIX)


FILE_CODES: dict[str, Code] = {
    "empty-file": _error("The file holds no row.", "export the rows again", SERVER),
    "too-few-examples": _error(
        "The file has fewer rows than the host takes.", "add examples; 50 good ones are a sensible start", SERVER
    ),
    "too-many-examples": _error(
        "The file has more rows than the method takes.", "keep the best rows up to the limit", GUIDE
    ),
    "too-many-images": _error(
        "More rows with images, or more images in a row, than the host takes.", "drop images or rows with images", GUIDE
    ),
    "file-too-large": _error("The file is larger than the host takes.", "drop rows, or split the file", SCHEMA),
    "file-extension": _error("The file's name does not end in .jsonl.", "rename the file", GUIDE),
    "bom": _warning(
        "The file starts with a byte-order mark, which OpenAI's reader is suspected to trip over.",
        _FIX + "save as UTF-8 without a mark",
        "a user's report to OpenAI",
        fixable=True,
    ),
    "bom-missing": _warning(
        "The file has no byte-order mark, and Azure asks for one.",
        _FIX + "save as UTF-8 with a mark",
        AZURE,
        fixable=True,
    ),
    "binary-file": _error(
        "The file is packed or binary, not text.", "unpack it, or write its rows as JSON, one per line", SERVER
    ),
    "utf-16": _error("The file is UTF-16.", _FIX + "save it as UTF-8", JSON, fixable=True),
    "crlf": _info("Lines end with CR LF.", _FIX + "save with LF line ends", fixable=True),
    "blank-line": _warning("A line is blank.", _FIX + "delete the line", fixable=True),
    "csv-file": _error(
        "The file is CSV, not JSONL.", _FIX + "write each row as a JSON object on a line", SERVER, fixable=True
    ),
    "json-array": _error(
        "The file is one JSON array.", _FIX + "write one row per line, without the brackets", SERVER, fixable=True
    ),
}
"""Faults of the file as a whole."""

LINE_CODES: dict[str, Code] = {
    "not-json": _error("A line is not JSON.", "write one JSON object per line", SERVER),
    "invalid-utf8": _error("Bytes of a line are not UTF-8.", "save the file as UTF-8 from where it was made", JSON),
    "nul-byte": _error("A line holds NUL bytes.", "write the row again; the file is damaged or binary", JSON),
    "not-a-number": _error("A row holds NaN or Infinity, which JSON does not have.", "use null or a number", JSON),
    "control-character": _error(
        "A string holds a raw control character.", _FIX + "write it as an escape such as \\t", JSON, fixable=True
    ),
    "trailing-comma": _error(
        "A comma stands before a closing bracket or after the row.", _FIX + "delete it", JSON, fixable=True
    ),
    "python-repr": _error(
        "A line is Python's repr of a dict (single quotes, True, None), not JSON.",
        _FIX + "write rows with json.dumps, not str()",
        SERVER,
        fixable=True,
    ),
    "pretty-printed": _error(
        "A row is spread over several lines.", _FIX + "write each row on one line", SERVER, fixable=True
    ),
    "several-values": _error(
        "A line holds several rows.", _FIX + "put each row on a line of its own", SERVER, fixable=True
    ),
    "csv-row": _error("A row of a CSV file cannot be read.", "mend the row, or save the table anew", "RFC 4180"),
    "row-not-object": _error(
        "A line is JSON, but not an object.", 'make each line an object, {"messages": [...]}', SERVER
    ),
    "duplicate-key": _warning(
        "An object has the same key twice; readers keep the last value.",
        _FIX + "delete one of them",
        JSON,
        fixable=True,
    ),
    "lone-surrogate": _warning(
        "A string holds half of a surrogate pair, which is no character.",
        "delete it, or write the whole character",
        JSON,
    ),
}
"""Faults of a line as text."""

FORMAT_CODES: dict[str, Code] = {
    "unknown-format": _error(
        "A row is in no format that can be trained.", 'a row needs "messages", or "input" with two outputs', SERVER
    ),
    "format-method-mismatch": _error(
        "The rows' format is not that of the method.", "choose the other method, or export for this one", SERVER
    ),
    "mixed-formats": _error("Rows of different formats stand in one file.", "write one file per format", SERVER),
    "preference-wrong-spelling": _error(
        "A preference row is spelled messages/preferred/rejected.",
        _FIX + "write input.messages, preferred_output, non_preferred_output",
        SCHEMA,
        fixable=True,
    ),
    "preference-old-names": _error(
        "A preference row uses the names of before 2025-05, preferred_completion and non_preferred_completion.",
        _FIX + "rename them to preferred_output and non_preferred_output",
        SCHEMA,
        fixable=True,
    ),
    "prompt-completion-format": _error(
        "A row is a prompt/completion pair, which only closed models took.",
        _FIX + "write it as messages",
        GUIDE,
        fixable=True,
    ),
    "trl-preference-format": _error(
        "A preference row is spelled prompt/chosen/rejected, as TRL does.",
        _FIX + "write input.messages, preferred_output, non_preferred_output",
        SCHEMA,
        fixable=True,
    ),
    "sharegpt-format": _error(
        'A row is spelled conversations/from/value ("ShareGPT").',
        _FIX + "write messages/role/content",
        SERVER,
        fixable=True,
    ),
    "foreign-format": _error(
        "A row is spelled as Alpaca, LLaMA-Factory, ms-swift or hh-rlhf do.",
        _FIX + "write messages, or input.messages with two outputs",
        SERVER,
        fixable=True,
    ),
    "text-format": _error(
        "A row is plain text, and the host trains answers to questions.",
        "write messages, or train where text is taken (Together, Nebius, TRL)",
        SERVER,
    ),
    "other-method": _error(
        "A row has a key that says that it is for another method or trainer (label, images, weight).",
        "train it where the key is read, or take the key out of the row",
        LINT,
    ),
    "key-misplaced": _error(
        "A system prompt, tools or messages stand beside the place where they are read.",
        _FIX + "make the system prompt the first message, and put tools into the input",
        SCHEMA,
        fixable=True,
    ),
    "json-string": _error(
        "Messages or tools are a string that holds JSON, not JSON.",
        _FIX + "write the list itself",
        SCHEMA,
        fixable=True,
    ),
    "null-value": _warning(
        "A key holds null, as Arrow tables write what is absent.", _FIX + "leave the key out", SCHEMA, fixable=True
    ),
    "unknown-key": _warning("A row or message has a key that the host does not know.", "delete it", SCHEMA),
}
"""Faults of a row's outline."""

MESSAGE_CODES: dict[str, Code] = {
    "messages-missing": _error("A row has no list of messages.", 'add "messages": [...]', SCHEMA),
    "messages-empty": _error("The list of messages is empty.", "add the messages, or delete the row", SCHEMA),
    "message-not-object": _error("A message is not an object.", "make it an object with role and content", SCHEMA),
    "role-missing": _error("A message has no role.", 'add "role"', SERVER),
    "role-unknown": _error(
        "A role is not one that the host knows.",
        _FIX + "use system, user, assistant or tool",
        SCHEMA,
        fixable=True,
    ),
    "role-developer": _error(
        'The role "developer" is not known in supervised and preference rows.',
        _FIX + 'use "system"',
        SCHEMA,
        fixable=True,
    ),
    "role-system": _error(
        'The role "system" is not known in reinforcement rows.', _FIX + 'use "developer"', SCHEMA, fixable=True
    ),
    "roles-not-alternating": _error(
        "Two messages of one role follow each other.", "join them to one message, or add the one between", TOGETHER
    ),
    "system-not-first": _error("A system message is not the first one.", "move it to the front", FIREWORKS),
    "content-missing": _error("A message has no content.", "add the content, or delete the message", SCHEMA),
    "content-type": _error("A content is neither text nor a list of parts.", "make it a string", SCHEMA),
    "content-empty": _warning("A message's content is empty.", "fill it, or delete the row"),
    "part-invalid": _error(
        "A part of a content is not one that can be trained on here.",
        "keep text parts, and image parts of the user",
        SCHEMA,
    ),
    "weight-invalid": _error("A weight is not the integer 0 or 1.", _FIX + "use 0 or 1", SCHEMA, fixable=True),
    "weight-not-assistant": _error(
        "A weight stands on a message that is not the assistant's.", _FIX + "delete it there", SCHEMA, fixable=True
    ),
    "weights-all-zero": _warning("No assistant message has a weight other than 0: nothing is trained.", "set one to 1"),
    "host-refuses": _error(
        "The host's own check refuses the row: the local host trains on text alone, and on an answer in each row.",
        "write the row as plain messages with an answer to learn, or train it on another host",
        "this package's local host",
    ),
    "no-assistant": _error("No message is the assistant's: there is nothing to learn.", "add the answer", GUIDE),
    "last-not-assistant": _warning(
        "The last message is not the assistant's: what follows its last answer is not trained.", "end with the answer"
    ),
}
"""Faults of messages."""

TOOL_CODES: dict[str, Code] = {
    "tool-call-invalid": _error(
        "A tool call lacks id, type or function.",
        'write {"id", "type": "function", "function": {"name", "arguments"}}',
        SCHEMA,
    ),
    "arguments-not-string": _error(
        "Arguments of a tool call are an object, not a JSON string.",
        _FIX + "write json.dumps(arguments)",
        SCHEMA,
        fixable=True,
    ),
    "arguments-python-repr": _error(
        "Arguments of a tool call are Python's repr, not JSON.",
        _FIX + "write json.dumps(arguments)",
        SCHEMA,
        fixable=True,
    ),
    "arguments-not-json": _error(
        "Arguments of a tool call are not JSON.", _FIX + "write json.dumps(arguments)", SCHEMA, fixable=True
    ),
    "arguments-double-encoded": _warning(
        "Arguments of a tool call were encoded twice: the JSON string holds a string.",
        _FIX + "encode them once",
        fixable=True,
    ),
    "arguments-not-object": _warning("Arguments of a tool call are JSON, but not an object.", "name the arguments"),
    "tool-call-id-missing": _error(
        "A tool message has no tool_call_id.", "add the id of the call that it answers", SCHEMA
    ),
    "tool-call-id-unknown": _warning("A tool message answers a call that no message before it makes.", "mend the id"),
    "tool-call-unanswered": _warning("A tool call has no tool message that answers it.", "add the tool's answer"),
    "tool-content-not-string": _error(
        "A tool message's content is a list, which the server refuses.", _FIX + "make it a string", SERVER, fixable=True
    ),
    "function-name": _error(
        "A function's name has other signs than letters, digits, _ and -, or more than 64.",
        _FIX + "rename the function",
        SCHEMA,
        fixable=True,
    ),
    "tools-invalid": _error("The list of tools is not as the host wants it.", "mend the tool's description", SCHEMA),
    "tool-undeclared": _warning("A tool is called that the row's tools do not list.", "add it to the row's tools"),
}
"""Faults of tools and of calls to them."""

IMAGE_CODES: dict[str, Code] = {
    "image-role": _error("An image stands in a message that is not the user's.", "move it to a user message", GUIDE),
    "image-url": _error("An image's address is neither https nor a data URL.", "use https or a data URL", GUIDE),
    "image-detail": _error("An image's detail is not low, high or auto.", "use low, high or auto", SCHEMA),
    "image-skipped": _warning(
        "An image is of a kind or size that the host skips.", "use JPEG, PNG or WEBP of at most 10 MB", GUIDE
    ),
    "image-in-dpo": _error("A preference row holds an image; preference training is text only.", "drop the row", GUIDE),
}
"""Faults of images."""

PREFERENCE_CODES: dict[str, Code] = {
    "input-missing": _error(
        "A preference row has no input with messages.", _FIX + 'add "input": {"messages": [...]}', SCHEMA, fixable=True
    ),
    "output-missing": _error("A preference row lacks one of its two outputs.", "add it, or delete the row", GUIDE),
    "output-not-list": _error(
        "An output is not a list of messages.",
        _FIX + 'write [{"role": "assistant", "content": ...}]',
        SCHEMA,
        fixable=True,
    ),
    "output-several": _error(
        "An output has more than one message.", _FIX + "keep the one assistant message", SCHEMA, fixable=True
    ),
    "output-role": _error("An output's message is not the assistant's.", "make it an assistant message", SCHEMA),
    "output-empty": _warning("An output is empty text.", "fill it, or delete the row"),
    "outputs-identical": _warning("Preferred and rejected output are the same.", "delete the row"),
    "input-has-assistant": _warning(
        "The input of a preference row holds assistant messages; only one-turn conversations are trained.",
        "keep system and user messages in the input",
        GUIDE,
    ),
}
"""Faults of preference rows."""

MODEL_CODES: dict[str, Code] = {
    "context-length": _warning(
        "A row is longer than the model's training context; its end, the answer, is cut off without a word.",
        "shorten the prompt, or drop the row",
        GUIDE,
    ),
    "model-unknown": _warning(
        "The base model is not in the catalog.", "check the name; limits and tokens are not known"
    ),
    "model-method": _error("The base model cannot be trained by this method.", "choose another base model", GUIDE),
    "model-no-images": _error("The base model cannot be trained on images.", "choose a base model that can", GUIDE),
    "model-shut-down": _warning("The base model has been shut down.", "choose another base model or host", GUIDE),
}
"""Faults of the base model with these rows."""

SET_CODES: dict[str, Code] = {
    "duplicate-row": _warning(
        "A row stands in the file more than once.",
        _FIX + "keep one of them, as long as enough rows are left",
        fixable=True,
    ),
    "conflicting-rows": _warning(
        "The same prompt has different outputs.", "decide which is right, unless several answers are meant"
    ),
    "preference-reversed": _warning(
        "The same two outputs are preferred in both directions.", "decide which is better; drop the other row"
    ),
    "train-validation-overlap": _error(
        "A row is in both the training and the validation file.", "split again; nothing may be in both", SCHEMA
    ),
    "train-validation-same-prompt": _warning(
        "A prompt of the training file is in the validation file with another output.", "split by prompt"
    ),
}
"""Faults between rows."""

LINT_CODES: dict[str, Code] = {
    "shortcut-phrase": _warning(
        "A fixed phrase tells the chosen outputs from the rejected ones: the model learns the phrase, not the choice.",
        "write both outputs from one template, so that they differ only in the choice",
    ),
    "shortcut-length": _warning(
        "Length alone tells the chosen outputs from the rejected ones.", "make both outputs about equally long"
    ),
    "shortcut-style": _warning(
        "Letter case, punctuation, language or markup tells the chosen outputs from the rejected ones.",
        "write both outputs in one style",
    ),
    "shortcut-position": _warning(
        "The right answer stands at one position far more often than at the other.",
        "balance the order: make_pairs does, or both_orders=True",
    ),
    "label-imbalance": _warning(
        "One output makes up most of the rows: answering it always would look good.",
        "add rows of the others; drop none, as probabilities follow the shares; judge by balanced_accuracy or "
        "average_precision",
    ),
    "input-empty": _warning(
        'Nothing stands where other rows have an input, as in "Title: ".', "fill the field, or leave the row out"
    ),
    "constant-system-prompt": _info(
        "All rows share one system prompt: the model must be served with exactly the same.",
        "ask through a predictor with the same PromptFormat, which sends it",
    ),
    "prompt-mismatch": _error(
        "The rows were written with another prompt than the one given.",
        "export again with this prompt, or serve with theirs",
        LINT,
    ),
    "preference-contradiction": _warning(
        "A is preferred to B in one row and B to A in another.", "decide which is better; drop the other row"
    ),
    "preference-cycle": _warning(
        "Preferences run in a circle (A > B, B > C, C > A).", "decide one of the pairs anew, or drop it", GUIDE
    ),
}
"""Faults that no host reports and that spoil the training."""

CODES: dict[str, Code] = {
    **FILE_CODES,
    **LINE_CODES,
    **FORMAT_CODES,
    **MESSAGE_CODES,
    **TOOL_CODES,
    **IMAGE_CODES,
    **PREFERENCE_CODES,
    **MODEL_CODES,
    **SET_CODES,
    **LINT_CODES,
}
"""Every code, in the order of docs/troubleshooting.md."""
