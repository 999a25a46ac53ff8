"""The two deployments of the Ray Serve application: the API, and one base model with adapters multiplexed over it."""

import asyncio
import contextlib
import itertools
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ray import serve
from ray.exceptions import RayTaskError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .generate import generate
from .protocol import TEMPLATE_ROLES, Answer, ApiError, ChatRequest, parsed
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

    peft keeps which adapter is active in the model itself, so a single thread, `owner`, does all that touches it: load,
    unload, generate. One reply is written at a time, each with its own adapter; more replicas write more.
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
        self.peft, self.numbers, self.owner = None, itertools.count(), ThreadPoolExecutor(1)
        self.loaded: dict[str, str] = {}  # peft's name -> ours

    @serve.multiplexed(max_num_models_per_replica=AT_ONCE)
    async def load(self, folder: str) -> Adapter:
        """The adapter in `folder`, in memory; Ray Serve keeps the AT_ONCE that were used last."""
        name = f"adapter{next(self.numbers)}"  # torch allows no dot in a module's name
        await asyncio.wrap_future(self.owner.submit(self._load, Path(folder), name))
        return Adapter(name, lambda name: self.owner.submit(self._unload, name).result())

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
        self.loaded[name] = folder.name

    def _unload(self, name: str) -> None:
        self.peft.delete_adapter(name)
        del self.loaded[name]

    def resident(self) -> list[str]:
        """The adapters in memory now."""
        return list(self.loaded.values())

    async def chat(self, request: ChatRequest):
        """The pieces of every choice (see `generate`), then {"usage": tokens}."""
        chat = [{"role": TEMPLATE_ROLES.get(one.role, one.role), "content": one.content} for one in request.messages]
        try:
            ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        except Exception as error:  # jinja's own, raised by templates that insist on an order of roles
            raise ApiError(400, f"messages: {error}", "invalid_request", "messages") from None
        if len(ids) >= self.context:
            raise ApiError(400, f"the messages have {len(ids)} tokens, the model takes {self.context}",
                           "context_length_exceeded", "messages")
        folder, over = serve.get_multiplexed_model_id(), threading.Event()
        pieces, loop = asyncio.Queue(), asyncio.get_running_loop()
        adapter = await self.load(folder) if folder else None
        # no await between here and `submit`: an unloading that comes later stands behind this in the owner's queue
        job = self.owner.submit(self._write, request, ids, adapter, over,
                                lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece))
        written = 0
        try:
            while (piece := await pieces.get()) is not None:
                written += piece.pop("tokens", 0)
                yield piece
            await asyncio.wrap_future(job)  # its error, if it had one
        finally:
            over.set()  # the client may have gone
            job.cancel()
        yield {"usage": {"prompt_tokens": len(ids), "completion_tokens": written, "total_tokens": len(ids) + written}}

    def _write(self, request: ChatRequest, ids: list[int], adapter: Adapter | None, over: threading.Event, put) -> None:
        import torch

        try:
            with torch.inference_mode(), contextlib.ExitStack() as stack:
                if adapter:
                    self.peft.set_adapter(adapter.name)
                elif self.peft:
                    stack.enter_context(self.peft.disable_adapter())
                room = self.context - len(ids)
                for index in range(request.n):
                    for piece in generate(self.base, self.tokenizer, request, ids, room, self.ends, index):
                        if over.is_set():
                            return
                        put({"index": index, **piece})
        finally:
            put(None)  # or its reader would wait for ever


@serve.deployment(name="api", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
class Api:
    """HTTP in OpenAI's form. The adapter's folder is the multiplexed id: Ray picks a replica that holds it."""

    def __init__(self, served: Served, model):
        self.served, self.model = served, model

    async def __call__(self, request: Request) -> Response:
        path = request.url.path.rstrip("/")
        try:
            if (request.method, path) == ("POST", "/v1/chat/completions"):
                return await self.chat(parsed(await request.body()))
            if (request.method, path) == ("GET", "/v1/models"):
                return JSONResponse({"object": "list", "data": list((await self.models()).values())})
            if request.method == "GET" and path.startswith("/v1/models/"):
                name = path.removeprefix("/v1/models/")
                return JSONResponse((await self.models()).get(name) or self.unknown(name))
            if (request.method, path) == ("GET", "/health"):
                return JSONResponse({"status": "ok"})
            raise ApiError(404, f"there is no {request.method} {path}", "unknown_url")
        except ApiError as error:
            return JSONResponse(error.body, error.status)

    async def models(self) -> dict[str, dict]:
        """Every model that may be asked for; `loaded`, not OpenAI's: whether it is in memory."""
        folders = {self.served.name: Path(self.served.base)}
        folders |= {f"{self.served.name}:{name}": folder for name, folder in self.served.adapters().items()}
        loaded = [self.served.name, *(f"{self.served.name}:{name}" for name in await self.model.resident.remote())]
        return {name: {"id": name, "object": "model", "created": int(path.stat().st_mtime) if path.exists() else 0,
                       "owned_by": "kto-at-scale", "loaded": name in loaded} for name, path in folders.items()}

    def unknown(self, model: str):
        names = [self.served.name, *(f"{self.served.name}:{name}" for name in self.served.adapters())]
        raise ApiError(404, f"the model {model!r} does not exist; there are: {', '.join(names)}",
                       "model_not_found", "model")

    async def chat(self, request: ChatRequest) -> Response:
        base, colon, adapter = request.model.partition(":")
        known = self.served.adapters()
        if base != self.served.name or (colon and adapter not in known):
            self.unknown(request.model)
        handle = self.model.options(stream=True, multiplexed_model_id=str(known[adapter]) if adapter else "")
        pieces, answer = handle.chat.remote(request), Answer(request.model)
        first = await self.next(pieces)  # what cannot be answered shows here, before a status was sent
        if request.stream:
            return StreamingResponse(self.events(request, first, pieces, answer), media_type="text/event-stream")
        collected = [first]
        while "usage" not in collected[-1]:
            collected.append(await self.next(pieces))
        return JSONResponse(answer.whole(collected, request.logprobs))

    async def next(self, pieces):
        """The next piece; the model's ApiError as it was raised there."""
        try:
            return await anext(pieces)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ApiError) else ApiError(500, str(error.cause)) from None

    async def events(self, request: ChatRequest, piece: dict, pieces, answer: Answer):
        """Server-sent events: each choice in chunks, its end, the usage if asked for; an error in place of the rest."""
        usage, begun = {"usage": None} if request.stream_options.include_usage else {}, set()
        try:
            while "usage" not in piece:
                index = piece["index"]
                if index not in begun:
                    begun.add(index)
                    yield event(answer.piece(index, {"role": "assistant", "content": ""}) | usage)
                if piece.get("text") or piece.get("logprobs"):
                    yield event(answer.piece(index, {"content": piece["text"]}, None, piece.get("logprobs")) | usage)
                if "finish" in piece:
                    yield event(answer.piece(index, {}, piece["finish"]) | usage)
                piece = await self.next(pieces)
            if usage:
                yield event(answer.piece(0, {}) | {"choices": []} | piece)
        except ApiError as error:
            yield event(error.body)
        yield "data: [DONE]\n\n"


def event(data: dict) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"
