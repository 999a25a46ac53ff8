"""What is going wrong in a training, seen in its table while it happens: what is seen, the likely cause, the setting to change.

It only reads and tells; stopping the run is the caller's affair.
"""

from . import metrics
from .errors import Finding

SEVERAL = 3
"""Windows in a row before something counts."""
STUCK_GRADIENT = 1e-3
"""A gradient norm below this moves nothing; healthy LoRA runs show 0.1 to 10."""
FAR = 5.0
"""A reward this far below zero: σ(−5) is under 1 %, so the row's gradient is gone."""
KL_SATURATES = 2.0
"""β·KL above this: an accepted row that has not moved is worth σ(−2) = 12 % only, a rejected one already 88 %."""
ENOUGH = 10
"""Windows before a margin that stays flat, or a label that never comes, can be told from chance."""
WORSE = {"nan", "loss zero", "saturation", "one label"}
"""What explains a flat margin better than a flat margin does."""


def diagnose(frame, last_progress_age: float | None = None, finished: bool = False, beta: float = 0.1,
             patience: float = 600.0) -> list[Finding]:
    """What is wrong in a table of `metrics.table`, worst first; an empty list where nothing is.

    Kinds: nan, loss zero, saturation, kl, one label, flat margin, no progress; `step`: where it was first seen. `last_progress_age`:
    seconds since the log last moved (None: not watched); `patience`: how many are too many. `finished`: the training has ended, so
    that a flat margin is final. `beta`: the run's pref_beta. The thresholds are this module's constants.
    """
    train = frame[frame["split"] == "train"].reset_index(drop=True)
    found = [_nan(train), _loss_zero(train), _saturation(train), _kl(train, beta), _one_label(train)]
    found.append(_flat_margin(train) if finished else _no_progress(train, last_progress_age, patience))
    kinds = {finding.kind for finding in found if finding}
    return [finding for finding in found if finding and not (finding.kind == "flat margin" and kinds & WORSE)]


def _finding(kind: str, step: int, seen: str, why: str, remedy: str) -> Finding:
    return Finding("FAIL" if kind in WORSE else "WARN", f"since step {step}: {seen}", remedy, why, kind, step)


def _lasting(train, wrong) -> int | None:
    """The first step of a streak that reaches the last window and is `SEVERAL` long; None if there is none."""
    well = train.index[~wrong]
    streak = train[well[-1] + 1 :] if len(well) else train
    return int(streak["step"].iloc[0]) if len(streak) >= SEVERAL else None


def _nan(train) -> Finding | None:
    wrong = train[["loss", "grad_norm", "kl"]].isna().any(axis=1)
    return None if not wrong.any() else _finding(
        "nan", int(train["step"][wrong].iloc[0]),
        "loss, gradient or KL is nan: the weights are lost. Later lines show a loss and rewards of 0 only because the "
        "trainer leaves nan rows out of its sums",
        "the learning rate is too high, or half precision overflowed",
        "learning_rate: a tenth of it; bf16 instead of fp16; resume from a checkpoint before this step",
    )


def _loss_zero(train) -> Finding | None:
    since = _lasting(train, train["loss"] == 0)
    return None if since is None else _finding(
        "loss zero", since, f"the loss is exactly 0 in every window (at least {SEVERAL})",
        "nan losses are left out of the logged mean, or no token of a reply is left to learn from (all cut off)",
        "learning_rate down; cutoff_len up, if the prompts alone fill it",
    )


def _saturation(train) -> Finding | None:
    sunk = (train["rewards/chosen"] < -FAR) & (train["rewards/rejected"] < -FAR) & (train["kl"] == 0)
    since = _lasting(train, (train["grad_norm"] < STUCK_GRADIENT) | (sunk & (train["grad_norm"] < 0.1)))
    deep = "both rewards are far below zero and KL is 0; " if since is not None and sunk.iloc[-1] else ""
    return None if since is None else _finding(
        "saturation", since, f"{deep}gradients are nearly zero: nothing is learnt any more",
        "a learning rate that threw the model out within a few steps; every row's sigmoid is flat now",
        "learning_rate: a tenth of it; warmup_ratio up; start again, for this model will not come back",
    )


def _kl(train, beta: float) -> Finding | None:
    smooth = train["kl_mean"].rolling(SEVERAL, min_periods=1).mean()
    since = _lasting(train, smooth * beta > KL_SATURATES)
    last = smooth.iloc[-1] if since is not None else 0.0
    return None if since is None else _finding(
        "kl", since, f"KL is {last:.0f} nats a reply, {beta * last:.1f} in units of reward",
        "the policy runs away from the reference on replies of any kind: the learning rate is too high or β too small",
        "learning_rate down; pref_beta up",
    )


def _one_label(train) -> Finding | None:
    for key, label in (("rewards/chosen", "accepted"), ("rewards/rejected", "rejected")):
        if len(train) >= ENOUGH and train[key].isna().all():
            return _finding(
                "one label", int(train["step"].iloc[0]), f"not one {label} row was seen in {len(train)} windows",
                "the dataset has one label only, or is sorted and max_samples took its first part",
                "shuffle the dataset's file; max_samples up or away",
            )
    return None


def _flat_margin(train) -> Finding | None:
    margins = train["rewards/margins"].dropna()
    if len(margins) < ENOUGH:
        return None
    last = margins.tail(len(margins) // 3)
    errors = metrics.band(train)["rewards/margins"].reindex(last.index)
    chance = 2 * float((errors**2).sum() ** 0.5) / len(last)
    return None if last.mean() > max(chance, 0.01) else _finding(
        "flat margin", int(train["step"][margins.index[0]]),
        f"the margin is {last.mean():.3f} at the end, {chance:.3f} would be within chance: no preference was learnt",
        "the learning rate is too low, the training too short, or the labels say nothing that can be learnt",
        "learning_rate up (LoRA bears 10 times the rate of full tuning); num_train_epochs or max_steps up; "
        "look at some rows of both labels",
    )


def _no_progress(train, age: float | None, patience: float) -> Finding | None:
    step = int(train["step"].iloc[-1]) if len(train) else 0
    return None if age is None or age < patience else _finding(
        "no progress", step, f"the log has not moved for {age / 60:.0f} minutes",
        "a worker waits for another that died or hangs, or the storage does not answer" if step
        else "the workers never started: the cluster has not the resources that were asked for",
        "ray_num_workers and resources_per_worker, against what `ray status` shows; ddp_timeout down to fail sooner",
    )
