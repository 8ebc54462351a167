"""Feature lists as text: what is read, and which lines are refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.runtime.errors import UserError
from millrace.transforms.batch.fid import fid_v1, fid_v2
from millrace.transforms.steps.features import feature_list as feature_list_text
from millrace.transforms.steps.features.feature_list import (
    Cache,
    Feature,
    FeatureList,
    Feed,
    normal_name,
    parse_feature_list,
    read_feature_list,
    slot_of_name,
)

TEXT = """
# what the feed delivers
column_name : uid, item_id,
column_name: price
cache_column: profile, other

feed_name=user; shared=True; feature_id=7
feed_name=item
cache_column=profile; capacity=1000; timeout=60; cache_type=lru; cache_key_class=Key
cache_name=other
feature_name=fc_user_id; depend=user, ins; method=DirectInt32; slot=1
feature_name=fc_user_id-fc_item_id  depend=user,item;  method = Combine; slot=1; feature_version=2; shared=no
feature_name=f_dense; args=1, 2 3; need_raw=y; input_optional=t, false; feature_group=a; cache_keys=k,l; feature_id=3;
"""


def test_lines_become_feeds_caches_and_features() -> None:
    assert parse_feature_list(TEXT) == FeatureList(
        columns=("uid", "item_id", "price"),
        cache_columns=("profile", "other"),
        feeds=(Feed("user", True, 7), Feed("item")),
        caches=(Cache("profile", 1000, 60, "lru", "Key"), Cache("other")),
        features=(
            Feature("fc_user_id", ("user", "ins"), "DirectInt32", 1),
            Feature("fc_user_id-fc_item_id", ("user", "item"), "Combine", 1, feature_version=2),
            Feature(
                "f_dense",
                args=("1", "2 3"),
                need_raw=True,
                input_optional=(True, False),
                feature_group=("a",),
                cache_keys=("k", "l"),
                feature_id=3,
            ),
        ),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "list.conf:2=nonsense: no key=value"),
        ("feature_name=a; slots=1", "list.conf:2=slots: unknown key of a feature; choose feature_name"),
        ("feed_name=a; slot=1", "slot: unknown key of a feed"),
        ("feature_name=a; slot=one", "slot=one: no integer"),
        ("feature_name=a; slot=1; slot=2", "slot: is there twice"),
        ("slot=1", "no feature_name"),
        ("feed_name=; shared=true", "no feed_name"),
        ("feature_name=a;slot=1", "no value and next key"),
        ("feature_name=a; slot=1024", "slot=1024: out of range for feature_version 1; choose 0..1023"),
        ("feature_name=a; slot=32768; feature_version=2", "slot=32768: out of range"),
        ("feature_name=a; slot=-1", "slot=-1: out of range"),
        ("feature_name=a; feature_version=3", "feature_version=3: unknown"),
        ("feature_name=x; slot=2", "list.conf:2=x: line 1 has the same name"),
        ("feature_name=" + "a" * 70_000, "the line is too long"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_feature_list(f"feature_name=x; slot=1\n{line}", "list.conf")


def test_a_file_is_read_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.conf"
    path.write_text("feature_name=é; slot=1", "utf-8")
    assert read_feature_list(str(path)).features[0].feature_name == "é"
    path.write_bytes(b"feature_name=\xff; slot=1")
    with pytest.raises(UserError, match="cannot be read"):
        read_feature_list(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        read_feature_list(str(tmp_path / "none.conf"))
    monkeypatch.setattr(feature_list_text, "MAX_BYTES", 10)
    path.write_text("#" * 11)
    with pytest.raises(UserError, match="too large"):
        read_feature_list(str(path))


def test_features_are_found_by_slot_and_by_spellings_of_their_name() -> None:
    features = parse_feature_list(TEXT)
    assert features.find(1) is features.features[0]
    assert features.find(2) is None
    assert features.find("user_id") is features.find("fc_user_id") is features.features[0]
    assert features.find("dense") is features.find("f_dense") is features.features[2]
    assert features.find("user_id-item_id") is features.features[1]
    assert features.find("item_id") is None
    assert features.of_slot(1) == features.features[:2]
    assert features.slots() == {"fc_user_id": 1, "fc_user_id-fc_item_id": 1}


def test_fids_are_mapped_by_the_layout_of_each_feature() -> None:
    features = parse_feature_list(
        "feature_name=old; slot=600\n"
        "feature_name=new; slot=2000; feature_version=2\n"
        "feature_name=both; slot=2000; feature_version=2\n"
    )
    old, new, both = features.features
    assert features.of_fids([int(fid_v1(600, 5))]) == (old,)
    assert features.of_fids([int(fid_v2(2000, 5)), int(fid_v1(600, 5)) % 2**64]) == (old, new, both)
    with pytest.raises(ValueError, match="no feature has v1 slot 31 or v2 slot 2001"):
        features.of_fids([int(fid_v2(2001, 5))])


def test_names_are_normalised() -> None:
    assert normal_name("fc_User_Id-f_Item-fc_f_x") == "user_id-item-f_x"
    assert Feature("fc_A-f_B").name == "a-b"


def test_a_slot_is_known_by_name() -> None:
    assert slot_of_name("slot_7") == slot_of_name("fc_slot_7") == 7
    assert slot_of_name("slot_7", {"slot_7": 9}) == 9
    with pytest.raises(KeyError, match="feature user: its slot is not known"):
        slot_of_name("user", {"item": 1})


@given(st.text(st.sampled_from("feature_name=d;slot 1,#:\n\t"), max_size=80))
def test_any_text_is_read_or_refused_by_line(text: str) -> None:
    try:
        parse_feature_list(text, "list.conf")
    except UserError as error:
        assert error.field.startswith("list.conf:")
