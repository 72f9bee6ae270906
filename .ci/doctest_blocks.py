"""A griffe extension for the reference page: doctest lines in docstrings become code blocks instead of quotes."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^ *>>> .*\n?(?:^ *\S.*\n?)*)", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Fences each run of lines that starts with `>>>`, up to the next blank line."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a function, class or attribute as it is collected."""
        if obj.docstring is not None and ">>> " in obj.docstring.value and "```" not in obj.docstring.value:
            obj.docstring.value = _DOCTEST.sub(
                lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", obj.docstring.value
            )
