"""What a record must hold before anything reads it: the fields that pages, claims and studies rely on, by kind.

A shape is a type, a dictionary of fields that must be there (others may be), a list with the shape of every element,
None, or a tuple of shapes of which one must fit. A whole number is good for a float; True is no number.
"""

from collections.abc import Iterable
from typing import Any

_DATA = {"name": str, "fingerprint": str, "n_users": int, "n_items": int, "n_train": int}
_PROVENANCE = {
    "time": str,
    "settings": (dict, None),
    "data": (_DATA, None),
    "device": {"type": str, "name": str},
    "machine": {"threads": int},
}
_RUN_PAGE = {"name": str, "title": str, "state": str, "seconds": (float, None), "file": (str, None)}
_METRICS = {f"{metric}{end}": float for metric in ("recall@20", "ndcg@20") for end in ("", "_low", "_high")}
_SETTING = dict.fromkeys(("learning_rate", "reg_weight"), (float, None))  # None where nothing is trained
_VARIANT = {"variant": str, "label": str, "seeds": int, "trained": bool, "setting": _SETTING} | _METRICS
_VARIANT |= dict.fromkeys(("epochs", "recall@20_seed_sd"), (float, None))
_PAIR = {"first": str, "second": str, "seeds": int, "verdict": str} | _METRICS
_ACCURACY = {"margin": float, "users": int, "full": bool, "full_seeds": int, "variants": [_VARIANT], "pairs": [_PAIR]}
_STUDY_RUN = {
    "identity": {"variant": str, "model": str, "options": dict, "seed": int} | _SETTING,
    "name": str,
    "setting": (int, None),
    "search": bool,
    "epochs": [{"epoch": int, "epoch_s": float}],
    "best_epoch": (int, None),
    "valid": ({"recall@20": float}, None),
    "test": ({"recall@20": float}, None),
    "users": ({"count": int, "digest": str, "recall@20": str, "ndcg@20": str}, None),
    "failed": (str, None),
}
_SWEEP_RUN = _STUDY_RUN | {
    "identity": {"variant": str, "seed": int, "chosen": dict, "checkout": str, "options": dict, "accelerated": bool},
    "epochs": [{"epoch": int, "epoch_s": (float, None)}],
    "steps": int,
    "seconds": float,
    "peak_bytes": int,
    "gain": (dict, None),
}
_GRID = {"model": str, "chosen": dict, "valid_recall@20": (float, None), "epochs": int, "seconds": float}
_GRID |= {"peak_bytes": int, "note": str, "failed": (str, None)}
_COST: dict[str, Any] = {"model": str, "runs": int, "failed": int, "steps": int, "seconds": float, "peak_bytes": int}
_COST |= dict.fromkeys(
    (f"{name}{end}" for name in ("factor", "as_it_is_s") for end in ("", "_q1", "_q3")), (float, None)
)
_SWEPT = {"variants": [_VARIANT | {"setting": dict}], "grid": [_GRID], "cost": [_COST]}
_CONTENTS = {
    "accuracy": _ACCURACY,
    "answer": {"question": str, "answer": str, "page": str},
    "headline": [{"quantity": str, "label": str, "value": float, "unit": str, "digits": int, "note": str, "page": str}],
    "quantities": [{"quantity": str, "value": float}],
    "run": {"title": str, "state": str, "parameters": dict, "pages": [_RUN_PAGE]},
    "study-run": _STUDY_RUN,
    "sweep": _ACCURACY | _SWEPT,
    "sweep-run": _SWEEP_RUN,
}
MADE_ON_DATA = {  # what is measured on a data set has to say on which
    *("accuracy", "backends", "cuda-graphs", "data", "dead-work", "epoch", "examine", "fixes", "gpu-tests"),
    *("memory-settings", "prediction", "roofline", "routing", "same-curve", "scaling", "steps"),
    *("structure-dragon", "structure-grcn", "study-run", "sweep", "sweep-run"),
}


def misfit(record: Any, schema: int) -> str | None:
    """What is wrong with a record, as in ``provenance.data.n_users is 'many': expected a whole number``; else None."""
    found = _misfit(record, {"schema": int, "kind": str, "provenance": dict, "content": object}, "")
    if found:
        return found
    if not 1 <= record["schema"] <= schema:
        return f"schema is {record['schema']}: expected 1 to {schema}; a greater one needs a newer mmrec_helpers"
    kind = record["kind"]
    made_on = {"data": _DATA} if kind in MADE_ON_DATA else {}
    return _misfit(record["provenance"], _PROVENANCE | made_on, "provenance") or _misfit(
        record["content"], _CONTENTS.get(kind, object), "content"
    )


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    if isinstance(shape, tuple):
        found = [_misfit(value, one, where) for one in shape]
        return None if None in found else found[0]
    if not _is_a(value, shape):
        return f"{where or 'it'} is {_shown(value)}: expected {_named(shape)}"
    inner: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(shape, dict):
        inner = ((value.get(name), one, f"{where}.{name}".lstrip(".")) for name, one in shape.items())
    elif isinstance(shape, list):
        inner = ((one, shape[0], f"{where}[{at}]") for at, one in enumerate(value))
    return next(filter(None, (_misfit(*each) for each in inner)), None)


def _is_a(value: Any, shape: Any) -> bool:
    if shape in (None, object):
        return (value is None) == (shape is None)
    if shape in (int, float) and isinstance(value, bool):
        return False
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    return isinstance(value, (int, float) if kind is float else kind)


def _named(shape: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", None: "null"}
    if isinstance(shape, list) or shape is object:
        return "a list" if isinstance(shape, list) else "something"
    return names.get(shape, "an object") if not isinstance(shape, dict) else f"an object with {', '.join(shape)}"


def _shown(value: Any) -> str:
    return f"{str(value)[:60]!r}" if isinstance(value, str) else f"{value!r}"[:60]
