import pytest

from evaluation.safety.personal_data import find_personal_data, luhn_valid


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe+news@mail.corp-site.co.uk today", "email"),
        ("call +1 (415) 555-2671 now", "phone_number"),
        ("Tel. 030-1234-5678.", "phone_number"),
        ("my number is 415.555.2671, ask for Jo", "phone_number"),
        ("SSN 219-09-9999", "social_security_number"),
        ("card 4111 1111 1111 1111 expires", "card_number"),
        ("ping 8.8.8.8 first", "ip_address"),
        ("key AKIAIOSFODNN7EXAMPLE", "secret_key"),
        ("token ghp_" + "a1B2" * 9, "secret_key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "secret_key"),
    ],
)
def test_forms_are_found(text, kind):
    assert find_personal_data(text) == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "Return a list of names from the given address.",
        "send mail to user@example.com or root@localhost",
        "on 2024-01-02 at 10:15:30, version 3.12.4, RFC 2822",
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "000-12-3456 and 219-00-9999",
        "127.0.0.1, 10.0.0.255, 192.168.1.10, 300.1.1.1",
        "sha 3fa85f64-5717-4562-b3fc-2c963f66afa6",
        "x = 123456789012345678901234567890",
        "decorator @property.setter",
        "numbers 1000 2000 from the list [0, 1, 2]",
        "",
    ],
)
def test_other_forms_are_let_pass(text):
    assert find_personal_data(text) == {}


def test_kinds_are_counted_apart_and_once():
    found = find_personal_data("a@b.org, c@d.net: +49 170 1234567 or 5555-5555-5555-4444")
    assert found == {"email": 2, "phone_number": 1, "card_number": 1}


def test_luhn():
    assert luhn_valid("79927398713") and not luhn_valid("79927398710")
