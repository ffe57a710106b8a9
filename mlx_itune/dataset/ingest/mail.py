"""An e-mail as it was saved: who wrote what to whom, and its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email import policy
from email.parser import BytesParser
from typing import Any

from mlx_itune.dataset.ingest.html import read_html
from mlx_itune.dataset.ingest.passages import Block
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.wording import listing

_HEADERS = ("From", "To", "Cc", "Date")
_MOST_NESTED = 5
_SEALED = ("application/pkcs7-mime", "application/x-pkcs7-mime", "multipart/encrypted")
_CUT_OFF = ("CloseBoundaryNotFoundDefect", "InvalidBase64PaddingDefect")


def read_mail(data: bytes, note: Callable[[str], None], depth: int = 0) -> Iterator[Block]:
    """The subject as a heading, the other headers, the text; letters within it, too. Raises
    DataError."""
    try:
        mail = BytesParser(policy=policy.default).parsebytes(data)
        if not mail.keys():
            raise DataError("is no e-mail: it has no headers")
        if mail.get_content_type() in _SEALED:
            raise DataError("is encrypted", hint="open it and save its text")
        yield Block(str(mail.get("Subject") or "(no subject)"), "heading", min(depth + 1, 6))
        yield Block("\n".join(f"{name}: {mail[name]}" for name in _HEADERS if mail[name]))
        body = mail.get_body(("plain", "html"))
        if body is not None:
            charset = body.get_content_charset() or "utf-8"
            raw = body.get_payload(decode=True)
            raw = raw if isinstance(raw, bytes) else str(raw or "").encode()
            text = _decoded(raw, charset)
            if body.get_content_subtype() == "html":
                yield from read_html(text.encode())
            else:
                for paragraph in text.replace("\r\n", "\n").split("\n\n"):
                    yield Block(paragraph)
        left: list[str] = []
        for part in mail.iter_attachments():
            if part.get_content_type() == "message/rfc822" and depth < _MOST_NESTED:
                inner: Any = part.get_payload(0)
                yield from read_mail(inner.as_bytes(), note, depth + 1)
            else:
                left.append(part.get_filename() or part.get_content_type())
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"is a broken e-mail: {error}") from error
    defects = (type(each).__name__ for part in mail.walk() for each in part.defects)
    if any(each in _CUT_OFF for each in defects):
        raise DataError("is cut off: its end is missing", hint="get a whole copy")
    if left:
        note(f"attachments not read: {listing(left)}")


def _decoded(raw: bytes, charset: str) -> str:
    try:
        return raw.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return raw.decode("utf-8", "replace")
