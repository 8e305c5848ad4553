"""The kinds of plugins, and in what their packages differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind. `family` is the plugin's family in `themis_core.hooks.FAMILIES`.

    `modules` and `data` are templates of the kind beside its test; `settings` are fields, as text.
    `example` shows the plugin's use in `themis.toml`.
    """

    family: str
    descriptor: str
    what: str
    help: str
    modules: tuple[tuple[str, str], ...]
    settings: str
    example: str
    tests: str
    data: tuple[str, ...] = ()
    engine: bool = False


KINDS = {
    "backend": Kind(
        family="backends",
        descriptor="BackendPlugin",
        what="a backend",
        help="Says the prompt again and again.",
        modules=(
            ("backend", "the contract `Backend`, method by method"),
            ("words", "the stand-in for a model"),
        ),
        settings="""\
    context: Annotated[
        int, msgspec.Meta(ge=1, description="Most tokens of a prompt and its answer together.")
    ] = 4096
    delay: Annotated[
        float, msgspec.Meta(ge=0, description="Seconds to wait before each word, as a model would.")
    ] = 0.0
""",
        example='[models.m]\nbackend = "$name"\n',
        tests="the kit `BackendConformance`, applied",
    ),
    "runner": Kind(
        family="backends",
        descriptor="BackendPlugin",
        what="a backend, made of a `ModelRunner`",
        help="Predicts each byte from those before it, as counted in a text.",
        modules=(("runner", "the contract `ModelRunner`: logits, and a KV cache"),),
        settings="""\
    path: Annotated[str, msgspec.Meta(min_length=1, description="The text to learn from.")]
    context: Annotated[
        int, msgspec.Meta(ge=2, description="Most tokens of a prompt and its answer together.")
    ] = 512
    parallel: Annotated[int, msgspec.Meta(ge=1, description="Most sequences held at once.")] = 8
""",
        example='[models.m]\nbackend = "$name"\npath = "README.md"\n',
        tests="the kit `RunnerConformance`, applied",
        engine=True,
    ),
    "transport": Kind(
        family="transports",
        descriptor="TransportPlugin",
        what="a transport",
        help="TCP, in the clear.",
        modules=(
            ("transport", "the contract `Transport`: serving and connecting"),
            ("connection", "messages over one connection"),
        ),
        settings="",
        example='# themis worker --listen $name://127.0.0.1:9000\n[models.m]\nsource = "tiny"\n',
        tests="the kit `TransportConformance`, applied",
    ),
    "cache": Kind(
        family="caches",
        descriptor="CachePlugin",
        what="a response cache",
        help="Keeps what was used lately, in memory.",
        modules=(("cache", "the contract `Cache`"),),
        settings="""\
    megabytes: Annotated[int, msgspec.Meta(ge=1, description="Most that is kept, in MiB.")] = 64
""",
        example="# Themis has no key for caches yet.\n",
        tests="the kit `CacheConformance`, applied",
    ),
    "quota": Kind(
        family="quotas",
        descriptor="QuotaPlugin",
        what="a quota",
        help="So many requests of one tenant at once.",
        modules=(("quota", "the contract `Quota`"),),
        settings="""\
    at_once: Annotated[
        int, msgspec.Meta(ge=1, description="Most requests of one tenant that run at once.")
    ] = 16
""",
        example='[quota]\nuse = "$name"\nat_once = 8\n',
        tests="the kit `QuotaConformance`, applied",
    ),
    "validator": Kind(
        family="validators",
        descriptor="ValidatorPlugin",
        what="a validator",
        help="Refuses prompts and answers in which one of some phrases stands.",
        modules=(("validator", "the contract `Validator`, for prompts and for streams"),),
        settings="""\
    phrases: Annotated[
        tuple[str, ...], msgspec.Meta(min_length=1, description="What may not be said.")
    ]
""",
        example='[validators.phrases]\nuse = "$name"\nphrases = ["open sesame"]\n',
        tests="the kit `ValidatorConformance`, applied",
    ),
    "front-door": Kind(
        family="front_doors",
        descriptor="FrontDoorPlugin",
        what="a front door",
        help="A line of text in, the answer out, over TCP.",
        modules=(("server", "the contract `FrontDoor`"),),
        settings="""\
    most_tokens: Annotated[int, msgspec.Meta(ge=1, description="Most tokens of an answer.")] = 256
    patience: Annotated[
        float, msgspec.Meta(ge=0, description="Seconds that answers have to end when it closes.")
    ] = 5.0
""",
        example='[server]\nuse = "$name"\n',
        tests="answers, refusals, closing",
    ),
    "model": Kind(
        family="models",
        descriptor="BundledModel",
        what="a bundled model",
        help="Greets, on the backend echo.",
        modules=(),
        data=("greeting.txt",),
        settings="",
        example='[models.m]\nsource = "$name"\n',
        tests="its files, and its settings on each backend",
    ),
}
