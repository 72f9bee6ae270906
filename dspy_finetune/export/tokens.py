"""How many tokens a training row has, as OpenAI counts them.

In: rows in OpenAI's or TRL's shape, or texts, and a model. Out: counts; None where no table for the model is known.

The formula (OpenAI cookbook, "How to count tokens with tiktoken"): 3 for each message, the tokens of its role and
content, 1 more and its tokens for a `name`, and 3 once for the primer of the reply. On top of it, as estimates:

- a DPO row counts its prompt once and both outputs;
- tools count by the cookbook's formula for functions, nested properties like flat ones; a tool call counts its name,
  its arguments and 3;
- an image counts 85 at `detail: low`, else 85 + 170 for each 512-pixel tile after it is scaled into 2048 x 2048 and to
  a shorter side of 768; the size is read from a data URL, and taken as 1024 x 1024 (765 tokens) behind an http address.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import importlib.util
import json
import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_finetune.catalog import load_catalog, strip_model_id
from dspy_finetune.errors import FileError, RowError
from dspy_finetune.export.formats import from_any

if TYPE_CHECKING:
    import tiktoken


# Token tables without a network: which one a model uses, and where it is found.
#
# In: a model's name. Out: a tiktoken encoding. tiktoken fetches a table from the network at first use; litellm, which
# comes with DSPy, carries the same files in tiktoken's cache layout, so they are read from there when the user's own
# cache lacks them.

_TABLE_URL = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
_SAME_FILE = {"o200k_harmony": "o200k_base", "p50k_edit": "p50k_base"}
_CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"
_environment = threading.Lock()


def encoding_for(model: str | None) -> str | None:
    """The name of the table that a model uses, or None where none is known (local models, None).

    The catalog is asked first, with the id of a tuned model stripped to its base: tiktoken itself takes
    `ft:gpt-4.1-...` for a gpt-4 and answers cl100k_base, where the right table is o200k_base.

    >>> encoding_for("ft:gpt-4.1-mini-2025-04-14:acme::Ajo5kvNY")
    'o200k_base'
    """
    if model is None:
        return None
    facts = load_catalog().model(model)
    if facts is not None:
        return facts.encoding
    import tiktoken.model  # lazy: importing the package must not load it

    try:
        name = tiktoken.model.encoding_name_for_model(strip_model_id(model))
    except KeyError:
        return None
    # "gpt2" is also the name of an open model that people train on their own machine.
    return None if name in ("gpt2", "r50k_base") else name


@functools.lru_cache(maxsize=8)
def load_encoding(name: str) -> tiktoken.Encoding:
    """The table itself, from tiktoken's cache, from litellm's package, or by tiktoken's own download.

    Raises:
        FileError: It is in neither place and cannot be downloaded.
    """
    import tiktoken  # lazy: importing the package must not load it

    folder = packaged_tables(name)
    # tiktoken takes the folder from the environment alone. It is set for the time of the call and put back.
    with _environment:
        before = os.environ.get(_CACHE_VARIABLE)
        if folder is not None:
            os.environ[_CACHE_VARIABLE] = str(folder)
        try:
            return tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            reason = " ".join(str(error).split())[:200]
            raise FileError(
                f'cannot load the token table "{name}": no packaged copy, and the download failed ({reason}); '
                f"connect once, set {_CACHE_VARIABLE} to a folder that holds it, or export without base_model"
            ) from error
        finally:
            if folder is not None:
                if before is None:
                    del os.environ[_CACHE_VARIABLE]
                else:
                    os.environ[_CACHE_VARIABLE] = before


def packaged_tables(name: str) -> Path | None:
    """The folder of litellm's copy of a table; None when the user's own cache has it, or litellm does not."""
    url = _TABLE_URL.format(name=_SAME_FILE.get(name, name))
    file = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    own = os.environ.get(_CACHE_VARIABLE)
    if own and (Path(own) / file).is_file():
        return None
    # find_spec reads no code of litellm: importing it takes seconds and about 100 MB.
    found = importlib.util.find_spec("litellm")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "litellm_core_utils" / "tokenizers"
    return folder if (folder / file).is_file() else None


# The tokens of an image, from its size and the detail asked for.
#
# In: the `url` and `detail` of an image part. Out: OpenAI's tile count. Not covered: fetching an address; its size is
# assumed.

LOW_DETAIL_TOKENS = 85
TILE_TOKENS = 170
ASSUMED_SIZE = (1024, 1024)
_HEAD_CHARS = 1 << 18
"""So much of a data URL is decoded to find the size: a JPEG may hold a large preview before it."""


def image_tokens(url: str, detail: str = "auto") -> int:
    """Tokens of one image: 85 at low detail, else 85 + 170 for each tile of 512 pixels (`auto` counts as high).

    >>> image_tokens("https://example.com/cat.png", "low"), image_tokens("https://example.com/cat.png", "high")
    (85, 765)
    """
    if detail == "low":
        return LOW_DETAIL_TOKENS
    width, height = image_size(url) or ASSUMED_SIZE
    # OpenAI's vision guide: fit into 2048 x 2048, then bring the shorter side down to 768, then count tiles of 512.
    scale = min(1.0, 2048 / max(width, height))
    width, height = width * scale, height * scale
    scale = min(1.0, 768 / min(width, height))
    # Rounded first: 1536 * (768 / 1536) may come out a hair above 768, and a hair must not cost a tile.
    n_tiles = math.ceil(round(width * scale, 6) / 512) * math.ceil(round(height * scale, 6) / 512)
    return LOW_DETAIL_TOKENS + TILE_TOKENS * n_tiles


def image_size(url: str) -> tuple[float, float] | None:
    """Width and height of a PNG, JPEG, GIF or WEBP in a data URL; None for anything else."""
    head, comma, body = url.partition(",")
    if not head.startswith("data:") or not comma or not head.endswith(";base64"):
        return None
    body = body[:_HEAD_CHARS]
    try:
        data = base64.b64decode(body[: len(body) // 4 * 4])
    except (binascii.Error, ValueError):
        return None
    size = _png(data) or _gif(data) or _webp(data) or _jpeg(data)
    return size if size is not None and min(size) > 0 else None


def _png(data: bytes) -> tuple[int, int] | None:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"GIF8" or len(data) < 10:
        return None
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _webp(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _jpeg(data: bytes) -> tuple[int, int] | None:
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        # Start-of-frame markers hold the size; C4, C8 and CC share the range and are other things.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 7 : place + 9], "big"), int.from_bytes(
                data[place + 5 : place + 7], "big"
            )
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


Tokenizer = Callable[[str], int]
"""Counts the tokens of a text."""

PER_MESSAGE = 3
PER_NAME = 1
REPLY_PRIMER = 3
PER_TOOL_CALL = 3
# Cookbook, "Tool/function calling" for gpt-4o and gpt-4o-mini.
_PER_FUNCTION, _PER_PROPERTIES, _PER_PROPERTY, _PER_ENUM, _PER_ENUM_ITEM, _AFTER_FUNCTIONS = 7, 3, 3, -3, 3, 12

_CACHED_CHARS = 40
"""Texts up to this length are remembered: labels repeat. Longer ones are counted each time, but for system prompts."""
_CACHE_SIZE = 4096


_TRL_KEYS = frozenset({"prompt", "completion", "chosen", "rejected"})


class TokenCounter:
    """Counts the tokens of rows and adds them up; each distinct system prompt, label and set of tools is counted once.

    >>> counter = TokenCounter.for_model("gpt-4.1-mini")
    >>> counter.messages([{"role": "user", "content": "Title: A quiet town"}, {"role": "assistant", "content": "true"}])
    17
    """

    def __init__(self, count: Tokenizer, *, encoding: str | None = None, max_row_tokens: int | None = None) -> None:
        self.encoding = encoding
        """Name of the table; None with a tokenizer of the user's own."""
        self.n_tokens = 0
        """Sum over the rows that were added."""
        self.n_billed_tokens = 0
        """The same, each row cut at the model's training context."""
        self.count = count
        """Counts the tokens of a text."""
        self._max_row_tokens = max_row_tokens
        self._known: dict[str, int] = {}
        self._known_tools: dict[str, int] = {}

    @classmethod
    def for_model(cls, model: str | None, *, tokenizer: Tokenizer | None = None) -> TokenCounter | None:
        """A counter for a model; None when no table is known and no tokenizer is given. Raises FileError."""
        facts = load_catalog().model(model) if model is not None else None
        limit = facts.train_context_tokens if facts is not None else None
        if tokenizer is not None:
            return cls(tokenizer, max_row_tokens=limit)
        name = encoding_for(model)
        if name is None:
            return None
        # encode_ordinary takes a control token such as <|endoftext|> in a text as the characters it is made of, as a
        # host does. tiktoken's batch call is no help for short texts: its threads make it ten times slower a text than
        # this.
        encode = load_encoding(name).encode_ordinary
        return cls(lambda text: len(encode(text)), encoding=name, max_row_tokens=limit)

    def add(self, row: Mapping[str, Any]) -> int:
        """Count a row and add it to the sums."""
        n = self.row(row)
        self.n_tokens += n
        limit = self._max_row_tokens
        self.n_billed_tokens += n if limit is None or n <= limit else limit
        return n

    def row(self, row: Mapping[str, Any]) -> int:
        """Tokens of one SFT or DPO row, in OpenAI's shape or TRL's; what is not a message counts nothing."""
        given = row.get("input")
        if isinstance(given, Mapping):
            n = self._conversation(given.get("messages")) + self._tools(given)
            for key in ("preferred_output", "non_preferred_output"):
                n += self._conversation(row.get(key))
            return n + REPLY_PRIMER
        if "messages" not in row and not _TRL_KEYS.isdisjoint(row):
            with contextlib.suppress(RowError):  # neither shape: counts as a row without messages
                return self.row(from_any(row))
        return self._conversation(row.get("messages")) + self._tools(row) + REPLY_PRIMER

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a conversation, with the primer of the reply."""
        return self._conversation(messages) + REPLY_PRIMER

    def text(self, text: str) -> int:
        """Tokens of a text alone."""
        return self.count(text)

    def _conversation(self, messages: Any) -> int:
        if not isinstance(messages, (list, tuple)):
            return 0
        n = 0
        for message in messages:
            if type(message) is dict or isinstance(message, Mapping):
                n += self._message(message)
        return n

    def _message(self, message: Mapping[str, Any]) -> int:
        role, content = message.get("role"), message.get("content")
        n = PER_MESSAGE
        if isinstance(role, str):
            n += self._repeated(role)
        if isinstance(content, str):
            repeats = role == "system" or role == "developer" or len(content) <= _CACHED_CHARS
            n += self._repeated(content) if repeats else self.count(content)
        elif isinstance(content, list):
            n += sum(self._part(part) for part in content if isinstance(part, Mapping))
        if len(message) > 2 or "content" not in message:  # a message that calls tools may have no content
            n += self._extras(message)
        return n

    def _extras(self, message: Mapping[str, Any]) -> int:
        n = 0
        if isinstance(name := message.get("name"), str):
            n += PER_NAME + self._repeated(name)
        for key in ("refusal", "tool_call_id"):
            if isinstance(text := message.get(key), str):
                n += self.count(text)
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping):
                n += PER_TOOL_CALL + self.count(str(function.get("name", "")))
                arguments = function.get("arguments", "")
                n += self.count(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
        return n

    def _part(self, part: Mapping[str, Any]) -> int:
        if isinstance(text := part.get("text"), str):
            return self.count(text)
        if isinstance(text := part.get("refusal"), str):
            return self.count(text)
        image = part.get("image_url")
        if isinstance(image, Mapping):
            return image_tokens(str(image.get("url", "")), str(image.get("detail", "auto")))
        return 0

    def _repeated(self, text: str) -> int:
        n = self._known.get(text)
        if n is None:
            if len(self._known) >= _CACHE_SIZE:
                self._known.clear()
            n = self._known[text] = self.count(text)
        return n

    def _tools(self, row: Mapping[str, Any]) -> int:
        tools = row.get("tools")
        if not isinstance(tools, list) or not tools:
            return 0
        key = json.dumps(tools, sort_keys=True, default=str)
        n = self._known_tools.get(key)
        if n is None:
            if len(self._known_tools) >= _CACHE_SIZE:
                self._known_tools.clear()
            functions = [
                tool["function"]
                for tool in tools
                if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
            ]
            n = self._known_tools[key] = _AFTER_FUNCTIONS + sum(self._function(function) for function in functions)
        return n

    def _function(self, function: Mapping[str, Any]) -> int:
        description = str(function.get("description") or "").removesuffix(".")
        return (
            _PER_FUNCTION
            + self.count(f"{function.get('name', '')}:{description}")
            + self._properties(function.get("parameters"))
        )

    def _properties(self, schema: Any) -> int:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping) or not properties:
            return 0
        n = _PER_PROPERTIES
        for name, about in properties.items():
            n += _PER_PROPERTY
            if not isinstance(about, Mapping):
                continue
            choices = about.get("enum")
            if isinstance(choices, list):
                n += _PER_ENUM + sum(_PER_ENUM_ITEM + self.count(str(choice)) for choice in choices)
            description = str(about.get("description") or "").removesuffix(".")
            n += self.count(f"{name}:{about.get('type', '')}:{description}")
            n += self._properties(about) + self._properties(about.get("items"))
        return n


def count_tokens(text: str, base_model: str) -> int | None:
    """Tokens of a text for a base or tuned model; None when no table for it is known (local models).

    >>> count_tokens("A quiet town", "gpt-4.1-mini-2025-04-14")
    3

    Raises:
        FileError: The table is not on this machine and cannot be downloaded.
    """
    name = encoding_for(base_model)
    return None if name is None else len(load_encoding(name).encode_ordinary(text))


def count_messages(messages: Sequence[Mapping[str, Any]], base_model: str) -> int | None:
    """Tokens of a conversation, with the chat overhead; None when no table for the model is known. Raises FileError."""
    counter = TokenCounter.for_model(base_model)
    return None if counter is None else counter.messages(messages)


# Tokens of many texts, faster than tiktoken: words repeat, so each is counted once.
#
# In: texts. Out: the counts that tiktoken gives. Like tiktoken, a text is cut into pieces by the encoding's pattern,
# and each piece has its tokens whatever stands around it. For ASCII texts the pattern needs none of Unicode's
# classes, so Python's `re` cuts them, and a piece seen before costs a look into a dict: 1.2 to 2.6 times as fast as
# `encode`. Other texts, and texts of words that never come again, go to tiktoken as they are.

_ENDING = r"(?:'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL]))?"
# The pattern of o200k_base with \p{...} read for ASCII alone: Lu is A-Z, Ll is a-z, N is 0-9, the rest is empty.
_PIECES = re.compile(
    rf"[^\r\nA-Za-z0-9]?[A-Z]*[a-z]+{_ENDING}|[^\r\nA-Za-z0-9]?[A-Z]+[a-z]*{_ENDING}"
    r"|[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.ASCII,
)
_MAX_PIECES = 60_000
"""Pieces that are remembered; some 6 MB."""
_LONGEST = 40


class _Known(dict[str, int]):
    """Pieces and their tokens; counts a piece that is not there."""

    def __init__(self, encode: Tokenizer) -> None:
        super().__init__()
        self._count = encode
        self.n_missed = 0

    def __missing__(self, piece: str) -> int:
        n = self._count(piece)
        self.n_missed += 1
        if len(self) < _MAX_PIECES and len(piece) <= _LONGEST:
            self[piece] = n
        return n


class PieceCounter:
    """Counts the tokens of a text in o200k_base."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encode = encoding.encode_ordinary
        self._known = _Known(lambda piece: len(self._encode(piece)))
        self._n_pieces = 0
        self._pays = True

    def __call__(self, text: str) -> int:
        """Tokens of the text."""
        if not self._pays or not text.isascii():
            return len(self._encode(text))
        pieces = _PIECES.findall(text)
        self._n_pieces += len(pieces)
        if self._n_pieces > _MAX_PIECES:
            # A piece that misses costs three times what it costs inside a text: with a fifth missing nothing is won.
            self._pays = 5 * self._known.n_missed < self._n_pieces
            self._n_pieces = self._known.n_missed = 0
        return sum(map(self._known.__getitem__, pieces))


def fast_counter(model: str | None, tokenizer: Tokenizer | None) -> TokenCounter | None:
    """A counter for many rows of a model; None where no table is known. Raises FileError."""
    counter = TokenCounter.for_model(model, tokenizer=tokenizer)
    if counter is not None and counter.encoding == "o200k_base":
        counter.count = PieceCounter(load_encoding(counter.encoding))
    return counter
