"""Token tables without a network: which one a model uses, and where it is found.

In: a model's name. Out: a tiktoken encoding. tiktoken fetches a table from the network at first use; litellm, which
comes with DSPy, carries the same files in tiktoken's cache layout, so they are read from there when the user's own
cache lacks them.
Not covered: counting (tokens.py).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from dspy_finetune.errors import FileError
from dspy_finetune.hosts.catalog import load_catalog, strip_model_id

if TYPE_CHECKING:
    import tiktoken

_TABLE_URL = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
_SAME_FILE = {"o200k_harmony": "o200k_base", "p50k_edit": "p50k_base"}
_CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"
_environment = threading.Lock()


def encoding_for(model: str | None) -> str | None:
    """The name of the table that a model uses, or None when nobody knows one (local models, None).

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
