"""What plugs into DSPy's own optimizers: training behind BootstrapFinetune and BetterTogether, and DPO as an optimizer.

>>> from dspy_finetune.hosts import Host
>>> from dspy_finetune.optimizers import FinetuneProvider
>>> FinetuneProvider(host=Host.local("http://127.0.0.1:8377/v1")).lm("smollm2-135m-instruct").model
'openai/smollm2-135m-instruct'
"""

from dspy_finetune.optimizers.preference import PreferenceFinetune, PreferenceOptions, PreferenceTuning
from dspy_finetune.optimizers.provider import FinetuneProvider, attach_adapter, load_program

__all__ = [
    "FinetuneProvider",
    "PreferenceFinetune",
    "PreferenceOptions",
    "PreferenceTuning",
    "attach_adapter",
    "load_program",
]
