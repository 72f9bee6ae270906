"""The main job on packaged data: labelled titles in, three tuned models and a verdict out.

>>> from dspy_finetune.quickstart import load_titles
>>> len(load_titles()) > 600
True
"""

from dspy_finetune.quickstart.main_job import (
    RUBRIC,
    SIZES,
    Material,
    Result,
    Size,
    Step,
    load_rubric,
    load_titles,
    prepare,
    read_titles,
    run,
    size_of,
    summary,
)

__all__ = [
    "RUBRIC",
    "SIZES",
    "Material",
    "Result",
    "Size",
    "Step",
    "load_rubric",
    "load_titles",
    "prepare",
    "read_titles",
    "run",
    "size_of",
    "summary",
]
