"""The settings of a training run, and what it returns."""

from dataclasses import asdict, dataclass
from typing import Any

from mmrec_helpers.config import InputError, check_at_least, check_bool, check_positive, choose
from mmrec_helpers.training.evaluation import METRICS


@dataclass(frozen=True)
class TrainSettings:
    """Settings of ``fit``; the defaults are MMRec's.

    epochs           most epochs to train; 0 only evaluates
    batch_size       interactions per step
    learning_rate    of Adam
    seed             of the order of interactions and of the negatives (the model's own seed is an option of ``build``)
    patience         stop after this many validations in a row without a better ``monitor``; None: never. (MMRec's
                     ``stopping_step`` of 20 stops at the 21st, and compares values rounded to four decimals.)
    eval_every       validate after every this many epochs
    ks               ranks at which metrics are taken
    max_grad_norm    largest norm of all gradients together; None: no clipping
    monitor          the validation metric that chooses the best epoch, such as "recall@20"
    fused_optimizer  Adam as one kernel, which rounds differently from torch's default; None: for models whose backend
                     is not the reference
    cuda_graph       run whole steps as a CUDA graph: for small graphs on a GPU, where launching kernels takes longer
                     than running them. Only for the fused backend, without checkpointing, mixed precision or features
                     on the host; anything else raises InputError
    """

    epochs: int = 1000
    batch_size: int = 2048
    learning_rate: float = 1e-3
    seed: int = 0
    patience: int | None = 20
    eval_every: int = 1
    ks: tuple[int, ...] = (5, 10, 20)
    max_grad_norm: float | None = None
    monitor: str = "recall@20"
    fused_optimizer: bool | None = None
    cuda_graph: bool = False

    def __post_init__(self):
        kind = "training"
        check_at_least(kind, 0, epochs=self.epochs, seed=self.seed)
        check_at_least(kind, 1, batch_size=self.batch_size, eval_every=self.eval_every)
        check_positive(kind, learning_rate=self.learning_rate)
        if self.patience is not None:
            check_at_least(kind, 1, patience=self.patience)
        if self.max_grad_norm is not None:
            check_positive(kind, max_grad_norm=self.max_grad_norm)
        if self.fused_optimizer is not None and not isinstance(self.fused_optimizer, bool):
            raise InputError(f"training: fused_optimizer is {self.fused_optimizer!r}: expected True, False or None")
        check_bool(kind, cuda_graph=self.cuda_graph)
        if not isinstance(self.ks, (tuple, list)) or not self.ks:
            raise InputError(f"training: ks is {self.ks!r}: expected ranks such as (5, 10, 20)")
        for k in self.ks:
            check_at_least(kind, 1, k=k)
        object.__setattr__(self, "ks", tuple(sorted({int(k) for k in self.ks})))
        choose("training monitor", self.monitor, [f"{metric}@{k}" for metric in METRICS for k in self.ks])


@dataclass(frozen=True)
class History:
    """The course and the outcome of a training run.

    epochs           one row per epoch: ``epoch`` (from 0), ``loss`` (mean over batches; MMRec's logs give the sum),
                     ``epoch_s`` (sampling and all steps, without validation: what MMRec's logs call the training
                     time), of it ``sampling_s`` (order and negatives) and ``train_s`` (the rest), ``validation_s``,
                     and "valid.recall@20" etc. where the epoch was validated
    best_epoch       epoch with the best validation ``monitor``, whose weights the model has now; None: never validated
    valid            validation metrics of that epoch, or None
    test             metrics of the test split, read once, with those weights; None: no test split, or interrupted
    stopped          "epochs" (all done), "early" (patience ran out) or "interrupted" (Ctrl-C)
    steps_per_epoch  batches per epoch
    note             what a reader should know besides: no validation split, say; empty if nothing
    """

    settings: TrainSettings
    epochs: list[dict[str, float]]
    best_epoch: int | None
    valid: dict[str, float] | None
    test: dict[str, float] | None
    stopped: str
    steps_per_epoch: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        plain = asdict(self)
        plain["settings"]["ks"] = list(self.settings.ks)
        return plain
