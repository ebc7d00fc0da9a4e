"""Which region and phase every moment of a traced training step belongs to.

Regions are the names given with ``torch.profiler.record_function``; the innermost one wins. Phases:

forward    inside a region, outside the autograd engine
backward   autograd's own work: an evaluated node belongs to the region of the forward operator that made it, found
           through the sequence number that both carry. A node without one (gradient accumulation) runs directly after
           the node that fed it, and takes that node's region
recompute  forward operators run again inside the engine (checkpointing): a record_function region there, or an operator
           that carries a sequence number of its own, which only operators that build a graph do. A backward that
           builds a graph (create_graph=True) would look the same
other      the regions sampling, data and optimizer, and what lies outside every region
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mmrec_helpers.profiling.traces import TraceEvents

UNATTRIBUTED = "unattributed"
_CONTAINERS = ("forward", "backward")  # they hold the named stages; time directly in them is unattributed
_PHASE_OF_REGION = {"backward": "backward", "optimizer": "other", "sampling": "other", "data": "other"}
_RENAMED = (("Optimizer.", "optimizer"), ("enumerate(DataLoader)", "data"))


@dataclass(frozen=True)
class Attribution:
    """A trace with a region and a phase for every host event, and its time cut into pieces.

    events    the trace
    labels    one row per host event: region, phase
    segments  host time cut where the innermost event changes: start_us, end_us, event (row of ``events.host``), region,
              phase, step (0, 1, ...). Within a step the pieces do not overlap and add up to the step
    device    one row per device event: those of ``events.device`` with region, phase, step (-1 outside the steps)
    recomputing  rows of ``events.host``: backward nodes in which operators run again without a region of their own
    """

    events: TraceEvents
    labels: pd.DataFrame
    segments: pd.DataFrame
    device: pd.DataFrame
    recomputing: tuple[int, ...]


def attribute(events: TraceEvents) -> Attribution:
    """Give every host event, every piece of host time and every device event its region and phase.

    attribute(read_trace("GRCN.trace.json.gz")).segments.groupby(["region", "phase"])
    """
    labels, roots = _labels(events)
    spans = events.host.loc[roots].groupby("parent").agg(start_us=("start_us", "min"), end_us=("end_us", "max"))
    segments = _segments(events.host)
    for column in ("region", "phase"):
        segments[column] = labels[column].to_numpy()[segments["event"]]
    segments = _in_steps(_joined_threads(events, labels, segments), events.windows)
    segments = _gaps_between_recomputed(segments, spans).reset_index(drop=True)
    return Attribution(events, labels, segments, _device(events, labels), tuple(spans.index))


def _region_name(annotation: str) -> str:
    """The region that a record_function name stands for: torch's own names for optimizer and loader are folded."""
    return next((name for prefix, name in _RENAMED if annotation.startswith(prefix)), annotation)


def _labels(events: TraceEvents) -> tuple[pd.DataFrame, list[int]]:
    """Region and phase of each host event, and the rows of the operators at which recomputation begins."""
    host = events.host
    maker = _node_makers(host)
    main = events.main_thread
    size = len(host)
    region, phase = np.full(size, UNATTRIBUTED, dtype=object), np.full(size, "other", dtype=object)
    in_engine = np.zeros(size, dtype=bool)
    previous_node: dict[tuple[int, int], str] = {}
    roots = []
    columns = (host[c].to_numpy() for c in ("name", "kind", "thread", "sequence", "backward", "parent"))
    for row, (name, kind, thread, sequence, backward, parent) in enumerate(zip(*columns)):
        if parent >= 0:
            region[row], phase[row], in_engine[row] = region[parent], phase[parent], in_engine[parent]
        if kind == "region":
            own = _region_name(name)
            outside = region[row] == UNATTRIBUTED and phase[row] == "other"
            region[row] = UNATTRIBUTED if own in _CONTAINERS else own
            inherited = "forward" if outside else phase[row]
            phase[row] = "recompute" if in_engine[row] else _PHASE_OF_REGION.get(own, inherited)
        elif kind == "engine":
            owner = _owner(maker, sequence, thread if in_engine[row] else main)
            place = (thread, parent)
            region[row] = region[owner] if owner is not None else previous_node.get(place, region[row])
            previous_node[place] = region[row]
            phase[row], in_engine[row] = "backward", True
        elif kind == "op" and in_engine[row] and sequence >= 0 and not backward:
            if phase[row] == "backward":
                roots.append(row)
            phase[row] = "recompute"
    return pd.DataFrame({"region": region, "phase": phase}), roots


def _node_makers(host: pd.DataFrame) -> dict[tuple[int, int], int]:
    """(thread, sequence number) to the last forward operator that carries it: the one that made the autograd node."""
    forward = host[(host["kind"] == "op") & (host["sequence"] >= 0) & ~host["backward"]]
    return dict(zip(zip(forward["thread"], forward["sequence"]), forward.index))


def _owner(maker: dict[tuple[int, int], int], sequence: int, thread: int) -> int | None:
    """A node evaluated inside another one was made there, by recomputation; every other node in the main thread."""
    return maker.get((thread, sequence)) if sequence >= 0 else None


def _segments(host: pd.DataFrame) -> pd.DataFrame:
    """Cut each thread's time where the innermost event changes."""
    starts, ends = host["start_us"].to_numpy(), host["end_us"].to_numpy()
    pieces: list[tuple[float, float, int]] = []
    for _, rows in host.groupby("thread", sort=False).groups.items():
        stack: list[int] = []
        cursor = 0.0
        for row in [*rows, -1]:
            start = starts[row] if row >= 0 else np.inf
            while stack and ends[stack[-1]] <= start:
                top = stack.pop()
                pieces.append((cursor, ends[top], top))
                cursor = max(cursor, ends[top])
            if stack:
                pieces.append((cursor, start, stack[-1]))
            cursor = max(cursor, start)
            stack.append(row)
    table = pd.DataFrame(pieces, columns=["start_us", "end_us", "event"])
    return table[table["end_us"] > table["start_us"]].reset_index(drop=True)


def _joined_threads(events: TraceEvents, labels: pd.DataFrame, segments: pd.DataFrame) -> pd.DataFrame:
    """The main thread's pieces, with the time in which it waits for autograd's own thread replaced by that thread's.

    On CUDA the engine evaluates nodes in a thread of its own while the main thread waits in ``backward``. Other
    threads (a data loader's, say) run beside the step and are left out.
    """
    host = events.host
    main = events.main_thread
    threads = host["thread"].to_numpy()[segments["event"]]
    roots = host[(host["kind"] == "engine") & (host["parent"] < 0) & (host["thread"] != main)]
    own = segments[threads == main]
    if roots.empty:
        return own
    helpers = segments[np.isin(threads, roots["thread"].unique()) & (segments["phase"] != "other")]
    busy = union(roots[["start_us", "end_us"]].to_numpy())
    kinds = host["kind"].to_numpy()[own["event"]]
    waits = np.isin(kinds, ("region", "step")) & (own["phase"] == "backward").to_numpy()
    return pd.concat([own[~waits], _minus(own[waits], busy), helpers], ignore_index=True)


def union(intervals: np.ndarray) -> np.ndarray:
    """(n, 2) intervals to the disjoint, sorted ones that cover the same.

    >>> union(np.array([[4.0, 6.0], [0.0, 2.0], [1.0, 3.0]])).tolist()
    [[0.0, 3.0], [4.0, 6.0]]
    """
    merged: list[list[float]] = []
    for start, end in intervals[np.argsort(intervals[:, 0])]:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.asarray(merged).reshape(-1, 2)


def _minus(segments: pd.DataFrame, busy: np.ndarray) -> pd.DataFrame:
    rows = []
    for segment in segments.to_dict("records"):
        cursor = segment["start_us"]
        for start, end in busy[(busy[:, 1] > segment["start_us"]) & (busy[:, 0] < segment["end_us"])]:
            rows.append(segment | {"start_us": cursor, "end_us": max(cursor, start)})
            cursor = max(cursor, end)
        rows.append(segment | {"start_us": cursor, "end_us": max(cursor, segment["end_us"])})
    table = pd.DataFrame(rows, columns=segments.columns)
    return table[table["end_us"] > table["start_us"]]


def _in_steps(segments: pd.DataFrame, windows: list[tuple[float, float]]) -> pd.DataFrame:
    """Keep what lies inside the steps, cut at their borders, and number it by step."""
    parts = []
    for step, (start, end) in enumerate(windows):
        inside = segments[(segments["end_us"] > start) & (segments["start_us"] < end)]
        cut = {"start_us": inside["start_us"].clip(lower=start), "end_us": inside["end_us"].clip(upper=end)}
        parts.append(inside.assign(**cut, step=step))
    return pd.concat(parts, ignore_index=True).sort_values("start_us", kind="stable", ignore_index=True)


def _gaps_between_recomputed(segments: pd.DataFrame, spans: pd.DataFrame) -> pd.DataFrame:
    """Python between two recomputed operators is recomputation too: it shows as the backward node's own time."""
    first = segments["event"].map(spans["start_us"])
    last = segments["event"].map(spans["end_us"])
    between = (segments["start_us"] >= first) & (segments["end_us"] <= last)
    return segments.assign(phase=segments["phase"].mask(between, "recompute"))


def _device(events: TraceEvents, labels: pd.DataFrame) -> pd.DataFrame:
    """Device events with the labels of the host event that launched each, in the step in which it was launched."""
    device = events.device
    launched = device["launched_by"].to_numpy()
    known = launched >= 0
    table = device.assign(region=UNATTRIBUTED, phase="other", step=-1)
    at = device["start_us"].to_numpy(copy=True)
    for column in ("region", "phase"):
        table[column] = np.where(known, labels[column].to_numpy()[launched], table[column])
    at[known] = events.host["start_us"].to_numpy()[launched[known]]
    for step, (start, end) in enumerate(events.windows):
        table.loc[(at >= start) & (at <= end), "step"] = step
    return table
