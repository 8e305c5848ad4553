"""The `format`s of JSON Schema that are honoured: what is generated, and how it is checked.

A pattern here is narrower than its standard where readers disagree: no leap seconds, no year 0,
upper-case `T` and `Z`, no non-ASCII host names. Sources: RFC 3339 (dates and times, durations in
appendix A), RFC 5321 (mail), RFC 1123 (host names), RFC 4291 (IPv6), RFC 9562 (UUID), RFC 3986
(URI), RFC 6901 (JSON pointer).
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """An anchored pattern that generates, and a function that says whether a text conforms."""

    pattern: str
    conforms: Callable[[str], bool]


_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP}-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+\-]{_CLOCK})"
_DURATION = (
    "P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?"
    "|[0-9]{1,9}D)(?:T{time})?|T{time})"
).replace(
    "{time}",
    "(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S)",
)
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9]|-[A-Za-z0-9]){0,15}"
_TOP = "[A-Za-z](?:[A-Za-z0-9]|-[A-Za-z0-9]){0,15}"
_HOST = rf"(?:{_LABEL}\.){{0,6}}{_TOP}"
_ATOM = r"[A-Za-z0-9!#$%&'*+\-/=?\^_`{|}~]{1,10}"
_MAIL = rf"{_ATOM}(?:\.{_ATOM}){{0,4}}@{_HOST}"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_H16 = "[0-9A-Fa-f]{1,4}"
_IPV6 = "(?:{})".format(
    "|".join(
        [f"{_H16}(?::{_H16}){{7}}", "::", f"::{_H16}(?::{_H16}){{0,6}}"]
        + [
            f"{_H16}(?::{_H16}){{{n - 1}}}::(?:{_H16}(?::{_H16}){{0,{6 - n}}})?"
            for n in range(1, 7)
        ]
        + [f"{_H16}(?::{_H16}){{6}}::"]
    )
)
_UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_SEGMENT = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_USER = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:]|%[0-9A-Fa-f]{2})*@"
_PORT = ":(?:[1-9][0-9]{0,3})?"
_TAIL = rf"(?:\?(?:{_SEGMENT}|[/?])*)?(?:#(?:{_SEGMENT}|[/?])*)?"
_AUTHORITY = rf"(?:{_USER})?(?:{_HOST}|{_IPV4}|\[{_IPV6}\])(?:{_PORT})?"
_PATH = rf"(?:/(?:{_SEGMENT}+(?:/{_SEGMENT}*)*)?|{_SEGMENT}+(?:/{_SEGMENT}*)*)"
_URI = rf"[A-Za-z][A-Za-z0-9+\-.]*:(?://{_AUTHORITY}(?:/{_SEGMENT}*)*|{_PATH}){_TAIL}"
_POINTER = r"(?:/(?:[^~/\x00-\x1f]|~[01])*)*"


def _parses(read: Callable[[str], object]) -> Callable[[str], bool]:
    def conforms(text: str) -> bool:
        try:
            read(text)
        except ValueError:
            return False
        return text.isascii()

    return conforms


def _read_time(text: str) -> None:
    if datetime.datetime.fromisoformat(f"2000-01-01T{text}").tzinfo is None or len(text) < 9:
        raise ValueError("a time needs seconds and a time zone")


def _read_date_time(text: str) -> None:
    datetime.date.fromisoformat(text[:10])
    if text[10:11] not in ("T", "t"):
        raise ValueError("no T between date and time")
    _read_time(text[11:])


def _read_date(text: str) -> None:
    if len(text) != 10:
        raise ValueError("not YYYY-MM-DD")
    datetime.date.fromisoformat(text)


def _read_uuid(text: str) -> None:
    if str(uuid.UUID(text)) != text.lower():
        raise ValueError("not the usual form")


def _is_host(text: str) -> bool:
    labels = text.split(".")
    return (
        0 < len(text) <= 253
        and text.isascii()
        and all(0 < len(x) < 64 and x.replace("-", "").isalnum() for x in labels)
        and not any(x[0] == "-" or x[-1] == "-" for x in labels)
    )


def _is_mail(text: str) -> bool:
    local, at, host = text.rpartition("@")
    atoms = local.split(".")
    special = set('()<>[]:;@\\," ')
    return (
        bool(at)
        and text.isascii()
        and len(local) <= 64
        and all(atoms)
        and not special & set(local)
        and _is_host(host)
    )


def _is_duration(text: str) -> bool:
    """Units in order, at least one, no gap between them, weeks alone."""
    date, t, time = text[1:].partition("T")
    units = [re.findall(r"[0-9]+([A-Z])", part) for part in (date, time)]
    written = ["".join(re.split(r"[0-9]+", part)) for part in (date, time)]
    return (
        text.startswith("P")
        and ["".join(u) for u in units] == written
        and all(re.fullmatch(r"(?:[0-9]+[A-Z])*", part) is not None for part in (date, time))
        and (written[0] == "W" and not t if "W" in written[0] else written[0] in "YMD")
        and written[1] in "HMS"
        and bool(written[1]) == bool(t)
        and bool(written[0] or written[1])
    )


def _is_uri(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    bad = set(' <>"{}|\\^`') & set(text)
    escaped = all(
        len(x) >= 2 and set(x[:2]) <= set("0123456789abcdefABCDEF") for x in text.split("%")[1:]
    )
    return bool(parts.scheme) and text.isascii() and text.isprintable() and not bad and escaped


def _is_pointer(text: str) -> bool:
    escapes = text.split("~")[1:]
    return (not text or text.startswith("/")) and all(x[:1] in ("0", "1") for x in escapes)


FORMATS = {
    "date": Format(f"^{_DATE}$", _parses(_read_date)),
    "time": Format(f"^{_TIME}$", _parses(_read_time)),
    "date-time": Format(f"^{_DATE}T{_TIME}$", _parses(_read_date_time)),
    "duration": Format(f"^{_DURATION}$", _is_duration),
    "email": Format(f"^{_MAIL}$", _is_mail),
    "hostname": Format(f"^{_HOST}$", _is_host),
    "ipv4": Format(f"^{_IPV4}$", _parses(ipaddress.IPv4Address)),
    "ipv6": Format(f"^{_IPV6}$", _parses(ipaddress.IPv6Address)),
    "uuid": Format(f"^{_UUID}$", _parses(_read_uuid)),
    "uri": Format(f"^{_URI}$", _is_uri),
    "json-pointer": Format(f"^{_POINTER}$", _is_pointer),
}
"""By name, as JSON Schema draft 2020-12 and RFC 6901 name them."""
