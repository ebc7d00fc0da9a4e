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
    """A trace with region, phase and step (0, 1, ...; -1 outside the steps) for every event, and its time in pieces.

    events    the trace
    host      ``events.host`` with region, phase, step
    device    ``events.device`` with those of the host event that launched each
    segments  host time cut where the innermost event changes: start_us, end_us, ms, event (row of ``host``), region,
              phase, step. The pieces do not overlap and add up to the steps
    recomputing  rows of ``host``: backward nodes in which operators run again without a region of their own
    """

    events: TraceEvents
    host: pd.DataFrame
    device: pd.DataFrame
    segments: pd.DataFrame
    recomputing: tuple[int, ...]


def attribute(events: TraceEvents) -> Attribution:
    """Give every host event, every piece of host time and every device event its region and phase.

    attribute(read_trace("GRCN.trace.json.gz")).segments.groupby(["region", "phase"])
    """
    labels, roots = _labels(events)
    host = events.host.join(labels).assign(step=_step_at(events.host["start_us"], events.windows))
    spans = host.loc[roots].groupby("parent").agg(first_us=("start_us", "min"), last_us=("end_us", "max"))
    segments = _in_steps(_segments(host, events.main_thread), events.windows).join(labels, on="event")
    segments["phase"] = segments["phase"].mask(_between_recomputed(segments, spans), "recompute")
    segments["ms"] = (segments["end_us"] - segments["start_us"]) / 1e3
    return Attribution(events, host, _device(events, labels), segments, tuple(spans.index))


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
            # A node evaluated inside another one was made there, by recomputation; every other one in the main thread.
            owner = maker.get((thread if in_engine[row] else main, sequence))  # there is none without a number, -1
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


def _segments(host: pd.DataFrame, main: int) -> pd.DataFrame:
    """Cut the time of the main thread where the innermost event changes: the one that began last and has not ended.

    On CUDA the engine evaluates nodes in a thread of its own while the main thread waits in ``backward``: its events
    are taken as if they were called there. Other threads (a data loader's, say) run beside the step and are left out.
    """
    taken = host[(host["thread"] == main) | host["phase"].isin(("backward", "recompute"))]
    pieces: list[tuple[float, float, int]] = []
    stack: list[tuple[float, int]] = []  # ends and rows of the events that have begun
    cursor = 0.0
    for row, start, end in [*zip(taken.index, taken["start_us"], taken["end_us"]), (-1, np.inf, np.inf)]:
        while stack and stack[-1][0] <= start:
            ended, top = stack.pop()
            pieces.append((cursor, ended, top))
            cursor = max(cursor, ended)
        if stack:
            pieces.append((cursor, start, stack[-1][1]))
        cursor = max(cursor, start)
        stack.append((end, row))
    table = pd.DataFrame(pieces, columns=["start_us", "end_us", "event"])
    return table[table["end_us"] > table["start_us"]]


def _in_steps(segments: pd.DataFrame, windows: list[tuple[float, float]]) -> pd.DataFrame:
    """Keep what lies inside the steps, cut at their borders, and number it by step."""
    cut = [
        segments.assign(**segments[["start_us", "end_us"]].clip(*window), step=k) for k, window in enumerate(windows)
    ]
    table = pd.concat(cut, ignore_index=True)
    return table[table["end_us"] > table["start_us"]].reset_index(drop=True)


def _between_recomputed(segments: pd.DataFrame, spans: pd.DataFrame) -> pd.Series:
    """Python between two recomputed operators is recomputation too: it shows as the backward node's own time."""
    span = spans.reindex(segments["event"]).set_index(segments.index)
    return (segments["start_us"] >= span["first_us"]) & (segments["end_us"] <= span["last_us"])


def _step_at(at_us: pd.Series, windows: list[tuple[float, float]]) -> np.ndarray:
    starts, ends = np.transpose(windows)
    step = np.searchsorted(starts, at_us, side="right") - 1
    return np.where((step >= 0) & (at_us <= ends[step]), step, -1)


def _device(events: TraceEvents, labels: pd.DataFrame) -> pd.DataFrame:
    """Device events with the labels of the host event that launched each, in the step in which it was launched."""
    launch = events.host[["start_us"]].join(labels).reindex(events.device["launched_by"]).set_axis(events.device.index)
    launch = launch.fillna({"start_us": events.device["start_us"], "region": UNATTRIBUTED, "phase": "other"})
    step = _step_at(launch["start_us"], events.windows)
    return events.device.assign(region=launch["region"], phase=launch["phase"], step=step)
