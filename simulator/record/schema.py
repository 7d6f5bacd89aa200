"""What a recorded trace holds: one typed model for each kind of row.

A trace is a folder of JSON Lines files. The first line of each is a `Header`, the second an `Environment`, and every
other line one row with its `kind`. Units are in the names: bytes are exact whole numbers, seconds are floats. Unknown
fields, wrong types and impossible numbers are refused, so that what has been read can be trusted.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "EVENT_FILE",
    "SCHEMA",
    "VERSION",
    "AnyRow",
    "ConfigValue",
    "Environment",
    "Header",
    "KernelCase",
    "KernelRow",
    "Measured",
    "MemoryCase",
    "MemoryRow",
    "OperatorCase",
    "OperatorRow",
    "OperatorTime",
    "PhaseMemory",
    "StepMemory",
    "StepRow",
    "Suite",
    "Timing",
]

SCHEMA = "peakline.trace"
VERSION = 1
EVENT_FILE = r"^events-[A-Za-z0-9._-]{1,120}\.jsonl\.gz$"  # a plain name: an event stream lies beside its row

Suite: TypeAlias = Literal["memory", "operators", "steps", "kernels"]
Bytes: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 60)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 60)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=1e7)]
Text: TypeAlias = Annotated[str, Field(max_length=2000)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]
Scalar: TypeAlias = bool | int | float | Text | None
ConfigValue: TypeAlias = Scalar | tuple[Scalar | tuple[Scalar, ...], ...] | dict[str, Scalar]


class Row(BaseModel):
    """What all rows have in common: frozen, nothing unknown, nothing converted, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def to_line(self) -> str:
        """The row as one line of JSON, with every field."""
        return self.model_dump_json(by_alias=True)


class Header(Row):
    """First line of every file: what the file is."""

    kind: Literal["header"] = "header"
    format: str = Field(alias="schema", pattern=r"^peakline\.trace/[0-9]{1,6}$")
    suite: Suite


class Environment(Row):
    """Where and when rows were measured; a resumed recording adds another, for the rows after it.

    Attributes:
        device_kind: `cuda` or `cpu`.
        device_name: the GPU's or the processor's model name.
        multiprocessors, capability, device_total_bytes: of the GPU (`torch.cuda.get_device_properties`).
        free_before_context_bytes: free on the device before this process made a context (nvidia-smi).
        free_after_context_bytes: free after a first small tensor (`torch.cuda.mem_get_info`).
        reserved_then_bytes: what the caching allocator held for that tensor.
        driver, sm_clock_mhz, sm_clock_max_mhz, memory_clock_mhz, power_limit_watts, mig: as nvidia-smi gives them.
        cpu_name, cpu_threads, host_total_bytes: the host; `cpu_threads` are those that torch uses for one operator.
        cpu_features: vector extensions that decide the kernels (torch's own word for them).
        load_average: processes running or waiting over the last minute when the recording began. On a CPU, times
            taken while it exceeds what the recording itself uses are disturbed by other work.
        allocator: the allocator's settings, as in PYTORCH_CUDA_ALLOC_CONF.
    """

    kind: Literal["environment"] = "environment"
    device_kind: Literal["cuda", "cpu"]
    device_name: Text
    recorded_on: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    peakline: Text
    python: Text
    torch: Text
    cuda: Text | None = None
    cudnn: Text | None = None
    triton: Text | None = None
    transformers: Text | None = None
    multiprocessors: Count | None = None
    capability: tuple[Count, Count] | None = None
    device_total_bytes: Bytes | None = None
    free_before_context_bytes: Bytes | None = None
    free_after_context_bytes: Bytes | None = None
    reserved_then_bytes: Bytes | None = None
    driver: Text | None = None
    sm_clock_mhz: Seconds | None = None
    sm_clock_max_mhz: Seconds | None = None
    memory_clock_mhz: Seconds | None = None
    power_limit_watts: Seconds | None = None
    mig: Text | None = None
    cpu_name: Text | None = None
    cpu_threads: Count | None = None
    cpu_features: Text | None = None
    host_total_bytes: Bytes | None = None
    load_average: Seconds | None = None
    allocator: Text = ""
    seed: Count = 0


# ---- memory --------------------------------------------------------------------------------------------------------
class MemoryCase(Row):
    """One training or inference run, as data: everything needed to build it again, or to predict it.

    Attributes:
        name: unique among the cases; a resumed recording knows by it what is done.
        source: `transformers` (built from `architecture` and `config`) or `peakline` (`peakline.record.networks`).
        model_type: as in Hugging Face's config.json; for `peakline`, the network.
        architecture: class name in transformers, or in `peakline.record.networks`.
        config: the configuration's settings; what is not named has the default of the recorded version.
        mode: `training`, or `inference` (forward under `torch.inference_mode`, no cache kept).
        batch: sequences or images per microbatch.
        seq: tokens per sequence (the decoder's, for encoder-decoders); None for images.
        source_seq: tokens or frames of the encoder's input.
        image: height and width of input images or latents in pixels.
        dtype: of parameters and inputs: `fp32`, `bf16`, `fp16`.
        autocast: mixed precision's format, or None.
        optimizer: `adamw`, `adam`, `sgd`, `momentum`, `rmsprop`, `adagrad`, each alone (torch's default: foreach on
            CUDA, for-loop on CPU) or with `-foreach`, `-fused`, `-loop`; None: no optimizer, gradients are kept.
        checkpointing: activation checkpointing of every layer, not reentrant.
        attention: transformers' `attn_implementation`.
        accumulation: microbatches per step.
        zero_grad: `after_step`, or `before_backward`; always to None.
        loss: `model` (what the model itself returns), `cross_entropy` or `mse`.
        allocator: settings that the run sets, as in PYTORCH_CUDA_ALLOC_CONF.
        steps: how many steps run, one after the other.
        scale: `small` (tens to hundreds of MB, any machine), `medium` (up to about 10 GB), `large`.
    """

    name: Name
    source: Literal["transformers", "peakline"]
    model_type: Name
    architecture: Name
    config: dict[str, ConfigValue]
    mode: Literal["training", "inference"] = "training"
    batch: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    seq: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    source_seq: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    image: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    autocast: Literal["bf16", "fp16"] | None = None
    optimizer: Name | None = "adamw"
    checkpointing: bool = False
    attention: Name | None = "sdpa"
    accumulation: Annotated[int, Field(ge=1, le=4096)] = 1
    zero_grad: Literal["after_step", "before_backward"] = "after_step"
    loss: Literal["model", "cross_entropy", "mse"] = "model"
    allocator: Text = ""
    steps: Annotated[int, Field(ge=1, le=100)] = 3
    scale: Literal["small", "medium", "large"] = "small"


class PhaseMemory(Row):
    """One phase of a step: `forward`, `backward`, `optimizer`, `zero_grad`; with accumulation, the last microbatch.

    `peak_allocated_bytes` is the most allocated at any moment of the phase, `end_allocated_bytes` what is when it ends;
    both count what was there before.
    """

    name: Name
    peak_allocated_bytes: Bytes
    end_allocated_bytes: Bytes
    peak_reserved_bytes: Bytes | None = None


class StepMemory(Row):
    """One step.

    Attributes:
        seconds: wall time with the device synchronised at both ends; recording of history included.
        peak_allocated_bytes: `torch.cuda.max_memory_allocated`; on a CPU, what stood before plus the profiler's events.
        peak_requested_bytes: as asked for by the program, without the allocator's rounding.
        peak_reserved_bytes: `torch.cuda.max_memory_reserved`; None on a CPU.
        end_allocated_bytes, end_reserved_bytes: after the step.
        device_used_bytes: in use on the whole device after the step, other processes included.
        segments, allocation_retries: the caching allocator's counts after the step.
        loss: value of the loss, to see that the step was real; None if it is not finite.
    """

    step: Count
    seconds: Seconds
    peak_allocated_bytes: Bytes
    peak_requested_bytes: Bytes | None = None
    peak_reserved_bytes: Bytes | None = None
    end_allocated_bytes: Bytes
    end_reserved_bytes: Bytes | None = None
    device_used_bytes: Bytes | None = None
    device_used_source: Literal["nvml", "mem_get_info"] | None = None
    segments: Count | None = None
    allocation_retries: Count | None = None
    phases: tuple[PhaseMemory, ...] = ()
    loss: float | None = None


class MemoryRow(Row):
    """The memory of one case.

    Attributes:
        transformers: version that built the model; None for our own networks.
        attention_used: the implementation transformers chose.
        device_used_before_bytes: in use on the device before this run's process made its context (None: unknown).
        device_used_after_context_bytes: after it, before the model.
        before_model_allocated_bytes: allocated before the model was made.
        resident_allocated_bytes: parameters, buffers and inputs are made, the first step has not begun.
        parameters, trainable_parameters, parameter_bytes, buffer_bytes, input_bytes: of the model and its inputs.
        events: file beside this one with the allocator's event stream; None if there is none.
        events_left_out: why there is none.
        error: the case failed; steps done before are kept. `out_of_memory` says that memory was the reason.
    """

    kind: Literal["memory"] = "memory"
    case: MemoryCase
    device: Literal["cuda", "cpu"]
    transformers: Text | None = None
    attention_used: Text | None = None
    device_used_before_bytes: Bytes | None = None
    device_used_after_context_bytes: Bytes | None = None
    before_model_allocated_bytes: Bytes | None = None
    resident_allocated_bytes: Bytes | None = None
    parameters: Count | None = None
    trainable_parameters: Count | None = None
    parameter_bytes: Bytes | None = None
    buffer_bytes: Bytes | None = None
    input_bytes: Bytes | None = None
    steps: tuple[StepMemory, ...] = ()
    events: Annotated[str, Field(pattern=EVENT_FILE)] | None = None
    events_left_out: Text | None = None
    out_of_memory: bool = False
    error: Text | None = None

    @property
    def peak_allocated_bytes(self) -> int | None:
        """The most allocated over all steps; None if no step was finished."""
        return max((step.peak_allocated_bytes for step in self.steps), default=None)


# ---- times ---------------------------------------------------------------------------------------------------------
class Timing(Row):
    """Times of repeated runs of one thing, in seconds, each measured alone."""

    median_seconds: Seconds
    min_seconds: Seconds
    repetitions: Count


class OperatorCase(Row):
    """One operator and its sizes.

    Attributes:
        name: unique among the cases.
        operator: what runs; docs/record.md lists them with the sizes each has.
        dtype: of the operands (`tf32`: float32 operands on the tensor cores; `fp8`: e4m3 with one scale per tensor).
        sizes: dimensions by name.
        options: what else decides the kernel.
    """

    name: Name
    operator: Name
    dtype: Name
    sizes: dict[str, Count]
    options: dict[str, bool | Text] = {}


class Measured(Row):
    """What was measured of one pass of an operator.

    Attributes:
        warm: run after run, operands in the cache if they fit.
        cold: the last-level cache overwritten before each run.
        extra_bytes: the most allocated above what stood before, results included (CUDA).
    """

    warm: Timing | None = None
    cold: Timing | None = None
    extra_bytes: Bytes | None = None


class OperatorRow(Row):
    """Times of one operator; `backend` is the name of the autograd node, which tells attention's kernels apart."""

    kind: Literal["operator"] = "operator"
    case: OperatorCase
    device: Literal["cuda", "cpu"]
    forward: Measured | None = None
    backward: Measured | None = None
    backend: Text | None = None
    out_of_memory: bool = False
    error: Text | None = None


class OperatorTime(Row):
    """Calls of one operator on one set of shapes within one step, from torch's profiler.

    `self_seconds` is the device's time on CUDA and the processor's on a CPU, without operators called inside.
    """

    operator: Name
    shapes: Text
    calls: Count
    self_seconds: Seconds


class StepRow(Row):
    """Times of whole steps.

    Attributes:
        compiled: the module went through `torch.compile`.
        compile_seconds: the first step, compilation included.
        step: the whole step, device synchronised at both ends.
        phases: the same by phase (CUDA events, or the processor's clock).
        operators: by operator, the most expensive first; `others_seconds` is the sum of those left out.
    """

    kind: Literal["step"] = "step"
    case: MemoryCase
    device: Literal["cuda", "cpu"]
    transformers: Text | None = None
    compiled: bool = False
    compile_seconds: Seconds | None = None
    step: Timing | None = None
    phases: dict[str, Timing] = {}
    peak_allocated_bytes: Bytes | None = None
    operators: tuple[OperatorTime, ...] = ()
    others_seconds: Seconds = 0.0
    out_of_memory: bool = False
    error: Text | None = None


class KernelCase(Row):
    """One of peakline's Triton kernels (`peakline.kernels`) at one size with one tile configuration."""

    name: Name
    kernel: Name
    dtype: Name
    sizes: dict[str, Count]
    options: dict[str, bool | Text | tuple[Count, ...]] = {}
    tiles: dict[str, Count]


class KernelRow(Row):
    """What was measured of a kernel.

    Attributes:
        loaded_bytes, stored_bytes: moved by `tl.load` and `tl.store`, counted under the interpreter, masked lanes left
            out (CPU only).
        formula_bytes: what the cost model's closed form says for these tiles.
        warm, cold: as of `Measured` (CUDA only).
        largest_error: the largest difference to torch in float64 over the result's largest value.
    """

    kind: Literal["kernel"] = "kernel"
    case: KernelCase
    device: Literal["cuda", "cpu"]
    loaded_bytes: Bytes | None = None
    stored_bytes: Bytes | None = None
    formula_bytes: Bytes | None = None
    warm: Timing | None = None
    cold: Timing | None = None
    largest_error: Seconds | None = None
    out_of_memory: bool = False
    error: Text | None = None


AnyRow: TypeAlias = Annotated[Environment | MemoryRow | OperatorRow | StepRow | KernelRow, Field(discriminator="kind")]
