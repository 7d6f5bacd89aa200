"""`peakline devices` and `peakline models`: what the catalogues hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

__all__ = ["devices", "models"]


def devices(
    name: Annotated[str | None, typer.Argument(help="Describe this one: a name, or the path of a YAML file.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: gpu, npu, pim, fpga, mcu, cpu, dram, cxl, ssd, link.")
    ] = None,
    sources: Annotated[bool, typer.Option("--sources", help="With NAME: where each figure is from.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List the devices, or draw one's hierarchy."""
    import peakline.hardware as hardware

    if name is not None:
        found = hardware.device(name)
        print(found.to_json(indent=2) if json_ else hardware.describe(found, sources=sources).rstrip())
        return
    entries = [_device_entry(hardware.device(each)) for each in hardware.devices(kind)]
    if json_:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    from peakline.hardware.units import format_bandwidth, format_bytes, format_rate

    rows = [
        (
            e["name"],
            e["kind"],
            format_bytes(e["capacity"]) if e["capacity"] else "",
            format_bandwidth(e["bandwidth"], 3) if e["bandwidth"] else "",
            f"{format_rate(e['peak'], 3, 'OP' if e['peak_dtype'].startswith('int') else 'FLOP')} {e['peak_dtype']}"
            if e["peak"]
            else "",
            e["title"],
        )
        for e in entries
    ]
    columns = ("<name", "<kind", "memory", "bandwidth", "dense peak", "<device")
    _print(f"{len(rows)} devices", columns, rows)


_SHOWN = ("bf16", "fp16", "fp8", "int8", "int16", "int32", "fp32")


def _device_entry(device: Any) -> dict[str, Any]:
    """One line of the catalogue, in bytes, bytes/s and operations/s; None for what nobody published."""
    level = device.main if device.memory else None
    dtype = next((name for name in _SHOWN if device.supports(name)), None)
    return {
        "name": device.name,
        "kind": device.kind,
        "title": device.title,
        "aliases": list(device.aliases),
        "capacity": level.capacity if level else None,
        "bandwidth": level.bandwidth if level else None,
        "peak_dtype": dtype,
        "peak": device.peak(dtype) if dtype else None,
        "dtypes": device.dtypes,
    }


def models(
    name: Annotated[str | None, typer.Argument(help="Describe this one: a name, or the path of a config.json.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """List the models, or describe one: its exact number of parameters and its configuration."""
    from peakline.models.catalogue import model_names

    if name is not None:
        entry = _model_entry(name)
        if json_:
            print(json.dumps(entry, indent=2, ensure_ascii=False))
        else:
            _print_model(entry)
        return
    entries = [_model_entry(each) for each in model_names()]
    if json_:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    rows = [(e["name"], e["family"], f"{e['parameters']:,}", ", ".join(e["phases"])) for e in entries]
    _print(f"{len(rows)} models", ("<name", "<family", "parameters", "<runs"), rows)


def _model_entry(model: str) -> dict[str, Any]:
    """A model's facts in plain values; parameters are counted over its graph, tied weights once."""
    import peakline as pk
    from peakline.models.catalogue import resolve

    name, family, config = resolve(model)
    lengths = {} if family.kind in ("vision", "diffusion") else {"seq": 1}
    phase = "inference" if "inference" in family.phases else family.phases[0]
    graph = pk.inference(model, **lengths) if phase == "inference" else getattr(pk, _BUILDERS[phase])(model, **lengths)
    fields = {key: _plain(getattr(config, key)) for key in config.__dataclass_fields__}
    published = _published(name)
    return {
        "name": name,
        "title": published.get("title", name),
        "aliases": published.get("aliases", []),
        "family": family.name,
        "kind": family.kind,
        "phases": list(family.phases),
        "parameters": graph.parameters,
        "published_parameters": published.get("parameters"),
        "source": published.get("source"),
        "configuration": fields,
    }


def _published(name: str) -> dict[str, Any]:
    """What the catalogue says beside the configuration; nothing for a model that is not in it."""
    from peakline.models.catalogue import UnknownModel, entry

    try:
        found = entry(name)
    except UnknownModel:
        return {}
    return {
        "title": found.title,
        "aliases": list(found.aliases),
        "parameters": found.parameters,
        "source": found.source,
    }


_BUILDERS = {"training": "training_step", "prefill": "prefill", "decode": "decode"}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    fields = getattr(value, "__dataclass_fields__", None)
    return {key: _plain(getattr(value, key)) for key in fields} if fields else str(value)


def _print_model(entry: dict[str, Any]) -> None:
    print(f"{entry['title']} ({entry['name']}): {entry['parameters']:,} parameters")
    print(f"family: {entry['family']} ({entry['kind']})")
    print(f"runs: {', '.join(entry['phases'])}")
    if entry["source"]:
        print(f"source: {entry['source']}")
    width = max(len(key) for key in entry["configuration"])
    for key, value in entry["configuration"].items():
        print(f"  {key:<{width}}  {value}")


def _print(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on the terminal, or as plain lines in a pipe."""
    from peakline.cli.report import console, print_table
    from peakline.text import Table

    table, out = Table(title, columns, tuple(rows)), console()
    if out.is_terminal:
        print_table(out, table)
    else:
        print("\n".join(table.lines()))
