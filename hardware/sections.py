"""What a device file may say: memory levels, arithmetic, links, power, software, and one section per kind of device.

Every figure is kept in SI units (bytes, B/s, operations/s, seconds, hertz, watts, joules); `None` is a figure nobody
published.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from peakline.hardware.figures import (
    Bandwidth,
    Bytes,
    Count,
    EnergyPerByte,
    EnergyPerOp,
    Frequency,
    LinkBandwidth,
    Number,
    PositiveCount,
    Power,
    Rate,
    RequestRate,
    Seconds,
    Section,
)

__all__ = [
    "DTYPES",
    "Calibration",
    "Compute",
    "Cpu",
    "Fpga",
    "Gpu",
    "Link",
    "Mcu",
    "MemoryLevel",
    "Npu",
    "OpEnergy",
    "Pim",
    "PowerDraw",
    "Process",
    "Rates",
    "Software",
    "Storage",
]


class MemoryLevel(Section):
    """One level of the hierarchy.

    Attributes:
        name: its name in the file (`l2`, `hbm`, `sram`).
        kind: technology, e.g. `HBM3`.
        capacity: bytes over the whole device.
        capacity_per_unit: bytes for one compute unit, where the level is private to units.
        bandwidth: bytes per second over the whole device, one direction or the sum as the source states it.
        bandwidth_per_unit: bytes per second for one compute unit.
        read_bandwidth, write_bandwidth: where they differ.
        latency: seconds of a load that hits here.
        energy_per_byte: joules to move one byte between this level and the next nearer one.
        channels: independent channels or banks of bandwidth.
        shared_by: who shares it: `unit`, `device`, `cluster`, a count in words.
        access: `read-write`, or `read-only` for memory that a running program cannot write (an MCU's flash).
    """

    name: str = ""
    kind: str | None = None
    capacity: Bytes = None
    capacity_per_unit: Bytes = None
    bandwidth: Bandwidth = None
    bandwidth_per_unit: Bandwidth = None
    read_bandwidth: Bandwidth = None
    write_bandwidth: Bandwidth = None
    latency: Seconds = None
    energy_per_byte: EnergyPerByte = None
    channels: Count = None
    shared_by: str | None = None
    access: Literal["read-write", "read-only"] = "read-write"

    @property
    def source(self) -> str | None:
        """Citations of this level's figures, each once."""
        return "; ".join(dict.fromkeys(self.cited.values())) or None


class Rates(Section):
    """Dense peak operations per second by number format; a MAC is two operations."""

    fp64: Rate = None
    fp32: Rate = None
    tf32: Rate = None
    bf16: Rate = None
    fp16: Rate = None
    fp8: Rate = None
    fp4: Rate = None
    int32: Rate = None
    int16: Rate = None
    int8: Rate = None
    int4: Rate = None
    int1: Rate = None

    def listed(self) -> dict[str, float]:
        """The formats that have a rate."""
        return {name: rate for name in DTYPES if (rate := getattr(self, name)) is not None}


DTYPES = tuple(name for name in Rates.model_fields if name not in Section.model_fields)


class OpEnergy(Section):
    """Joules per operation by number format (a MAC being two), arithmetic alone."""

    fp64: EnergyPerOp = None
    fp32: EnergyPerOp = None
    tf32: EnergyPerOp = None
    bf16: EnergyPerOp = None
    fp16: EnergyPerOp = None
    fp8: EnergyPerOp = None
    fp4: EnergyPerOp = None
    int32: EnergyPerOp = None
    int16: EnergyPerOp = None
    int8: EnergyPerOp = None
    int4: EnergyPerOp = None
    int1: EnergyPerOp = None


class Compute(Section):
    """Arithmetic: how many units, at which clock, and their peak rates.

    Attributes:
        units: compute units (SM, CU, core, tile, processing element).
        unit: what they are called.
        clock: hertz at which the peak rates are stated.
        vector_clock: hertz at which the vector rates are stated, where the matrix engine runs slower.
        base_clock, max_clock: the other published clocks.
        matrix: rates of the matrix engine (tensor cores, MXU, AMX); GPU half precision with float32 accumulation.
        vector: rates of the ordinary arithmetic units.
        energy: joules per operation.
    """

    units: PositiveCount = None
    unit: str = "unit"
    clock: Frequency = None
    vector_clock: Frequency = None
    base_clock: Frequency = None
    max_clock: Frequency = None
    matrix: Rates = Field(default_factory=Rates)
    vector: Rates = Field(default_factory=Rates)
    energy: OpEnergy = Field(default_factory=OpEnergy)


class Link(Section):
    """A way out of the device.

    Attributes:
        kind: e.g. `PCIe 5.0 x16`, `NVLink 4`.
        bandwidth: bytes per second in each direction, all lanes and links together.
        achieved: bytes per second in each direction that large copies reach.
        latency: seconds before the first byte of a copy arrives.
        duplex: `half` where both directions share the wires.
        count: links or lanes making it up.
        topology: e.g. `3D torus`, `switch`.
        energy_per_byte: joules.
    """

    kind: str | None = None
    bandwidth: LinkBandwidth = None
    achieved: LinkBandwidth = None
    latency: Seconds = None
    duplex: Literal["full", "half"] = "full"
    count: Count = None
    topology: str | None = None
    energy_per_byte: EnergyPerByte = None


class PowerDraw(Section):
    """Watts: board limit, idle, and what a microcontroller draws while it computes, where published or measured."""

    tdp: Power = None
    idle: Power = None
    active: Power = None


class Process(Section):
    """How the arithmetic is made: the node in nanometres, as its maker calls it."""

    nm: Number = None


class Software(Section):
    """What the software stack takes from the device before and while a program runs.

    Attributes:
        context: bytes held by an initialised context with modules loaded lazily.
        libraries: further bytes of libraries loaded by every program.
        libraries_eager: bytes of kernels when a runtime loads all of them at start (CUDA before 11.7).
        cublas_workspace: bytes of a matmul library's workspace per handle and stream.
        launch: seconds that a kernel with next to nothing to do keeps a stream busy, replayed from a graph.
    """

    context: Bytes = None
    libraries: Bytes = None
    libraries_eager: Bytes = None
    cublas_workspace: Bytes = None
    launch: Seconds = None

    @property
    def context_bytes(self) -> int:
        """Bytes of the context, 0 where the device has none or nobody measured it."""
        return self.context or 0

    @property
    def library_bytes(self) -> int:
        """Bytes of libraries beyond the context, 0 where unknown."""
        return self.libraries or 0

    @property
    def cublas_workspace_bytes(self) -> int:
        """Bytes of the matmul library's workspace, 0 where there is none."""
        return self.cublas_workspace or 0

    @property
    def launch_seconds(self) -> float | None:
        """Seconds that the smallest kernel keeps a stream busy; None where unknown."""
        return self.launch


class Calibration(Section):
    """What was fitted on measurements of this device, kind of kernel by kind of kernel.

    Attributes:
        fitted_on: which measurements, in words.
        attainable: kind of kernel and constant (`gemm.main_share`) → share of a published peak that is attained.
        constants: the same for constants that are no shares (`gemm.launch_fixed` in seconds, `gemm.fill_cycles`).
        residual: kind of kernel and figure → number, of rows that took no part in the fit: `gemm.rows` how many,
            `gemm.median` the median of |predicted/measured − 1|, `gemm.low` and `gemm.high` the quantiles of
            measured/predicted between which `gemm.share` of them lie.
    """

    fitted_on: str
    attainable: dict[str, float] = Field(default_factory=dict)
    constants: dict[str, float] = Field(default_factory=dict)
    residual: dict[str, float] = Field(default_factory=dict)

    @property
    def fitted(self) -> dict[str, float]:
        """All fitted constants by kind of kernel and name."""
        return {**self.attainable, **self.constants}

    def interval(self, kind: str) -> tuple[float, float] | None:
        """(low, high) of measured/predicted for a kind of kernel; None where it was not calibrated."""
        low, high = self.residual.get(f"{kind}.low"), self.residual.get(f"{kind}.high")
        return None if low is None or high is None else (low, high)


class Gpu(Section):
    """What only a GPU has.

    Attributes:
        architecture: e.g. `Hopper`.
        compute_capability: NVIDIA's, e.g. `9.0`.
        threads_per_unit: threads resident on one unit.
        blocks_per_unit: thread blocks resident on one unit.
        warp: threads that run in lockstep.
        l1_per_unit: bytes of the L1 and shared memory array of one unit.
        shared_per_block: bytes of shared memory one block may use.
        matrix_units_per_unit: tensor or matrix cores in one unit.
    """

    architecture: str | None = None
    compute_capability: str | None = None
    threads_per_unit: Count = None
    blocks_per_unit: Count = None
    warp: Count = None
    l1_per_unit: Bytes = None
    shared_per_block: Bytes = None
    matrix_units_per_unit: Count = None

    @field_validator("compute_capability", mode="before")
    @classmethod
    def _written_as_a_number(cls, value: object) -> object:
        return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("compute_capability")
    @classmethod
    def _major_dot_minor(cls, value: str | None) -> str | None:
        parts = (value or "0.0").split(".")
        if len(parts) != 2 or not all(part.isdigit() for part in parts):
            raise ValueError("a compute capability is written like '9.0'")
        return value


class Npu(Section):
    """What a systolic or tiled accelerator has.

    Attributes:
        architecture: family name.
        array_rows, array_columns: shape of one matrix array, in multiply-accumulators.
        arrays_per_unit: matrix arrays in one compute unit.
        dataflow: `weight stationary`, `output stationary`, `row stationary`, `dataflow graph`.
        vector_lanes: lanes of the vector unit of one compute unit.
        scheduling: `static` or `dynamic`.
    """

    architecture: str | None = None
    array_rows: Count = None
    array_columns: Count = None
    arrays_per_unit: Count = None
    dataflow: str | None = None
    vector_lanes: Count = None
    scheduling: Literal["static", "dynamic"] | None = None


class Pim(Section):
    """Processing in memory.

    Attributes:
        channels, banks_per_channel: independent channels, and banks in each.
        units_per_channel: processing units in each channel.
        lanes_per_unit: multiply-accumulators in one processing unit.
        row: bytes of one opened row.
        in_bank_bandwidth: bytes per second between the banks and the processing units, all banks together.
        external_bandwidth: bytes per second at the pins.
        input_buffer: bytes that hold the vector operand, per channel.
        vectors: input vectors that a unit multiplies with what it reads once; 1 where nobody says.
        four_activates: seconds within which a channel may open four rows (tFAW), where that bounds opening all banks.
        operations: what the units compute.
    """

    channels: Count = None
    banks_per_channel: Count = None
    units_per_channel: Count = None
    lanes_per_unit: Count = None
    row: Bytes = None
    in_bank_bandwidth: Bandwidth = None
    external_bandwidth: Bandwidth = None
    input_buffer: Bytes = None
    vectors: Count = None
    four_activates: Seconds = None
    operations: str | None = None


class Fpga(Section):
    """Programmable logic: what a bitstream may use.

    Attributes:
        part: the chip.
        dsp, luts, flip_flops, ai_engines: counts.
        bram, uram: bytes of block and of ultra RAM.
        memory_channels: independent channels of off-chip memory as seen by the logic.
    """

    part: str | None = None
    dsp: Count = None
    luts: Count = None
    flip_flops: Count = None
    ai_engines: Count = None
    bram: Bytes = None
    uram: Bytes = None
    memory_channels: Count = None


class Mcu(Section):
    """A microcontroller: its core, and how its SRAM is cut up. MACs per cycle are the rates over units and clock.

    Attributes:
        core: e.g. `Arm Cortex-M7`.
        simd: the instructions that make the stated MACs per cycle.
        fpu: `none`, `single` or `double`.
        tcm: bytes of tightly coupled data memory within the SRAM.
        largest_bank: bytes of the largest contiguous SRAM bank: the largest arena that needs no linker tricks.
        data_cache: bytes.
        bus_ratio: core clocks per clock of the bus to main SRAM.
        flash_wait, flash_line: core cycles that one fetch from flash waits for, and bytes it brings.
        runtime: the inference library assumed unless another is named: `tflm`, `cmsis-nn`, `x-cube-ai` or
            `tinyengine`; `bare` for the tensors alone at the core's peak.
        accelerator: a neural accelerator on the chip.
    """

    core: str | None = None
    simd: str | None = None
    fpu: Literal["none", "single", "double"] | None = None
    tcm: Bytes = None
    largest_bank: Bytes = None
    data_cache: Bytes = None
    bus_ratio: Count = None
    flash_wait: Count = None
    flash_line: Bytes = None
    runtime: Literal["bare", "tflm", "cmsis-nn", "x-cube-ai", "tinyengine"] | None = None
    accelerator: str | None = None


class Cpu(Section):
    """A host processor.

    Attributes:
        architecture: core's name.
        threads: hardware threads.
        vector_bits: width of a vector register.
        fma_units: vector multiply-add pipes in one core.
        matrix_unit: e.g. `AMX`.
        memory_channels: channels of main memory.
        sockets: processors described by this file.
    """

    architecture: str | None = None
    threads: Count = None
    vector_bits: Count = None
    fma_units: Count = None
    matrix_unit: str | None = None
    memory_channels: Count = None
    sockets: Count = None


class Storage(Section):
    """A drive or a memory tier: what bandwidth alone does not say.

    Attributes:
        interface: e.g. `PCIe 4.0 x4, NVMe`.
        random_read, random_write: requests of `request` bytes per second.
        request: bytes of one random request.
        read_latency, write_latency: seconds of one such request with nothing else in flight.
        internal_bandwidth: bytes per second between the flash and what computes beside it, on a drive that computes.
        sustained_write: bytes per second once a write cache is full.
        endurance: bytes that may be written over the drive's life.
        drive_writes_per_day: over the warranty.
    """

    interface: str | None = None
    random_read: RequestRate = None
    random_write: RequestRate = None
    request: Bytes = None
    read_latency: Seconds = None
    write_latency: Seconds = None
    internal_bandwidth: Bandwidth = None
    sustained_write: Bandwidth = None
    endurance: Bytes = None
    drive_writes_per_day: Number = None
