"""The one gate to optional dependencies: `require(module, extra, feature)`, and `fitting` for what fits small models.

In: a module's name, the extra that installs it, the feature that needs it. Out: the imported module.
Nothing else in the package imports an optional dependency at its top level.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from dspy_finetune.errors import MissingExtraError


def require(module: str, extra: str, feature: str) -> Any:
    """Import an optional module, or say which pip line installs it.

    Args:
        module: Dotted name, such as `"sklearn.linear_model"`.
        extra: The extra of this package that brings it, such as `"eval"`.
        feature: What the user asked for, named in the message.

    Raises:
        MissingExtraError: The module, or one that it needs, is not installed.
    """
    try:
        loaded: ModuleType = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise MissingExtraError(
            f'{feature} needs the package "{missing}", which is not installed: pip install "dspy-finetune[{extra}]"'
        ) from error
    return loaded


_ONE_FIT = threading.RLock()


@contextlib.contextmanager
def fitting(module: str, extra: str, feature: str) -> Iterator[Any]:
    """An optional module that fits models to some hundred rows, whose libraries use one thread meanwhile.

    Their threads wait for each other on small matrices. On two busy cores TF-IDF on 300 questions of six kinds took
    57 s of their time, with one thread 2 s; the scores of 150 ranked items 57 s for 1.2, stacking twelve labels 1.1 s
    for .04.
    The limit is the process's, so that one fit runs at a time: of two that overlap the later would restore the limit.

    Raises:
        MissingExtraError: As `require`.
    """
    loaded = require(module, extra, feature)  # first, so that its threads are limited, too
    with _ONE_FIT, require("threadpoolctl", extra, feature).threadpool_limits(1):
        yield loaded
