"""Held-out rows judged by the model itself: implied rewards, how well they separate the labels, and replies.

The reference is the same weights with the adapter switched off: one model in memory, loaded once in a `Scorer` and used
for everything that is asked of it.
"""

import contextlib
import os
from pathlib import Path

from ..errors import KitError
from ..quiet import quietly
from .encoding import Encoder, Row


class Scorer:
    """A run's base model and what was trained on it, loaded once: log-probabilities, logits and replies of both.

    `config`: the run's resolved configuration; `checkpoint`: an adapter's folder or, for full and freeze tuning, a
    whole model's. Float32 on a CPU, bfloat16 on a GPU. `tuned=False` asks the model as it was before training.
    """

    def __init__(self, config: dict, checkpoint: Path):
        self.config, self.checkpoint = config, Path(checkpoint)
        self.is_adapter = (self.checkpoint / "adapter_config.json").is_file()
        if not self.is_adapter and not (self.checkpoint / "config.json").is_file():
            raise KitError(f"nothing to load in {self.checkpoint}", "adapter_config.json, or a model's config.json",
                           "choose a complete checkpoint: 05_checkpoints lists them")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch loads: on busy cores spinning costs 4x
        with quietly():
            import torch
            from transformers import AutoTokenizer

            self.device = "cuda" if torch.cuda.is_available() else "cpu"
            self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
            base = str(config["model_name_or_path"])
            self.reference = self.load(base)
            self.tokenizer = AutoTokenizer.from_pretrained(base)
            self.encoder = Encoder(config, self.tokenizer)
            self.model = self._adapted() if self.is_adapter else self.load(self.checkpoint)

    def load(self, model: str | Path, **options):
        """A causal language model on this scorer's device and in its dtype. KitError if there is none in `model`."""
        from transformers import AutoModelForCausalLM

        try:
            with quietly():
                loaded = AutoModelForCausalLM.from_pretrained(str(model), torch_dtype=self.dtype, **options)
        except (OSError, ValueError) as error:
            raise KitError(f"cannot load the model {model}: {str(error).splitlines()[0]}",
                           "a model's folder or a hub id", "make it ready again with 01_setup") from error
        return loaded.to(self.device).eval()

    def _adapted(self):
        from peft import PeftModel

        try:
            return PeftModel.from_pretrained(self.reference, self.checkpoint).eval()
        except RuntimeError as error:
            raise KitError(f"the adapter does not fit the base model: {str(error).strip().splitlines()[-1].strip()}",
                           f"the base that it was trained on; the config names {self.config['model_name_or_path']}",
                           "correct model_name_or_path, or choose a checkpoint of this run") from error

    @contextlib.contextmanager
    def room_for(self, gigabytes: float):
        """Room on the GPU for another model of that size: this one waits in the machine's memory meanwhile, if it must."""
        away = self.device == "cuda" and not gpu_has_room(gigabytes)
        for model in (self.model, self.reference) if away else ():
            model.to("cpu")
        yield
        for model in (self.model, self.reference) if away else ():
            model.to(self.device)

    @contextlib.contextmanager
    def as_model(self, tuned: bool):
        """The tuned model, or the one before training, for the length of a `with` block; gradients are off."""
        import torch

        with torch.inference_mode(), contextlib.ExitStack() as stack:
            if self.is_adapter and not tuned:
                stack.enter_context(self.model.disable_adapter())
            yield self.model if tuned or self.is_adapter else self.reference

    def rows(self, dataset_name: str) -> list[Row]:
        """The registered dataset's rows, encoded as training encodes them (see `encoding.Encoder.rows`)."""
        with quietly():
            return self.encoder.rows(Path(self.config["dataset_dir"]), dataset_name)

    def logps(self, rows: list[Row], tuned: bool = True, model=None) -> list[float]:
        """log p(reply | prompt) of each row in nats, summed over the reply's tokens, as training sums it.

        Of another `model` if one is given. Rows of like length go through the model together; the answer is in the order
        of `rows`.
        """
        answer = [0.0] * len(rows)
        with self.as_model(tuned) as own:
            for batch in batches(rows, 512 if self.device == "cpu" else 8192):
                for index, value in zip(batch, self._logps(model or own, [rows[i] for i in batch]), strict=True):
                    answer[index] = value
        return answer

    def _logps(self, model, rows: list[Row]) -> list[float]:
        import torch

        inputs = self._padded([row.prompt_ids + row.reply_ids for row in rows])
        longest = max(len(row.reply_ids) for row in rows)
        logits = model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1]  # place i predicts i + 1
        targets = inputs["input_ids"][:, -longest:]
        answer = []
        for line, wanted, row in zip(logits, targets, rows, strict=True):  # one row in float32 at a time: vocabularies are large
            reply = slice(longest - len(row.reply_ids), None)
            answer.append(torch.log_softmax(line[reply].float(), -1).gather(1, wanted[reply, None]).sum())
        return [float(value) for value in answer]

    def logits(self, row: Row, tuned: bool = True, model=None):
        """Logits that predict the reply, float32 [reply tokens, vocabulary]; of another `model` if one is given."""
        inputs = self._padded([row.prompt_ids + row.reply_ids])
        with self.as_model(tuned) as own:
            out = (model or own)(**inputs, logits_to_keep=len(row.reply_ids) + 1, use_cache=False)
        return out.logits[0, :-1].float().cpu()

    def replies(self, rows: list[Row], tuned: bool = True, max_new_tokens: int = 32) -> list[str]:
        """Greedy replies to the rows' prompts, in one batch; nothing is drawn at random."""
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
        import torch

        width, pad = max(map(len, sequences)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(s)) + s for s in sequences], device=self.device)
        mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=self.device)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def gpu_has_room(gigabytes: float) -> bool:
    """Whether there is a GPU with room for a model of that size, and an eighth and a gigabyte more to compute in."""
    import torch

    if not torch.cuda.is_available():
        return False
    torch.cuda.empty_cache()  # what torch keeps of this process's earlier work is free for others
    return torch.cuda.mem_get_info()[0] / 1e9 > 1.125 * gigabytes + 1


def heldout(run) -> str:
    """The name of the run's held-out dataset. KitError if 02_data held nothing out."""
    name = run.record().get("dataset", {}).get("heldout_name")
    if not name:
        raise KitError(f"nothing was held out of the data of {run.name!r}", "rows that training never saw",
                       "run 02_data with `heldout` above 0, under a new run_name")
    return name


def batches(rows: list[Row], tokens: int) -> list[list[int]]:
    """Indices of `rows`, longest first, cut so that a batch padded to its longest row has at most `tokens` tokens."""
    length = [len(row.prompt_ids) + len(row.reply_ids) for row in rows]
    cut: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: -length[i]):
        if cut and length[cut[-1][0]] * (len(cut[-1]) + 1) <= tokens:
            cut[-1].append(index)
        else:
            cut.append([index])
    return cut


def rewards(rows: list[Row], policy: list[float], reference: list[float], config: dict):
    """A DataFrame, one line a row: label, reward, logp_policy, logp_reference, tokens (of the reply), prompt, reply.

    `reward` = beta * (logp_policy - logp_reference), the implied reward of KTO (Ethayarajh et al. 2024, after
    Rafailov et al. 2023), beta being the config's pref_beta; log-probabilities in nats, summed over the reply.
    """
    import pandas

    beta = float(config.get("pref_beta", 0.1))  # LLaMA-Factory's default
    return pandas.DataFrame({
        "label": [row.label for row in rows],
        "reward": [beta * (p - r) for p, r in zip(policy, reference, strict=True)],
        "logp_policy": policy, "logp_reference": reference,
        "tokens": [len(row.reply_ids) for row in rows],
        "prompt": [row.prompt for row in rows], "reply": [row.reply for row in rows],
    })


def implied_rewards(config: dict, checkpoint: Path, dataset_name: str, tuned: bool = True):
    """The table of `rewards` for a registered dataset, the model loaded anew; `tuned=False`: the adapter is off."""
    scorer = Scorer(config, checkpoint)
    rows = scorer.rows(dataset_name)
    return rewards(rows, scorer.logps(rows, tuned), scorer.logps(rows, tuned=False), config)


def accuracy(table, column: str = "reward", resamples: int = 1000, seed: int = 0) -> dict:
    """How well `column` tells accepted from rejected rows, with 95 % bootstrap intervals.

    Returns `auc` (area under the ROC curve; 0.5 is chance), `margin` (mean accepted - mean rejected), `auc_interval`
    and `margin_interval` (percentiles over `resamples` resamples of the rows, each label by itself), `accepted`,
    `rejected`. KitError if a label is missing or a value is not finite.
    """
    import numpy
    from sklearn.metrics import roc_auc_score

    values, label = table[column].to_numpy(float), table["label"].to_numpy(bool)
    good, bad = values[label], values[~label]
    if not len(good) or not len(bad):
        raise KitError(f"{len(good)} accepted and {len(bad)} rejected rows are held out", "at least one of each",
                       "hold out a larger share in 02_data")
    if not numpy.isfinite(values).all():
        raise KitError(f"{int((~numpy.isfinite(values)).sum())} of {len(values)} values of {column} are not finite",
                       "finite numbers", "the training diverged: take an earlier checkpoint, or a lower learning_rate")
    draw = numpy.random.default_rng(seed)
    wins = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)  # their mean is the area (Mann and Whitney 1947)
    times_good, times_bad = (draw.multinomial(n, numpy.full(n, 1 / n), resamples) / n for n in (len(good), len(bad)))
    aucs, margins = ((times_good @ wins) * times_bad).sum(1), times_good @ good - times_bad @ bad
    return {
        "auc": float(roc_auc_score(label, values)), "auc_interval": _interval(aucs),
        "margin": float(good.mean() - bad.mean()), "margin_interval": _interval(margins),
        "accepted": len(good), "rejected": len(bad),
    }


def _interval(values) -> list[float]:
    import numpy

    return [round(float(value), 6) for value in numpy.percentile(values, [2.5, 97.5])]
