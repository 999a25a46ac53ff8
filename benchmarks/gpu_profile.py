"""Where a step's time goes, CPU and GPU side by side: profiles the accelerated training of one configuration.

    python benchmarks/gpu_profile.py CONFIG.yaml OUT.txt [--skip 45] [--steps 8] [--trace TRACE.json]

CONFIG is a LLaMA-Factory configuration (benchmarks/gpu_kto.py leaves one beside each case's log). Prints for the profiled steps:
seconds a step, how long the GPU computes, kernels a step, the longest gaps and what the CPU did in them, and the costliest operations.
"""

import argparse
import time

import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback


class Profile(TrainerCallback):
    """Profiles steps `skip` to `skip + steps`, then stops the training."""

    def __init__(self, skip: int, steps: int):
        self.skip, self.steps, self.profiler, self.seconds = skip, steps, None, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.skip - self.steps:  # the same number of steps without the profiler, which slows the CPU
            torch.cuda.synchronize()
            self.began = time.perf_counter()
        if state.global_step == self.skip:
            torch.cuda.synchronize()
            self.seconds = (time.perf_counter() - self.began) / self.steps
            self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profiler.__enter__()
        if state.global_step == self.skip + self.steps:
            torch.cuda.synchronize()
            self.profiler.__exit__(None, None, None)
            control.should_training_stop = True


def report(profiler, steps: int, unprofiled: float) -> str:
    """The text described above; times in milliseconds a step."""
    events = profiler.events()
    kernels = sorted(((e.time_range.start, e.time_range.end, e.name) for e in events
                      if e.device_type == torch.autograd.DeviceType.CUDA), key=lambda kernel: kernel[:2])
    busy, gaps, end = 0.0, [], kernels[0][0]
    for start, stop, name in kernels:
        if start > end:
            gaps.append((start - end, end, start, name))
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - kernels[0][0]
    lines = [f"{unprofiled * 1e3:.0f} ms a step without the profiler, {whole / steps / 1e3:.0f} with it; "
             f"GPU busy {busy / steps / 1e3:.0f}; {len(kernels) / steps:.0f} kernels a step",
             "gaps, ms a step: " + ", ".join(
                 f"{low}-{high} us {sum(g[0] for g in gaps if low <= g[0] < high) / steps / 1e3:.1f}"
                 for low, high in ((0, 10), (10, 50), (50, 200), (200, 2000), (2000, 10**9)))]
    host = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    for size, begin, stop, name in sorted(gaps, reverse=True)[:12]:
        inside = [e for e in host if e.time_range.start < stop and e.time_range.end > begin]
        inside.sort(key=lambda e: -(min(e.time_range.end, stop) - max(e.time_range.start, begin)))
        lines.append(f"  gap {size / 1e3:6.1f} ms before {name[:60]}: {', '.join(dict.fromkeys(e.name[:40] for e in inside[:6]))}")
    averages = profiler.key_averages()
    for key in ("self_device_time_total", "self_cpu_time_total"):
        lines += [key, averages.table(sort_by=key, row_limit=22, max_name_column_width=60)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("out")
    parser.add_argument("--skip", type=int, default=45)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--trace")
    options = parser.parse_args()
    from llamafactory.train import tuner

    import kto_accelerator
    from kto_accelerator.enable import OURS

    with open(options.config) as file:
        config = yaml.safe_load(file)
    kto_accelerator.install(**{key: config.pop(key) for key in OURS if key in config})
    callback = Profile(options.skip, options.steps)
    tuner.run_exp({**config, "max_steps": options.skip + options.steps + 1, "save_strategy": "no"}, [callback])
    text = report(callback.profiler, options.steps, callback.seconds)
    with open(options.out, "w") as file:
        file.write(text + "\n")
    print(text[:3500])
    if options.trace:
        callback.profiler.export_chrome_trace(options.trace)


if __name__ == "__main__":
    main()
