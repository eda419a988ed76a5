"""Content credentials: read from files that the test signs itself, without a network."""

import datetime
import io
import json

import pytest
from PIL import Image

from evaluation.deepfake.credentials import Credentials, read_credentials
from launch.errors import UserError
from tests.evaluation.deepfake.made import textures

c2pa = pytest.importorskip("c2pa", reason="pip install 'alignkit[watermark]'", exc_type=ImportError)
MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CAMERA = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"


def certificate(x509, hashes, subject, issuer, key, signer, usage, authority):
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=30))
    for extension, critical in (
        (x509.BasicConstraints(ca=authority, path_length=None), True),
        (x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
        *(((x509.ExtendedKeyUsage([usage]), False),) if usage else ()),
    ):
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def signer():
    """A certificate chain of its own, as C2PA wants it: an end entity for e-mail protection, signed by an authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text):
        return x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "test"), x509.NameAttribute(NameOID.COMMON_NAME, text)]
        )

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    top = certificate(x509, hashes, name("root"), name("root"), root, root, None, True)
    end = certificate(x509, hashes, name("leaf"), name("root"), leaf, root, ExtendedKeyUsageOID.EMAIL_PROTECTION, False)
    pem = serialization.Encoding.PEM
    private = leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain = end.public_bytes(pem) + top.public_bytes(pem)
    return c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, chain, private, None)


def picture(path, seed=0):
    Image.fromarray(textures(1, 64, seed)[0, 0].repeat(3).reshape(64, 64, 3)).save(path, quality=95)
    return path


def sign(path, signer, source):
    """The file, signed, with one action of a digital source type."""
    actions = {"actions": [{"action": "c2pa.created", "digitalSourceType": source}]}
    manifest = {
        "claim_generator_info": [{"name": "test"}],
        "title": "x",
        "assertions": [{"label": "c2pa.actions.v2", "data": actions}],
    }
    signed = io.BytesIO()
    with c2pa.Signer.from_info(signer) as key, c2pa.Builder(json.dumps(manifest)) as builder:
        builder.sign(key, "image/jpeg", io.BytesIO(path.read_bytes()), signed)
    path.write_bytes(signed.getvalue())
    return path


def test_manifests_are_found_and_say_who_made_the_picture(tmp_path, signer):
    plain = picture(tmp_path / "plain.jpg")
    model = sign(picture(tmp_path / "model.jpg", 1), signer, MODEL)
    camera = sign(picture(tmp_path / "camera.jpg", 2), signer, CAMERA)
    assert read_credentials([plain, model, camera]) == [
        Credentials(),
        Credentials(True, True, True),
        Credentials(True, True, False),
    ]


def test_pixels_that_were_changed_after_signing_are_not_intact(tmp_path, signer):
    signed = sign(picture(tmp_path / "x.jpg"), signer, MODEL)
    content = bytearray(signed.read_bytes())
    content[-40] ^= 0x15  # in the compressed picture, behind the manifest
    signed.write_bytes(bytes(content))
    assert read_credentials([signed]) == [Credentials(True, False, True)]
    Image.open(signed).save(tmp_path / "again.jpg")  # most programs drop the manifest
    assert read_credentials([tmp_path / "again.jpg"]) == [Credentials()]


def test_what_is_no_picture_has_none(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    (tmp_path / "y.txt").write_text("text")
    assert read_credentials([tmp_path / "x.jpg", tmp_path / "y.txt"]) == [Credentials()] * 2


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(UserError, match=r"needs? the package c2pa-python.*alignkit\[watermark\]"):
        read_credentials([tmp_path / "x.jpg"])
