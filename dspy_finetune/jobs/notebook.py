"""A heading and a table of facts, for the notebooks that show a plan or a job.

In: a title, facts by name, remarks. Out: HTML in which every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape


def facts_table(title: str, facts: Mapping[str, object], remarks: Iterable[str] = ()) -> str:
    """Show what is known: facts that are None are left out.

    >>> facts_table("a <job>", {"status": "running", "model": None}, ["soon gone"])
    '<p><b>a &lt;job&gt;</b></p><table><tbody><tr><th>status</th><td>running</td></tr></tbody></table><p>soon gone</p>'
    """
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    told = "".join(f"<p>{escape(one)}</p>" for one in remarks)
    return f"<p><b>{escape(title)}</b></p><table><tbody>{rows}</tbody></table>{told}"
