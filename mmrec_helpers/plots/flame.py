"""A flame chart of one training step as SVG without a script: forward, backward and device in lanes of their own."""

import re
from html import escape

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from mmrec_helpers.plots import style

WIDTH, LABEL_WIDTH, ROW = 1000, 92, 18  # of the drawing, of the lane names, height of a row; in SVG units
LARGEST_BYTES = 60_000
_CHAR = 6.1  # width of a character at the labels' size
_ROWS = 6  # stages, regions, and the levels below them
_LANES = ("forward", "backward", "device")
_COLUMNS = ["lane", "row", "start_ms", "ms", "label", "stage", "phase"]


def flame_chart(timeline: pd.DataFrame, device: pd.DataFrame | None = None, title: str = "") -> str:
    """SVG of one step: a lane for the forward pass (with sampling, data and optimizer), one for the backward pass, and
    one for the device if it ran anything; in each the stages on top and below them what they call.

    timeline  host events: thread, depth, start_ms, ms, name, kind ("step", "region", "engine" or "op"), region, phase
    device    kernels and copies: start_ms, ms, name, region, phase

    Every block shows its name, stage, phase and milliseconds when pointed at. The shortest blocks are left out so that
    the drawing stays below 60 kB.

    >>> event = {"thread": 1, "depth": 1, "start_ms": 0.0, "ms": 9.0, "name": "loss", "kind": "region"}
    >>> markup = flame_chart(pd.DataFrame([event | {"region": "loss", "phase": "forward"}]), title="One step of 9 ms")
    """
    host = _host_blocks(timeline)
    blocks = host if device is None or device.empty else pd.concat([host, _device_blocks(device)], ignore_index=True)
    step_ms = max(float((events["start_ms"] + events["ms"]).max()) for events in (timeline, blocks))
    scale = (WIDTH - LABEL_WIDTH - 4) / step_ms
    kept = blocks[blocks["ms"] * scale >= 0.4]
    while True:
        markup = _drawing(kept, step_ms, scale, title)
        if len(markup.encode()) <= LARGEST_BYTES or len(kept) < 20:
            return markup
        kept = kept[kept["ms"] > kept["ms"].quantile(0.15)]


def _host_blocks(timeline: pd.DataFrame) -> pd.DataFrame:
    """The stages of each lane as merged runs, and the events inside them by how deep they lie below their stage."""
    events = timeline[timeline["kind"] != "step"].sort_values(["start_ms", "depth"], kind="stable")
    lanes = np.where(events["phase"].isin(("backward", "recompute")), "backward", "forward")
    events = events.assign(lane=lanes, stage=events["region"].map(style.stage_of))
    named = events[events["region"] != "unattributed"]
    top = named[_outermost(named)]
    parts = [_merged(top, "stage", 0), _merged(top, "region", 1), _below(named, top)]
    return pd.concat(parts, ignore_index=True)[_COLUMNS]


def _outermost(named: pd.DataFrame) -> np.ndarray:
    """Which events lie in no other one of the same thread (sorted by start, the wider first)."""
    outermost = np.zeros(len(named), dtype=bool)
    ends: dict[int, float] = {}
    for place, (thread, start, ms) in enumerate(zip(named["thread"], named["start_ms"], named["ms"])):
        if start >= ends.get(thread, -1.0) - 1e-6:
            outermost[place], ends[thread] = True, start + ms
    return outermost


def _merged(top: pd.DataFrame, by: str, row: int) -> pd.DataFrame:
    """One block for each run of outermost events of the same stage or region, and the same phase."""
    keys = top[[by, "phase", "thread"]]
    run = (keys != keys.shift()).any(axis=1).cumsum()
    first = top.groupby(run)[["lane", "start_ms", "region", "stage", "phase"]].first()
    ms = (top["start_ms"] + top["ms"]).groupby(run).max() - first["start_ms"]
    inside = first["region"].str.partition(".")[2]
    label = first["stage"] if by == "stage" else inside.where(inside != "", first["region"])
    return first.assign(row=row, ms=ms, label=label)


def _below(named: pd.DataFrame, top: pd.DataFrame) -> pd.DataFrame:
    """What the regions call, by how deep it lies below them; in the backward pass autograd's nodes come first."""
    rows: list[tuple] = []
    base, lane, previous = 0, "", None
    tops = set(top.index)
    for event in named.itertuples():
        if event.Index in tops:
            base, lane, previous = event.depth - 1, event.lane, None
            if event.kind == "region":
                continue
            base -= 1
        label = short_name(event.name)
        if event.kind == "op" and label == previous:  # a node's own operator repeats its name
            base += 1
            continue
        previous = label if event.kind == "engine" else None
        row = event.depth - base
        if 1 < row < _ROWS:
            rows.append((lane, row, event.start_ms, event.ms, label, event.stage, event.phase))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _device_blocks(device: pd.DataFrame) -> pd.DataFrame:
    label, stage = device["name"].map(short_name), device["region"].map(style.stage_of)
    return device.assign(lane="device", row=0, label=label, stage=stage).sort_values("start_ms")[_COLUMNS]


def short_name(name: str) -> str:
    """``aten::index_select`` -> index_select; an autograd node's name without what surrounds it; kernels cut short."""
    name = name.removeprefix("autograd::engine::evaluate_function: ").removeprefix("torch::autograd::")
    name = re.sub(r"^void |<.*|\(.*", "", name.removeprefix("aten::"))
    return name.rpartition("::")[2][:40] or "kernel"


def _drawing(blocks: pd.DataFrame, step_ms: float, scale: float, title: str) -> str:
    parts, top = [], 22 if title else 4
    if title:
        parts.append(f'<text x="0" y="14" font-weight="bold" font-size="13">{escape(title)}</text>')
    for lane in _LANES:
        rows = blocks[blocks["lane"] == lane]
        if rows.empty:
            continue
        height = ROW * (int(rows["row"].max()) + 1)
        parts.append(_lane(lane, rows, top, height, scale))
        top += height + 8
    parts.append(_time_axis(step_ms, scale, top))
    top += 34
    legend, lines = _legend(blocks, top)
    parts.append(legend)
    top += 18 * lines
    box = f'viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" style="min-width:{int(WIDTH * 0.72)}px"'
    look = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="10.5" fill="currentColor"'
    return f"<svg {look} {box}>{''.join(parts)}</svg>"


def _lane(lane: str, rows: pd.DataFrame, top: float, height: float, scale: float) -> str:
    parts = [
        f'<rect x="0" y="{top}" width="{WIDTH}" height="{height}" opacity=".05"/>',
        f'<text x="4" y="{top + 12.5}" font-weight="bold" font-size="12">{lane}</text>',
    ]
    colors = style.stage_colors()
    texts: dict[str, list[str]] = {}
    for stage, own in rows.groupby("stage", sort=False):
        boxes = []
        for block in own.itertuples():
            x, y, width = LABEL_WIDTH + block.start_ms * scale, top + ROW * block.row, block.ms * scale
            boxes.append(_block(block, x, y, width))
            label = _fitting(block.label, width)
            if label:
                ink = style.text_on(colors[stage])
                texts.setdefault(ink, []).append(f'<text x="{x + 3:.1f}" y="{y + 12.5:.0f}">{escape(label)}</text>')
        parts.append(f'<g fill="{colors[stage]}" stroke="var(--paper, #fff)" stroke-width=".4">{"".join(boxes)}</g>')
    parts += [f'<g fill="{ink}" pointer-events="none">{"".join(labels)}</g>' for ink, labels in texts.items()]
    return "".join(parts)


def _block(block, x: float, y: float, width: float) -> str:
    again = ' opacity=".6"' if block.phase == "recompute" else ""
    phase = {"recompute": ", recomputed", "backward": ", backward"}.get(block.phase, "")
    text = f"{block.label}: {block.ms:.3g} ms, {block.stage}{phase}"
    size = f'x="{x:.1f}" y="{y:.0f}" width="{max(width, 0.4):.1f}" height="{ROW - 1}"'
    return f"<rect {size}{again}><title>{escape(text)}</title></rect>"


def _fitting(label: str, width: float) -> str:
    """The label, or its beginning, as far as it fits into a block of that width; nothing if that is not legible."""
    room = int((width - 5) / _CHAR)
    if len(label) <= room:
        return label
    return f"{label[: room - 1]}…" if room >= 5 else ""


def _time_axis(step_ms: float, scale: float, top: float) -> str:
    parts = [f'<path d="M{LABEL_WIDTH} {top}H{WIDTH - 4}" stroke="currentColor" fill="none"/>']
    for at in MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, step_ms * 0.99):
        if at > step_ms:
            break
        x = LABEL_WIDTH + at * scale
        parts.append(f'<path d="M{x:.1f} {top}v4" stroke="currentColor"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + 15}" text-anchor="middle">{at:g}</text>')
    parts.append(f'<text x="{LABEL_WIDTH - 8}" y="{top + 15}" text-anchor="end">milliseconds</text>')
    return "".join(parts)


def _legend(blocks: pd.DataFrame, top: float) -> tuple[str, int]:
    """Colours of the stages, in drawing order; returns the markup and how many lines it takes."""
    x: float = LABEL_WIDTH
    parts, line = [], 0
    present = set(blocks["stage"])
    for stage, color in style.stage_colors().items():
        if stage not in present or stage == style.OTHER_STAGE[1]:
            continue
        width = 22 + _CHAR * len(stage)
        if x + width > WIDTH:
            x, line = LABEL_WIDTH, line + 1
        y = top + 18 * line
        parts.append(f'<rect x="{x}" y="{y - 9}" width="11" height="11" fill="{color}"/>')
        parts.append(f'<text x="{x + 15}" y="{y}">{escape(stage)}</text>')
        x += width + 8
    return "".join(parts), line + 1
