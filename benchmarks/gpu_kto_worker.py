"""One measured training of benchmarks/gpu_kto.py, in a process of its own: LLaMA-Factory's (stock or accelerated), or TRL's.

    gpu_kto_worker.py llamafactory CONFIG.yaml RESULT.json [--accelerated]
    gpu_kto_worker.py trl JOB.json RESULT.json

Writes when steps ended, what the trainer logged, how long the rows are, and the peak of the GPU's memory.
"""

import json
import statistics
import sys
import time

LLAMA3 = ("{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
          "{{ m['content'] }}<|eot_id|>{% endfor %}"
          "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")


def clock(result: str):
    """A trainer callback that measures. Made in a function: the two stacks bring a `transformers` each."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.found = {"steps": [], "logs": []}

        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            self.found |= {"began": time.time(), "rows": row_lengths(train_dataloader.dataset)}

        def on_step_end(self, args, state, control, **kwargs):
            import torch

            if state.global_step == 1 or state.global_step % args.logging_steps == 0:  # else the GPU is not waited for
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.found["steps"].append((state.global_step, time.time()))

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.found["logs"].append({**logs, "step": state.global_step})

        def on_train_end(self, args, state, control, **kwargs):
            import torch

            if torch.cuda.is_available():
                self.found |= {"device": torch.cuda.get_device_name(), "allocated": torch.cuda.max_memory_allocated(),
                               "reserved": torch.cuda.max_memory_reserved()}
            if state.is_world_process_zero:
                with open(result, "w") as file:
                    json.dump({**self.found, "batch": args.per_device_train_batch_size, "workers": args.world_size,
                               "accumulation": args.gradient_accumulation_steps, "torch": torch.__version__}, file)

    return Clock()


def row_lengths(dataset) -> dict:
    """Means over LLaMA-Factory's rows: tokens, tokens squared, reply tokens; of rows and of mismatched (kl) rows."""
    if "kl_input_ids" not in dataset.column_names:
        return {"count": len(dataset)}
    found = {"count": len(dataset)}
    for prefix in ("", "kl_"):
        lengths = [len(ids) for ids in dataset[f"{prefix}input_ids"]]
        found[f"{prefix}tokens"] = statistics.fmean(lengths)
        found[f"{prefix}squares"] = statistics.fmean(length**2 for length in lengths)
        found[f"{prefix}replies"] = statistics.fmean(sum(t != -100 for t in labels) for labels in dataset[f"{prefix}labels"])
    return found


def llamafactory(config: str, result: str, *flags: str) -> None:
    """LLaMA-Factory's own command, in this process or on Ray (USE_RAY=1), with the clock among its callbacks."""
    import yaml
    from llamafactory.train import tuner

    if "--accelerated" in flags:
        from kto_accelerator.__main__ import training_function

        tuner._stock_training_function, tuner._training_function = tuner._training_function, training_function
    with open(config) as file:
        tuner.run_exp(yaml.safe_load(file), [clock(result)])


def trl(job: str, result: str) -> None:
    """TRL's KTO trainer on the same model and data, with the adapter of the reference configuration."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    with open(job) as file:
        job = json.load(file)
    with open(job["data"]) as file:
        rows = [{"prompt": r["messages"][:-1], "completion": r["messages"][-1:], "label": r["label"]} for r in json.load(file)]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, LLAMA3
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16 if cuda else torch.float32,
                                                 device_map={"": 0} if cuda else None, attn_implementation="sdpa")
    settings = KTOConfig(output_dir=job["output_dir"], per_device_train_batch_size=job["batch"], max_steps=job["steps"],
                         max_length=job["cutoff_len"], bf16=cuda, beta=0.1, learning_rate=job["learning_rate"],
                         logging_steps=job["logging_steps"], lr_scheduler_type="cosine", warmup_steps=job["steps"] // 10,
                         save_strategy="no", report_to="none", use_liger_kernel=cuda,
                         gradient_checkpointing=job["gradient_checkpointing"],
                         precompute_ref_log_probs=job.get("precompute_ref_log_probs", False))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    KTOTrainer(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
               peft_config=lora, callbacks=[clock(result)]).train()


if __name__ == "__main__":
    {"llamafactory": llamafactory, "trl": trl}[sys.argv[1]](*sys.argv[2:])
