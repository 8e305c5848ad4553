"""Sessions that need environments of their own. `python3 dev.py test` runs everything else."""

from __future__ import annotations

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
def bench(session: nox.Session) -> None:
    """Themis beside its peers: `nox -s bench -- serving`."""
    llama_cpp(session, "[server]==0.3.36")
    session.install("-c", CONSTRAINTS, *editable(*MEMBERS))
    session.install("-r", "benchmarks/requirements.txt")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["serving"]))
