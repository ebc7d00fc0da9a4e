"""Rules for the claims about what the two models compute: calls counted, edges visited, operators executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrec_helpers.claims.ledger import Records, Verdict, machine_of, rule
from mmrec_helpers.config import counted

ROUNDING = 1e-5  # float32, on representations of unit size


@rule("params.fewer")
def params_fewer(records: Records) -> Verdict:
    record, grcn = _structure(records, "grcn")
    grcn, dragon = grcn["parameters"], _structure(records, "dragon")[1]["parameters"]
    fewer = [grcn[count] < dragon[count] for count in ("trainable", "receiving_gradient")]
    sentence = (
        f"By requires_grad {grcn['trainable']:,} against {dragon['trainable']:,}; receiving a non-zero gradient "
        f"{grcn['receiving_gradient']:,} against {dragon['receiving_gradient']:,}."
    )
    verdict = "supported" if all(fewer) else "partly" if any(fewer) else "refuted"
    numbers = {"grcn": grcn["receiving_gradient"], "dragon": dragon["receiving_gradient"]}
    return Verdict("params.fewer", verdict, sentence, numbers, machine_of(record))


@rule("routing.where")
def routing_where(records: Records) -> Verdict:
    record, content = _structure(records, "grcn")
    counted = {point["iterations"]: point["loop_calls"] for point in content["sweep"]}
    expected = {iterations: iterations * len(content["modalities"]) for iterations in counted}
    sentence = (
        f"With {_listed(counted)} iterations the loop's attention is called {_listed(counted.values())} times a "
        f"forward pass over {len(content['modalities'])} modalities."
    )
    return Verdict("routing.where", _yes(counted == expected), sentence, {}, machine_of(record))


@rule("routing.full_graph")
def routing_full_graph(records: Records) -> Verdict:
    record, content = _structure(records, "grcn")
    edges = [call["edges"] for call in _attention(content) if not _both_directions(call)]
    whole = bool(edges) and all(e == content["n_train"] for e in edges)
    sentence = (
        f"Each call of the loop visits {_listed(sorted(set(edges)))} edges, all from user to item; the training set "
        f"has {content['n_train']:,} interactions."
    )
    return Verdict("routing.full_graph", _yes(whole), sentence, {}, machine_of(record))


@rule("routing.updates")
def routing_updates(records: Records) -> Verdict:
    record = records.nearest("routing")
    change = {
        routing: max(a["output_change"] for a in record["content"]["arms"] if a["routing"] == routing)
        for routing in ("as_shipped", "live")
    }
    sentence = (
        f"0 to 3 iterations change the output by at most {change['as_shipped']:.1e} as shipped; in the control, with "
        f"the edges turned round, by {change['live']:.2f}."
    )
    if change["live"] <= ROUNDING:
        return Verdict("routing.updates", "undecided", sentence + " The control shows nothing.", change)
    verdict = "supported" if change["as_shipped"] > ROUNDING else "refuted"
    return Verdict("routing.updates", verdict, sentence, change, machine_of(record))


@rule("routing.final_conv")
def routing_final_conv(records: Records) -> Verdict:
    record, content = _structure(records, "grcn")
    final = [call for call in _attention(content) if _both_directions(call)]
    sentence = (
        f"{len(final)} attention calls a forward pass run over both directions ({final[0]['edges'] if final else 0:,} "
        f"edges each), for {len(content['modalities'])} modalities."
    )
    return Verdict(
        "routing.final_conv", _yes(len(final) == len(content["modalities"])), sentence, {}, machine_of(record)
    )


@rule("grcn.id_branch")
def grcn_id_branch(records: Records) -> Verdict:
    record, content = _structure(records, "grcn")
    calls = [call for call in content["calls"] if call["module"].startswith("id_gcn.")]
    sentence = f"The ID branch calls {len(calls)} convolutions a forward pass."
    return Verdict("grcn.id_branch", _yes(len(calls) == 2), sentence, {"calls": len(calls)}, machine_of(record))


@rule("dragon.one_conv")
def dragon_one_conv(records: Records) -> Verdict:
    record, content = _structure(records, "dragon")
    per_modality = len(content["calls"]) / len(content["modalities"])
    sentence = f"DRAGON calls {per_modality:g} convolutions per modality and forward pass, each over both directions."
    return Verdict("dragon.one_conv", _yes(per_modality == 1), sentence, {"calls": per_modality}, machine_of(record))


@rule("dragon.sage")
def dragon_sage(records: Records) -> Verdict:
    record, content = _structure(records, "dragon")
    distance = content["convolution_distance"]
    nearest = min(distance, key=distance.get)
    sentence = (
        f"Its layer's output equals the {nearest} of the neighbours (largest difference {distance[nearest]:.0e}); it "
        f"differs from the mean by {distance['mean']:.2g} and from the plain sum by {distance['sum']:.2g}."
    )
    sage = min(distance["mean"], distance["sum"]) <= ROUNDING
    return Verdict("dragon.sage", _yes(sage), sentence, distance, machine_of(record))


@rule("dragon.no_attention")
def dragon_no_attention(records: Records) -> Verdict:
    record, content = _structure(records, "dragon")
    calls = {"DRAGON": content["calls"], "GRCN": _structure(records, "grcn")[1]["calls"]}
    exponentials = {m: sum(call["operators"].get("exp", 0) for call in calls[m]) for m in calls}
    sentence = (
        f"{exponentials['DRAGON']} exponentials run in DRAGON's graph layers, against {exponentials['GRCN']} in GRCN's "
        "(one a softmax over neighbours)."
    )
    if not exponentials["GRCN"]:
        return Verdict("dragon.no_attention", "undecided", sentence + " The control shows nothing.")
    return Verdict("dragon.no_attention", _yes(not exponentials["DRAGON"]), sentence, exponentials, machine_of(record))


@rule("dragon.item_graph")
def dragon_item_graph(records: Records) -> Verdict:
    record, content = _structure(records, "dragon")
    points = {p["n_mm_layers"]: p["item_graph_runs"] for p in content["item_graph_sweep"]}
    sentence = f"With n_mm_layers = {_listed(points)} the item graph is applied {_listed(points.values())} times."
    return Verdict("dragon.item_graph", _yes(all(k == v for k, v in points.items())), sentence, {}, machine_of(record))


@rule("dragon.user_graph")
def dragon_user_graph(records: Records) -> Verdict:
    _, content = _structure(records, "dragon")
    record = records.nearest("epoch")
    regions = next(m for m in record["content"]["models"] if m["model"] == "DRAGON")["regions"]
    share = sum(r["ms"] for r in regions if r["region"] == "user_graph") / sum(r["ms"] for r in regions)
    sentence = (
        f"The user graph ({content['user_graph_edges']:,} edges) runs {counted(content['user_graph_runs'], 'time')} a "
        f"forward pass and takes {share:.0%} of DRAGON's step, its nested Python list included."
    )
    verdict = _yes(content["user_graph_runs"] >= 1)
    return Verdict("dragon.user_graph", verdict, sentence, {"share": share}, machine_of(record))


@rule("dragon.batching")
def dragon_batching(records: Records) -> Verdict:
    record, content = _structure(records, "dragon")
    calls = {"DRAGON": content["calls"], "GRCN": _structure(records, "grcn")[1]["calls"]}
    visits = {m: sum(call["edges"] for call in calls[m]) for m in calls}
    sentence = (
        f"Both draw the same batches; a forward pass visits {visits['GRCN']:,} user-item edges in GRCN and "
        f"{visits['DRAGON']:,} in DRAGON."
    )
    fewer = visits["DRAGON"] < visits["GRCN"]
    verdict = "partly" if fewer else "refuted"  # fewer edges, yet no batching: every step runs the full graph in both
    return Verdict("dragon.batching", verdict, sentence, visits, machine_of(record))


@rule("dragon.sparser")
def dragon_sparser(records: Records) -> Verdict:
    record, content = _structure(records, "dragon")
    edges = {k: content[k] for k in ("item_graph_edges", "user_graph_edges")}
    both = 2 * content["n_train"]
    bipartite = sum(call["edges"] for call in content["calls"])
    sparser = [count < both for count in edges.values()]
    sentence = (
        f"Item graph {edges['item_graph_edges']:,} and user graph {edges['user_graph_edges']:,} edges, the bipartite "
        f"graph {both:,} in both directions; DRAGON visits {bipartite:,} of those as well in each forward pass."
    )
    verdict = "refuted" if not any(sparser) else "partly" if bipartite or not all(sparser) else "supported"
    return Verdict("dragon.sparser", verdict, sentence, edges, machine_of(record))


@rule("fix.heads")
def fix_heads(records: Records) -> Verdict:
    record, content = _structure(records, "grcn")
    heads = content["attention_heads"]
    sentence = f"The attention layer has {counted(heads, 'head')}"
    sentence += ": there are no fewer to be had." if heads == 1 else "."
    return Verdict(
        "fix.heads", "not applicable" if heads == 1 else "undecided", sentence, {"heads": heads}, machine_of(record)
    )


@rule("memory.attention")
def memory_attention(records: Records) -> Verdict:
    record = records.nearest("roofline")
    content = record["content"]
    stages = [row for row in content["stages"] if row["stage"] == "final_attention"]
    intensity = sum(row["gflop"] for row in stages) / sum(row["gbytes"] for row in stages)
    ridge = content["matmul_gflop_s"] / content["copy_gb_s"]
    moved = content["bytes_per_edge"]
    sentence = (
        f"Attention does {intensity:.2f} operations a byte moved, and this device turns from moving to computing at "
        f"{ridge:.1f}; it moves {moved['attention']:,.0f} bytes an edge, a convolution {moved['convolution']:,.0f}."
    )
    parts = [moved["attention"] < moved["convolution"], intensity > ridge]
    verdict = "supported" if all(parts) else "partly" if any(parts) else "refuted"
    return Verdict("memory.attention", verdict, sentence, {"flop_per_byte": intensity}, machine_of(record))


def _structure(records: Records, model: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    record = records.nearest(f"structure.{model}")
    return record, record["content"]


def _attention(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [call for call in content["calls"] if not call["module"].startswith("id_gcn.")]


def _both_directions(call: Mapping[str, Any]) -> bool:
    return call["from_users"] > 0 and call["from_items"] > 0


def _yes(holds: bool) -> str:
    return "supported" if holds else "refuted"


def _listed(values: Any) -> str:
    return ", ".join(f"{value:,}" for value in values)
