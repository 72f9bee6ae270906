"""A chat server of transformers alone: an exported folder, served by none of this package's code.

    python -m tests.local.plain_server FOLDER --name NAME             # merged weights
    python -m tests.local.plain_server FOLDER --base BASE_FOLDER       # a LoRA adapter on its base, by peft
    python -m tests.local.plain_server FOLDER --gguf model-f16.gguf    # a GGUF file, by transformers' own reader

It answers /v1/models and /v1/chat/completions greedily, with the log-probabilities of the most likely tokens.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def load(folder: Path, *, base: Path | None = None, gguf: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) as transformers and peft read an exported folder."""
    import torch
    import transformers

    source: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32, **source)
    if base is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, str(folder))
    return model.eval(), tokenizer


def completion(model: Any, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion in OpenAI's shape, by the template and the forward pass of transformers."""
    import torch

    encoded = tokenizer.apply_chat_template(
        body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids, ends = encoded["input_ids"], model.generation_config.eos_token_id or tokenizer.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    n_prompt, content, told = ids.shape[1], [], []
    for _ in range(body.get("max_tokens") or 16):
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, -1].float(), -1)
        best = int(logprobs.argmax())
        if best in ends:
            break
        top = logprobs.topk(body.get("top_logprobs") or 1)
        listed = [_token(tokenizer, int(one), float(value)) for value, one in zip(top.values, top.indices, strict=True)]
        told.append({**_token(tokenizer, best, float(logprobs[best])), "top_logprobs": listed})
        content.append(best)
        ids = torch.cat([ids, torch.tensor([[best]])], dim=1)
    message = {"role": "assistant", "content": tokenizer.decode(content)}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": told}}
    usage = {"prompt_tokens": n_prompt, "completion_tokens": len(content), "total_tokens": n_prompt + len(content)}
    named = {"id": "chatcmpl-plain", "object": "chat.completion", "created": int(time.time()), "model": body["model"]}
    return {**named, "choices": [choice], "usage": usage}


def _token(tokenizer: Any, token: int, value: float) -> dict[str, Any]:
    text = tokenizer.decode([token])
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


@contextmanager
def served(model: Any, tokenizer: Any, *, name: str, port: int = 0) -> Iterator[str]:
    """The address of the running server, to /v1."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, {"object": "list", "data": [{"id": name, "object": "model", "created": 0}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["model"] != name:
                self.reply(404, {"error": {"message": f"no model {body['model']}", "code": "model_not_found"}})
                return
            with lock:
                answer = completion(model, tokenizer, body)
            self.reply(200, answer)

        def reply(self, status: int, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--gguf")
    parser.add_argument("--name", default="tuned")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    model, tokenizer = load(given.folder, base=given.base, gguf=given.gguf)
    with served(model, tokenizer, name=given.name, port=given.port) as url:
        print(url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
