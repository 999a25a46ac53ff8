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

from .protocol import SSE_END, Answer, ApiError, ChatRequest, models, parsed
from .server import ROOM, Served


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
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))  # Ray allows one
        gpu = torch.cuda.is_available()
        self.tokenizer = AutoTokenizer.from_pretrained(served.base)
        loaded = AutoModelForCausalLM.from_pretrained(served.base, torch_dtype="auto" if gpu else torch.float32)
        self.base = loaded.to("cuda" if gpu else "cpu").eval()
        self.context = getattr(loaded.config, "max_position_embeddings", 2048)
        ends = loaded.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        loaded.generation_config = GenerationConfig(pad_token_id=self.tokenizer.pad_token_id or min(self.ends))
        self.peft, self.numbers, self.owner = None, itertools.count(), ThreadPoolExecutor(1)
        self.loaded: dict[str, str] = {}  # peft's name -> ours

    @serve.multiplexed(max_num_models_per_replica=ROOM)
    async def load(self, folder: str) -> Adapter:
        """The adapter in `folder`, in memory; Ray Serve keeps the `ROOM` that were used last."""
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
        """The reply in pieces of text; last comes a dict: `finish`, and `usage` in tokens."""
        from transformers import AsyncTextIteratorStreamer

        chat = [message.model_dump() for message in request.messages]
        try:
            ids = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        except Exception as error:  # jinja's own, raised by templates that insist on an order of roles
            raise ApiError(400, f"messages: {error}", "invalid_request", "messages") from None
        room = self.context - len(ids)
        if room < 1:
            raise ApiError(400, f"the messages have {len(ids)} tokens, the model takes {self.context}",
                           "context_length_exceeded", "messages")
        streamer = AsyncTextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        folder, over = serve.get_multiplexed_model_id(), threading.Event()
        adapter = await self.load(folder) if folder else None
        # no await between here and `submit`: an unloading that comes later stands behind this in the owner's queue
        job = self.owner.submit(self._generate, request, ids, min(request.longest, room), adapter, streamer, over)
        try:
            async for text in streamer:
                if text:
                    yield text
            new = await asyncio.wrap_future(job)
        finally:
            over.set()  # the client may have gone
            job.cancel()
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new), "total_tokens": len(ids) + len(new)}
        yield {"finish": "stop" if new and new[-1] in self.ends else "length", "usage": usage}

    def _generate(self, request, ids, longest, adapter, streamer, over) -> list[int]:
        import torch
        from transformers import StoppingCriteriaList

        sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        if request.seed is not None:
            torch.manual_seed(request.seed)
        try:
            with torch.inference_mode(), contextlib.ExitStack() as stack:
                if adapter:
                    self.peft.set_adapter(adapter.name)
                elif self.peft:
                    stack.enter_context(self.peft.disable_adapter())
                inputs = torch.tensor([ids], device=self.base.device)
                out = self.base.generate(
                    inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=longest, streamer=streamer,
                    eos_token_id=sorted(self.ends), **(sampling if request.temperature else {"do_sample": False}),
                    stopping_criteria=StoppingCriteriaList([lambda *_, **__: torch.tensor([over.is_set()])]))
            return out[0, len(ids):].tolist()
        except BaseException:
            streamer.on_finalized_text("", stream_end=True)  # or its reader would wait for ever
            raise


@serve.deployment(name="api", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
class Api:
    """HTTP in OpenAI's form. The adapter's folder is the multiplexed id: Ray sends a request to a replica that holds it."""

    def __init__(self, served: Served, model):
        self.served, self.model = served, model

    async def __call__(self, request: Request) -> Response:
        try:
            match request.method, request.url.path.rstrip("/"):
                case "POST", "/v1/chat/completions":
                    return await self.chat(parsed(await request.body()))
                case "GET", "/v1/models":
                    return JSONResponse(models(self.names(), await self.model.resident.remote()))
                case method, path:
                    raise ApiError(404, f"there is no {method} {path}", "unknown_url")
        except ApiError as error:
            return JSONResponse(error.body, error.status)

    def names(self) -> dict[str, int]:
        """Every model that may be asked for -> when it was made."""
        folders = {self.served.name: Path(self.served.base)}
        folders |= {f"{self.served.name}:{name}": folder for name, folder in self.served.adapters().items()}
        return {name: int(path.stat().st_mtime) if path.exists() else 0 for name, path in folders.items()}

    def folder(self, model: str) -> str:
        """The folder of the adapter that `model` names; empty for the base. ApiError 404 for any other."""
        base, _, adapter = model.partition(":")
        known = self.served.adapters()
        if base != self.served.name or adapter and adapter not in known or model.endswith(":"):
            raise ApiError(404, f"the model {model!r} does not exist; there are: {', '.join(self.names())}",
                           "model_not_found", "model")
        return str(known[adapter]) if adapter else ""

    async def chat(self, request: ChatRequest) -> Response:
        handle = self.model.options(stream=True, multiplexed_model_id=self.folder(request.model))
        pieces, answer = handle.chat.remote(request), Answer(request.model)
        first = await self.next(pieces)  # what cannot be answered shows here, before a status was sent
        if request.stream:
            return StreamingResponse(self.events(request, first, pieces, answer), media_type="text/event-stream")
        text, piece = "", first
        while isinstance(piece, str):
            text, piece = text + piece, await self.next(pieces)
        return JSONResponse(answer.whole(text, piece["finish"], piece["usage"]))

    async def next(self, pieces):
        """The next piece; the model's ApiError as it was raised there."""
        try:
            return await anext(pieces)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ApiError) else ApiError(500, str(error.cause)) from None

    async def events(self, request: ChatRequest, piece, pieces, answer: Answer):
        """Server-sent events: the reply in chunks, the end, the usage if asked for; an error in place of the rest."""
        try:
            yield event(answer.piece({"role": "assistant", "content": ""}))
            while isinstance(piece, str):
                yield event(answer.piece({"content": piece}))
                piece = await self.next(pieces)
            yield event(answer.piece({}, piece["finish"]))
            if request.stream_options and request.stream_options.include_usage:
                yield event(answer.piece({}, usage=piece["usage"]))
        except ApiError as error:
            yield event(error.body)
        yield SSE_END


def event(data: dict) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"
