"""NVIDIA's reference manifests: what is signed is what is used, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509

from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.canonical_xml import canonical, read_xml
from agent.attestation.gpu.claims import DeviceKind
from agent.attestation.gpu.identity import DeviceIdentity
from agent.attestation.gpu.rim import ReferenceManifest, read_manifest
from agent.attestation.gpu.rim_names import manifest_names
from agent.attestation.gpu.spdm import parse_report
from agent.attestation.pinned_chain import spki_sha256
from agent.attestation.roots import NVIDIA_RIM_ROOT
from tests.fakes.nvidia import GPU_FIELDS, NOW
from tests.fakes.nvidia_rim import (
    DS,
    SWID,
    VBIOS_GOLDEN,
    FakeRimSigner,
    content,
    insert,
    resource,
    signed_info,
)
from tests.tdx_gpu_vectors import VECTORS, needs_vectors

RIM = VECTORS / "nvidia-rim" / "vbios-1010_0200_882_96005E0001.swidtag"
REPORT = VECTORS / "nvidia-rim" / "hopper-96005E0001.report.hex"
WHILE_VALID = datetime(2025, 1, 1, tzinfo=UTC)
HOPPER = DeviceIdentity(
    kind=DeviceKind.GPU, architecture="HOPPER", chip="GH100", device="it", key="", fwid=None
)
GOOD = content(VBIOS_GOLDEN)
EVIL = content({0: [b"\xbb" * 48]})


@cache
def signer() -> FakeRimSigner:
    return FakeRimSigner()


def read(data: bytes, *, now: datetime = NOW) -> ReferenceManifest:
    return read_manifest(data, signer().root, now)


def code(data: bytes, root: str | None = None, now: datetime = NOW) -> str:
    with pytest.raises(EvidenceError) as caught:
        read_manifest(data, root or signer().root, now)
    assert len(str(caught.value)) > 20
    return caught.value.code


@needs_vectors
def test_a_genuine_report_is_golden_in_all_twelve_measurements():
    manifest = read_manifest(RIM.read_bytes(), NVIDIA_RIM_ROOT, WHILE_VALID)
    assert (manifest.product, manifest.version) == ("GH100", "96.00.5E.00.01")
    measured = dict(parse_report(bytes.fromhex(REPORT.read_text().strip())).measurements)
    golden = [index for index, values in manifest.golden.items() if measured[index + 1] in values]
    assert golden == list(manifest.golden)
    assert len(golden) == 12


@needs_vectors
def test_the_pinned_root_is_the_vendor_s():
    pem = (VECTORS / "nvidia-rim" / "rim_root.pem").read_bytes()
    assert spki_sha256(x509.load_pem_x509_certificate(pem)) == NVIDIA_RIM_ROOT


@needs_vectors
@pytest.mark.parametrize(
    "pattern",
    [
        rb'Hash0="([0-9a-f]{96})',
        rb'index="12" active="True" alternatives="(4)',
        rb'"(True)"',
        rb'colloquialVersion="(96)',
        rb"<ds:DigestValue>(D3)",
        rb"<ds:SignatureValue>(s5)",
    ],
)
def test_a_genuine_manifest_with_one_changed_digit_is_refused(pattern: bytes):
    data = bytearray(RIM.read_bytes())
    match = re.search(pattern, data)
    assert match is not None
    at = match.end(1) - 1
    data[at] = ord("4") if data[at] != ord("4") else ord("5")
    assert code(bytes(data), NVIDIA_RIM_ROOT, WHILE_VALID) in {
        "gpu_rim_signature",
        "gpu_rim_malformed",
    }


@needs_vectors
def test_a_genuine_manifest_tells_that_its_certificate_has_ended():
    for now in (WHILE_VALID, datetime(2026, 11, 1, tzinfo=UTC)):
        manifest = read_manifest(RIM.read_bytes(), NVIDIA_RIM_ROOT, now)
        assert f"{manifest.valid_until:%Y-%m-%d}" == "2025-06-22"
    before = datetime(2023, 1, 1, tzinfo=UTC)
    assert code(RIM.read_bytes(), NVIDIA_RIM_ROOT, before) == "gpu_rim_expired"
    assert code(RIM.read_bytes(), signer().root) == "gpu_rim_root"


@needs_vectors
def test_a_genuine_report_names_its_manifests():
    opaque = parse_report(bytes.fromhex(REPORT.read_text().strip())).opaque
    names = manifest_names(HOPPER, opaque, "535.86.09", "96.00.5E.00.01")
    assert [name.id for name in names] == [
        "NV_GPU_DRIVER_GH100_535.86.09",
        "NV_GPU_VBIOS_1010_0200_882_96005E0001",
    ]
    assert read_manifest(RIM.read_bytes(), NVIDIA_RIM_ROOT, WHILE_VALID).is_of(names[1])
    assert not read_manifest(RIM.read_bytes(), NVIDIA_RIM_ROOT, WHILE_VALID).is_of(names[0])


@pytest.mark.parametrize(
    ("identity", "fields", "driver", "vbios", "names"),
    [
        (
            HOPPER,
            dict(GPU_FIELDS),
            "590.12",
            "96.00.A5.00.01",
            ["NV_GPU_DRIVER_GH100_590.12", "NV_GPU_VBIOS_G520_0200_885_9600A50001"],
        ),
        (
            DeviceIdentity(
                kind=DeviceKind.GPU,
                architecture="BLACKWELL",
                chip="GB100",
                device="it",
                key="",
                fwid=None,
            ),
            {**GPU_FIELDS, 35: b"GB100B\0\0"},
            "590.12",
            "97.00.82.00.01",
            ["NV_GPU_CC_DRIVER_GB100B_590.12", "NV_GPU_VBIOS_G520_0200_885_9700820001"],
        ),
        (
            DeviceIdentity(
                kind=DeviceKind.NVSWITCH,
                architecture="LS10",
                chip="LS_10",
                device="it",
                key="",
                fwid=None,
            ),
            {},
            None,
            "96.10.55.00.01",
            ["NV_SWITCH_BIOS_5612_0002_890_9610550001"],
        ),
        (HOPPER, {15: b"885", 17: b"../x"}, "5/../9", "96.00.A5.00.01", []),
    ],
    ids=["hopper", "blackwell", "switch", "nothing that a name can have in it"],
)
def test_a_device_s_manifests_are_named_by_its_report(identity, fields, driver, vbios, names):
    assert [name.id for name in manifest_names(identity, fields, driver, vbios)] == names


def test_a_manifest_of_the_same_form_is_read():
    manifest = read(signer().manifest(VBIOS_GOLDEN))
    assert manifest.golden == {index: frozenset(v) for index, v in VBIOS_GOLDEN.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: '<?xml version="1.0" encoding="UTF-8"?>\n' + text,
        lambda text: text.replace("></ns0:Resource>", "/>"),
        lambda text: text.replace(' edition="GPU"', "\n  edition = 'GPU'"),
        lambda text: text.replace(
            ' name="GH100" tagId="of the tests"', ' tagId="of the tests"   name="GH100"'
        ),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("of the tests", "of&#32;the tests"),
    ],
    ids=["declaration", "empty tags", "white space", "order", "line ends", "references"],
)
def test_what_is_the_same_canonically_is_the_same(change: Callable[[str], str]):
    data = signer().signed(GOOD).decode()
    changed = change(data)
    assert changed != data
    assert read(changed.encode()) == read(data.encode())


def _moved(text: str) -> bytes:
    """The signature under another element than the document's."""
    info = signed_info(text)
    return text.replace("<ns0:Payload>", f"<ns0:Payload>{signer().signature(info)}").encode()


def _wrapped() -> bytes:
    """A signed document, whole, inside another that says something else."""
    inner = signer().signed(GOOD).decode()
    return EVIL.replace("</ns0:Payload>", f"</ns0:Payload>{inner}").encode()


def _with_stolen_signature() -> bytes:
    return insert(EVIL, signer().signature(signed_info(GOOD)))


def _covering(uri: str) -> bytes:
    """The signature is over one element, and the document brings its own golden values."""
    part = f'<ns0:Meta xmlns:ns0="{SWID}" Id="it"></ns0:Meta>'
    return insert(EVIL, signer().signature(signed_info(part, uri=uri)))


def _with_two() -> bytes:
    one = signer().signature(signed_info(GOOD))
    return insert(GOOD, one + one)


def _changed(old: str, new: str) -> bytes:
    data = signer().signed(GOOD).decode()
    assert old in data
    return data.replace(old, new, 1).encode()


def _with_object() -> bytes:
    return _changed("</ds:Signature>", f'<ds:Object Id="it">{EVIL}</ds:Object></ds:Signature>')


def _signed_by_another() -> bytes:
    """Its own key, under the certificates of the one that is believed."""
    other, data = FakeRimSigner(), signer().signed(GOOD).decode()
    theirs = other.signed(GOOD).decode()
    value = re.search("<ds:SignatureValue>(.*?)<", theirs)
    ours = re.search("<ds:SignatureValue>(.*?)<", data)
    assert value is not None
    assert ours is not None
    return data.replace(ours[1], value[1]).encode()


XPATH = "http://www.w3.org/TR/1999/REC-xpath-19991116"
MORE = "http://www.w3.org/2001/04/xmldsig-more#"
FORGERIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no signature": ("gpu_rim_signature", GOOD.encode),
    "another element, by its id": ("gpu_rim_signature", lambda: _covering("#it")),
    "another element, by a pointer": (
        "gpu_rim_signature",
        lambda: _covering("#xpointer(id('it'))"),
    ),
    "a reference by id to all of it": (
        "gpu_rim_signature",
        lambda: signer().signed(GOOD, uri="#it"),
    ),
    "a document elsewhere": ("gpu_rim_signature", lambda: _covering("https://example.org/rim")),
    "the signature of another document": ("gpu_rim_signature", _with_stolen_signature),
    "a signed document inside another": ("gpu_rim_signature", _wrapped),
    "a signature that is deeper": ("gpu_rim_signature", lambda: _moved(GOOD)),
    "two signatures": ("gpu_rim_signature", _with_two),
    "an object beside it": ("gpu_rim_signature", _with_object),
    "golden values beside the payload": (
        "gpu_rim_signature",
        lambda: _changed("</ns0:Payload>", f"{resource(40, [bytes(48)])}</ns0:Payload>"),
    ),
    "another payload": (
        "gpu_rim_signature",
        lambda: _changed("</ns0:Payload>", "</ns0:Payload><ns0:Payload></ns0:Payload>"),
    ),
    "a golden value": ("gpu_rim_signature", lambda: _changed("0101", "0102")),
    "another signer": ("gpu_rim_signature", _signed_by_another),
    "a transform of the signer's choosing": (
        "gpu_rim_signature",
        lambda: signer().signed(GOOD, enveloped=XPATH),
    ),
    "another canonical form": (
        "gpu_rim_signature",
        lambda: signer().signed(GOOD, by="http://www.w3.org/2001/10/xml-exc-c14n#"),
    ),
    "a message code": (
        "gpu_rim_signature",
        lambda: signer().signed(GOOD, method=f"{DS}hmac-sha1"),
    ),
    "another digest": (
        "gpu_rim_signature",
        lambda: signer().signed(GOOD, digest="http://www.w3.org/2001/04/xmlenc#sha256"),
    ),
    "another curve's method": (
        "gpu_rim_signature",
        lambda: signer().signed(GOOD, method=f"{MORE}ecdsa-sha256"),
    ),
    "no certificate": (
        "gpu_rim_incomplete",
        lambda: re.sub(
            rb"<ds:X509Certificate>.*</ds:X509Certificate>", b"", signer().signed(GOOD), flags=re.S
        ),
    ),
    "a key that is named": (
        "gpu_rim_signature",
        lambda: _changed("<ds:X509Data>", "<ds:KeyName>it</ds:KeyName><ds:X509Data>"),
    ),
    "a document type": ("gpu_rim_malformed", lambda: b"<!DOCTYPE it>" + signer().signed(GOOD)),
    "an entity": (
        "gpu_rim_malformed",
        lambda: b'<!DOCTYPE it [<!ENTITY e "x">]>' + signer().signed(GOOD),
    ),
    "a comment": ("gpu_rim_malformed", lambda: _changed("<ns0:Payload>", "<ns0:Payload><!---->")),
    "an instruction": (
        "gpu_rim_malformed",
        lambda: _changed("<ns0:Payload>", "<ns0:Payload><?x?>"),
    ),
    "a CDATA section": (
        "gpu_rim_malformed",
        lambda: _changed("<ns0:Payload>", "<ns0:Payload><![CDATA[]]>"),
    ),
    "another base": (
        "gpu_rim_malformed",
        lambda: _changed("<ns0:Payload>", '<ns0:Payload xml:base="https://example.org">'),
    ),
    "another encoding": (
        "gpu_rim_malformed",
        lambda: b'<?xml version="1.0" encoding="UTF-16"?>' + signer().signed(GOOD),
    ),
    "UTF-16": ("gpu_rim_malformed", lambda: signer().signed(GOOD).decode().encode("utf-16")),
    "UTF-16 that tells nothing": (
        "gpu_rim_malformed",
        lambda: signer().signed(GOOD).decode().encode("utf-16-le"),
    ),
    "deep nesting": ("gpu_rim_malformed", lambda: b"<a>" * 50 + b"</a>" * 50),
    "too much": ("gpu_rim_malformed", lambda: b"<a>" + b"x" * (128 << 10) + b"</a>"),
    "nothing": ("gpu_rim_malformed", lambda: b""),
    "no XML": ("gpu_rim_malformed", lambda: b"\xff\xfe\x00"),
}


@pytest.mark.parametrize(("wanted", "make"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_is_refused(wanted: str, make: Callable[[], bytes]):
    assert code(make()) == wanted


def _rows(*rows: str) -> bytes:
    return signer().signed(content({}, rows="".join(rows)))


ONE = resource(0, [bytes(48)])
SIGNED_NONSENSE: dict[str, bytes | Callable[[], bytes]] = {
    "an index twice": lambda: _rows(ONE, ONE),
    "an index twice, once inactive": lambda: _rows(ONE, resource(0, [bytes(48)], active="False")),
    "no active measurement": lambda: _rows(resource(0, [bytes(48)], active="False")),
    "no measurement": lambda: _rows(" "),
    "active in other letters": lambda: _rows(resource(0, [bytes(48)], active="true")),
    "fewer digests than it says": lambda: _rows(
        ONE.replace('alternatives="1"', 'alternatives="2"')
    ),
    "more digests than it says": lambda: _rows(
        resource(0, [bytes(48)] * 2).replace('alternatives="2"', 'alternatives="1"')
    ),
    "digests of none": lambda: _rows(resource(0, [])),
    "a short digest": lambda: _rows(resource(0, [bytes(47)])),
    "another size": lambda: _rows(ONE.replace('size="48"', 'size="32"')),
    "a negative index": lambda: _rows(ONE.replace('index="0"', 'index="-1"')),
    "an index of letters": lambda: _rows(ONE.replace('index="0"', 'index="٣"')),
    "no index": lambda: _rows(ONE.replace(' index="0"', "")),
    "something else in the payload": lambda: _rows(ONE, "<ns0:File></ns0:File>"),
    "two payloads": lambda: signer().signed(
        GOOD.replace("</ns0:Payload>", "</ns0:Payload><ns0:Payload></ns0:Payload>")
    ),
    "no version": lambda: signer().signed(GOOD.replace(' colloquialVersion="96.00.A5.00.01"', "")),
    "no product": lambda: signer().signed(GOOD.replace(' product="GH100"', "")),
}


@pytest.mark.parametrize("make", SIGNED_NONSENSE.values(), ids=SIGNED_NONSENSE.keys())
def test_what_makes_no_sense_is_refused_whoever_signed_it(make: Callable[[], bytes]):
    assert code(make()) == "gpu_rim_malformed"


def test_another_kind_of_tag_is_refused():
    text = GOOD.replace("SoftwareIdentity", "SoftwareMeter")
    head, end, _ = text.rpartition("</SoftwareMeter>")
    data = f"{head}{signer().signature(signed_info(text))}{end}".encode()
    assert code(data) == "gpu_rim_malformed"


def test_other_resources_than_measurements_are_not_compared():
    extra = ONE.replace('type="Measurement"', 'type="Firmware"').replace('index="0"', 'index="9"')
    assert set(read(_rows(ONE, extra)).golden) == {0}


def test_certificates_are_held_against_the_root_and_their_dates():
    other = FakeRimSigner()
    data = signer().manifest(VBIOS_GOLDEN)
    assert code(data, root=other.root) == "gpu_rim_root"
    assert code(data, now=datetime(2024, 1, 1, tzinfo=UTC)) == "gpu_rim_expired"
    ended = FakeRimSigner(leaf_end=NOW - timedelta(days=1))
    manifest = read_manifest(ended.manifest(VBIOS_GOLDEN), ended.root, NOW)
    assert manifest.valid_until < NOW


def test_a_ca_signs_no_manifest():
    """Its authority's key, in the place of the signer's."""
    crooked = FakeRimSigner()
    crooked.chain = crooked.chain[1:]
    assert code(crooked.manifest(VBIOS_GOLDEN), root=crooked.root) == "gpu_rim_invalid"


# After the examples of the recommendation, 3.3 (tags) and 3.4 (characters).
@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("<e1   />", "<e1></e1>"),
        ('<e3   name = "elem3"   id="elem3"   />', '<e3 id="elem3" name="elem3"></e3>'),
        (
            '<e5 a:attr="out" b:attr="sorted" attr2="all" attr="I\'m" '
            'xmlns:b="http://www.ietf.org" xmlns:a="http://www.w3.org" xmlns="http://example.org"/>',
            '<e5 xmlns="http://example.org" xmlns:a="http://www.w3.org" '
            'xmlns:b="http://www.ietf.org" attr="I\'m" attr2="all" b:attr="sorted" '
            'a:attr="out"></e5>',
        ),
        (
            '<e6 xmlns="" xmlns:a="http://www.w3.org"><e7 xmlns="http://www.ietf.org">'
            '<e8 xmlns="" xmlns:a="http://www.w3.org"><e9 xmlns="" '
            'xmlns:a="http://www.ietf.org"/></e8></e7></e6>',
            '<e6 xmlns:a="http://www.w3.org"><e7 xmlns="http://www.ietf.org"><e8 xmlns="">'
            '<e9 xmlns:a="http://www.ietf.org"></e9></e8></e7></e6>',
        ),
        (
            '<c>value>"0" &amp;&amp; value&lt;"10" ?"valid":"error" &#x0d;</c>',
            '<c>value&gt;"0" &amp;&amp; value&lt;"10" ?"valid":"error" &#xD;</c>',
        ),
        (
            "<n attr='&apos; &#x20;&#13;&#xa;&#9;\t &apos; \"&gt;'/>",
            "<n attr=\"'  &#xD;&#xA;&#x9;  ' &quot;>\"></n>",
        ),
    ],
)
def test_the_canonical_form_is_that_of_the_recommendation(text: str, written: str):
    element = read_xml(text.encode(), "it")
    assert canonical(element).decode() == written
    assert canonical(read_xml(written.encode(), "it")).decode() == written


def test_a_part_brings_the_namespaces_that_it_was_in():
    outer = read_xml(b'<a xmlns="u:1" xmlns:p="u:2"><p:b xmlns:p="u:3"><c/></p:b>x</a>', "it")
    (inner,) = outer.elements
    assert canonical(inner) == b'<p:b xmlns="u:1" xmlns:p="u:3"><c></c></p:b>'
    assert canonical(outer, without=inner) == b'<a xmlns="u:1" xmlns:p="u:2">x</a>'


@pytest.mark.parametrize(
    "text",
    [
        "<a:b/>",
        "<a p:x='1'/>",
        "<a x='1' x='2'/>",
        "<a xmlns:p='u' xmlns:q='u' p:x='1' q:x='2'/>",
        "<a xmlns:xmlns='u'/>",
        "<a xmlns:xml='http://www.w3.org/XML/1998/namespace'/>",
        "<a xmlns:p='http://www.w3.org/XML/1998/namespace' p:base='x'/>",
        "<a xmlns:p='u'><b xmlns:p=''/></a>",
        "<a xmlns='u'><:b/></a>",
        "<a>&e;</a>",
        "<a/><b/>",
    ],
)
def test_names_and_namespaces_are_read_strictly(text: str):
    with pytest.raises(EvidenceError) as caught:
        read_xml(text.encode(), "it")
    assert caught.value.code == "it"
