"""Detect problems in a running training: what is seen, the likely cause, the setting to change.

It only reads and tells; stopping the run is the caller's affair.
"""

from . import metrics
from .errors import Finding

SEVERAL = 3  # windows in a row before something counts
STUCK_GRADIENT = 1e-3  # a gradient norm below this moves nothing; healthy LoRA runs show 0.1 to 10
FAR = 5.0  # a reward this far below zero: σ(−5) is under 1 %, so the row's gradient is gone
KL_SATURATES = 2.0  # β·KL above this: an accepted row that has not moved is worth σ(−2) = 12 % only, a rejected one already 88 %
ENOUGH = 10  # windows before a margin that stays flat, or a label that never comes, can be told from chance
WORSE = {"nan", "loss zero", "saturation", "one label"}  # what explains a flat margin better than a flat margin does


def diagnose(frame, last_progress_age: float | None = None, finished: bool = False, beta: float = 0.1,
             patience: float = 600.0) -> list[Finding]:
    """What is wrong in a table of `metrics.table`, worst first; an empty list where nothing is.

    Kinds: nan, loss zero, saturation, kl, one label, flat margin, no progress; `step`: where it was first seen. `last_progress_age`:
    seconds since the log last moved (None: not watched); `patience`: how many are too many. `finished`: the training has ended, so
    that a flat margin is final. `beta`: the run's pref_beta. The thresholds are this module's constants.
    """
    train = frame[frame["split"] == "train"].reset_index(drop=True)
    steps, found = train["step"].astype(int), []

    def tell(kind: str, step: int, seen: str, why: str, remedy: str) -> None:
        found.append(Finding("FAIL" if kind in WORSE else "WARN", f"since step {step}: {seen}", remedy, why, kind, int(step)))

    def lasting(wrong) -> int | None:
        """The first step of a streak that reaches the last window and is `SEVERAL` long; None if there is none."""
        well = train.index[~wrong]
        streak = steps[well[-1] + 1 :] if len(well) else steps
        return streak.iloc[0] if len(streak) >= SEVERAL else None

    nan = train[["loss", "grad_norm", "kl"]].isna().any(axis=1)
    if nan.any():
        tell("nan", steps[nan].iloc[0],
             "loss, gradient or KL is nan: the weights are lost. Later lines show a loss and rewards of 0 only because the "
             "trainer leaves nan rows out of its sums",
             "the learning rate is too high, or half precision overflowed",
             "learning_rate: a tenth of it; bf16 instead of fp16; resume from a checkpoint before this step")

    if (since := lasting(train["loss"] == 0)) is not None:
        tell("loss zero", since, f"the loss is exactly 0 in every window (at least {SEVERAL})",
             "nan losses are left out of the logged mean, or no token of a reply is left to learn from (all cut off)",
             "learning_rate down; cutoff_len up, if the prompts alone fill it")

    sunk = (train["rewards/chosen"] < -FAR) & (train["rewards/rejected"] < -FAR) & (train["kl"] == 0)
    if (since := lasting((train["grad_norm"] < STUCK_GRADIENT) | (sunk & (train["grad_norm"] < 0.1)))) is not None:
        deep = "both rewards are far below zero and KL is 0; " if sunk.iloc[-1] else ""
        tell("saturation", since, f"{deep}gradients are nearly zero: nothing is learnt any more",
             "a learning rate that threw the model out within a few steps; every row's sigmoid is flat now",
             "learning_rate: a tenth of it; warmup_ratio up; start again, for this model will not come back")

    smooth = train["kl_mean"].rolling(SEVERAL, min_periods=1).mean()
    if (since := lasting(smooth * beta > KL_SATURATES)) is not None:
        last = smooth.iloc[-1]
        tell("kl", since, f"KL is {last:.0f} nats a reply, {beta * last:.1f} in units of reward",
             "the policy runs away from the reference on replies of any kind: the learning rate is too high or β too small",
             "learning_rate down; pref_beta up")

    for key, label in (("rewards/chosen", "accepted"), ("rewards/rejected", "rejected")):
        if len(train) >= ENOUGH and train[key].isna().all():
            tell("one label", steps.iloc[0], f"not one {label} row was seen in {len(train)} windows",
                 "the dataset has one label only, or is sorted and max_samples took its first part",
                 "shuffle the dataset's file; max_samples up or away")

    margins = train["rewards/margins"].dropna()
    if finished and len(margins) >= ENOUGH and not any(finding.kind in WORSE for finding in found):
        mean, error = metrics.last_margin(train, margins.index[-(len(margins) // 3) :])
        chance = max(0.01, 2 * error)
        if not mean > chance:
            tell("flat margin", steps[margins.index[0]],
                 f"the margin is {mean:.3f} at the end, {chance:.3f} would be within chance: no preference was learnt",
                 "the learning rate is too low, the training too short, or the labels say nothing that can be learnt",
                 "learning_rate up (LoRA bears 10 times the rate of full tuning); num_train_epochs or max_steps up; "
                 "look at some rows of both labels")

    if not finished and (last_progress_age or 0) >= patience:
        step = steps.iloc[-1] if len(steps) else 0
        tell("no progress", step, f"the log has not moved for {last_progress_age / 60:.0f} minutes",
             "a worker waits for another that died or hangs, or the storage does not answer" if step
             else "the workers never started: the cluster has not the resources that were asked for",
             "ray_num_workers and resources_per_worker, against what `ray status` shows; ddp_timeout down to fail sooner")
    return found
