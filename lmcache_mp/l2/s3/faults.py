"""What the store or the library says, as sentences that say what to do.

obstore has few kinds of errors; the difference is in the text: a line, the store's XML if it sent
any, and after `Debug source:` all else. Of the XML only code and message are shown: the rest may
quote what was signed, and with which key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lmcache_mp.l2 import AdapterError

_XML = re.compile(r"<Code>([^<]*)</Code>\s*(?:<Message>([^<]*)</Message>)?")
_INNERMOST = re.compile(r'(?:message|error): "([^"]*)"')


def no_bucket(fault: Exception) -> bool:
    """Whether it is the bucket that is missing, rather than the object."""
    return "NoSuchBucket" in str(fault)


def explained(fault: Exception, where: str) -> AdapterError:
    """The error to raise for any of the library's; `where` names the store, without secrets."""
    text = str(fault)
    said = _said(text)
    for sign in _SIGNS:
        if sign.pattern.search(text):
            return AdapterError(f"{where} {sign.meaning}: {said}", lasting=sign.lasting)
    return AdapterError(f"{where} failed: {said}")


@dataclass(frozen=True, slots=True)
class _Sign:
    pattern: re.Pattern[str]
    meaning: str
    lasting: bool


# The first that fits counts.
_SIGNS = (
    _Sign(re.compile("NoSuchBucket"), "has no such bucket", True),
    _Sign(
        re.compile("certificate", re.IGNORECASE),
        "shows a certificate that does not verify (ca_file names the one to trust)",
        True,
    ),
    _Sign(
        re.compile(r"169\.254\.169\.254|CredentialProvider|token request"),
        "cannot be used: no credentials found, for instance in AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY",
        True,
    ),
    _Sign(
        re.compile(r"status code: 40[13]|InvalidAccessKeyId|SignatureDoesNotMatch"),
        "refuses: the credentials are wrong, or do not allow to list, read, write and delete",
        True,
    ),
    _Sign(
        re.compile(r"status code: 30\d|AuthorizationHeaderMalformed|IllegalLocation"),
        "is in another region: set `region`",
        True,
    ),
    _Sign(re.compile(r"status code: (429|503)|SlowDown"), "has too much to do", False),
    _Sign(re.compile("kind: Timeout|TimedOut"), "did not answer in time", False),
    _Sign(re.compile("kind: Connect|ConnectError"), "cannot be reached", False),
)


def _said(text: str) -> str:
    line, _, source = text.partition("Debug source:")
    if found := _XML.search(line):
        return ": ".join(part for part in found.groups() if part)
    if inner := _INNERMOST.findall(source):
        return str(inner[-1])
    return " ".join(line.split("<", 1)[0].split())
