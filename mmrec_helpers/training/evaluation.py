"""Full-ranking evaluation: recall, precision, NDCG and MAP at k over all items, training items masked.

Protocol and formulas are those of MMRec (enoche/MMRec, src/utils/metrics.py, topk_evaluator.py, dataloader.py,
dataset.py), except that it rounds to four decimals and its ties fall as they come. For a user with n test items, of
which hit(r) is 1 if the item at rank r = 1, 2, ... is one, else 0:

    recall@k     sum of hit(r) for r <= k, divided by n
    precision@k  the same sum divided by k
    ndcg@k       sum of hit(r) / log2(r + 1) for r <= k, divided by the sum of 1 / log2(r + 1) for r <= min(k, n)
    map@k        sum of hit(r) precision@r for r <= k, divided by min(k, n)

each averaged over users. All n_items are ranked, those without training interactions too. For the validation split as
for the test split only the user's training items are masked: validation items compete when the test split is ranked,
as in MMRec. Equal scores: the lower item number comes first.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrec_helpers.config import InputError, check_at_least, choose
from mmrec_helpers.data import BipartiteGraph, Interactions
from mmrec_helpers.data.interactions import checked_pairs
from mmrec_helpers.ops.rows import top_items

METRICS = ("recall", "ndcg", "precision", "map")
SPLITS = ("valid", "test")
BLOCK_BYTES = 2**28
BYTES_PER_SCORE = 16  # a float32 score, its masked copy, and what selecting the first k takes

Pairs = np.ndarray | Tensor


def evaluate(
    model: Any, data: Interactions, split: str = "test", ks: Sequence[int] = (5, 10, 20), block_bytes: int = BLOCK_BYTES
) -> dict[str, float]:
    """Rank all items for the users of ``split`` and average the metrics (see the module) over them.

    model        anything with ``scores(users)``: int64 (n,) to float (n, n_items). A model whose ``scores`` also takes
                 ``representation`` is asked for ``representation()`` once, instead of computing it for every block
    split        "valid" or "test"
    ks           ranks, each at least 1
    block_bytes  memory for one block of users; scores of all users never exist together

    Users of the split without training interactions are dropped, as in MMRec. The model is put in evaluation mode
    meanwhile; no gradient is kept. Returns {"recall@5": ..., "ndcg@5": ..., "precision@5": ..., "map@5": ..., ...}.
    Raises InputError if no user is left, or a score is not finite (naming the users of the block).
    """
    _, values = per_user_metrics(model, data, split, ks, block_bytes)
    return {name: float(value.mean()) for name, value in values.items()}


def per_user_metrics(
    model: Any, data: Interactions, split: str = "test", ks: Sequence[int] = (5, 10, 20), block_bytes: int = BLOCK_BYTES
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What ``evaluate`` averages: the users (n,) int64, ascending, and {"recall@20": float64 (n,), ...}."""
    users = evaluation_users(data, split)
    if users.size == 0:
        raise InputError(f"{data.name}: no user of the {split} split has training interactions: nothing to rank")
    device = model_device(model)
    wanted = BipartiteGraph.from_pairs(getattr(data, split), data.n_users, data.n_items)
    was_training = getattr(model, "training", False)
    if was_training:
        model.eval()
    try:
        with torch.no_grad():
            graphs = data.graph.to(device), wanted.to(device)
            values = _metrics(_scorer(model), torch.from_numpy(users).to(device), *graphs, ks, block_bytes)
    finally:
        if was_training:
            model.train()
    return users, values


def ranking_metrics(
    scores: Pairs, train: Pairs, test: Pairs, ks: Sequence[int] = (5, 10, 20), block_bytes: int = BLOCK_BYTES
) -> dict[str, float]:
    """The metrics of ``evaluate`` from a matrix of scores: (n_users, n_items) float, array or tensor.

    train  integer (2, n): users over items, masked wherever they stand; may be empty
    test   integer (2, n): users over items, to be found; each pair once. The mean goes over the users in ``test``
           (none is dropped here: ``evaluate`` drops those without training interactions)

        ranking_metrics(np.array([[9.0, 8.0, 7.0]]), train=[[0], [0]], test=[[0], [2]], ks=(1, 2))["recall@2"]  # 1.0
    """
    scores = torch.as_tensor(scores)
    if scores.ndim != 2:
        raise InputError(f"scores have shape {tuple(scores.shape)}: expected (n_users, n_items)")
    seen, wanted = (
        checked_pairs(np.asarray(pairs.cpu() if isinstance(pairs, Tensor) else pairs), name, *scores.shape)
        for name, pairs in (("train", train), ("test", test))
    )
    if wanted.shape[1] == 0:
        raise InputError("test has no pairs: nothing to find")
    masked, found = (BipartiteGraph.from_pairs(pairs, *scores.shape).to(scores.device) for pairs in (seen, wanted))
    users = torch.from_numpy(np.unique(wanted[0])).to(scores.device)
    values = _metrics(scores.__getitem__, users, masked, found, ks, block_bytes)
    return {name: float(value.mean()) for name, value in values.items()}


def evaluation_users(data: Interactions, split: str) -> np.ndarray:
    """Users with interactions in ``split`` and in the training set, ascending: (n,) int64."""
    choose("split", split, SPLITS)
    users = np.unique(getattr(data, split)[0])
    return users[data.graph.user_degree.numpy()[users] > 0]


def model_device(model: Any) -> torch.device:
    """Where a model computes: its ``device`` if it names one, else its first parameter's or buffer's, else the CPU."""
    if isinstance(getattr(model, "device", None), torch.device):
        return model.device
    tensors = chain(model.parameters(), model.buffers()) if isinstance(model, torch.nn.Module) else iter(())
    first = next(tensors, None)
    return torch.device("cpu") if first is None else first.device


def _metrics(
    score_block: Callable[[Tensor], Tensor],
    users: Tensor,
    train: BipartiteGraph,
    wanted: BipartiteGraph,
    ks: Sequence[int],
    block_bytes: int,
) -> dict[str, np.ndarray]:
    """Metrics of each of ``users`` (n,), in blocks of as many users as ``block_bytes`` allows: {name: float64 (n,)}."""
    ks = _checked_ks(ks)
    check_at_least("evaluation", 1, block_bytes=block_bytes)
    size = max(1, block_bytes // (train.n_items * BYTES_PER_SCORE))
    parts = []
    for block in users.split(size):
        scores = _checked_scores(score_block(block), block, train.n_items)
        row, item, _ = _items_of(train, block)
        masked = scores.index_put((row, item), scores.new_tensor(-torch.inf))  # a copy: the scores are the model's
        hits, n_wanted = _hits(masked, block, wanted, max(ks))
        parts.append(metrics_of_hits(hits, n_wanted, ks))
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}


def _items_of(graph: BipartiteGraph, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For users (n,): place in ``users`` and item of each of their m pairs, (m,) each, and their counts (n,)."""
    first, counts = graph.user_ptr[users], graph.user_degree[users]
    row = torch.repeat_interleave(counts)
    skipped = first - (counts.cumsum(0) - counts)
    return row, graph.edge_item[torch.arange(row.numel(), device=row.device) + skipped[row]], counts


def _hits(masked: Tensor, users: Tensor, wanted: BipartiteGraph, k: int) -> tuple[Tensor, Tensor]:
    """Whether the item at each rank is wanted, bool (n, k), and how many each user wants, (n,). Masked never counts."""
    n_items = masked.shape[1]
    top = top_items(masked, k)  # (n, min(k, n_items))
    row, item, n_wanted = _items_of(wanted, users)
    keys = row * n_items + item  # ascending
    queries = torch.arange(users.numel(), device=top.device)[:, None] * n_items + top
    at = torch.searchsorted(keys, queries).clamp(max=keys.numel() - 1)
    hits = (keys[at] == queries) & (masked.gather(1, top) > -torch.inf)
    return torch.nn.functional.pad(hits, (0, k - top.shape[1])), n_wanted


def metrics_of_hits(hits: Tensor, n_wanted: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """The formulas at the head of this module. hits (n, max(ks)) bool, n_wanted (n,) -> {name: float64 (n,)}."""
    hits, n_wanted = hits.double(), n_wanted.double()
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.float64)
    found = hits.cumsum(1)
    gain = 1 / torch.log2(ranks + 1)
    dcg, best_dcg = (hits * gain).cumsum(1), gain.cumsum(0)
    precision_sum = (hits * found / ranks).cumsum(1)
    result = {}
    for k in ks:
        reachable = n_wanted.clamp(max=k)
        result[f"recall@{k}"] = found[:, k - 1] / n_wanted
        result[f"ndcg@{k}"] = dcg[:, k - 1] / best_dcg[reachable.long() - 1]
        result[f"precision@{k}"] = found[:, k - 1] / k
        result[f"map@{k}"] = precision_sum[:, k - 1] / reachable
    return result


def _checked_scores(scores: Tensor, users: Tensor, n_items: int) -> Tensor:
    where = f"scores of users {int(users[0])} to {int(users[-1])}"
    if tuple(scores.shape) != (users.numel(), n_items):
        raise InputError(f"{where} have shape {tuple(scores.shape)}: expected ({users.numel()}, {n_items})")
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    if not scores.sum().isfinite() and not scores.isfinite().all():  # the sum is quick, but may overflow by itself
        row, item = (~scores.isfinite()).nonzero()[0].tolist()
        raise InputError(
            f"{where}: the score of user {int(users[row])} for item {item} is {scores[row, item].item()}: "
            "expected finite numbers"
        )
    return scores


def _checked_ks(ks: Sequence[int]) -> list[int]:
    ks = [ks] if isinstance(ks, int) else list(ks)
    if not ks:
        raise InputError("ks is empty: expected at least one rank, such as 20")
    for k in ks:
        check_at_least("evaluation", 1, k=k)
    return sorted(set(ks))


def _scorer(model: Any) -> Callable[[Tensor], Tensor]:
    if "representation" in inspect.signature(model.scores).parameters:
        return partial(model.scores, representation=model.representation())
    return model.scores
