"""`peakline place`: serve a model from less memory than it has."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["place"]

_WORK, _PLACES, _OUTPUT = "Workload", "Places", "Output"


def place(
    model: Annotated[str, typer.Argument(help="Catalogue name, or path of a config.json or its folder.")],
    device: Annotated[str, typer.Option("--device", "-d", help="Catalogue name, or path of a YAML file.")],
    prompt: Annotated[int, typer.Option(help="Tokens of every prompt.", rich_help_panel=_WORK)] = 512,
    generate: Annotated[int, typer.Option(help="Tokens generated from it.", rich_help_panel=_WORK)] = 32,
    objective: Annotated[str, typer.Option(help="throughput or latency.", rich_help_panel=_WORK)] = "throughput",
    dtype: Annotated[str, typer.Option(help="Parameters and activations.", rich_help_panel=_WORK)] = "bf16",
    weight_dtype: Annotated[str | None, typer.Option(help="Quantised weights: int4.", rich_help_panel=_WORK)] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="The cache: fp8.", rich_help_panel=_WORK)] = None,
    cache_unit: Annotated[
        str, typer.Option(help="What comes in at a time: layer, head, tokens.", rich_help_panel=_PLACES)
    ] = "layer",
    resident_heads: Annotated[
        int | None, typer.Option(help="Key-value heads per layer that stay.", rich_help_panel=_PLACES)
    ] = None,
    prompt_chunk: Annotated[
        int | None, typer.Option(help="Tokens of the prompts at a time.", rich_help_panel=_WORK)
    ] = None,
    expert_prefetch: Annotated[
        float, typer.Option(help="Share of experts guessed a layer ahead.", rich_help_panel=_PLACES)
    ] = 0.0,
    active_share: Annotated[
        float | None, typer.Option(help="Share of neurons that a token activates.", rich_help_panel=_PLACES)
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens whose neurons stay.", rich_help_panel=_PLACES)] = 5,
    reuse_share: Annotated[
        float | None, typer.Option(help="Share of them active for the token before.", rich_help_panel=_PLACES)
    ] = None,
    bundle: Annotated[bool, typer.Option(help="A neuron's rows lie together.", rich_help_panel=_PLACES)] = True,
    stream_unit: Annotated[
        str, typer.Option(help="What of the weights comes in at a time: layer, operator.", rich_help_panel=_PLACES)
    ] = "layer",
    budget: Annotated[str | None, typer.Option(help="Bytes of the device: 12GiB.", rich_help_panel=_PLACES)] = None,
    host: Annotated[str | None, typer.Option(help="Host memory: 64GiB.", rich_help_panel=_PLACES)] = None,
    ssd: Annotated[str | None, typer.Option(help="A drive behind it: 1TB.", rich_help_panel=_PLACES)] = None,
    host_device: Annotated[
        str, typer.Option(help="The host's memory, by name or file.", rich_help_panel=_PLACES)
    ] = "host-ddr5-8ch",
    ssd_device: Annotated[
        str, typer.Option(help="The drive, by name or file.", rich_help_panel=_PLACES)
    ] = "samsung-pm1743-7.68tb",
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)] = False,
) -> int:
    """Where weights and cache lie when a model is served from less memory than it has."""
    import peakline as pk
    from peakline.planning.serving import NoPlace

    try:
        found = pk.place(
            model, device, prompt=prompt, generate=generate, objective=objective, dtype=dtype,
            weight_dtype=weight_dtype, kv_dtype=kv_dtype, budget=budget, host=host,
            ssd=ssd, host_device=host_device, ssd_device=ssd_device, cache_unit=cache_unit,
            resident_heads=resident_heads, prompt_chunk=prompt_chunk,
            expert_prefetch=expert_prefetch, active_share=active_share, window=window, reuse_share=reuse_share,
            bundle=bundle, stream_unit=stream_unit,
        )  # fmt: skip
    except NoPlace as error:
        if json_:
            print(json.dumps({"schema": "peakline.place/1", "fits": False, "floor_bytes": error.floor_bytes}))
        else:
            print(error)
        return 1
    if json_:
        print(json.dumps(found.to_dict()))
    else:
        for line in found.explain().splitlines():
            print(line)
    return 0
