"""The server's port: whether it is free, and how the Themis is that serves there."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

from themis_core.hooks import Finding

_PATIENCE = 3.0  # Seconds for an answer.
_MOST = 1 << 20  # Bytes of it.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def port(host: str, number: int) -> list[Finding]:
    """Whether the server could listen; if one serves there already, its models and workers."""
    subject = f"{host}:{number}"
    if number == 0:
        return [Finding(level="ok", subject=subject, message="The system will choose a free one.")]
    try:
        family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            # As servers do: a connection that has just ended is in nobody's way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, number))
    except OSError as error:
        rows = _health(_EVERYWHERE.get(host, host), number)
        if rows is not None:
            return list(_served(subject, rows))
        return [
            Finding(
                level="warning",
                subject=subject,
                message=f"`themis serve` could not listen there: {error.strerror}.",
                remedy="Find out who does, or set server.port to another number.",
            )
        ]
    return [Finding(level="ok", subject=subject, message="It is free.")]


def _health(host: str, number: int) -> list[dict[str, Any]] | None:
    """What a Themis that serves there says of its models; None if there is no such server."""
    connection = http.client.HTTPConnection(host, number, timeout=_PATIENCE)
    try:
        connection.request("GET", "/health")
        found = json.loads(connection.getresponse().read(_MOST))
        rows = found["models"]
        good = all(isinstance(row["name"], str) and "state" in row for row in rows)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None  # Somebody else's.
    finally:
        connection.close()
    return rows if good else None


def _served(subject: str, rows: list[dict[str, Any]]) -> Iterator[Finding]:
    names = ", ".join(f"{row['name']} ({row['state']})" for row in rows)
    message = f"A Themis serves there: {names}."
    yield Finding(level="ok", subject=subject, message=message, data={"models": rows})
    for row in rows:
        worker = row.get("worker")
        if isinstance(worker, dict):
            yield _worker(row["name"], worker)
        elif row["state"] == "failed":
            message = "It has failed."
            remedy = "The server's log says why."
            yield Finding(level="warning", subject=row["name"], message=message, remedy=remedy)


def _worker(name: str, worker: dict[str, Any]) -> Finding:
    ended = worker.get("last_exit")
    message = f"Its worker is {worker.get('state')}"
    if not ended:
        return Finding(level="ok", subject=name, message=f"{message}.", data=worker)
    return Finding(
        level="warning",
        subject=name,
        message=f"{message}, restarted {worker.get('restarts')} time(s): the last one {ended}. "
        f"{worker.get('resumed')} request(s) were continued, {worker.get('poisonous')} refused.",
        remedy="The server's log (themis.worker) has its last 40 lines, and who was in flight.",
        data=worker,
    )
