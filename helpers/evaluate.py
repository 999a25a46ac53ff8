"""Score held-out rows with the model: implied rewards, accuracy, replies; choose between checkpoints.

With LoRA the reference is the same weights with the adapter switched off: one model in memory, loaded once in a `Scorer`.
"""

import contextlib
import os
from functools import cached_property
from pathlib import Path

from . import files, scores
from .chat_template import VOCABULARY, Encoder, Row
from .choose import fetch
from .errors import KitError, refuse_out_of_range
from .quiet import quietly
from .scores import accuracy, rewards  # noqa: F401, asked for here by the notebooks


class Scorer:
    """Log-probabilities, logits and replies of a run's reference model and of the trained one, each loaded on first use.

    `config`: the run's resolved configuration; `checkpoint`: an adapter's folder or, for full and freeze tuning, a
    whole model's. Float32 on a CPU, bfloat16 on a GPU. `tuned=False` asks the reference: the base model with the
    adapters that the training started from (`earlier`) merged into it, as LLaMA-Factory does.
    """

    def __init__(self, config: dict, checkpoint: Path):
        self.config, self.checkpoint, self.earlier = config, Path(checkpoint), earlier_adapters(config)
        self.is_adapter = (self.checkpoint / "adapter_config.json").is_file()
        self.available = 0  # rows in the dataset that `rows` read last
        if not self.is_adapter and not (self.checkpoint / "config.json").is_file():
            raise KitError(f"nothing to load in {self.checkpoint}", "adapter_config.json, or a model's config.json",
                           "choose a complete checkpoint: 05_checkpoints lists them")
        base = files.base_model(config)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: on busy cores spinning costs 4x
        with quietly():
            import torch
            from transformers import AutoTokenizer

            self.device = "cuda" if torch.cuda.is_available() else "cpu"
            self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
            self.tokenizer = AutoTokenizer.from_pretrained(base)
            self.encoder = Encoder(config, self.tokenizer)

    @cached_property
    def reference(self):
        """The model before training."""
        model = self.load(self.config["model_name_or_path"])
        for adapter in self.earlier:
            model = self.adapted(model, adapter).merge_and_unload()
        return model

    @cached_property
    def model(self):
        """The tuned model; with LoRA it holds the reference's own weights."""
        return self.adapted(self.reference, self.checkpoint) if self.is_adapter else self.load(self.checkpoint)

    def load(self, model: str | Path, **options):
        """A causal language model on this scorer's device and in its dtype. KitError if there is none in `model`."""
        import torch
        from transformers import AutoModelForCausalLM

        try:
            with quietly():
                loaded = AutoModelForCausalLM.from_pretrained(str(model), torch_dtype=self.dtype, **options)
        except (OSError, ValueError) as error:
            raise KitError(f"cannot load the model {model}: {str(error).splitlines()[0]}",
                           "a model's folder or a hub id", "make it ready again with 01_setup") from error
        if any(self.config.get(key) for key in VOCABULARY):
            from llamafactory.model.model_utils.embedding import resize_embedding_layer

            torch.manual_seed(int(self.config.get("seed", 42)))  # new rows are drawn at random: the same as in training
            resize_embedding_layer(loaded, self.tokenizer)
        return loaded.to(self.device).eval()

    def adapted(self, model, adapter: str | Path):
        """`model` with an adapter (a folder or a hub id) on top. KitError if it was trained on another base."""
        from peft import PeftModel

        try:
            with quietly():
                return PeftModel.from_pretrained(model, str(adapter)).eval()
        except (RuntimeError, OSError, ValueError) as error:
            raise KitError(f"the adapter {adapter} does not fit the base model: {str(error).strip().splitlines()[-1].strip()}",
                           f"one that was trained on {self.config['model_name_or_path']}",
                           "correct model_name_or_path or adapter_name_or_path, or choose a checkpoint of this run") from error

    def take(self, checkpoint: Path) -> None:
        """Another checkpoint of the same run in the place of this one; the reference stays."""
        self.checkpoint = Path(checkpoint)
        if self.is_adapter and "model" in vars(self):  # it is loaded
            self.model.load_adapter(str(checkpoint), "default")
        else:
            vars(self).pop("model", None)

    @contextlib.contextmanager
    def set_aside(self):
        """For the length of a `with` block these models wait in the machine's memory and leave the GPU to another one."""
        for model in (self.model, self.reference):
            model.to("cpu")
        yield
        for model in (self.model, self.reference):
            model.to(self.device)

    @contextlib.contextmanager
    def as_model(self, tuned: bool):
        """The tuned model, or the one before training, for the length of a `with` block; gradients are off."""
        import torch

        model = self.model if tuned or self.is_adapter else self.reference  # loaded out of inference mode: see `take`
        off = model.disable_adapter() if self.is_adapter and not tuned else contextlib.nullcontext()
        with torch.inference_mode(), off:
            yield model

    def rows(self, dataset_name: str) -> list[Row]:
        """The registered dataset's rows, encoded as in training; a large one is sampled by prompt (`Encoder.rows`)."""
        with quietly():
            rows, self.available = self.encoder.rows(Path(self.config["dataset_dir"]), dataset_name)
        return rows

    def logps(self, rows: list[Row], tuned: bool = True, model=None) -> list[float]:
        """log p(reply | prompt) of each row in nats, summed over the reply's tokens; of another `model` if one is given.

        Rows of like length go through the model together; the answer is in the order of `rows`.
        """
        import torch

        answer = [0.0] * len(rows)
        with self.as_model(tuned) as own:
            for batch in batches(rows, 512 if self.device == "cpu" else 8192):
                some = [rows[index] for index in batch]
                for index, row, logits in zip(batch, some, self._logits(model or own, some), strict=True):
                    reply = torch.tensor(row.reply_ids, device=self.device)
                    answer[index] = float(torch.log_softmax(logits, -1).gather(1, reply[:, None]).sum())
        return answer

    def logits(self, row: Row, tuned: bool = True, model=None):
        """Logits that predict the reply, float32 [reply tokens, vocabulary]; of another `model` if one is given."""
        with self.as_model(tuned) as own:
            return next(self._logits(model or own, [row])).cpu()

    def _logits(self, model, rows: list[Row]):
        """Of one batch, row by row, the logits that predict the reply; only one row's are in float32, for they are large."""
        inputs = self._padded([row.prompt_ids + row.reply_ids for row in rows])
        longest = max(len(row.reply_ids) for row in rows)
        logits = model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1]  # place i predicts i + 1
        for line, row in zip(logits, rows, strict=True):
            yield line[longest - len(row.reply_ids):].float()

    def replies(self, rows: list[Row], tuned: bool = True, max_new_tokens: int = 32) -> list[str]:
        """Greedy replies to the rows' prompts, in one batch; nothing is drawn at random."""
        refuse_out_of_range(max_new_tokens=max_new_tokens)
        if not rows:
            return []
        inputs = self._padded([row.prompt_ids for row in rows])
        del inputs["position_ids"]  # generate() counts them on from the mask; given, they would stand still
        stop = self.encoder.template.get_stop_token_ids(self.tokenizer)
        with self.as_model(tuned) as model, quietly():
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None,
                                 top_k=None, eos_token_id=stop, pad_token_id=self.tokenizer.pad_token_id)
        new = out[:, inputs["input_ids"].shape[1]:]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _padded(self, sequences: list[list[int]]) -> dict:
        """One batch, padded on the left so that all replies end at the same place; positions count real tokens only."""
        inputs = self.tokenizer.pad({"input_ids": sequences}, padding_side="left", return_attention_mask=True, return_tensors="pt")
        return inputs.to(self.device) | {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def earlier_adapters(config: dict) -> list[str]:
    """The adapters (folders or hub ids) that LLaMA-Factory merged into the base before this training, in order.

    Without `create_new_adapter` the last one of `adapter_name_or_path` was trained further: the checkpoint holds it.
    """
    paths = files.listed(config.get("adapter_name_or_path"))
    return paths if config.get("create_new_adapter") else paths[:-1]


def heldout(run) -> str:
    """The name of the run's held-out dataset. KitError if 02_data held nothing out."""
    name = run.record().get("dataset", {}).get("heldout_name")
    if not name:
        raise KitError(f"nothing was held out of the data of {run.name!r}", "rows that training never saw",
                       "run 02_data with `heldout` above 0, under a new run_name")
    return name


def batches(rows: list[Row], tokens: int) -> list[list[int]]:
    """Indices of `rows`, longest first, cut so that a batch padded to its longest row has at most `tokens` tokens."""
    length, cut = [len(row.prompt_ids) + len(row.reply_ids) for row in rows], []
    left = sorted(range(len(rows)), key=lambda index: -length[index])
    while left:
        size = max(1, tokens // length[left[0]])
        cut.append(left[:size])
        left = left[size:]
    return cut


def score_checkpoints(run, found: list, at_most: int = 8):
    """Held-out figures of a run's complete checkpoints, by step: a DataFrame, one line a checkpoint.

    Columns: step, auc, auc_low, auc_high, margin, margin_low, margin_high (95 %, bootstrap over prompts), worse_low,
    worse_high (the same for the largest area minus this one, paired). Of more than `at_most` checkpoints so many are
    taken, evenly spread, the last among them. `attrs["sample"]` says how many of the held-out rows were scored.
    """
    import numpy

    refuse_out_of_range(score_at_most=at_most)
    steps = {item.step: item for item in found if item.complete and item.step is not None}
    if not steps:
        raise KitError("there is no complete checkpoint to score", "at least one", "train until the next save: 04_train")
    places = numpy.ceil(numpy.linspace(len(steps) - 1, 0, min(at_most, len(steps))))
    chosen = [sorted(steps)[int(place)] for place in reversed(places)]
    config, name, scorer, columns = run.config(), heldout(run), None, []
    for step in chosen:
        folder = fetch(steps[step], run.export / "checkpoint", to_resume=False).path
        if not scorer:
            scorer = Scorer(config, folder)
            rows = scorer.rows(name)
            reference = scores.logps(run, scorer, rows, tuned=False)
        scorer.take(folder)
        columns.append(rewards(rows, scores.logps(run, scorer, rows), reference, config)["reward"])
    table = scores.against_best(columns, [row.label for row in rows], [row.prompt for row in rows])
    table.insert(0, "step", chosen)
    table.attrs["sample"] = f"{len(rows)} of {scorer.available} held-out rows"
    return table
