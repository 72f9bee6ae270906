"""Azure's deployment step is printed as the exact command, and asked of no other host."""

import shlex

import pytest

from dspy_finetune.errors import UsageError
from dspy_finetune.hosts import Host

MODEL = "gpt-4.1-2025-04-14.ft-0123abcd"


def test_the_command_names_resource_model_and_deployment() -> None:
    command = Host.azure("https://acme.openai.azure.com").deployment_command(
        MODEL, deployment="taste", resource_group="my group"
    )
    words = shlex.split(command)
    options = dict(zip(words[5::2], words[6::2], strict=True))
    assert words[:5] == ["az", "cognitiveservices", "account", "deployment", "create"]
    assert options["--name"] == "acme"
    assert options["--model-name"] == MODEL
    assert options["--resource-group"] == "my group"
    assert options["--deployment-name"] == "taste"


def test_a_name_that_azure_refuses_is_refused_here() -> None:
    with pytest.raises(UsageError, match="letters"):
        Host.azure("https://acme.openai.azure.com").deployment_command(MODEL, deployment="a b", resource_group="g")


@pytest.mark.parametrize("host", [Host.openai(), Host.local(), Host.compatible("https://x.example/v1")])
def test_other_hosts_want_no_deployment(host: Host) -> None:
    assert host.deployment_command("m", deployment="d", resource_group="g") == ""
