"""Hosts: OpenAI, Azure, the embedded local server, and whatever else speaks OpenAI's API.

>>> from dspy_finetune.hosts import Host
>>> host = Host.compatible("https://llm.example.com/v1", name="example")
>>> host.dspy_name("my-model")
'openai/my-model'
"""

from dspy_finetune.catalog import Catalog, ModelFacts, load_catalog, parse_model_id, strip_model_id
from dspy_finetune.hosts.host import Host
from dspy_finetune.hosts.protocol import HostKind

__all__ = ["Catalog", "Host", "HostKind", "ModelFacts", "load_catalog", "parse_model_id", "strip_model_id"]
