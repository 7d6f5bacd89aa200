"""`peakline estimate`: a model, a device and a workload in; memory, time and traffic out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peakline.program import load_function, names_function

if TYPE_CHECKING:
    from peakline.hardware import Device
    from peakline.models.graph import Graph
    from peakline.result import Estimate

__all__ = ["device_of", "estimate", "estimated", "graph_of", "with_workload", "workload_of"]

_WORK, _PRECISION, _TRAINING, _DEVICE, _OUTPUT = "Workload", "Precision", "Training", "Device", "Output"
_SHARED = (_WORK, _PRECISION, _TRAINING, _DEVICE)
_TRAINING_ONLY = ("optimizer", "recompute", "accumulation", "loss", "loss_chunks", "lora", "master_weights")


def estimate(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, path of a config.json or its folder, or your MODULE:FUNCTION.")
    ],
    device: Annotated[str, typer.Option("--device", "-d", help="Catalogue name, or path of a YAML file.")],
    train: Annotated[bool, typer.Option("--train", help="A training step.", rich_help_panel=_WORK)] = False,
    prefill: Annotated[bool, typer.Option("--prefill", help="Fill the KV cache.", rich_help_panel=_WORK)] = False,
    decode: Annotated[bool, typer.Option("--decode", help="One token each.", rich_help_panel=_WORK)] = False,
    infer: Annotated[bool, typer.Option("--infer", help="One forward pass.", rich_help_panel=_WORK)] = False,
    batch: Annotated[int, typer.Option(help="Sequences or images.", rich_help_panel=_WORK)] = 1,
    seq: Annotated[int | None, typer.Option(help="Tokens per sequence.", rich_help_panel=_WORK)] = None,
    context: Annotated[int | None, typer.Option(help="Tokens in the cache (decode).", rich_help_panel=_WORK)] = None,
    image: Annotated[int | None, typer.Option(help="Height and width in pixels.", rich_help_panel=_WORK)] = None,
    attention: Annotated[
        str | None, typer.Option(help="auto, flash, efficient, math or eager.", rich_help_panel=_WORK)
    ] = None,
    kernels: Annotated[
        str | None, typer.Option(help="eager (as PyTorch runs them) or fused.", rich_help_panel=_WORK)
    ] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Images lie as N, H, W, C.", rich_help_panel=_WORK)
    ] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Replace a field of the configuration.", rich_help_panel=_WORK),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Parameters and activations.", rich_help_panel=_PRECISION)] = None,
    autocast: Annotated[
        str | None, typer.Option(help="Matrix products, mixed precision.", rich_help_panel=_PRECISION)
    ] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="The KV cache.", rich_help_panel=_PRECISION)] = None,
    weight_dtype: Annotated[str | None, typer.Option(help="Quantised weights.", rich_help_panel=_PRECISION)] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="adamw, sgd, adam8bit, … with -fused or -loop; none.", rich_help_panel=_TRAINING),
    ] = None,
    recompute: Annotated[str | None, typer.Option(help="none, full or selective.", rich_help_panel=_TRAINING)] = None,
    accumulation: Annotated[int | None, typer.Option(help="Microbatches in a step.", rich_help_panel=_TRAINING)] = None,
    loss: Annotated[
        str | None, typer.Option(help="unfused, native, fused or chunked.", rich_help_panel=_TRAINING)
    ] = None,
    loss_chunks: Annotated[
        int | None, typer.Option(help="Slices of a chunked loss.", rich_help_panel=_TRAINING)
    ] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of adapters; base frozen.", rich_help_panel=_TRAINING)] = None,
    master_weights: Annotated[
        bool, typer.Option("--master-weights", help="float32 copies.", rich_help_panel=_TRAINING)
    ] = False,
    no_dropout: Annotated[bool, typer.Option("--no-dropout", help="Dropout off.", rich_help_panel=_TRAINING)] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Derive a variant: memory.hbm.capacity=141GB.", rich_help_panel=_DEVICE
        ),
    ] = None,
    allocator: Annotated[
        str | None,
        typer.Option(help="As in PYTORCH_CUDA_ALLOC_CONF: expandable_segments:True,…", rich_help_panel=_DEVICE),
    ] = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Launches replayed from a CUDA graph.", rich_help_panel=_DEVICE)
    ] = False,
    runtime: Annotated[
        str | None,
        typer.Option(help="tflm, cmsis-nn, x-cube-ai, tinyengine or bare (microcontrollers).", rich_help_panel=_DEVICE),
    ] = None,
    pim: Annotated[
        str | None,
        typer.Option(metavar="NAME[xN]", help="Memory that computes beside it: hbm-pimx5.", rich_help_panel=_OUTPUT),
    ] = None,
    sparse_update: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME", help="A training step on it: full, or 21,36:0.125,-1;biases=23.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(metavar="PER_HOUR", help="Of the device: adds a run's.", rich_help_panel=_OUTPUT)
    ] = None,
    patches: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="First operators in patches (microcontrollers).", rich_help_panel=_DEVICE),
    ] = None,
    patch_stage: Annotated[
        int | None, typer.Option(metavar="K", help="How many operators that are.", rich_help_panel=_DEVICE)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)] = False,
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Also every operator.", rich_help_panel=_OUTPUT)
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="The peak by module; what would lower it most.", rich_help_panel=_OUTPUT)
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Memory over the step.", rich_help_panel=_OUTPUT)
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option(metavar="FILE.pickle", help="For PyTorch's memory viewer.", rich_help_panel=_OUTPUT)
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="For Perfetto or Chrome.", rich_help_panel=_OUTPUT)
    ] = None,
) -> int:
    """Will it fit, how fast can it be, and what bounds it."""
    import peakline as pk
    from peakline.files import check_target

    for path in (plot, snapshot, trace):
        if path is not None:
            check_target(path)
    if plot is not None:
        from peakline.plot import file_format

        file_format(plot)
    found = device_of(device, set_)
    if snapshot is not None and found.kind != "gpu":
        raise ValueError(f"--snapshot: PyTorch's caching allocator runs on GPUs, and {found.name} is a {found.kind}")
    result = estimated(
        model, found, train=train, prefill=prefill, decode=decode, infer=infer, batch=batch, seq=seq, context=context,
        image=image, attention=attention, kernels=kernels, channels_last=channels_last, override=override, dtype=dtype,
        autocast=autocast, kv_dtype=kv_dtype, weight_dtype=weight_dtype, optimizer=optimizer, recompute=recompute,
        accumulation=accumulation, loss=loss, loss_chunks=loss_chunks, lora=lora, master_weights=master_weights,
        no_dropout=no_dropout, allocator=allocator, cuda_graph=cuda_graph, runtime=runtime,
        patches=patches, patch_stage=patch_stage,
    )  # fmt: skip
    if plot is not None:
        from peakline.plot import save_memory

        save_memory(result, plot)
    if snapshot is not None:
        result.write_snapshot(snapshot)
    if trace is not None:
        result.write_trace(trace)
    why = pk.explain(result) if explain else None
    costs = None if price is None else result.price(price)
    split = None
    if pim is not None:
        from peakline.hybrid import hybrid
        from peakline.hybrid import lines as split_lines

        banks, banks_count = _banks(pim)
        split = hybrid(result.graph, found, banks, count=banks_count)
    learns = None
    if sparse_update is not None:
        from peakline.on_device import learning, read_update

        learns = learning(result, read_update(result, sparse_update))
    if json_:
        more: dict[str, Any] = {"explanation": why.to_dict()} if why else {}
        if costs is not None:
            more["price"] = {"per_hour": price, "run": costs[0], "per_million": costs[1]}
        if split is not None:
            more["pim"] = {"host_only": split.host_only, "in_turn": split.in_turn, "busy": list(split.busy)}
        if learns is not None:
            more["training"] = learns.to_dict()
        print(json.dumps({**result.to_dict(), **more}, indent=2) if more else result.to_json())
    else:
        from peakline.cli.report import show

        show(result, operators=breakdown, why=why)
        if costs is not None:
            each = f", {costs[1]:,.4g} for a million {result.produced[0]}" if result.produced and costs[1] else ""
            print(f"\nPrice: {costs[0]:.4g} for one run{each}, at {price:g} an hour")
        if split is not None:
            print("\n" + "\n".join(split_lines(split, banks, banks_count)))
        if learns is not None:
            print("\n" + "\n".join(learns.lines()))
    return 0 if bool(result.fits if learns is None else learns.fits) else 1


_WAYS = {"train": "training", "prefill": "prefill", "decode": "decode", "infer": "inference"}
_HOW = ("allocator", "cuda_graph", "runtime", "patches", "patch_stage")


def device_of(name: str, set_: list[str] | None) -> Device:
    """The device that `--device` and `--set` name."""
    import peakline as pk

    return pk.device(name, **_assignments("--set", set_))


def estimated(model: str, device: Device, **flags: Any) -> Estimate:
    """The estimate that the flags of `peakline estimate` ask for, by the names of its parameters."""
    import peakline as pk

    how = {name: flags.pop(name) for name in _HOW}
    if how["patches"] not in (None, "auto"):
        how["patches"] = _count("--patches", how["patches"])
    return pk.estimate(graph_of(model, device, **flags), device, **how)


def graph_of(model: str, device: Device, **flags: Any) -> Graph:
    """The workload that the flags ask for, by the names of `estimate`'s parameters: a built-in model's, or captured.

    Flags that say how it runs on the device (`_HOW`) are not among them; any other may be left out.
    """
    from peakline.models.huggingface import UnknownArchitecture

    asked = {phase: bool(flags.pop(flag, False)) for flag, phase in _WAYS.items()}
    switches = {"dropout": False if flags.pop("no_dropout", False) else None}
    switches["overrides"] = _assignments("--override", flags.pop("override", None)) or None  # type: ignore[assignment]
    for name in ("channels_last", "master_weights"):
        switches[name] = flags.pop(name, None) or None
    given = {name: value for name, value in {**flags, **switches}.items() if value is not None}
    if names_function(model):
        return _captured(model, device, asked, given)
    try:
        return workload_of(model, asked, given)
    except UnknownArchitecture as error:
        return _of_transformers(model, device, asked, given, error)


def with_workload(command: Callable[..., int], without: Collection[str] = ()) -> Callable[..., int]:
    """Give a command the options of `peakline estimate` that say what runs on what; its `flags` receives them.

    Args:
        without: parameters of `estimate` that the command has no use for.
    """
    from inspect import Parameter, signature

    own = list(signature(command, eval_str=True).parameters.values())
    shared = [
        parameter
        for parameter in signature(estimate, eval_str=True).parameters.values()
        if (options := parameter.annotation.__metadata__[0]) and getattr(options, "rich_help_panel", None) in _SHARED
    ]
    taken = {*without, *(parameter.name for parameter in own)}
    first = [p for p in own if p.default is Parameter.empty and p.kind is not Parameter.VAR_KEYWORD]
    rest = [p for p in own if p.default is not Parameter.empty]
    found = [*first, *(p for p in shared if p.name not in taken), *rest]

    def run(**given: Any) -> int:
        return command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = signature(command).replace(parameters=found)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in found}
    return run


def workload_of(model: str, asked: dict[str, bool], options: dict[str, Any]) -> Graph:
    """The workload that the flags ask for."""
    import peakline as pk

    phase = _phase(model, [name for name, flag in asked.items() if flag])
    if phase == "training":
        return pk.training_step(model, **options)
    stray = next((name for name in _TRAINING_ONLY if name in options), None)
    if stray is not None:
        raise ValueError(f"--{stray.replace('_', '-')}: only a training step has one; add --train")
    build = {"prefill": pk.prefill, "decode": pk.decode, "inference": pk.inference}[phase]
    return build(model, **options)


_OF_A_PROGRAM = ("optimizer", "dtype", "autocast")


def _of_transformers(
    model: str, device: Device, asked: dict[str, bool], options: dict[str, Any], unknown: ValueError
) -> Graph:
    """The workload of a `config.json` without a family of ours: transformers' own implementation, captured."""
    from importlib.util import find_spec

    import peakline as pk
    from peakline.configured import SIZES

    if find_spec("torch") is None or find_spec("transformers") is None:
        raise ValueError(f"{unknown} (with torch and transformers installed, others are captured from these)")
    if asked["prefill"] or asked["decode"]:
        raise ValueError(f"{unknown}; others are captured from transformers, with --train or --infer") from None
    phase = _run_of_a_program(model, asked)
    said = {name: options.pop(name) for name in SIZES if name in options and name != "dtype"}
    stray = next((name for name in options if name not in _OF_A_PROGRAM), None)
    if stray is not None:
        raise ValueError(
            f"--{stray.replace('_', '-')}: {model} is captured from transformers, which has no such choice"
        )
    usual = {"dtype": "bf16"} | ({"optimizer": "adamw"} if phase == "training" else {})
    return pk.capture(model, said, device=device, mode=phase, **usual | options)


def _run_of_a_program(model: str, asked: dict[str, bool]) -> str:
    phases = [name for name, flag in asked.items() if flag]
    phase = phases[0] if len(phases) == 1 else "training"
    if len(phases) > 1 or phase not in ("training", "inference"):
        raise ValueError(f"{' and '.join(_FLAGS[name] for name in phases)}: {model} runs with --train or --infer")
    return phase


def _captured(model: str, device: Device, asked: dict[str, bool], options: dict[str, Any]) -> Graph:
    """The workload of a user's own function (`peakline.capture`)."""
    import peakline as pk

    phase = _run_of_a_program(model, asked)
    if options.get("batch") == 1:
        del options["batch"]
    stray = next((name for name in options if name not in _OF_A_PROGRAM), None)
    if stray is not None:
        raise ValueError(f"--{stray.replace('_', '-')}: {model} decides this itself")
    return pk.capture(load_function(model), device=device, mode=phase, name=model, **options)


_FLAGS = {"training": "--train", "prefill": "--prefill", "decode": "--decode", "inference": "--infer"}


def _phase(model: str, asked: list[str]) -> str:
    """The phase asked for; without a flag, inference where that is the only way to run the model forward."""
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(_FLAGS[name] for name in asked)}: choose one")
    if asked:
        return asked[0]
    from peakline.models.catalogue import resolve

    name, family, _ = resolve(model)
    if "prefill" in family.phases or "inference" not in family.phases:
        choices = ", ".join(_FLAGS[phase] for phase in _FLAGS if phase in family.phases)
        raise ValueError(f"{name}: say what to run: {choices}")
    return "inference"


def _banks(text: str) -> tuple[str, int]:
    """`hbm-pimx5` as a name and how many; a name alone is one."""
    name, x, count = text.rpartition("x")
    return (name, int(count)) if x and name and count.isdigit() else (text, 1)


def _count(option: str, text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{option}: {text!r} is neither a number nor auto")
    return int(text)


def _assignments(option: str, given: list[str] | None) -> dict[str, Any]:
    """`field=value` pairs; a value that is JSON (a number, true, null, a list) is read as such, else it is text."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{option}: {text!r} is not written as FIELD=VALUE")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found
