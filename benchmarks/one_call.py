"""What one call of a predictor costs on the client, beside dspy.LM(Request), dspy.Predict and the openai client.

    python benchmarks/one_call.py [--calls 300] [--rounds 7]

All ask the same loopback server, a process of its own, for a title's label with its log-probabilities; DSPy's cache is
off. The ways take turns in short rounds; the processor time of the whole client process is counted. Prints JSON lines:
microseconds a call (least and median of the rounds), the ratio to dspy.LM(Request) (median of the rounds' own ratios),
and the prompts' tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="dspy-cache-")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the price list that DSPy carries, not one from the network

import dspy
import openai
from dspy.lm15 import Config, Message, Request

import dspy_finetune as ft
from dspy_finetune.export.tokens import count_tokens

MODEL = "ft:gpt-4.1-mini-2025-04-14:acme:taste:abc12345"
RUBRIC = "Likes pieces that explain how things work. Skips hype and news."
TITLE = "Why lock gates lean upstream"


def ways(url: str) -> dict[str, Callable[[], Any]]:
    """Each way of asking once."""
    prompt = ft.prompts.binary(RUBRIC)
    messages: Any = prompt.messages({"title": TITLE})
    options: dict[str, Any] = {"api_base": url, "api_key": "k", "cache": False, "engine": "lm15"}
    lm = dspy.LM(f"openai/{MODEL}", **options)
    chat_lm = dspy.LM(f"openai/{MODEL}", max_tokens=20, temperature=0.0, **options)
    tuned = ft.OpenAIPredictor(prompt, MODEL, host=ft.Host.compatible(url, "k"), cache=False)
    predict = dspy.Predict(prompt.signature)
    chat_adapter = Answering()
    plain_adapter = ft.prompts.as_adapter(prompt)
    client = openai.OpenAI(base_url=url, api_key="k")
    config = Config(max_tokens=2, temperature=0.0, logprobs=20)
    system, user = messages[0]["content"], messages[1]["content"]

    def request() -> Any:
        return lm(Request(model=lm.model, system=system, messages=(Message.user(user),), config=config))

    def adapted(adapter: Any) -> Any:
        with dspy.context(lm=chat_lm, adapter=adapter):
            return predict(title=TITLE)

    def plain_client() -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=2, temperature=0.0, logprobs=True, top_logprobs=20
        )

    return {
        "dspy.LM(Request)": request,
        "OpenAIPredictor": lambda: tuned(title=TITLE),
        "dspy.Predict + ChatAdapter": lambda: adapted(chat_adapter),
        "dspy.Predict + as_adapter": lambda: adapted(plain_adapter),
        "openai client": plain_client,
    }


class Answering(dspy.ChatAdapter):
    """ChatAdapter, read from the answer it would have had: the server answers one word to everything."""

    def parse(self, signature: Any, completion: str) -> Any:
        return super().parse(signature, "[[ ## is_favorite ## ]]\nTrue\n\n[[ ## completed ## ]]")


def cpu_us(ask: Callable[[], Any], n_calls: int) -> float:
    """Processor time of one call, in microseconds."""
    start = time.process_time()
    for _ in range(n_calls):
        ask()
    return (time.process_time() - start) * 1e6 / n_calls


def tokens() -> dict[str, int]:
    """Tokens of the title task's messages: as trained, and as ChatAdapter writes the same instructions."""
    prompt = ft.prompts.binary(RUBRIC)
    signature = prompt.signature.with_instructions(prompt.messages({"title": TITLE})[0]["content"])
    counts = {}
    for name, one in (("OpenAIPredictor", prompt), ("ChatAdapter", ft.PromptFormat.from_adapter(signature))):
        texts = [message["content"] for message in one.messages({"title": TITLE})]
        counts[name] = sum(count_tokens(text, MODEL) or 0 for text in texts)
    return counts


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "support" / "loopback.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    asks = ways(server.stdout.readline().strip())
    for ask in asks.values():
        cpu_us(ask, 20)
    rounds = [{name: cpu_us(ask, options.calls) for name, ask in asks.items()} for _ in range(options.rounds)]
    for name in asks:
        spent = [one[name] for one in rounds]
        ratios = [one[name] / one["dspy.LM(Request)"] for one in rounds]
        row = {"way": name, "cpu_us": round(min(spent)), "median_cpu_us": round(statistics.median(spent))}
        print(json.dumps({**row, "ratio_to_lm": round(statistics.median(ratios), 3)}), flush=True)
    counts = tokens()
    print(json.dumps({"prompt_tokens": counts, "share": round(counts["OpenAIPredictor"] / counts["ChatAdapter"], 3)}))
    server.stdin.close()
    server.wait(timeout=60)


if __name__ == "__main__":
    main()
