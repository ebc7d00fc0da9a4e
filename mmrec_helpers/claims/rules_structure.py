"""Rules for the claims about what the two models compute: calls counted, edges visited, operators executed."""

from collections.abc import Iterable, Mapping
from typing import Any

from mmrec_helpers.claims.ledger import Measured, Row, find, rule, verdict_of
from mmrec_helpers.claims.rules_time import stage_share
from mmrec_helpers.config import counted
from mmrec_helpers.experiments.structure import parameter_counts

GRCN, DRAGON = "structure-grcn", "structure-dragon"
ROUNDING = 1e-5  # float32, on representations of unit size


@rule("params.fewer")
def params_fewer(here: Measured):
    grcn, dragon = (parameter_counts(here.contents[kind]) for kind in (GRCN, DRAGON))
    fewer = [grcn[count] < dragon[count] for count in ("trainable", "receiving_gradient")]
    sentence = (
        f"By requires_grad {grcn['trainable']:,} against {dragon['trainable']:,}; receiving a non-zero gradient "
        f"{grcn['receiving_gradient']:,} against {dragon['receiving_gradient']:,}."
    )
    return verdict_of(*fewer), sentence


@rule("routing.where")
def routing_where(here: Measured):
    content = here.content
    calls = {point["iterations"]: point["loop_calls"] for point in content["sweep"]}
    sentence = (
        f"With {_listed(calls)} iterations the loop's attention is called {_listed(calls.values())} times in a forward "
        f"pass (modalities: {', '.join(content['modalities'])})."
    )
    return verdict_of(all(n == iterations * len(content["modalities"]) for iterations, n in calls.items())), sentence


@rule("routing.full_graph")
def routing_full_graph(here: Measured):
    content = here.content
    edges = {call["edges"] for call in _attention(content) if not _both_directions(call)}
    sentence = (
        f"Each call of the loop visits {_listed(sorted(edges))} edges, all from user to item; the training set has "
        f"{content['n_train']:,} interactions."
    )
    return verdict_of(edges == {content["n_train"]}), sentence


@rule("routing.updates")
def routing_updates(here: Measured):
    sentence = here.fill(
        "0 to 3 iterations change the output by at most {routing.change} as shipped; in the control, with reversed "
        "edges (routing as in the paper), by {routing.paper-change}."
    )
    if here.value("routing.paper-change") <= ROUNDING:
        return "undecided", f"{sentence} The control shows nothing."
    return verdict_of(here.value("routing.change") > ROUNDING), sentence


@rule("routing.final_conv")
def routing_final_conv(here: Measured):
    content = here.content
    edges = [call["edges"] for call in _attention(content) if _both_directions(call)]
    sentence = (
        f"In a forward pass {counted(len(edges), 'attention call')} over both directions ({max(edges, default=0):,} "
        f"edges each); modalities: {', '.join(content['modalities'])}."
    )
    return verdict_of(len(edges) == len(content["modalities"])), sentence


@rule("grcn.id_branch")
def grcn_id_branch(here: Measured):
    calls = len(here.content["calls"]) - len(_attention(here.content))
    return verdict_of(calls == 2), f"The ID branch calls {counted(calls, 'convolution')} in a forward pass."


@rule("dragon.one_conv")
def dragon_one_conv(here: Measured):
    each = len(here.content["calls"]) / len(here.content["modalities"])
    calls = f"{each:g} {'convolution' if each == 1 else 'convolutions'} per modality"
    sentence = f"DRAGON calls {calls} in a forward pass, each over both directions."
    return verdict_of(each == 1), sentence


@rule("dragon.sage")
def dragon_sage(here: Measured):
    distance = here.content["convolution_distance"]
    nearest = min(distance, key=distance.get)
    sentence = (
        f"Its layer's output equals the {nearest} of the neighbours (largest difference {distance[nearest]:.0e}); it "
        f"differs from the mean by {distance['mean']:.2g} and from the plain sum by {distance['sum']:.2g}."
    )
    return verdict_of(min(distance["mean"], distance["sum"]) <= ROUNDING), sentence


@rule("dragon.no_attention")
def dragon_no_attention(here: Measured):
    dragon, grcn = (
        sum(call["operators"].get("exp", 0) for call in here.contents[kind]["calls"]) for kind in (DRAGON, GRCN)
    )
    run = f"{counted(dragon, 'exponential')} in DRAGON's graph layers, {grcn or 'none'} in GRCN's"
    sentence = f"A forward pass computes {run}: one per softmax over neighbours."
    if not grcn:
        return "undecided", f"{sentence} The control shows nothing."
    return verdict_of(not dragon), sentence


@rule("dragon.item_graph")
def dragon_item_graph(here: Measured):
    runs = {point["n_mm_layers"]: point["item_graph_runs"] for point in here.content["item_graph_sweep"]}
    sentence = f"With n_mm_layers = {_listed(runs)} the item graph is applied {_listed(runs.values())} times."
    return verdict_of(all(layers == n for layers, n in runs.items())), sentence


@rule("dragon.user_graph")
def dragon_user_graph(here: Measured):
    content, share = here.contents[DRAGON], stage_share(here.contents["epoch"], "DRAGON", "user_graph")
    sentence = (
        f"The user graph ({content['user_graph_edges']:,} edges) runs {counted(content['user_graph_runs'], 'time')} in "
        f"a forward pass and is {share:.0%} of DRAGON's profiled step, its nested Python list included."
    )
    return verdict_of(content["user_graph_runs"] >= 1), sentence


@rule("dragon.batching")
def dragon_batching(here: Measured):
    dragon, grcn = (_edges(here.contents[kind]) for kind in (DRAGON, GRCN))
    sentence = (
        f"Both draw the same batches; a forward pass visits {grcn:,} user-item edges in GRCN and {dragon:,} in DRAGON."
    )
    # Fewer edges, yet no batching: every step runs the full graph in both.
    return "partly" if dragon < grcn else "refuted", sentence


@rule("dragon.sparser")
def dragon_sparser(here: Measured):
    content = here.content
    item, user, bipartite = content["item_graph_edges"], content["user_graph_edges"], 2 * content["n_train"]
    visited, sparser = _edges(content), [item < bipartite, user < bipartite]
    sentence = (
        f"The item graph has {item:,} and the user graph {user:,} edges, the bipartite graph {bipartite:,} in both "
        f"directions; DRAGON visits {visited:,} of those as well in each forward pass."
    )
    return verdict_of(*sparser, not visited) if any(sparser) else "refuted", sentence


@rule("fix.heads")
def fix_heads(here: Measured):
    heads = here.content["attention_heads"]
    if heads == 1:
        return "not applicable", "The attention layer has one head: it cannot have fewer."
    return "undecided", f"The attention layer has {heads} heads. Missing: a measurement with fewer."


@rule("memory.attention")
def memory_attention(here: Measured):
    content = here.content
    moved, ridge = content["bytes_per_edge"], content["matmul_gflop_s"] / content["copy_gb_s"]
    intensity = find(content["stages"], model="GRCN", stage="final_attention")["flop_per_byte"]
    sentence = (
        f"Attention does {intensity:.2f} operations per byte moved, and on this device computing limits from "
        f"{ridge:.1f} on; it moves {moved['attention']:,.0f} bytes per edge, a convolution {moved['convolution']:,.0f}."
    )
    return verdict_of(moved["attention"] < moved["convolution"], intensity > ridge), sentence


def _attention(content: Mapping[str, Any]) -> list[Row]:
    return [call for call in content["calls"] if not call["module"].startswith("id_gcn.")]


def _both_directions(call: Row) -> bool:
    return call["from_users"] > 0 and call["from_items"] > 0


def _edges(content: Mapping[str, Any]) -> int:
    return sum(call["edges"] for call in content["calls"])


def _listed(values: Iterable[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)
