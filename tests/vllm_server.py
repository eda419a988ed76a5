"""A stand-in for a vLLM 0.33 server: the addresses, fields and statuses of the real one, around a tiny model.

It speaks as vllm/entrypoints does (openai/completion/protocol.py, serve/dev, rl/online), and really samples, with the
model that it was last told to load. Like the real one it takes what a request leaves out from the model's
generation_config (here one that would spoil every sample), stops at every EOS that this names unless told to ignore
them, keeps a prefix cache that new weights do not clear, and forgets weights and version when it is started again.
Unlike the real one, which passes over fields that it does not know, it refuses them: they are spelling mistakes.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

from tests.support import free_port

NUMBER = (int, float)
FIELDS: dict[str, Any] = {
    "model": str,
    "prompt": list,
    "echo": bool,
    "frequency_penalty": NUMBER,
    "logit_bias": dict,
    "logprobs": int,
    "max_tokens": int,
    "n": int,
    "presence_penalty": NUMBER,
    "seed": int,
    "stop": (str, list),
    "stream": bool,
    "suffix": str,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "user": str,
    "top_k": int,
    "min_p": NUMBER,
    "repetition_penalty": NUMBER,
    "stop_token_ids": list,
    "include_stop_str_in_output": bool,
    "ignore_eos": bool,
    "min_tokens": int,
    "skip_special_tokens": bool,
    "spaces_between_special_tokens": bool,
    "prompt_logprobs": int,
    "allowed_token_ids": list,
    "add_special_tokens": bool,
    "priority": int,
    "request_id": str,
    "return_tokens_as_token_ids": bool,
    "return_token_ids": bool,
    "return_weight_versions": bool,
}
"""Of POST /v1/completions, as far as a client like ours could send them."""
LOADING = threading.Lock()
"""Two threads that load models at once can leave transformers unable to tie weights in the whole process (5.23)."""
GENERATION_CONFIG = {"top_k": 2, "temperature": 0.3, "repetition_penalty": 1.5, "eos_token_id": [1, 5]}


class VLLMServer:
    """Serves the model in `folder` under `http://127.0.0.1:PORT`. `with` starts and stops it; `restart` is a new process."""

    def __init__(self, folder: Path, logprobs_mode="processed_logprobs", context=64, dev_mode=True, api_key=""):
        self.folder, self.logprobs_mode, self.context = folder, logprobs_mode, context
        self.dev_mode, self.api_key = dev_mode, api_key
        self.requests: list[dict[str, Any]] = []
        """Bodies of the completions that were asked for."""
        self.loaded: list[Path] = []
        self.resets: list[bool] = []
        self.twist = lambda choice: choice
        """Changes the choice of an answer."""
        self.before = lambda number: None
        """Called before completion `number` (from 0) is sampled."""
        self.port, self.delay_s, self._lock = free_port(), 0.0, threading.Lock()
        self.server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.running, self.version, self.cache = 0, "default", {}
        self._load(self.folder)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(self.rfile.read(int(self.headers["Content-Length"])))

            def answer(self, body):
                mine = self.server
                status, content = fake.handle(self, body)
                if fake.server is not mine:
                    return  # its process is gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_words):
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_words):
        self.stop()

    def _load(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        with LOADING:
            self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()

    # ------------------------------------------------------------------------------------ addresses

    def handle(self, request, body: bytes | None) -> tuple[int, bytes]:
        parts = urlsplit(request.path)
        name = f"{request.command} {parts.path}"
        told = f"Bearer {self.api_key}"
        if self.api_key and parts.path.startswith("/v1") and request.headers.get("Authorization") != told:
            return 401, b'{"error": "Unauthorized"}'
        open_to_all = {
            "GET /v1/models": self.models,
            "GET /version": lambda _: {"version": "0.33.0"},
            "POST /v1/completions": self.completions,
        }
        development = {
            "GET /server_info": lambda _: self.server_info(parse_qs(parts.query)),
            "GET /weight_info": lambda _: {"weight_version": self.version},
            "POST /update_weight_version": self.update_version,
            "POST /collective_rpc": self.collective_rpc,
            "POST /reset_prefix_cache": self.reset_prefix_cache,
        }
        call = {**open_to_all, **(development if self.dev_mode else {})}.get(name)
        if call is None:
            return 404, b'{"detail": "Not Found"}'
        try:
            return 200, json.dumps(call(json.loads(body) if body else None)).encode()
        except Problem as problem:
            error = {"message": str(problem), "type": "BadRequestError", "param": None, "code": problem.status}
            return problem.status, json.dumps({"error": error}).encode()

    def models(self, _body) -> dict[str, Any]:
        card = {"id": "tiny", "object": "model", "root": str(self.folder), "max_model_len": self.context}
        return {"object": "list", "data": [card]}

    def server_info(self, query) -> dict[str, Any]:
        config: Any = {"model_config": {"model": str(self.folder), "logprobs_mode": self.logprobs_mode}}
        return {"vllm_config": config if query.get("config_format") == ["json"] else str(config), "vllm_env": {}}

    def update_version(self, body) -> dict[str, Any]:
        if not isinstance(body, dict) or not isinstance(body.get("new_version"), str):
            raise Problem(422, "new_version: field required")
        self.version = body["new_version"]
        return {"success": True, "new_version": self.version}

    def collective_rpc(self, body) -> dict[str, Any]:
        if body.get("method") != "reload_weights" or set(body) - {"method", "args", "kwargs", "timeout"}:
            raise Problem(400, "Missing 'method' in request body")
        folder = Path(body["kwargs"]["weights_path"])
        if not list(folder.glob("*.safetensors")):
            raise Problem(500, f"Cannot find any model weights with `{folder}`")
        with self._lock:
            self._load(folder)
        self.loaded.append(folder)
        return {"results": [None]}

    def reset_prefix_cache(self, _body) -> dict[str, Any]:
        with self._lock:
            done = self.running == 0
            if done:
                self.cache = {}
        self.resets.append(done)
        return {"success": done}

    # ------------------------------------------------------------------------------------ sampling

    def completions(self, body) -> dict[str, Any]:
        check_fields(body, self.context, self.model.config.vocab_size)
        with self._lock:
            self.requests.append(body)
            number, self.running = len(self.requests) - 1, self.running + 1
        mine = self.server
        try:
            self.before(number)
            time.sleep(self.delay_s)
            choice = self.sample(body)
        finally:
            with self._lock:
                self.running -= self.server is mine
        return {
            "id": "cmpl-0",
            "object": "text_completion",
            "model": "tiny",
            "choices": [self.twist(choice)],
            "usage": {},
        }

    def sample(self, body) -> dict[str, Any]:
        given = {key: value for key, value in body.items() if value is not None}
        asked = {"temperature": 1.0, "top_k": 0, "max_tokens": 16, **GENERATION_CONFIG, **given}
        stops = set(asked.get("stop_token_ids") or [])
        stops |= set() if asked.get("ignore_eos") else set(GENERATION_CONFIG["eos_token_id"])
        generator = torch.Generator().manual_seed(asked["seed"])
        tokens, logprobs, spans = [], [], []
        while len(tokens) < min(asked["max_tokens"], self.context - len(asked["prompt"])):
            token, logprob, version = self.step(asked, tokens, generator)
            tokens.append(token), logprobs.append(max(logprob, -9999.0))
            if not spans or spans[-1]["version"] != version:
                spans.append({"version": version, "start": len(tokens) - 1, "end": 0})
            spans[-1]["end"] = len(tokens)
            if token in stops:
                break
        reason = "stop" if tokens[-1] in stops else "length"
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": reason, "stop_reason": None}
        if asked.get("return_token_ids"):
            choice["token_ids"] = tokens
        if asked.get("return_weight_versions"):
            choice["weight_versions"] = spans
        if asked.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": logprobs, "tokens": [f"token_id:{token}" for token in tokens]}
        return choice

    @torch.no_grad()
    def step(self, asked, tokens, generator) -> tuple[int, float, str]:
        with self._lock:
            key = tuple(asked["prompt"])
            version = self.version
            if tokens or key not in self.cache:
                logits = self.model(torch.tensor([[*key, *tokens]])).logits[0, -1].float()
                if not tokens:
                    self.cache[key] = logits
            else:
                logits = self.cache[key]  # what was computed for this prompt before, with whatever weights
        scaled = logits / asked["temperature"]
        if asked["top_k"] > 0:
            scaled[scaled < scaled.topk(asked["top_k"]).values[-1]] = -torch.inf
        token = int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))
        shown = {"processed_logprobs": scaled.log_softmax(-1), "raw_logprobs": logits.log_softmax(-1)}
        return token, float(shown.get(self.logprobs_mode, logits)[token]), version


class Problem(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def check_fields(body: dict[str, Any], context: int, vocab_size: int) -> None:
    """As pydantic would, 400 for wrong types; and for what the model cannot take."""
    for name, value in body.items():
        if name not in FIELDS:
            raise Problem(400, f"{name}: no field of a completion request")
        boolean = FIELDS[name] is bool
        if value is not None and (isinstance(value, bool) != boolean or not isinstance(value, FIELDS[name])):
            raise Problem(400, f"{name}: {value!r} has the wrong type")
    prompt = body.get("prompt")
    if not prompt or not all(isinstance(token, int) and 0 <= token < vocab_size for token in prompt):
        raise Problem(400, "prompt: token ids of the vocabulary are needed")
    if body.get("model") not in (None, "tiny"):
        raise Problem(404, f"The model `{body['model']}` does not exist.")
    if not -(2**63) <= body.get("seed", 0) < 2**63:
        raise Problem(400, "seed: not a 64-bit integer")
    if len(prompt) > context:
        raise Problem(400, f"Input length ({len(prompt)}) exceeds model's maximum context length ({context}).")
    if body.get("logprobs") is not None and body["logprobs"] < -1:
        raise Problem(400, "`logprobs` must be a positive value or -1.")
