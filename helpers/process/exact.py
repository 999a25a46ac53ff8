"""Going on within an epoch as if nothing had happened: two corrections that later releases of the libraries have.

After a resume within an epoch accelerate 1.7.0 takes that epoch's remaining rows in the order of the first epoch (it
forgets which epoch it skips in: huggingface/accelerate#4071), and transformers 4.52.4 never takes the epoch's last
update where `gradient_accumulation_steps` leaves a smaller one (huggingface/transformers#38939). LLaMA-Factory 0.9.3
allows neither's later release. Used where this project's callback is in the training's workers (helpers.process.report).
"""

import inspect
import textwrap

LAST = "(step + 1) == steps_in_epoch"
"""In transformers' training loop: this micro-batch is the epoch's last. It counts from the resume."""


def install() -> None:
    """Correct both in this process; RuntimeError if transformers' training loop is not the one we know."""
    from transformers import trainer

    stock = trainer.skip_first_batches
    if getattr(stock, "keeps_epoch", False):
        return
    loop = textwrap.dedent(inspect.getsource(trainer.Trainer._inner_training_loop))
    if loop.count(LAST) != 1 or "steps_skipped = steps_trained_in_current_epoch" not in loop:
        raise RuntimeError(
            "transformers' training loop is not the one whose resuming is corrected here\n  expected: transformers==4.52.4\n"
            "  fix:      run `make install`"
        )

    def skip_first_batches(dataloader, num_batches=0):
        """accelerate's, which goes on in the same epoch."""
        rest = stock(dataloader, num_batches)
        rest.iteration = dataloader.iteration
        return rest

    skip_first_batches.keeps_epoch = True
    trainer.skip_first_batches = skip_first_batches
    corrected = compile(loop.replace(LAST, "(step + 1 + steps_skipped) == steps_in_epoch"), trainer.__file__, "exec")
    exec(corrected, vars(trainer), scope := {})
    trainer.Trainer._inner_training_loop = scope["_inner_training_loop"]
