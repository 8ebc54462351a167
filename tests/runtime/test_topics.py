"""Names of topics, and keys of `model.events`."""

import pytest

from millrace.runtime.topics import may_be_event_of


@pytest.mark.parametrize(
    ("key", "is_ours"),
    [
        (None, True),
        (b"eu/shop", True),
        (b"eu/shop/hold/guard", True),
        (b"eu/shop2", False),
        (b"eu/shop2/hold", False),
        (b"us/shop", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_a_key_says_whose_event_it_may_be(key: bytes | None, is_ours: bool) -> None:
    assert may_be_event_of(key, "eu", "shop") is is_ours
