"""What goes with an exported model: its card, the lines that serve it, and Ollama's Modelfile. Texts alone.

In: the facts of an export and of the model's making. Out: Markdown, commands, a Modelfile.
Not covered: fetching the files (model_export.py).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_finetune.catalog import parse_model_id
from dspy_finetune.errors import UsageError

MOST_LABELS = 64
"""With more different answers than this, a model does not choose among labels."""
NO_DERIVATIVES = ("-nd",)
UNKNOWN = "not known"


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a model was made, as far as anybody knows."""

    model: Mapping[str, Any]
    """`FinetunedModel.to_dict()`."""
    system: str | None = None
    """The system text that all training rows share; None where they have none, or several."""
    labels: tuple[str, ...] = ()
    """The different answers of the training rows, where there are few."""
    n_rows: int | None = None
    """Training rows."""
    prompt: Mapping[str, Any] | None = None
    """`PromptFormat.to_dict()`, where the manifest or the predictor has it."""
    calibration: Mapping[str, Any] | None = None
    """The calibration that was saved with the predictor."""
    report: Mapping[str, Any] | None = None
    """A saved report's `comparison`."""
    data_license: str | None = None
    """Of the training data, where the user names it."""
    notes: tuple[str, ...] = field(default=())
    """What could not be found, in sentences."""


def short_name(model_id: str) -> str:
    """A name for servers: letters, digits, dots and dashes.

    >>> short_name("ft:smollm2-135m-instruct:local:my-taste:3f2a9c")
    'my-taste-3f2a9c'
    >>> short_name("ft:HuggingFaceTB/SmolLM2-360M:local::3f2a9c:ckpt-step-8")
    'smollm2-360m-3f2a9c-step-8'
    """
    named = parse_model_id(model_id)
    parts = [named.suffix or named.base.rstrip("/").split("/")[-1], named.id or ""]
    if named.step is not None:
        parts.append(f"step-{named.step}")
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(part for part in parts if part).lower()).strip("-.") or "model"


def serve_lines(kind: str, place: str, name: str, facts: Mapping[str, Any], files: Sequence[str]) -> tuple[str, ...]:
    """The commands that serve an export.

    Args:
        kind: peft, merged, gguf, ollama or head.
        place: The folder, or the repository on the hub.
        name: What the server calls the model.
        facts: The export's.
        files: The names of its files.
    """
    where = shlex.quote(place)
    if kind == "peft":
        rank = int(facts.get("lora_rank") or 8)
        wide = f" --max-lora-rank {_lora_rank(rank)}" if rank > 16 else ""
        base = shlex.quote(str(facts["base_reference"]))
        return (f"vllm serve {base} --enable-lora{wide} --lora-modules {name}={where}",)
    if kind == "head":
        question = shlex.quote('[{"role": "user", "content": "..."}]')
        return (f"python {shlex.quote(str(Path(place) / 'predict.py'))} {question}",)
    if kind == "merged":
        return (
            f"vllm serve {where} --served-model-name {name}",
            f"transformers serve {where}",
            f"dspy-finetune serve --model {where}",
        )
    gguf = next((one for one in files if one.endswith(".gguf")), "model.gguf")
    path = shlex.quote(str(Path(place) / gguf))
    if kind == "gguf":
        return (f"llama-server -m {path} --alias {name} --jinja --port 8080",)
    modelfile = shlex.quote(str(Path(place) / "Modelfile"))
    return (f"ollama create {name} -f {modelfile}", f"ollama run {name}")


_VERIFY = (
    "Then see that the server answers as the model does: an endpoint that misses the adapter or the chat template"
    " answers too, only otherwise."
)
_PORTS = {"gguf": 8080, "ollama": 11434}


def verify_line(kind: str, model_id: str, name: str) -> str:
    """The command that holds the server against the model; at the port where the kind's servers listen."""
    return f"dspy-finetune verify {shlex.quote(model_id)} --at http://127.0.0.1:{_PORTS.get(kind, 8000)}/v1 --as {name}"


def _lora_rank(rank: int) -> int:
    # vLLM takes these and no others.
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


# ---- Ollama


def modelfile(gguf: str, facts: Mapping[str, Any], system: str | None) -> str:
    """Ollama's description of a model: the very template that it was trained with, in Go's words.

    Args:
        gguf: The weights' file name, beside the Modelfile.
        facts: The export's.
        system: The system text of the training rows.

    Raises:
        UsageError: The chat template has no form that Ollama's can take.
    """
    turns = facts.get("turns")
    if not turns:
        raise UsageError(
            "the chat template of this model cannot be told as Ollama's: it does more than write each turn between two"
            " texts; export it as gguf and serve it with llama-server, which reads the template itself"
        )
    roles = {role: (str(turns[role][0]), str(turns[role][1])) for role in ("system", "user", "assistant")}
    bos = facts.get("bos")
    if bos:
        # Ollama writes the opening token itself.
        roles = {role: (before.removeprefix(str(bos)), after) for role, (before, after) in roles.items()}
    branches = [
        f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}'
        for number, (role, (before, after)) in enumerate(roles.items())
    ]
    template = f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_go(str(turns['opening']))}"
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    spoken = system if system is not None else facts.get("default_system")
    if spoken:
        lines.append(f"SYSTEM {_quoted(str(spoken))}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in facts["stop"]]
    lines += [
        # Ollama's own defaults cut long prompts in silence, punish repeated words and draw at random.
        f"PARAMETER num_ctx {min(int(facts['context_tokens']), 8192)}",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER temperature 0",
    ]
    return "\n".join(lines) + "\n"


def _go(text: str) -> str:
    if '"""' in text:
        raise UsageError('the chat template writes """, which a Modelfile cannot hold; export the model as gguf')
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    if '"""' in text:
        raise UsageError('the system prompt holds """, which a Modelfile cannot hold; export the model as gguf')
    return f'"""{text}"""'


# ---- the card


def model_card(
    making: Making,
    facts: Mapping[str, Any],
    *,
    kind: str,
    precision: str,
    files: Sequence[str],
    name: str,
    repo: str | None = None,
) -> str:
    """The model card, in Markdown with the head that the Hugging Face hub reads."""
    # The card travels: where the folder lies on this machine is nobody's business.
    serve = serve_lines(kind, repo or ".", name, facts, files)
    model = making.model
    parts = [
        _head(making, facts, kind),
        f"# {name}",
        f"`{model['id']}`: {_method(model)} of `{facts['base_reference']}` with"
        " [dspy-finetune](https://pypi.org/project/dspy-finetune/), " + _what(kind, precision, facts),
        "## Serve it",
        "" if repo else "In this folder:",
        _fenced("\n".join(serve), "bash"),
        *([] if kind == "head" else [_VERIFY, _fenced(verify_line(kind, str(model["id"]), name), "bash")]),
        "## The prompt it was trained with",
        _prompt(making),
        *_labels(making),
        *_figures(making),
        *_calibration(making),
        "## How it was made",
        _table(_made(making, facts)),
        "## Licences",
        _table(
            {
                "base model": facts.get("base_license") or f"{UNKNOWN}: look at the base model's own card",
                "training data": making.data_license or f"{UNKNOWN}: its owner has to say",
            }
        ),
        "## Versions",
        _table(facts.get("versions") or {}),
    ]
    parts += [f"> {note}" for note in making.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(making: Making, facts: Mapping[str, Any], kind: str) -> str:
    relation = {"peft": "adapter", "merged": "finetune", "head": "finetune"}.get(kind, "quantized")
    library = {"peft": "peft", "merged": "transformers", "head": "dspy-finetune"}.get(kind, "gguf")
    base = str(facts["base_reference"])
    lines = ["---"]
    if facts.get("base_license"):
        lines.append(f"license: {facts['base_license']}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        lines += [f"base_model: {base}", f"base_model_relation: {relation}"]
    task = "text-classification" if kind == "head" else "text-generation"
    lines += [f"library_name: {library}", f"pipeline_tag: {task}", "tags:", "- dspy", "- dspy-finetune"]
    return "\n".join([*lines, f"- {making.model['method']}", "---"])


def _method(model: Mapping[str, Any]) -> str:
    return {"sft": "supervised fine-tuning", "dpo": "direct preference optimisation"}.get(
        str(model["method"]), str(model["method"])
    )


def _what(kind: str, precision: str, facts: Mapping[str, Any]) -> str:
    n_adapters = int(facts.get("n_adapters") or 0)
    chain = f" ({n_adapters} adapters joined, rank {facts.get('lora_rank')})" if n_adapters > 1 else ""
    rounded = (
        " The base that it was trained on is a 4-bit rounding of that model; for the very same answers serve the"
        " adapter on the rounded base: `dspy-finetune export-model smollm2-135m-instruct --format merged`."
        if facts.get("base_is_rounded") and kind == "peft"
        else ""
    )
    words = {
        "peft": f"as a LoRA adapter{chain}; it needs the base beside it.{rounded}",
        "merged": f"as a whole model in {precision}.",
        "gguf": f"as one GGUF file in {precision}.",
        "ollama": f"as one GGUF file in {precision} with a Modelfile.",
        "head": "as a linear head on a frozen base: one matrix over averages of the base's states. It is no chat model;"
        " no other server answers by it, and `predict.py` does without a server. `head.json` says what is averaged,"
        " `head.safetensors` holds `weights` (features, labels) and `bias`.",
    }
    return words[kind]


def _prompt(making: Making) -> str:
    digest = making.model.get("prompt_digest")
    parts = []
    if digest:
        parts.append(f"Digest `{digest}`; a predictor with another prompt is refused.")
    if making.prompt is not None:
        for role in ("system", "user", "completion"):
            text = making.prompt.get(role)
            if isinstance(text, str) and text:
                parts += [f"{role}:", _fenced(text, "text")]
        parts += [
            "In full, as `ft.PromptFormat.from_dict` reads it:",
            _fenced(json.dumps(making.prompt, ensure_ascii=False, indent=1), "json"),
        ]
    elif making.system:
        parts += ["system (the same in all training rows):", _fenced(making.system, "text")]
    return "\n\n".join(parts) or "No manifest of the training file was found, and its rows share no system text."


def _labels(making: Making) -> list[str]:
    if not making.labels:
        return []
    return ["## Labels", ", ".join(f"`{label}`" for label in making.labels)]


def _figures(making: Making) -> list[str]:
    if making.report is None:
        return ["## Figures", "None were given with the export (`report=`, `--report`)."]
    comparison = making.report
    rows = []
    for program in comparison["programs"]:
        scores = "; ".join(f"{metric} {_interval(score)}" for metric, score in program["scores"].items())
        rows.append(f"| {program['name']} | {program['n']} | {scores} |")
    share = round(100 * float(comparison.get("confidence") or 0.95))
    head = f"| program | items | figures ({share} % intervals) |\n| --- | --- | --- |"
    return ["## Figures", "On items that were not trained on:", "\n".join([head, *rows])]


def _interval(score: Mapping[str, Any]) -> str:
    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "not known"
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _calibration(making: Making) -> list[str]:
    if making.calibration is None:
        return []
    fitted = making.calibration
    text = f"By {fitted['how']} on {fitted['n']} examples"
    errors = [
        f"{when} {fitted[name]['calibration_error']:.3f}" for when, name in (("before", "before"), ("after", "after"))
        if isinstance(fitted.get(name), Mapping)
    ]  # fmt: skip
    text += f"; expected calibration error {', '.join(errors)}" if errors else ""
    return ["## Calibration", f"{text}. It belongs to the predictor's file and is not in the weights."]


def _made(making: Making, facts: Mapping[str, Any]) -> dict[str, Any]:
    model = making.model
    return {
        "base model": facts["base_reference"],
        "method": model["method"],
        "training rows": making.n_rows,
        "training file, sha256": model.get("data_sha256"),
        "trained tokens": model.get("trained_tokens"),
        "hyperparameters": ", ".join(f"{name}={value}" for name, value in (model.get("hyperparameters") or {}).items()),
        "seed": model.get("seed"),
        "trained on": model.get("host_name"),
        "job": model.get("job_id"),
        "context, tokens": facts.get("context_tokens"),
        "answers end with": ", ".join(f"`{stop}`" for stop in facts.get("stop") or ()),
    }


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in values.items() if value not in (None, "")]
    return "\n".join(["| | |", "| --- | --- |", *rows]) if rows else UNKNOWN


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
