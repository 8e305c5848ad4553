"""What `themis doctor` tells of llama.cpp and of its models; the latter are not loaded."""

from __future__ import annotations

import ctypes
import math
import resource
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from themis_core.errors import ModelFileInvalid, ThemisError
from themis_core.hooks import Finding
from themis_llamacpp import adapter_header, gguf_header
from themis_llamacpp.gguf_header import Header
from themis_llamacpp.machine import default_threads, memory_limit
from themis_llamacpp.memory import kv_cache
from themis_llamacpp.settings import LlamaCppSettings

# What llama.cpp can be compiled for, and the processor's flag in /proc/cpuinfo.
_FEATURES = {
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
}
_COMPILE = (
    'Compile it on this machine: CMAKE_ARGS="-DGGML_NATIVE=on" pip install --force-reinstall '
    "--no-binary llama-cpp-python llama-cpp-python"
)
# The commonest of llama.cpp's llama_ftype.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16", 38: "MXFP4",
}  # fmt: skip


def library() -> list[Finding]:
    """Version, build and devices of the native library."""
    try:
        # Here, because it loads the native library, which may be broken.
        from themis_llamacpp.native import initialise, lib

        initialise()
    except (ImportError, OSError, RuntimeError, ThemisError) as error:
        told = error.message if isinstance(error, ThemisError) else str(error)
        return [
            Finding(
                level="error",
                subject="llama.cpp",
                message=f"It cannot be loaded: {told.rstrip('.')}.",
                remedy="Install llama-cpp-python in the version that themis-llamacpp requires.",
            )
        ]
    version = metadata.version("llama-cpp-python")
    built = _built_for(lib.llama_print_system_info().decode(errors="replace"))
    listed = ", ".join(built) or "nothing in particular"
    lacking = [name for name, flag in _FEATURES.items() if flag in _cpu() and name not in built]
    devices = _devices(lib)
    data = {"version": version, "features": built, "unused": lacking, "devices": devices}
    return [
        Finding(
            level="ok",
            subject="llama.cpp",
            message=f"llama-cpp-python {version}, built for {listed}; "
            f"{default_threads()} threads by default.",
            data=data,
        ),
        _gpu(lib.llama_supports_gpu_offload(), devices),
        *_slower(lacking),
    ]


def model(settings: LlamaCppSettings) -> list[Finding]:
    """The files of a model, and the memory that it will need."""
    path = Path(settings.path).expanduser()
    try:
        header = gguf_header.check(path)
    except ModelFileInvalid as error:
        return [_invalid("path", error)]
    found = [_header("path", path, header)]
    found += _adapters(settings, header)
    total = _memory(path, header, settings)
    if settings.speculation == "draft":
        draft = Path(settings.draft_path or "").expanduser()
        try:
            other = gguf_header.check(draft)
        except ModelFileInvalid as error:
            return [*found, _invalid("draft_path", error)]
        found.append(_header("draft_path", draft, other))
        total = {key: total[key] + n for key, n in _memory(draft, other, settings).items()}
    return [*found, _plan(total, settings), *_locked(total["weights"], settings)]


def _built_for(text: str) -> list[str]:
    """The features of "CPU : SSE3 = 1 | AVX = 1 | CUDA : ARCHS = 890 |" that are switched on."""
    pairs = (part.rpartition(" : ")[2].partition(" = ") for part in text.split("|"))
    return [name.strip() for name, _, value in pairs if value.strip() not in ("", "0")]


def _cpu() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()  # Not Linux: nothing is known, and nothing is said.
    return {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }


def _slower(lacking: list[str]) -> Iterator[Finding]:
    if lacking:
        # Without these, everything takes several times as long; without the others, some of it.
        grave = {"AVX2", "FMA", "NEON"} & set(lacking)
        yield Finding(
            level="warning" if grave else "note",
            subject="llama.cpp",
            message=f"This processor has {', '.join(lacking)}, which this build does not use.",
            remedy=_COMPILE,
        )


def _devices(bindings: Any) -> list[str]:
    """What ggml can compute on, from its own list; empty if this library does not tell."""
    native: Any = getattr(bindings, "_lib", None)
    if not hasattr(native, "ggml_backend_dev_count"):
        return []
    native.ggml_backend_dev_count.restype = ctypes.c_size_t
    native.ggml_backend_dev_get.restype = ctypes.c_void_p
    native.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    names = (native.ggml_backend_dev_name, native.ggml_backend_dev_description)
    for function in names:
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_void_p]
    found = [native.ggml_backend_dev_get(i) for i in range(native.ggml_backend_dev_count())]
    return [" ".join(f(device).decode(errors="replace") for f in names) for device in found]


def _gpu(offloads: bool, devices: list[str]) -> Finding:
    if not offloads:
        message = "None: this build computes on the processor only, so gpu_layers must be 0."
        return Finding(level="ok", subject="llama.cpp GPU", message=message)
    others = [device for device in devices if not device.startswith("CPU")]
    if others:
        message = f"Layers can be put on {', '.join(others)}."
        return Finding(level="ok", subject="llama.cpp GPU", message=message)
    return Finding(
        level="warning",
        subject="llama.cpp GPU",
        message="This build can use a GPU, but finds none.",
        remedy="Look at its driver, and whether this process may use the device.",
    )


def _header(key: str, path: Path, header: Header) -> Finding:
    known = header.metadata
    architecture = known["general.architecture"]
    kind = _FILE_TYPES.get(known.get("general.file_type", -1), "of mixed or unknown type")
    parameters = sum(math.prod(tensor.sizes) for tensor in header.tensors.values())
    trained = known.get(f"{architecture}.context_length", "unknown")
    return Finding(
        level="ok",
        subject=key,
        message=f"{path.name}: GGUF {header.version}, {architecture}, {parameters / 1e6:,.1f} M "
        f"parameters {kind}, trained for {trained} tokens.",
        data={"architecture": architecture, "parameters": parameters, "file_type": kind},
    )


def _adapters(settings: LlamaCppSettings, base: Header) -> Iterator[Finding]:
    for name, given in settings.adapters.items():
        path = Path(given if isinstance(given, str) else given.path).expanduser()
        try:
            adapter_header.check(path, base)
        except ModelFileInvalid as error:
            yield _invalid(f"adapters.{name}", error)
        else:
            message = f"{path.name} fits the model."
            yield Finding(level="ok", subject=f"adapters.{name}", message=message)


def _memory(path: Path, header: Header, settings: LlamaCppSettings) -> dict[str, int]:
    prefix = header.metadata["general.architecture"]
    tokens, cache = kv_cache(header, settings)
    if header.metadata.get(f"{prefix}.attention.causal") is False:
        cache = 0  # An encoder keeps nothing.
    count = header.metadata.get("split.count", 1)
    weights = header.data_end
    if isinstance(count, int) and count > 1:  # Its parts are there: the header has been checked.
        stem = path.name.partition("-00001-of-")[0]
        parts = path.parent.glob(f"{stem}-?????-of-{count:05}.gguf")
        weights = sum(part.stat().st_size for part in parts)
    return {"weights": weights, "kv_cache": int(cache), "kv_tokens": tokens}


def _plan(total: dict[str, int], settings: LlamaCppSettings) -> Finding:
    kept = settings.prefix_ram_mib << 20
    needed = total["weights"] + total["kv_cache"] + kept
    message = (
        f"About {_mib(needed)}: weights {_mib(total['weights'])}, KV cache of "
        f"{total['kv_tokens']:,} tokens {_mib(total['kv_cache'])}"
    )
    message += f", prefixes {_mib(kept)}" if kept else ""
    message += "; and what a step computes with."
    data = {"bytes": needed, "gpu_layers": settings.gpu_layers, **total}
    available = memory_limit()
    if settings.gpu_layers or available is None or needed <= available:
        return Finding(level="ok", subject="memory", message=message, data=data)
    return Finding(
        level="error",
        subject="memory",
        message=f"{message} There are {_mib(available)}.",
        remedy="Lower kv_tokens, context or parallel, or choose a smaller kv_type or model.",
        data=data,
    )


def _locked(weights: int, settings: LlamaCppSettings) -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if settings.use_mlock and resource.RLIM_INFINITY != limit < weights:
        yield Finding(
            level="warning",
            subject="use_mlock",
            message=f"The weights have {_mib(weights)}, but only {_mib(limit)} may be locked.",
            remedy="Raise the limit (ulimit -l), or leave use_mlock out.",
        )


def _invalid(key: str, error: ModelFileInvalid) -> Finding:
    return Finding(level="error", subject=key, message=error.message, remedy=error.remedy)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"
