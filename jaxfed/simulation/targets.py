"""A round compiled for devices that are not here, and what it would cost on them.

XLA compiles for a GPU or a TPU on any computer: for a TPU with libtpu, for a GPU with JAX's plugin
for CUDA and NVIDIA's assembler, all in `pip install 'jaxfed[targets]'`. Nothing is run.
"""

import contextlib
import glob
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxfed.simulation import engine, hlo, tuning


class Device(NamedTuple):
    """What one device can do: peaks of dense products, without sparsity."""

    memory: float  # bytes
    bandwidth: float  # bytes a second
    narrow: float  # FLOP/s of bfloat16
    wide: float  # FLOP/s of float32 at JAX's default precision: TF32 on a GPU, bfloat16 on a TPU
    launch: float = 0.0  # seconds a kernel
    gpu: str = ""  # for XLA, of a GPU


def _gpu(name: str, cores: int, clock: float, cache: int, shared: int, **others: Any) -> str:
    """XLA's description of a GPU with 64 warps a multiprocessor: capability (major, minor)."""
    major, minor = others["capability"]
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared * 1024}
  shared_memory_per_block_optin: {(shared - 1) * 1024}
  core_count: {cores} fpus_per_core: {others["units"]} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(others["bandwidth"])} device_memory_size: {int(others["memory"])}
  l2_cache_size: {cache * 2**20}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation" device_address_bits: 64 ecc_enabled: true name: "{name}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


def _nvidia(device: Device, name: str, *sizes: Any, **others: Any) -> Device:
    text = _gpu(name, *sizes, bandwidth=device.bandwidth, memory=device.memory, **others)
    return device._replace(gpu=text)


# Makers' own figures. Of GPUs, the SXM cards, and halves of the peaks with sparsity:
#   h100   80 GB, 3.35 TB/s, bfloat16 1,979 and TF32 989: nvidia.com/en-us/data-center/h100
#   h200   141 GB, 4.8 TB/s, peaks as h100: nvidia.com/en-us/data-center/h200
#   a100   80 GB, 2,039 GB/s, bfloat16 624 and TF32 312: nvidia.com/en-us/data-center/a100
# with multiprocessors, clocks and caches of NVIDIA's H100 and A100 architecture papers. The driver
# reports 2 ** 30 bytes for a GB and a little less. A launch takes 2 microseconds at least.
# Of TPUs, cloud.google.com/tpu/docs/ and the name, "bf16" and HBM:
#   v4     32 GiB, 1,228 GB/s, 275        v5e    16 GB, 819 GB/s, 197
#   v5p    95 GB, 2,765 GB/s, 459         v6e    32 GB, 1,640 GB/s, 918
_HOPPER = {"units": 128, "capability": (9, 0)}
DEVICES = {
    "h100": _nvidia(
        Device(84.9e9, 3.35e12, 989e12, 494e12, 2e-6),
        "NVIDIA H100 80GB HBM3", 132, 1.98, 50, 228, **_HOPPER,
    ),
    "h200": _nvidia(
        Device(150.1e9, 4.8e12, 989e12, 494e12, 2e-6),
        "NVIDIA H200", 132, 1.98, 50, 228, **_HOPPER,
    ),
    "a100": _nvidia(
        Device(84.9e9, 2.04e12, 312e12, 156e12, 2e-6),
        "NVIDIA A100-SXM4-80GB", 108, 1.41, 40, 164, units=64, capability=(8, 0),
    ),
    "v4": Device(32 * 2**30, 1.228e12, 275e12, 275e12),
    "v5e": Device(16 * 2**30, 0.819e12, 197e12, 197e12),
    "v5p": Device(95 * 2**30, 2.765e12, 459e12, 459e12),
    "v6e": Device(32 * 2**30, 1.64e12, 918e12, 918e12),
}  # fmt: skip


class Target(NamedTuple):
    """Devices to compile for, which are not here."""

    name: str
    platform: str  # as JAX lowers for it
    device: Device
    devices: tuple[Any, ...]
    options: dict[str, Any]  # of the compiler

    @property
    def room(self) -> float:
        """Bytes of a device's memory for a program: JAX takes three quarters of a GPU's."""
        return self.device.memory * (0.75 if self.device.gpu else 1)


class Compiled(NamedTuple):
    """A round as it was compiled for a target, of each of its devices."""

    chunk: int  # clients at once
    arguments: float  # bytes, with results that take no place of an argument
    temporary: float  # bytes
    work: hlo.Work
    step: hlo.Work  # see hlo.local_step
    fits: bool


GPUS = 8  # in one computer
EXAMPLES = "h100:1, h100:8, a100:1 or tpu:v5e:2x2"


def target(name: str) -> Target:
    """The devices that a name such as h100:8 or tpu:v5e:2x2 stands for.

    JAX's own devices become those of the CPU, if it has none yet. Raises ValueError for a name that
    means none, and if a package is missing.
    """
    gpu, tpu = re.fullmatch(r"([a-z]\d+):(\d+)", name), re.fullmatch(r"tpu:(\w+):([\dx]+)", name)
    kind = gpu[1] if gpu else tpu[1] if tpu else ""
    if kind not in DEVICES or bool(DEVICES[kind].gpu) != bool(gpu):
        known = ", ".join(DEVICES)
        raise ValueError(f"{name!r} is no target; use one of {known}, such as {EXAMPLES}")
    computers, each = divmod(int(gpu[2]), GPUS) if gpu else (0, 0)
    if gpu and bool(computers) == bool(each):
        raise ValueError(
            f"{name}: a computer has 1 to {GPUS} GPUs; use that many, or several times {GPUS}"
        )
    jax.config.update("jax_platforms", "cpu")  # what is compiled for need not be here
    if gpu:
        home = _cuda()
        options = {"xla_gpu_autotune_level": 0, "xla_gpu_cuda_data_dir": home}
        about = {
            "target_config": DEVICES[kind].gpu,
            "topology": f"1x{computers or 1}x{each or GPUS}",
        }
        try:
            there = topologies.get_topology_desc(kind, platform="cuda", **about).devices
        except NotImplementedError:
            raise ValueError(
                f"{name}: JAX looked for a GPU before and did not take its plugin; set "
                "JAX_PLATFORMS=cpu before JAX is used"
            ) from None
        return Target(name, "cuda", DEVICES[kind], tuple(there), options)
    _needs("libtpu")
    # Otherwise libtpu asks Google's servers where it is.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    try:
        there = topologies.get_topology_desc(name.removeprefix("tpu:"), platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{name} is no shape of TPUs ({str(error).splitlines()[0]})") from None
    return Target(name, "tpu", DEVICES[kind], tuple(there), {})


def _cuda() -> str:
    """Where NVIDIA's assembler is installed."""
    _needs("jax_plugins.xla_cuda13")
    packages = importlib.util.find_spec("nvidia")
    places = packages.submodule_search_locations if packages else []
    found = [home for place in places or [] for home in glob.glob(f"{place}/cu13")]
    if not found or not glob.glob(f"{found[0]}/bin/ptxas*"):
        raise ValueError(f"nvidia-cuda-nvcc is not installed; {REMEDY}")
    return found[0]


REMEDY = "pip install 'jaxfed[targets]' into an environment without a GPU of its own"


def _needs(module: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that it is in
        found = None
    if found is None:
        raise ValueError(f"{module} is not installed; {REMEDY}")


def compiled(
    where: Target,
    make: Callable[[engine.Machine], Any],
    arguments: tuple,
    chunks: Sequence[int],
    turns: float,
) -> list[Compiled]:
    """The jitted round `make(machine)` compiled for a target, of each chunk that was tried.

    `arguments` are arrays or shapes. The first of the descending `chunks` is tried, and while none
    fits, the next that the memory of the last lets expect to. See hlo.work for `turns`.
    """
    tried: list[Compiled] = []
    left = list(chunks)
    while left:
        machine = engine.Machine(where.devices, left[0])
        shapes = engine.placed_shapes(arguments, machine)
        found = _compiled(where, make(machine), shapes, left[0], turns)
        tried.append(found)
        needed = found.arguments + found.temporary
        if found.fits:
            break
        share = max(where.room - found.arguments, 0) / max(needed - found.arguments, 1)
        left = [n for n in left[1:] if n <= max(share * found.chunk, left[-1])]
    return tried


def _compiled(where: Target, step: Any, shapes: tuple, chunk: int, turns: float) -> Compiled:
    try:
        program = _program(lowered(where, step, shapes), where.options)
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
        used = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", str(error))
        if not used:
            raise
        needed = float(used[1]) * 2.0 ** {"K": 10, "M": 20, "G": 30}[used[2]]
        return Compiled(chunk, 0, needed, hlo.Work(), hlo.Work(), False)
    memory: Any = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    arguments = held - memory.alias_size_in_bytes
    temporary = tuning.temporary_bytes(program)
    read = hlo.parsed(program.as_text())
    return Compiled(
        chunk,
        arguments,
        temporary,
        hlo.work(read, turns),
        hlo.local_step(read),
        arguments + temporary <= where.room,
    )


def lowered(where: Target, step: Any, shapes: tuple) -> jax.stages.Lowered:
    """The jitted function of arrays of these shapes, lowered for a target."""
    kind, platform = where.devices[0].device_kind, where.devices[0].platform
    device = jax.sharding.AbstractDevice(kind, None, platform)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):  # which Pallas asks for the kind of GPU
        return step.trace(*shapes).lower(lowering_platforms=(where.platform,))


def _program(lowered: Any, options: Mapping[str, Any]) -> Any:
    """The compiled program; without Triton's products if XLA finds no tiles for one of them.

    XLA chooses kernels here without timing them; what it chooses on a GPU may differ.
    """
    with _uncached():
        try:
            return lowered.compile(options or None)
        except jax.errors.JaxRuntimeError as error:
            if "output tile sizes" not in str(error):
                raise
            return lowered.compile({**options, "xla_gpu_enable_triton_gemm": False})


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """While it lasts, no program goes to JAX's cache: it cannot read those of absent devices."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def seconds(device: Device, work: hlo.Work) -> dict[str, float]:
    """The least that each kind of work takes by itself; the largest bounds a round from below."""
    return {
        "arithmetic": work.wide / device.wide + work.narrow / device.narrow,
        "memory": work.bytes / device.bandwidth,
        "launches": work.kernels * device.launch,
    }
