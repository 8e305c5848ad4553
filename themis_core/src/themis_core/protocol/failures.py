"""Errors, whole: all a `ThemisError` says travels, and the same class is raised there."""

from __future__ import annotations

from typing import Any, overload

import msgspec

from themis_core.errors import ConfigInvalid, InternalError, ThemisError, all_error_types


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="error"):
    """A `ThemisError` as data. `kind` is its class; `codes` are those of that and of its bases."""

    kind: str
    codes: tuple[str, ...]
    message: str
    retryable: bool
    field: str | None = None
    remedy: str | None = None
    plugin: str | None = None
    cause: str | None = None
    problems: tuple[str, ...] = ()


class RemoteCause(Exception):
    """The cause of an error at the other end, as text."""


def to_failure(error: BaseException) -> Failure:
    """An error as data. What is no `ThemisError` is a defect of the backend."""
    if not isinstance(error, ThemisError):
        wrapped = InternalError(f"The backend failed unexpectedly: {error!r}.")
        wrapped.__cause__ = error
        error = wrapped
    codes = [c.code for c in type(error).__mro__ if issubclass(c, ThemisError)]
    return Failure(
        kind=type(error).__name__,
        codes=tuple(dict.fromkeys([error.code, *codes])),
        message=_clean(error.message),
        retryable=error.retryable,
        field=_clean(error.field),
        remedy=_clean(error.remedy),
        plugin=_clean(error.plugin),
        cause=_cause(error.__cause__),
        problems=tuple(_clean(str(p)) for p in getattr(error, "problems", ())),
    )


def to_error(failure: Failure) -> ThemisError:
    """The error, of the nearest class that is known here, with the other end's cause."""
    cls = _class(failure)
    extra: dict[str, Any] = {"problems": failure.problems} if cls is ConfigInvalid else {}
    error = cls(
        failure.message,
        field=failure.field,
        remedy=failure.remedy,
        plugin=failure.plugin,
        **extra,
    )
    if failure.codes and error.code != failure.codes[0]:
        error.__dict__["code"] = failure.codes[0]
    if error.retryable != failure.retryable:
        error.__dict__["retryable"] = failure.retryable
    if failure.cause is not None:
        error.__cause__ = RemoteCause(failure.cause)
    return error


def _class(failure: Failure) -> type[ThemisError]:
    for code in failure.codes:
        same = [cls for cls in all_error_types() if cls.code == code]
        if same:
            return next((cls for cls in same if cls.__name__ == failure.kind), same[0])
    return InternalError


def _cause(cause: BaseException | None) -> str | None:
    """The chain of causes, as text."""
    texts: list[str] = []
    while cause is not None and len(texts) < 8:
        texts.append(str(cause) if isinstance(cause, RemoteCause) else repr(cause))
        cause = cause.__cause__
    return _clean(" <- ".join(texts)) if texts else None


@overload
def _clean(text: str) -> str: ...
@overload
def _clean(text: None) -> None: ...
def _clean(text: str | None) -> str | None:
    """Text that UTF-8 can carry: library messages sometimes hold lone surrogates."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
