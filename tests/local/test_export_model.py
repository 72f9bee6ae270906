"""Models of the local host as files for other servers: each format read back and asked."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import jinja2
import openai
import pytest

import dspy_finetune as ft
from dspy_finetune.cli.main import main
from dspy_finetune.errors import DataError, HostError, UsageError
from dspy_finetune.hosts import Host
from dspy_finetune.jobs import FinetunedModel, model_export
from dspy_finetune.jobs.model_export import modelfile, short_name
from dspy_finetune.local.export_model import turn_parts, usual_precision
from dspy_finetune.local.models import load_model
from tests.local.test_jobs import upload, wait
from tests.local.toy import build_toy_model, write_toy_adapter
from tests.local.toy_server import ToyServer, start_server

PROMPT: list[Any] = [
    {"role": "system", "content": "Answer with true or false."},
    {"role": "user", "content": "Title: A"},
]
ROWS = [
    {"messages": [PROMPT[0], {"role": "user", "content": f"Title: {i}"}, {"role": "assistant", "content": answer}]}
    for i, answer in enumerate(["true", "false"] * 6)
]


def train(server: ToyServer, model: str, **options: Any) -> str:
    client = server.client()
    job = client.fine_tuning.jobs.create(model=model, training_file=upload(client, ROWS), **options)
    return str(wait(client, job.id).fine_tuned_model)


@pytest.fixture(scope="module")
def tuned(server: ToyServer) -> str:
    return train(server, "toy", suffix="taste", seed=1)


@pytest.fixture(scope="module")
def twice_tuned(server: ToyServer, tuned: str) -> str:
    return train(server, tuned, suffix="again", seed=2)


def as_model(server: ToyServer, name: str) -> FinetunedModel:
    host = Host.local(server.url)
    return FinetunedModel(id=name, base="toy", host_name=host.name, host_description=host.to_dict())


def served(server: ToyServer, model: str) -> list[float]:
    """The log-probabilities of the twenty most likely first tokens, as the host answers."""
    answer = server.client().chat.completions.create(
        model=model, messages=list(PROMPT), max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    return sorted(one.logprob for one in logprobs.content[0].top_logprobs)


def read_back(model: Any, tokenizer: Any) -> list[float]:
    """The same from a model in memory, by transformers' own template and forward pass."""
    import torch

    encoded = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model.eval()(input_ids=encoded["input_ids"]).logits[0, -1]
    return sorted(torch.log_softmax(logits.float(), -1).topk(20).values.tolist())


def largest_difference(one: list[float], other: list[float]) -> float:
    return max(abs(first - second) for first, second in zip(one, other, strict=True))


# peft asks transformers for an attribute under its former name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("which", ["tuned", "twice_tuned"])
def test_a_peft_export_answers_as_the_host_does(
    which: str, server: ToyServer, toy_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A chain of two adapters becomes one of their ranks' sum, and computes the same."""
    import peft
    import transformers

    name = request.getfixturevalue(which)
    made = as_model(server, name).export(tmp_path / "out", format="peft")
    config = json.loads((made.folder / "adapter_config.json").read_bytes())
    assert config["r"] == (2 if which == "tuned" else 4)
    assert config["base_model_name_or_path"] == str(toy_model)
    base = transformers.AutoModelForCausalLM.from_pretrained(toy_model)
    model = peft.PeftModel.from_pretrained(base, made.folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(made.folder)
    assert largest_difference(served(server, name), read_back(model, tokenizer)) < 1e-4
    assert largest_difference(served(server, "toy"), served(server, name)) > 0.1  # the adapter does something
    assert "--enable-lora" in made.serve[0]
    assert str(made.folder) in made.serve[0]


def test_merged_weights_are_f16_where_that_is_wide_enough(toy_model: Path) -> None:
    """A weight beyond its range, or a family whose activations leave it, keeps bf16."""
    import torch

    model = load_model(toy_model, [])
    assert usual_precision(model) == "f16"
    model.config.model_type = "qwen2"
    assert usual_precision(model) == "bf16"
    model.config.model_type = "qwen3"
    assert usual_precision(model) == "f16"
    with torch.no_grad():
        next(one for name, one in model.named_parameters() if "norm" in name)[0] = 1e5
    assert usual_precision(model) == "bf16"


@pytest.mark.parametrize(("precision", "most"), [("f32", 1e-4), ("bf16", 0.2), (None, 0.02)])
def test_a_merged_export_answers_as_the_host_does(
    precision: str | None, most: float, server: ToyServer, twice_tuned: str, tmp_path: Path
) -> None:
    import transformers

    made = as_model(server, twice_tuned).export(tmp_path / "out", format="merged", precision=precision)
    assert made.precision == (precision or "f16")
    model = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(made.folder)
    assert largest_difference(served(server, twice_tuned), read_back(model, tokenizer)) < most
    ends = json.loads((made.folder / "generation_config.json").read_bytes())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize(("precision", "most"), [("f32", 1e-4), ("f16", 0.02)])
def test_a_gguf_export_is_read_by_transformers_and_answers_as_the_host_does(
    precision: str, most: float, server: ToyServer, tuned: str, tmp_path: Path
) -> None:
    import torch
    import transformers

    made = as_model(server, tuned).export(tmp_path / "out", format="gguf", precision=precision)
    name = f"model-{precision}.gguf"
    model = transformers.AutoModelForCausalLM.from_pretrained(made.folder, gguf_file=name, dtype=torch.float32)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(made.folder, gguf_file=name)
    assert largest_difference(served(server, tuned), read_back(model, tokenizer)) < most
    assert f"-m {made.folder / name}" in made.serve[0]


@pytest.mark.parametrize(
    ("architecture", "precision", "most"),
    [("llama3", "f32", 0), ("qwen2", "f32", 1e-4), ("qwen3", "f32", 1e-4), ("qwen3", "q8_0", 0.5)],
)
def test_other_architectures_keep_their_answers_in_gguf(
    architecture: str, precision: Any, most: float, tmp_path: Path
) -> None:
    """Grouped heads, biases, normed heads and stretched positions all arrive where transformers reads them."""
    import torch
    import transformers

    from dspy_finetune.local.export_model import write_gguf

    folder = build_toy_model(tmp_path / "toy")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any
    if architecture == "llama3":
        scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope = {**scaled, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, rope_parameters=rope))
    elif architecture == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, head_dim=128))
    model.config.architectures = [type(model).__name__]
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                value.add_(torch.randn_like(value) * 0.3)
    write_gguf(model, tokenizer, folder, tmp_path / "model.gguf", precision=precision, name="toy")
    if architecture == "llama3":
        # transformers does not read this table; llama.cpp does: it holds what transformers itself computes.
        import gguf

        factors = next(
            one.data for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors if one.name == "rope_freqs.weight"
        )
        plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
        assert torch.allclose(plain / torch.tensor(factors), model.model.rotary_emb.inv_freq, atol=1e-6)
        return
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert largest_difference(read_back(model, tokenizer), read_back(again, tokenizer)) < most


def test_an_ollama_export_writes_what_the_chat_template_writes(server: ToyServer, tuned: str, tmp_path: Path) -> None:
    """The Modelfile's template, read as Go would, gives the very text that the model was trained on."""
    made = as_model(server, tuned).export(tmp_path / "out", format="ollama")
    text = (made.folder / "Modelfile").read_text()
    assert "FROM ./model-f16.gguf\n" in text
    assert 'SYSTEM """Answer with true or false."""\n' in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert template is not None
    assert go_render(template[1], PROMPT) == (
        "<|im_start|>system\nAnswer with true or false.<|im_end|>\n<|im_start|>user\nTitle: A<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert made.serve == (
        f"ollama create {made.name} -f {made.folder}/Modelfile", f"ollama run {made.name}"
    )  # fmt: skip


def go_render(template: str, messages: list[dict[str, str]]) -> str:
    """Go's words for a loop and branches, turned into Jinja's."""
    jinja = template.replace("{{ range .Messages }}", "{% for m in messages %}")
    jinja = re.sub(
        r'\{\{ (else )?if eq \.Role "(\w+)" \}\}',
        lambda m: f"{{% {'el' if m[1] else ''}if m.role == '{m[2]}' %}}",
        jinja,
    )
    jinja = jinja.replace("{{ .Content }}", "{{ m.content }}")
    jinja = jinja.replace("{{ end }}{{ end }}", "{% endif %}{% endfor %}")
    return jinja2.Environment(keep_trailing_newline=True).from_string(jinja).render(messages=messages)


class _Template:
    """A tokenizer with nothing but a chat template."""

    bos_token = "<s>"

    def __init__(self, template: str) -> None:
        self._template = jinja2.Environment(keep_trailing_newline=True).from_string(template)

    def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>")


def test_a_template_is_told_in_parts_only_where_the_parts_make_it() -> None:
    llama = (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
    )
    parts = turn_parts(_Template(llama))
    assert parts is not None
    assert parts["user"] == ("<|start|>user<|end|>\n\n", "<|eot|>")
    assert parts["system"][0] == "<s><|start|>system<|end|>\n\n"
    numbered = "{% for m in messages %}{{ loop.index }}:{{ m.content }};{% endfor %}"
    assert turn_parts(_Template(numbered)) is None
    with pytest.raises(UsageError, match="llama-server"):
        modelfile("m.gguf", {"turns": None}, None)


def test_the_card_tells_what_was_trained_and_how_to_serve_it(server: ToyServer, tuned: str, tmp_path: Path) -> None:
    made = as_model(server, tuned).export(tmp_path / "out", format="merged", data_license="cc0-1.0")
    card = (made.folder / "README.md").read_text()
    assert f"`{tuned}`" in card
    assert "Answer with true or false." in card
    assert "`false`, `true`" in card
    assert "| training rows | 12 |" in card
    assert "| seed | 1 |" in card
    assert "| training data | cc0-1.0 |" in card
    assert f"vllm serve . --served-model-name {made.name}" in card
    assert str(tmp_path) not in card
    assert f"dspy-finetune verify {tuned} --at" in card


def test_the_card_holds_prompt_calibration_and_figures_where_they_are_given(
    server: ToyServer, tuned: str, tmp_path: Path
) -> None:
    predictor = {
        "prompt": {"system": "Answer so.", "user": "Title: {title}", "completion": "{is_favorite}"},
        "prompt_digest": "d" * 16,
        "calibration": {"method": "platt", "n": 90, "before": {"calibration_error": 0.2}, "after": None},
    }
    report = {
        "comparison": {
            "confidence": 0.95,
            "programs": [{"name": "tuned", "n": 40, "scores": {"accuracy": {"value": 0.8, "low": 0.65, "high": 0.9}}}],
        }
    }
    for name, values in (("predictor", predictor), ("report", report)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    made = as_model(server, tuned).export(
        tmp_path / "out", format="peft", predictor=tmp_path / "predictor.json", report=tmp_path / "report.json"
    )
    card = (made.folder / "README.md").read_text()
    assert "Digest `dddddddddddddddd`" in card
    assert "| tuned | 40 | accuracy 0.800 (0.650 to 0.900) |" in card
    assert "OpenAIPredictor(prompt, " in card
    assert "| dspy-finetune | " in card
    assert "By platt on 90 examples; expected calibration error before 0.200." in card
    assert json.loads((made.folder / "predictor.json").read_text()) == predictor


def test_bad_input_is_told_in_one_line_and_leaves_nothing(server: ToyServer, tuned: str, tmp_path: Path) -> None:
    model = as_model(server, tuned)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        model.export(full)
    with pytest.raises(UsageError, match='"onnx": expected one of peft, merged'):
        model.export(tmp_path / "a", format="onnx")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match='repo="owner/name"'):
        model.export(tmp_path / "a", format="hub")
    with pytest.raises(HostError, match=r"'q4' is not one of f16, bf16, f32, q8_0"):
        model.export(tmp_path / "a", format="gguf", precision="q4")
    with pytest.raises(HostError, match=r"does not exist .* another --root: dspy-finetune models --host local"):
        as_model(server, "ft:toy:local:gone:0123").export(tmp_path / "a")
    with pytest.raises(HostError, match="is a base model and has no adapter"):
        as_model(server, "toy").export(tmp_path / "a", format="peft")
    with pytest.raises(UsageError, match="gives its tuned models to nobody"):
        model.export(tmp_path / "a", host=Host.openai("sk-test-0000"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_no_room_on_the_disk_is_said_before_anything_is_fetched(
    server: ToyServer, tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match="free some space or choose another place"):
        as_model(server, tuned).export(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_is_forgotten_by_the_host_when_it_has_been_fetched(
    server: ToyServer, tuned: str, tmp_path: Path
) -> None:
    as_model(server, tuned).export(tmp_path / "out", format="peft")
    assert list((Path(server.facts["root"]) / "exports").glob("*")) == []
    with pytest.raises(openai.NotFoundError, match="No such export"):
        server.client().get("/exports/export-0123", cast_to=object)


def test_the_command_writes_the_folder_and_prints_the_lines(server: ToyServer, tuned: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dspy_finetune.cli.main", "export-model", tuned, "--host", f"local={server.url}"]
    done = subprocess.run(
        [*command, "--format", "gguf", "--out", "out"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "llama-server -m out/model-f16.gguf" in done.stdout
    assert f"dspy-finetune verify {tuned} --at" in done.stdout
    assert f"--host local={server.url}" in done.stdout.splitlines()[-1]
    wrong = subprocess.run([*command, "--format", "zip", "--out", "b"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2
    # On a slow machine a sign of life may stand before it.
    assert (
        wrong.stderr.strip().splitlines()[-1]
        == "error: --format zip: expected one of peft, merged, gguf, ollama, hub, head"
    )


def test_a_saved_predictor_names_its_model_and_host(
    server: ToyServer, tuned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file is enough for the command; the figures come from that of several reports which names the model."""
    prompt = ft.PromptFormat("title -> liked: bool", system="Answer with true or false.", user="Title: {title}")
    ft.OpenAIPredictor(prompt, tuned, host=Host.local(server.url)).save(tmp_path / "tuned.json")
    program = {"name": "right one", "n": 3, "scores": {"accuracy": {"value": 1.0, "low": None, "high": None}}}
    several = {
        "titles": {"comparison": {"programs": []}, "cards": {"models": "ft:other"}},
        "pairs": {"comparison": {"programs": [program]}, "cards": {"models": tuned}},
    }
    (tmp_path / "results.json").write_text(json.dumps(several))
    options = ("--format", "peft", "--report", str(tmp_path / "results.json"), "--out", str(tmp_path / "out"))
    assert command("export-model", str(tmp_path / "tuned.json"), *options) == 0
    assert f"dspy-finetune verify {tmp_path / 'tuned.json'} --at" in capsys.readouterr().out
    assert (tmp_path / "out" / "predictor.json").is_file()
    assert "| right one | 3 | accuracy 1.000 |" in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    assert command("export-model", str(tmp_path / "results.json"), "--out", str(tmp_path / "b")) == 1
    assert "results.json: this is no saved predictor: it names no model" in capsys.readouterr().err
    del several["pairs"]
    (tmp_path / "results.json").write_text(json.dumps(several))
    assert command("export-model", str(tmp_path / "tuned.json"), *options[:-1], str(tmp_path / "c")) == 2
    assert f'holds no "comparison" with "programs" of {tuned}' in capsys.readouterr().err


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert isinstance(stop.value.code, int)
    return stop.value.code


HEAD_PROMPT = ft.PromptFormat("title -> liked: bool", system="Answer with true or false.", user="Title: {title}")


@dataclass(frozen=True, kw_only=True)
class ExportedHead:
    """A head's folder, and what the host told before it was stopped."""

    folder: Path
    files: tuple[str, ...]
    verify: str | None
    told: list[float]
    answers: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def head(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedHead:
    """It is no chat model: other formats are refused by name."""
    place = tmp_path_factory.mktemp("heads")
    running = start_server(place / "root", toy_model, worker_module="dspy_finetune.local.worker")
    try:
        recipe = {"type": "supervised", "supervised": {"hyperparameters": {"recipe": "head"}}}
        name = train(running, "toy", extra_body={"method": recipe})
        model = as_model(running, name)
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            words = ("--host", f"local={running.url}", "--at", running.url, "--as", "toy")
            assert command("verify", name, *words) == 2
        assert (
            f"{name} answers by a linear head, which no chat server has: what answers at {running.url}"
            in told.getvalue()
        )
        assert "--format head --out FOLDER), serve it in Python by ft.load_predictor('FOLDER')" in told.getvalue()
        with pytest.raises(HostError, match="is a linear head on a frozen base and no chat model: export it as head"):
            model.export(place / "gguf", format="gguf")
        host = Host.local(running.url)
        predictor = ft.OpenAIPredictor(HEAD_PROMPT, model, host=host, threshold=0.4, cache=False)
        other = ft.OpenAIPredictor(HEAD_PROMPT, "ft:other", host=host)
        with pytest.raises(UsageError, match="the given predictor asks ft:other, not ft:toy"):
            model.export(place / "wrong", format="head", predictor=other)
        made = model.export(place / "out", format="head", predictor=predictor)
        return ExportedHead(
            folder=made.folder,
            files=made.files,
            verify=made.verify,
            told=served(running, name),
            answers={title: predictor(title=title).toDict() for title in ("A", "7", "On bees")},
        )
    finally:
        running.stop()


def test_a_head_goes_with_a_loader_that_answers_without_a_server(head: ExportedHead) -> None:
    """Twenty lines give the host's own probabilities."""
    assert {"head.json", "head.safetensors", "predict.py", "predictor.json"} <= set(head.files)
    assert head.verify is None
    done = subprocess.run(
        [sys.executable, "predict.py", json.dumps(PROMPT)], cwd=head.folder, capture_output=True, text=True, check=True
    )
    probabilities = json.loads(done.stdout)
    assert set(probabilities) == {"true", "false"}
    assert sorted(map(math.log, probabilities.values())) == pytest.approx(head.told, abs=1e-4)


def test_load_predictor_answers_from_a_heads_folder_as_the_host_did(head: ExportedHead, tmp_path: Path) -> None:
    """Alone, in an event loop, saved, pickled and copied: the same answers and probabilities, with no host at all."""
    predictor = ft.load_predictor(head.folder)
    assert predictor.host is None
    assert predictor.threshold == 0.4
    predictor.save(tmp_path / "again.json")
    loaded = ft.load_predictor(tmp_path / "again.json")
    again = [predictor, loaded, pickle.loads(pickle.dumps(predictor)), predictor.deepcopy()]
    for title, told in head.answers.items():
        answers = [one(title=title) for one in again] + [asyncio.run(predictor.acall(title=title))]
        for answer in answers:
            assert answer.liked == told["liked"]
            assert answer.probability == pytest.approx(told["probability"], abs=1e-6)
            assert answer.probabilities == pytest.approx(told["probabilities"], abs=1e-6)
    program = dspy.Parallel(num_threads=2, disable_progress_bar=True)
    found = program([(predictor, dspy.Example(title=title).with_inputs("title")) for title in head.answers])
    assert [one.liked for one in found] == [told["liked"] for told in head.answers.values()]


def test_a_heads_folder_needs_its_prompt_and_its_files(head: ExportedHead, tmp_path: Path) -> None:
    """With the prompt alone it answers by the threshold of one half; what is missing is named."""
    folder = tmp_path / "copy"
    shutil.copytree(head.folder, folder)
    saved = json.loads((folder / "predictor.json").read_text())
    (folder / "predictor.json").unlink()
    with pytest.raises(DataError, match="does not say which prompt its head was trained with: export it again"):
        ft.load_predictor(folder)
    (folder / "prompt.json").write_text(json.dumps(saved["prompt"]))
    plain = ft.load_predictor(folder)
    assert plain(title="A").probability == pytest.approx(head.answers["A"]["probability"], abs=1e-6)
    (folder / "head.safetensors").unlink()
    (folder / "predictor.json").write_text(json.dumps(saved))
    with pytest.raises(DataError, match="which need a server: serve it as its README"):
        ft.load_predictor(folder)
    assert ft.load_predictor(folder, host=Host.compatible("http://127.0.0.1:9")).folder is None
    with pytest.raises(DataError, match=r"holds no saved predictor: expected predictor\.json, or an exported head"):
        ft.load_predictor(tmp_path)


def test_names_for_servers_are_plain() -> None:
    assert short_name("ft:/data/My Model:local:Taste!:ab12") == "taste-ab12"


def test_a_broken_adapter_is_the_exports_error(server: ToyServer, tuned: str, tmp_path: Path) -> None:
    """The conversion runs in a process of its own: what goes wrong there is told, and the server goes on."""
    folders = (Path(server.facts["root"]) / "models").iterdir()
    folder = next(one for one in folders if json.loads((one / "model.json").read_bytes())["id"] == tuned)
    weights = folder / "adapter-0" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:100])
        with pytest.raises(HostError, match="cannot export"):
            as_model(server, tuned).export(tmp_path / "out")
    finally:
        weights.write_bytes(kept)
    assert write_toy_adapter(tmp_path / "adapter").is_dir()
    as_model(server, tuned).export(tmp_path / "out")


class LocalHub:
    """The hub's client with a folder in the hub's place."""

    folder = Path()

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        (self.folder / repo).mkdir(parents=True, exist_ok=True)
        (self.folder / repo / ".private").write_text(str(private))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if repo_id.startswith("stranger/"):
            raise OSError("403 Forbidden: you have no write access")
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)


def hub_command(server: ToyServer, tuned: str) -> tuple[str, ...]:
    where = ("--host", f"local={server.url}")
    return ("export-model", tuned, *where, "--format", "hub", "--weights", "peft", "--out")


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, after those of progress."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback")))
    return line


def test_the_command_pushes_the_folder_with_its_card_to_the_hub(
    server: ToyServer, tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Private unless told otherwise; the card names the repository; what is refused keeps the files and says so."""
    import huggingface_hub

    monkeypatch.setattr(LocalHub, "folder", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", LocalHub)
    argv = hub_command(server, tuned)
    place = {"kind": "local", "name": "local", "root": "/home/ada/private"}
    saved = {"model": tuned, "host": place, "provenance": {"id": tuned, "host_description": place}}
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    with_predictor = ("--predictor", str(tmp_path / "saved.json"))
    assert command(*argv, str(tmp_path / "out"), "--repo", "acme/taste", *with_predictor) == 0
    said = capsys.readouterr().out
    assert said.startswith("https://huggingface.co/acme/taste: adapter")
    pushed = tmp_path / "hub" / "acme" / "taste"
    assert (pushed / ".private").read_text() == "True"
    assert {path.name for path in pushed.iterdir()} >= {"README.md", "adapter_model.safetensors", "tokenizer.json"}
    for path in pushed.rglob("*.*"):
        assert b"/home/ada" not in path.read_bytes(), path
    assert json.loads((pushed / "predictor.json").read_text())["provenance"] == {"id": tuned}
    (served_as,) = re.findall(r"--lora-modules (\S+=acme/taste)", said)
    assert served_as in (pushed / "README.md").read_text()
    assert command(*argv, str(tmp_path / "no")) == 2
    assert 'format "hub" needs the repository' in one_error(capsys)
    with pytest.raises(HostError, match=r"took no stranger/taste .*no write access.* the files are in"):
        as_model(server, tuned).export(tmp_path / "again", format="hub", repo="stranger/taste")
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_a_hub_that_does_not_answer_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real client, whose errors are of another library in each of its versions; the token stays secret."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    with pytest.raises(
        HostError, match=rf"took no acme/taste .* the files are in {tmp_path}: check HF_TOKEN, the name and the"
    ) as raised:
        model_export.push(tmp_path, "acme/taste", private=True, say=lambda text: None)
    assert "secretsecret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_base_whose_licence_forbids_derivatives_is_not_passed_on(
    server: ToyServer, tuned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = Path(server.facts["models"][0]) / "README.md"
    card.write_text("---\nlicense: cc-by-nc-nd-4.0\n---\nA model.\n")
    try:
        assert command(*hub_command(server, tuned), str(tmp_path / "out"), "--repo", "acme/taste") == 2
        assert "licence (cc-by-nc-nd-4.0) forbids passing on what is made from it" in one_error(capsys)
        assert not (tmp_path / "out").exists()
    finally:
        card.unlink()
