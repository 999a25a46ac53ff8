"""The Ray Serve application: the API, and one base model with adapters multiplexed over it."""

import asyncio
import contextlib
import itertools
import json
import os
from pathlib import Path

from ray import serve
from ray.exceptions import RayTaskError
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .generate import generate
from .protocol import Answer, ApiError, ChatRequest, parsed
from .server import AT_ONCE, Served


class Adapter:
    """A loaded adapter; Ray Serve calls `__del__` when it is the least recently used and has to go."""

    def __init__(self, name: str, unload):
        self.name, self.unload = name, unload

    def __del__(self):
        unload, self.unload = self.unload, None  # Python calls it once more
        if unload:
            unload(self.name)


@serve.deployment(name="model", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=64)
class Model:
    """One base model in memory and the adapters that were asked for last.

    peft keeps which adapter is active in the model itself, so `lock` is held while an adapter is loaded (and another unloaded
    for it) and the reply written: one at a time, each with its own adapter; more replicas write more.
    """

    def __init__(self, served: Served):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))  # Ray allows one
        gpu = torch.cuda.is_available()
        self.tokenizer = AutoTokenizer.from_pretrained(served.base)
        loaded = AutoModelForCausalLM.from_pretrained(served.base, torch_dtype="auto" if gpu else torch.float32)
        self.base = loaded.to("cuda" if gpu else "cpu").eval()
        self.context = getattr(loaded.config, "max_position_embeddings", 2048)
        ends = loaded.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.peft, self.numbers, self.lock = None, itertools.count(), asyncio.Lock()
        self.loaded: dict[str, str] = {}  # peft's name -> the adapter's folder

    @serve.multiplexed(max_num_models_per_replica=AT_ONCE)
    async def load(self, folder: str) -> Adapter:
        """The adapter in `folder`, in memory; Ray Serve keeps the AT_ONCE that were used last."""
        name = f"adapter{next(self.numbers)}"  # torch allows no dot in a module's name
        await run_in_threadpool(self._load, Path(folder), name)
        return Adapter(name, self._unload)

    def _load(self, folder: Path, name: str) -> None:
        from peft import PeftModel

        try:
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.base, folder, adapter_name=name)
            else:
                self.peft.load_adapter(folder, name, torch_device=str(self.base.device))
        except Exception as error:
            if self.peft is not None and name in self.peft.peft_config:
                self.peft.delete_adapter(name)
            raise ApiError(500, f"the adapter {folder.name} cannot be loaded: {str(error).splitlines()[0]}") from None
        self.loaded[name] = str(folder)

    def _unload(self, name: str) -> None:
        self.peft.delete_adapter(name)
        del self.loaded[name]

    def resident(self) -> list[str]:
        """The folders of the adapters in memory now."""
        return list(self.loaded.values())

    async def chat(self, request: ChatRequest):
        """The pieces of every choice (see `generate`), then {"usage": tokens}."""
        # chat templates know OpenAI's newer word "developer" as "system"
        chat = [{"role": one.role.replace("developer", "system"), "content": one.content} for one in request.messages]
        try:
            ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        except Exception as error:  # jinja's own, raised by templates that insist on an order of roles
            raise ApiError(400, f"messages: {error}", "invalid_request", "messages") from None
        room, written = self.context - len(ids), 0
        if room <= 0:
            raise ApiError(400, f"the messages have {len(ids)} tokens, the model takes {self.context}",
                           "context_length_exceeded", "messages")
        async with self.lock:
            adapter = await self.load(folder) if (folder := serve.get_multiplexed_model_id()) else None
            if adapter:
                self.peft.set_adapter(adapter.name)
            with self.peft.disable_adapter() if self.peft and not adapter else contextlib.nullcontext():
                for index in range(request.n):
                    reply = generate(self.base, self.tokenizer, request, ids, room, self.ends, index)
                    async for piece in iterate_in_threadpool(reply):
                        written += piece.pop("tokens", 0)
                        yield {"index": index, **piece}
        yield {"usage": {"prompt_tokens": len(ids), "completion_tokens": written, "total_tokens": len(ids) + written}}


@serve.deployment(name="api", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
class Api:
    """HTTP in OpenAI's form. The adapter's folder is the multiplexed id: Ray picks a replica that holds it."""

    def __init__(self, served: Served, model):
        self.served, self.model = served, model

    async def __call__(self, request: Request) -> Response:
        asked = f"{request.method} {request.url.path.rstrip('/')}"
        try:
            if asked == "POST /v1/chat/completions":
                return await self.chat(parsed(await request.body()))
            if asked == "GET /v1/models":
                return JSONResponse({"object": "list", "data": list((await self.models()).values())})
            if asked.startswith("GET /v1/models/"):
                self.folder_of(name := asked.removeprefix("GET /v1/models/"))
                return JSONResponse((await self.models())[name])
            if asked == "GET /health":
                return JSONResponse({"status": "ok"})
            raise ApiError(404, f"there is no {asked}", "unknown_url")
        except ApiError as error:
            return JSONResponse(error.body, error.status)

    async def models(self) -> dict[str, dict]:
        """Every model that may be asked for; `loaded`, not OpenAI's: whether it is in memory."""
        loaded = [self.served.base, *await self.model.resident.remote()]
        return {name: {"id": name, "object": "model", "created": int(folder.stat().st_mtime) if folder.exists() else 0,
                       "owned_by": "kto-at-scale", "loaded": str(folder) in loaded} for name, folder in self.served.models().items()}

    def folder_of(self, model: str) -> Path:
        """Where a model that may be asked for lies. ApiError 404 if there is none of that name."""
        folders = self.served.models()
        if model not in folders:
            raise ApiError(404, f"the model {model!r} does not exist; there are: {', '.join(folders)}", "model_not_found", "model")
        return folders[model]

    async def chat(self, request: ChatRequest) -> Response:
        folder = self.folder_of(request.model)
        adapter = str(folder) if ":" in request.model else ""
        pieces, answer = self.pieces(request, adapter), Answer(request.model)
        first = await anext(pieces)  # what cannot be answered shows here, before a status was sent
        if request.stream:
            return StreamingResponse(self.events(request, first, pieces, answer), media_type="text/event-stream")
        return JSONResponse(answer.whole([first, *[piece async for piece in pieces]]))

    async def pieces(self, request: ChatRequest, adapter: str):
        """The model's pieces; its ApiError as it was raised there."""
        try:
            async for piece in self.model.options(stream=True, multiplexed_model_id=adapter).chat.remote(request):
                yield piece
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ApiError) else ApiError(500, str(error.cause)) from None

    async def events(self, request: ChatRequest, piece: dict, pieces, answer: Answer):
        """Server-sent events: each choice in chunks, the usage if asked for; an error in place of the rest."""
        usage, begun = {"usage": None} if request.stream_options.get("include_usage") else {}, set()
        try:
            while "usage" not in piece:
                role = {} if piece["index"] in begun else {"role": "assistant"}
                begun.add(piece["index"])
                yield event(answer.chunk(piece, role | {"content": piece["text"]}) | usage)
                piece = await anext(pieces)
            if usage:
                yield event(answer.chunk({"index": 0}, {}) | {"choices": []} | piece)
        except ApiError as error:
            yield event(error.body)
        yield "data: [DONE]\n\n"


def event(data: dict) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"
