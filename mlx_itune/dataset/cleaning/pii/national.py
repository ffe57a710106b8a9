"""Numbers that states and health systems give to persons: one row per scheme, one loop over all.

A scheme that is `strong` is recognised by its form and check rule alone; the others need one of
their words nearby, because their check digit lets one number in ten or eleven through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from mlx_itune.dataset.cleaning.pii import checksums
from mlx_itune.dataset.cleaning.pii import national_checksums as rules
from mlx_itune.dataset.cleaning.pii.hits import (
    LABELLED,
    LABELLED_VERIFIED,
    VALID_SHAPE,
    VERIFIED,
    Found,
)
from mlx_itune.dataset.cleaning.pii.spots import Spot

_LEFT = r"(?<![A-Za-z0-9])(?<![0-9][.\-/])"
_RIGHT = r"(?![A-Za-z0-9])(?![.\-/][0-9])"


class Scheme(NamedTuple):
    """One kind of number: its form, its rule, the words that go with it."""

    kind: str
    form: re.Pattern[str]
    valid: Callable[[str], bool]
    words: frozenset[str]
    strong: re.Pattern[str] | None
    checked: bool
    digits: int


def _scheme(
    kind: str, form: str, valid: Callable[[str], bool], words: str, *,
    strong: str = "", checked: bool = True, digits: int = 7,
) -> Scheme:  # fmt: skip
    flags = re.IGNORECASE
    return Scheme(
        kind,
        re.compile(_LEFT + form + _RIGHT, flags),
        valid,
        frozenset(words.split()),
        re.compile(strong, flags) if strong else None,
        checked,
        digits,
    )


# Words that may stand for any of these numbers.
_ANY = frozenset(
    """identity national citizen fiscal ausweis personalausweis identité identidad identità
    identidade identiteit steuer tin tax personnummer kimlik 身份证""".split()
)
_ALWAYS = ".*"
_TRIPLES = r"\d{3}[ \-.]?\d{3}[ \-.]?\d{3}"


def _std(rule: str) -> Callable[[str], bool]:
    return partial(rules.stdnum, rule)


NUMERIC = (
    _scheme("ssn", r"\d{3}([ \-.]?)\d{2}\1\d{4}", rules.us_ssn,
            "ssn ssns social itin taxpayer socialsecuritynumber ss", strong=r"...-..-....",
            checked=False),
    _scheme("ssn", r"9\d{2}([ \-]?)\d{2}\1\d{4}", rules.us_itin, "itin taxpayer ssn",
            strong=r"...-..-....", checked=False),
    _scheme("tax_id", r"\d{2}-?\d{7}", rules.us_ein,
            "ein fein employer", checked=False),
    _scheme("national_id", _TRIPLES, rules.ca_sin, "sin nas nid canadian"),
    _scheme("national_id", r"[1-478] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3}(?: |-)?\d{2}",
            rules.fr_nir, "nir sécurité sociale sécu insee ss vitale nss", strong=_ALWAYS),
    _scheme("tax_id", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", rules.de_tax_id,
            "steuer steuerid idnr steueridentifikationsnummer identifikationsnummer tin "
            "steueridentnummer steueridnr finanzamt"),
    _scheme("national_id", r"\d{4}[ .]?\d{2}[ .]?\d{3}|" + _TRIPLES, rules.nl_bsn,
            "bsn burgerservicenummer sofinummer sofi burgerservice"),
    _scheme("national_id", r"\d{3}\.?\d{3}\.?\d{3}[\-/ ]?\d{2}", rules.br_cpf,
            "cpf contribuinte receita cadastro", strong=r"\d{3}\.\d{3}\.\d{3}-\d\d"),
    _scheme("tax_id", r"\d{2}\.?\d{3}\.?\d{3}/?\d{4}-?\d{2}", rules.br_cnpj,
            "cnpj", strong=r"..\.?...\.?.../....-.."),
    _scheme("national_id", r"[2-9]\d{3}([ \-]?)\d{4}\1\d{4}", rules.in_aadhaar,
            "aadhaar aadhar uidai adhaar uid आधार", strong=r"....[ \-]....[ \-]...."),
    _scheme("tax_id", r"\d{3} ?\d{3} ?\d{2,3}", rules.au_tfn, "tfn file ato"),
    _scheme("health_id", r"[2-6]\d{3}[ \-]?\d{5}[ \-]?\d(?:[/ \-]?\d)?", rules.au_medicare,
            "medicare", strong=r"....[ \-].....[ \-]."),
    _scheme("national_id", r"(?:\d{2})?\d{6}[\-+ ]?\d{4}", rules.se_personnummer,
            "personnummer personal samordningsnummer svenskt personnr swedish",
            strong=r"\d+[-+]\d{4}"),
    _scheme("health_id", r"\d{3}[ \-]?\d{3}[ \-]?\d{4}", rules.uk_nhs, "nhs"),
    _scheme("provider_id", r"[12]\d{9}", checksums.npi, "npi provider prescriber prescribing"),
    _scheme("national_id", r"\d{11}", _std("pl.pesel"), "pesel"),
    _scheme("national_id", r"\d{2}\.?\d{2}\.?\d{2}[\-. ]?\d{3}[. ]?\d{2}", _std("be.nn"),
            "rijksregisternummer rijksregister registre insz niss belgian",
            strong=r"..\...\...-...\..."),
    _scheme("national_id", r"\d{6}[\- ]?\d{4}", _std("dk.cpr"), "cpr cprnummer personnummer"),
    _scheme("national_id", r"\d{6} ?\d{5}", _std("no.fodselsnummer"),
            "fødselsnummer fodselsnummer personnummer norwegian fnr"),
    _scheme("tax_id", _TRIPLES, _std("pt.nif"), "nif contribuinte"),
    _scheme("national_id", r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}", _std("ch.ssn"),
            "ahv avs", strong=_ALWAYS),
    _scheme("national_id", r"\d{17}[\dX]", rules.cn_id, "", strong=_ALWAYS),
    _scheme("national_id", r"\d{6}-?[0-9]\d{6}", _std("kr.rrn"), "rrn 주민등록번호",
            strong=r"......-......."),
    _scheme("national_id", r"\d{13}", _std("za.idnr"), "south rsa african sa"),
    _scheme("national_id", r"\d{11}", _std("tr.tckimlik"), "kimlik tc tckn"),
    _scheme("national_id", r"\d{11}", _std("gr.amka"), "amka αμκα"),
    _scheme("national_id", r"\d{13}", _std("ro.cnp"), "cnp"),
    _scheme("national_id", r"\d{6}/?\d{3,4}", _std("cz.rc"), "rodné rodne rč rodného"),
)  # fmt: skip

LETTERED = (
    _scheme("national_id",
            r"[A-CEGHJ-PRSTW-Z][A-CEGHJ-NPRSTW-Z]([ \-.]?)\d{2}\1\d{2}\1\d{2}\1[A-D]",
            rules.uk_nino, "ni nino nid", strong=_ALWAYS, checked=False, digits=6),
    # Beside its label a number of letters that were never given out is one as well.
    _scheme("national_id", r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Z]", lambda number: True,
            "ni nino nid", checked=False, digits=6),
    _scheme("national_id", r"\d{2}\.?\d{3}\.?\d{3}[\- ]?[A-Z]|[XYZ][\- ]?\d{7}[\- ]?[A-Z]",
            rules.es_dni, "dni nie nif documento", strong=_ALWAYS),
    _scheme("national_id", r"[A-Z]{3} ?[A-Z]{3} ?[\dL-V]{2}[A-T][\dL-V]{2} ?[A-Z][\dL-V]{3} ?[A-Z]",
            rules.it_codice_fiscale, "codice fiscale cf", strong=_ALWAYS, digits=1),
    _scheme("national_id", r"[12478] ?\d{2} ?\d{2} ?2[AB] ?\d{3} ?\d{3}(?: |-)?\d{2}",
            rules.fr_nir, "nir sécurité", strong=_ALWAYS, digits=1),
    _scheme("tax_id", r"[A-Z]{5}\d{4}[A-Z]", rules.in_pan, "pan permanent income",
            strong="[A-Z]{3}[PHF]", checked=False, digits=4),
    _scheme("national_id", r"\d{6}[\-+ABCDEFUVWXY]\d{3}[0-9A-Z]", _std("fi.hetu"),
            "henkilötunnus hetu", strong=_ALWAYS, digits=6),
    _scheme("national_id", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d", _std("mx.curp"),
            "curp", strong=_ALWAYS, digits=6),
    _scheme("health_id", r"[A-Z] ?\d{3} ?\d{3} ?\d{3}", rules.de_kvnr,
            "kvnr krankenversichertennummer versichertennummer krankenkasse versicherten kv "
            "krankenversicherungsnummer versichertennr gesundheitskarte", digits=9),
    _scheme("health_id", r"[1-9][A-Z][A-Z0-9]\d-?[A-Z][A-Z0-9]\d-?[A-Z]{2}\d{2}", rules.us_mbi,
            "mbi medicare beneficiary", strong=_ALWAYS, checked=False, digits=1),
    _scheme("provider_id", r"[A-Z][A-Z9]-?\d{7}", checksums.dea, "dea prescriber", digits=7),
)  # fmt: skip


def find(spot: Spot, *, lettered: bool) -> Iterator[Found]:
    """The personal numbers around a run of digits."""
    text = spot.page.text
    lo, hi = spot.start, min(len(text), spot.end + 3)
    if lettered:
        token_start, token_end = spot.token
        lo, hi = max(0, min(token_start, spot.start - 8)), max(hi, token_end)
    # A label of several words counts as a word of its own.
    words = spot.words | {spot.label.category}
    generic = not _ANY.isdisjoint(words)
    labelled = "tax_id" if spot.label.category == "tax" else ""
    for scheme in LETTERED if lettered else NUMERIC:
        if spot.count < scheme.digits:
            continue
        named = not scheme.words.isdisjoint(words) or scheme.kind == labelled
        if not named and scheme.strong is None and not generic:
            continue
        for match in scheme.form.finditer(text, lo, hi):
            number = match.group()
            if not _whole(text, match.end(), hi) or not scheme.valid(number):
                continue
            if not named and (spot.denied or _goes_on(text, *match.span())):
                continue
            if named or generic:
                rank = LABELLED_VERIFIED if scheme.checked else LABELLED + 3
                rank -= 5 * (not named)
            elif scheme.strong is not None and scheme.strong.match(number):
                rank = VERIFIED if scheme.checked else VALID_SHAPE
            else:
                continue
            yield Found(rank, scheme.kind, *match.span(), scheme.checked)


def _goes_on(text: str, start: int, end: int) -> bool:
    """Whether more groups of digits stand before or behind: a part of something longer."""
    after, before = text[end : end + 2], text[max(0, start - 2) : start]
    return (after[:1] in (" ", "-") and after[1:].isdigit()) or (
        before[1:] in (" ", "-") and before[:1].isdigit()
    )


def _whole(text: str, end: int, hi: int) -> bool:
    """Whether the number really ends here and was not cut off by the search's own border."""
    return end < hi or not text[end : end + 1].isalnum()
