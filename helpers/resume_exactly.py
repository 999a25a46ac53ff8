"""Exact resume mid-epoch: two upstream fixes, applied where the installed libraries lack them.

After a resume within an epoch accelerate 1.7.0 takes the epoch's remaining rows in the order of the first epoch (it forgets
which epoch it skips in: huggingface/accelerate#4071), and transformers 4.52.4 never takes the epoch's last update where
`gradient_accumulation_steps` leaves a smaller one (huggingface/transformers#38939; fixed in later releases). LLaMA-Factory 0.9.3 allows
neither's later release. `helpers.trainer` calls `install` in each worker that resumes.
"""

import inspect
import textwrap

LAST = "(step + 1) == steps_in_epoch"  # an epoch's end in 4.52.4: `step` counts from the resume, `steps_in_epoch` from the start
FIXED = "steps_in_epoch - steps_trained_in_current_epoch", "step = steps_trained_in_current_epoch - 1"  # from 4.53 on


def install() -> None:
    """Apply both fixes in this process; RuntimeError where transformers' training loop is neither the old one nor a fixed one."""
    from transformers import trainer

    stock = trainer.skip_first_batches
    if getattr(stock, "keeps_epoch", False):
        return
    loop = textwrap.dedent(inspect.getsource(trainer.Trainer._inner_training_loop))
    if loop.count(LAST) == 1 and "steps_skipped = steps_trained_in_current_epoch" in loop:
        # There is no smaller place to hook into: the loop's own text is corrected and compiled again.
        corrected = compile(loop.replace(LAST, "(step + 1 + steps_skipped) == steps_in_epoch"), trainer.__file__, "exec")
        exec(corrected, vars(trainer), scope := {})
        trainer.Trainer._inner_training_loop = scope["_inner_training_loop"]
    elif not any(words in loop for words in FIXED):
        import transformers

        raise RuntimeError(f"nobody has checked that transformers {transformers.__version__} resumes exactly within an epoch\n"
                           "  expected: transformers 4.52 to 4.57\n  fix:      run `make install`, or start a new run")

    def skip_first_batches(dataloader, num_batches=0):
        rest = stock(dataloader, num_batches)
        rest.iteration = getattr(dataloader, "iteration", 0)  # the loader of the rest stays in the same epoch
        return rest

    skip_first_batches.keeps_epoch = True
    trainer.skip_first_batches = skip_first_batches
