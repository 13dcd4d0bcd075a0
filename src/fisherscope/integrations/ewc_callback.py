"""Elastic weight consolidation inside of the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fisherscope.errors import ParameterError
from fisherscope.surgery import EWC


class EWCCallback(TrainerCallback):
    r"""Adds the gradient of a penalty to each optimizer step of a Trainer.

    ``Trainer(..., callbacks=[EWCCallback(fs.EWC(model, fisher, strength=1.0))])``

    **When.** In ``on_step_begin``: once per optimizer step, before the first of its micro-batches.
    The weights don't move within a step, so the gradient is that of the end of the step; the
    backward passes add theirs to it. So it counts once however many batches are accumulated, and
    it is part of what ``max_grad_norm`` clips, as it would be in the loss.
    (``on_pre_optimizer_step`` comes after clipping: added there, a penalty that is needed most
    would outweigh the clipped gradient without limit.) With a gradient scaler (``fp16=True``) it
    is scaled as the losses of the same step will be. Under data parallelism all ranks add the
    same, and the mean is the same again.

    **What is logged.** The Trainer's loss stays that of the data alone. Each record of
    ``state.log_history`` that has a loss also gets ``ewc_penalty``, in nats at the last step's
    beginning; the ``grad_norm`` beside it is that of both together.

    Args:
        ewc: The penalty, on the very model that is trained (or on the PEFT model around it).

    Attributes:
        ewc: The penalty.
        penalty: Its value in nats at the beginning of the latest step, ``None`` before.

    Raises:
        ParameterError: If it is no penalty. Also, as training begins, if it is on another model,
            or parameters are sharded (FSDP, DeepSpeed).
    """

    def __init__(self, ewc: EWC) -> None:
        if not isinstance(ewc, EWC):
            raise ParameterError(
                f"ewc is a {type(ewc).__name__}; pass fs.EWC(model, fisher, strength=...)."
            )
        self.ewc = ewc
        self.penalty: float | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Make sure that the penalty is on what is trained.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Its model.

        Raises:
            ParameterError: If it isn't.
        """
        del state, control
        if args.deepspeed or args.fsdp:
            raise ParameterError(
                "the penalty needs whole parameters and gradients, which deepspeed= and fsdp= of "
                "TrainingArguments shard: use data parallelism, or adapters on one device."
            )
        if {id(p) for p in kwargs["model"].parameters()} != {
            id(p) for p in self.ewc.model.parameters()
        }:
            raise ParameterError(
                "ewc is on another model than the Trainer's; make it from trainer.model, after "
                "adapters are added."
            )

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Add the penalty's gradient, once per optimizer step.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            **kwargs: Its optimizer, whose scaler is asked for the scale.
        """
        del args, state, control
        scaler = getattr(kwargs.get("optimizer"), "scaler", None)
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        self.penalty = self.ewc.add_gradient(scale=scale)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the penalty beside the loss.

        Args:
            args: The Trainer's arguments.
            state: Its state.
            control: Its control.
            logs: What is logged; callbacks after this one see the penalty too.
            **kwargs: Unused.
        """
        del args, control, kwargs
        if logs is not None and "loss" in logs and self.penalty is not None:
            logs["ewc_penalty"] = self.penalty
            state.log_history[-1]["ewc_penalty"] = self.penalty
