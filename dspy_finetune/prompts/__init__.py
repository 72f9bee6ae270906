r"""Prompts: the one contract of training and serving.

Example:
    >>> from dspy_finetune import prompts
    >>> prompt = prompts.pairwise("Likes essays on craft.")
    >>> prompt.messages({"title_a": "How to sharpen a chisel", "title_b": "Ten gadgets"})[1]
    {'role': 'user', 'content': 'A: How to sharpen a chisel\nB: Ten gadgets'}
    >>> prompt.parse(prompt.completion({"preferred": "A"}))
    {'preferred': 'A'}
"""

from dspy_finetune.prompts.adapter import as_adapter
from dspy_finetune.prompts.format import RENDERING_VERSION, PromptFormat
from dspy_finetune.prompts.presets import answer, binary, explained_pairwise, number, pairwise
from dspy_finetune.values import LabelSet, NumberFormat

__all__ = [
    "RENDERING_VERSION",
    "LabelSet",
    "NumberFormat",
    "PromptFormat",
    "answer",
    "as_adapter",
    "binary",
    "explained_pairwise",
    "number",
    "pairwise",
]
