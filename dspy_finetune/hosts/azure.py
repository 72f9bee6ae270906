"""What only Azure needs: a tuned model answers after a deployment, made by the control plane and not by this API.

In: the resource's address, a tuned model, names. Out: the exact command of Azure's own tool. Nothing is run: a
deployment is billed by the hour, so a person decides.
"""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlsplit

from dspy_finetune.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def resource_name(base_url: str) -> str:
    """The resource in an address.

    >>> resource_name("https://acme.openai.azure.com/openai/v1")
    'acme'
    """
    return (urlsplit(base_url).hostname or "").split(".")[0]


def deployment_command(
    base_url: str, model: str, *, deployment: str, resource_group: str, sku: str = "Standard", capacity: int = 1
) -> str:
    """The command that deploys a tuned model; afterwards it is asked for by the deployment's name.

    Args:
        base_url: The resource's address.
        model: The tuned model's id, such as `gpt-4.1-2025-04-14.ft-0123abcd`.
        deployment: What to call the deployment.
        resource_group: The resource's group.
        sku: "Standard", "GlobalStandard" or "DeveloperTier".
        capacity: In units of 1,000 tokens per minute.

    Raises:
        UsageError: The deployment's name is not one that Azure takes.
    """
    if not _NAME.fullmatch(deployment):
        raise UsageError(f"deployment {deployment!r}: expected 1 to 64 letters, digits, dots, - and _")
    words = ["az", "cognitiveservices", "account", "deployment", "create", "--resource-group", resource_group]
    words += ["--name", resource_name(base_url), "--deployment-name", deployment, "--model-name", model]
    words += ["--model-version", "1", "--model-format", "OpenAI", "--sku-capacity", str(capacity), "--sku-name", sku]
    return shlex.join(words)
