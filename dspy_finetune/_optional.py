"""The one gate to optional dependencies: `require(module, extra, feature)`.

In: a module's name, the extra that installs it, the feature that needs it. Out: the imported module.
Nothing else in the package imports an optional dependency at its top level.
"""

from __future__ import annotations

import importlib
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
