"""Payment cards, IBANs, and addresses of crypto-currencies."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_itune.dataset.cleaning.pii import checksums
from mlx_itune.dataset.cleaning.pii.hits import LABELLED, LABELLED_VERIFIED, VERIFIED, Found
from mlx_itune.dataset.cleaning.pii.spots import Spot

_CARD = re.compile(
    r"(?<![A-Za-z0-9])(?<![0-9][.\-+])(?:"
    r"\d{4}([ .\-]{1,3})\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?"
    r"|3\d{3}([ .\-])\d{6}\2\d{4,5}|\d{12,19}"
    r"|\d(?:[ \-]?\d){11,18})(?![A-Za-z0-9])(?![\-.][0-9])"
)
# How cards are grouped; other groupings are believed beside a label only.
_GROUPED = re.compile(r"\d+|(?:\d{4}\D{1,3}){3}\d{1,4}(?:\D{1,3}\d{1,3})?|\d{4}\D\d{6}\D\d{4,5}")
_CARD_WORDS = frozenset(
    """card cards creditcard cardnumber visa mastercard amex maestro discover diners jcb cc
    kreditkarte kreditkartennummer kartennummer karte carte tarjeta carta cartão kaart creditcard
    kort karta debit credit pan カード 卡号 银行卡 信用卡""".split()
)
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[ ]?\d{2}(?=[ \-.]?[A-Za-z0-9]{2})")
_IBAN_CHARS = re.compile(r"(?:[ \-.]{0,2}[A-Za-z0-9]){11,36}")
_ETHEREUM = re.compile(r"(?<![A-Za-z0-9])0x[0-9A-Fa-f]{40}(?![A-Za-z0-9])")
_BASE58 = re.compile(r"(?<![A-Za-z0-9])[1-9A-HJ-NP-Za-km-z]{26,36}(?![A-Za-z0-9])")
_BECH32 = re.compile(
    r"(?<![A-Za-z0-9])(?:bc1|tb1|ltc1|BC1|addr1)[02-9ac-hj-np-zAC-HJ-NP-Z]{11,87}(?![A-Za-z0-9])"
)


def cards(spot: Spot) -> Iterator[Found]:
    """Cards among thirteen or more digits; an order or tracking number is believed."""
    text = spot.page.text
    for match in _CARD.finditer(text, max(0, spot.start - 1), spot.end):
        number = match.group()
        # Beside its label a number under Luhn is a card, whoever issued it.
        named = not _CARD_WORDS.isdisjoint(spot.words)
        if not checksums.card(number) and not (named and checksums.luhn(number)):
            continue
        if not named and (spot.denied or not _GROUPED.fullmatch(number)):
            continue
        rank = LABELLED_VERIFIED if named else VERIFIED - 1
        yield Found(rank, "card", *match.span(), True)


def ibans(spot: Spot) -> Iterator[Found]:
    """IBANs that begin with the two letters right before the run."""
    text = spot.page.text
    for start in _IBAN_START.finditer(text, max(0, spot.start - 4), spot.end + 4):
        length = checksums.IBAN_LENGTH.get(start.group(1).upper())
        body = _IBAN_CHARS.match(text, start.start() + 2, start.start() + 64) if length else None
        if body is None or length is None:
            continue
        end, wanted = start.start() + 2, length - 2
        while wanted and end < body.end():
            wanted -= text[end].isalnum()
            end += 1
        whole = not text[end : end + 1].isalnum()
        if not wanted and whole and checksums.iban(text[start.start() : end]):
            yield Found(LABELLED_VERIFIED, "iban", start.start(), end, True)


def crypto_addresses(spot: Spot) -> Iterator[Found]:
    """Base58Check and bech32 addresses; Ethereum's by form."""
    start, end = spot.token
    if end - start < 14:
        return
    text = spot.page.text
    for match in _ETHEREUM.finditer(text, start, end):
        yield Found(LABELLED, "crypto_address", *match.span())
    for match in _BASE58.finditer(text, start, end):
        if checksums.base58check(match.group()):
            yield Found(LABELLED_VERIFIED, "crypto_address", *match.span(), True)
    for match in _BECH32.finditer(text, start, end):
        if checksums.bech32(match.group()):
            yield Found(LABELLED_VERIFIED, "crypto_address", *match.span(), True)
