"""What serving promises, asked with the official OpenAI client of a server that the real command started."""

import asyncio
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import tiny
import yaml
from typer.testing import CliRunner

from helpers import evaluate, runs
from helpers.errors import KitError
from helpers.profiles import ROOT
from kto import cli
from serving import server as serve

ADAPTERS = [f"run.{i}" for i in range(20)]
BIG = {"r": 8192, "lora_alpha": 400}  # 13.6 MB each
QUESTION = [{"role": "user", "content": "Who wrote Hamlet?"}]


def trained(storage, name, base, scale=0.2, **settings):
    """A run in `storage` with an exported adapter."""
    run = runs.start("local", str(storage), name)
    tiny.adapter(base, run.export / "adapter" / name, scale, **settings)
    run.config_file.write_text(yaml.safe_dump(tiny.config(base, run.datasets)))
    run.note(model={"name": str(base)})
    return run


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Twenty runs with an adapter each on one base, and one on another base."""
    storage = tmp_path_factory.mktemp("storage")
    base = tiny.model(storage / "models" / "tiny")
    for i, name in enumerate(ADAPTERS):
        trained(storage, name, base, 0.02 * (i + 1), **BIG)
    trained(storage, "elsewhere", tiny.model(storage / "models" / "other", seed=3))
    return storage


@pytest.fixture(scope="module")
def server(storage):
    """(process, address) of `kto serve`."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "kto", "serve", str(storage / "run.0"), "--port", str(port)],
                               cwd=ROOT, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().strip()
    assert url == f"http://127.0.0.1:{port}/v1"
    yield process, url
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 0
    assert not psutil.wait_procs(family, timeout=60)[1]


@pytest.fixture(scope="module")
def client(server):
    from openai import OpenAI

    return OpenAI(base_url=server[1], api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected(storage):
    """model -> its greedy reply, by peft in this process, one adapter after another."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = storage / "models" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    answers = {}
    for name in ["", *ADAPTERS]:
        model = AutoModelForCausalLM.from_pretrained(base)
        if name:
            model = PeftModel.from_pretrained(model, storage / name / "export" / "adapter" / name)
        out = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        answers[f"tiny:{name}" if name else "tiny"] = tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)
    assert len(set(answers.values())) > 15  # else a mix-up could not be seen
    return answers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(client, model, **options):
    return client.chat.completions.create(model=model, messages=QUESTION, **{"temperature": 0, "max_tokens": 12, **options})


def loaded(client):
    return {model.id for model in client.models.list() if model.loaded and ":" in model.id}


def replica_memory(server) -> float:
    """MB of the process that holds the model."""
    family = psutil.Process(server[0].pid).children(recursive=True)
    return max(process.memory_info().rss for process in family if "ServeReplica:chat:model" in process.name()) / 1e6


# against the running server

@pytest.mark.slow
def test_models_are_the_base_and_every_adapter_that_fits_it(client):
    assert [model.id for model in client.models.list()] == ["tiny", *sorted(f"tiny:{name}" for name in ADAPTERS)]


@pytest.mark.slow
def test_concurrent_requests_are_each_answered_by_their_own_adapter(client, expected):
    with ThreadPoolExecutor(12) as pool:
        asked = [*expected, *reversed(expected)]
        answers = list(pool.map(lambda model: ask(client, model).choices[0].message.content, asked))
    assert dict(zip(asked, answers, strict=True)) == expected
    assert answers[: len(expected)] == answers[:len(expected) - 1:-1]


@pytest.mark.slow
def test_a_stream_is_the_same_reply_in_chunks(client, expected):
    chunks = list(ask(client, "tiny:run.7", stream=True, stream_options={"include_usage": True}))
    whole = ask(client, "tiny:run.7")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content == expected["tiny:run.7"]
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens <= 12
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.slow
def test_the_least_recently_used_adapter_makes_room(client):
    for name in ("run.0", "run.1", "run.2", "run.3", "run.0", "run.4"):
        ask(client, f"tiny:{name}", max_tokens=1)
    assert loaded(client) == {"tiny:run.0", "tiny:run.2", "tiny:run.3", "tiny:run.4"}


@pytest.mark.slow
def test_memory_is_bounded_with_twenty_adapters_over_room_for_four(client, server):
    for name in ADAPTERS[:5]:
        ask(client, f"tiny:{name}", max_tokens=1)
    before = replica_memory(server)
    for name in ADAPTERS * 2:
        ask(client, f"tiny:{name}", max_tokens=1)
        assert len(loaded(client)) == serve.AT_ONCE
    assert replica_memory(server) - before < 80  # twenty of them are 272 MB


@pytest.mark.slow
def test_a_seed_makes_sampling_repeatable(client):
    first, again, other = (ask(client, "tiny", temperature=1, seed=seed).choices[0].message.content for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny:nobody", "other", "tiny:../run.0", "tiny:"])
def test_an_unknown_model_is_a_404_in_openais_form(client, model):
    from openai import NotFoundError

    with pytest.raises(NotFoundError, match="does not exist") as caught:
        ask(client, model, stream=True)
    assert (caught.value.code, caught.value.param, caught.value.type) == ("model_not_found", "model", "invalid_request_error")


@pytest.mark.slow
@pytest.mark.parametrize("wrong, param", [
    ({"messages": []}, "messages"), ({"temperature": 9}, "temperature"), ({"max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "king", "content": "hm"}]}, "messages[0].role"), ({"n": 0}, "n"), ({"stop": list("abcde")}, "stop"),
    ({"top_logprobs": 2}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}, "messages[0].content"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"), ({"extra_body": {"top_k": 3}}, "top_k"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
])
def test_a_malformed_request_or_what_is_not_supported_is_a_400_that_names_the_field(client, wrong, param):
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, **wrong})
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


@pytest.mark.slow
def test_what_clients_send_besides_is_taken(client, expected):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    neutral = {"user": "me", "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "store": False, "metadata": {"a": "b"},
               "response_format": {"type": "text"}, "stop": None, "tools": [], "service_tier": "auto"}
    said = client.chat.completions.create(model="tiny", messages=parts, temperature=0, max_completion_tokens=12, **neutral)
    assert said.choices[0].message.content == expected["tiny"]
    back = said.choices[0].message.model_dump() | {"tool_calls": [], "annotations": []}
    goes_on = [{"role": "developer", "content": "Be brief."}, *parts, back, {"role": "user", "content": "And?", "name": "me"}]
    assert client.chat.completions.create(model="tiny", messages=goes_on, max_tokens=3).usage.completion_tokens <= 3


@pytest.mark.slow
def test_a_reply_ends_before_a_stop_sequence_also_in_a_stream(client, expected):
    text = expected["tiny"]
    stop = text[3:6]
    assert len(stop) == 3
    for stops in (stop, ["never said", stop]):
        said = ask(client, "tiny", stop=stops)
        assert (said.choices[0].message.content, said.choices[0].finish_reason) == (text[: text.find(stop)], "stop")
    chunks = list(ask(client, "tiny", stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text[: text.find(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.slow
def test_several_choices_are_so_many_replies_with_their_usage_together(client):
    said = ask(client, "tiny", n=3, temperature=1, seed=5)
    assert [choice.index for choice in said.choices] == [0, 1, 2] and len({choice.message.content for choice in said.choices}) > 1
    chunks = list(ask(client, "tiny", n=3, temperature=1, seed=5, stream=True, stream_options={"include_usage": True}))
    texts = ["".join(c.choices[0].delta.content or "" for c in chunks[:-1] if c.choices[0].index == i) for i in range(3)]
    assert texts == [choice.message.content for choice in said.choices] and chunks[-1].usage == said.usage


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_reply_and_the_likeliest_comes_first(client):
    said = ask(client, "tiny", logprobs=True, top_logprobs=3).choices[0]
    tokens = said.logprobs.content
    assert "".join(token.token for token in tokens).startswith(said.message.content[:3]) and len(tokens) <= 12
    assert all(token.top_logprobs[0].logprob == token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    chunks = [chunk.choices[0] for chunk in ask(client, "tiny", logprobs=True, stream=True)]
    streamed = [token.logprob for choice in chunks if choice.logprobs for token in choice.logprobs.content]
    assert streamed == [token.logprob for token in tokens]
    assert ask(client, "tiny").choices[0].logprobs is None


@pytest.mark.slow
def test_one_model_can_be_asked_for_and_the_servers_health(client, server):
    import requests
    from openai import NotFoundError

    assert client.models.retrieve("tiny:run.7").id == "tiny:run.7" and client.models.retrieve("tiny").owned_by == "kto-at-scale"
    with pytest.raises(NotFoundError, match="does not exist") as caught:
        client.models.retrieve("tiny:nobody")
    assert caught.value.code == "model_not_found"
    assert requests.get(server[1].removesuffix("/v1") + "/health").status_code == 200


@pytest.mark.slow
def test_what_is_no_json_and_what_is_no_address_are_errors_in_openais_form(server):
    import requests

    for answer, status in ((requests.post(f"{server[1]}/chat/completions", data="{hm"), 400),
                           (requests.get(f"{server[1]}/completions"), 404)):
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.slow
def test_an_adapter_exported_later_is_served_and_a_torn_one_is_an_error(client, storage):
    from openai import InternalServerError

    base = storage / "models" / "tiny"
    later = trained(storage, "later", base).export / "adapter" / "later"
    assert ask(client, "tiny:later").choices[0].message.content
    torn = trained(storage, "torn", base).export / "adapter" / "torn"
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(InternalServerError, match="torn cannot be loaded"):
        ask(client, "tiny:torn")
    assert ask(client, "tiny:later").choices[0].message.content
    for folder in (later, torn):
        (folder / "adapter_config.json").unlink()


@pytest.mark.slow
def test_everything_listens_on_loopback_only(client, server):
    family = [psutil.Process(server[0].pid), *psutil.Process(server[0].pid).children(recursive=True)]
    ends = [end for process in family for end in process.net_connections("inet") if end.status == psutil.CONN_LISTEN]
    assert len(ends) > 5
    assert {end.laddr.ip.removeprefix("::ffff:") for end in ends} <= {"127.0.0.1", "::1"}


# without a server

def test_a_reader_who_goes_away_ends_the_generation(storage):
    from serving.multiplex import Model
    from serving.protocol import ChatRequest

    model = Model.func_or_class(serve.Served(str(storage / "models" / "tiny"), "tiny", storage))
    steps = []
    model.base.register_forward_hook(lambda *_: steps.append(1))
    model.ends = {0}  # a token it hardly ever writes

    async def leave():
        pieces = model.chat(ChatRequest(model="tiny", messages=QUESTION, max_tokens=400, seed=0))
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(leave())
    assert 0 < len(steps) < 300


def test_a_base_model_that_is_not_on_this_machine_and_an_export_that_is_torn_are_told(tmp_path):
    torn = trained(tmp_path, "torn", tiny.model(tmp_path / "models" / "tiny"))
    there = trained(tmp_path, "there", tmp_path / "models" / "tiny")
    (torn.export / "adapter" / "torn" / "adapter_config.json").write_text("{")
    assert [*serve.of_run(there).models()] == ["tiny", "tiny:there"]
    (tmp_path / "models" / "tiny").rename(tmp_path / "elsewhere")
    for read in (serve.of_run, lambda run: evaluate.Scorer(run.config(), run.export / "adapter" / run.name)):
        with pytest.raises(KitError, match="base model is not on this machine"):
            read(there)


def test_a_full_tuning_serves_its_merged_model_under_the_runs_name(run):
    tiny.model(run.export / "merged")
    served = serve.of_run(run)
    assert (served.base, served.name, [*served.models()]) == (str(run.export / "merged"), "first-run", ["first-run"])


def test_the_newest_run_with_an_export_is_served_by_default(storage, tmp_path):
    assert serve.newest(storage).parent == storage
    empty = runs.start("local", str(tmp_path), "not-exported")
    with pytest.raises(KitError, match="no run in .* has an export"):
        serve.newest(tmp_path)
    with pytest.raises(KitError, match="has no export"):
        serve.of_run(empty)


def test_a_taken_port_is_told_before_anything_is_loaded(storage):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = CliRunner().invoke(cli.app, ["serve", str(storage / "run.0"), "--port", str(port)])
    assert done.exit_code == 1 and f"--port {port + 1}" in done.output
