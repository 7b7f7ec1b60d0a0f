"""What may be named as the place of a store, and what is said of the rest."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import StoreError, UsageError
from data.store import Store
from data.store.place import place_of, text_of


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://key:secret@bucket/store", r"'s3://…@bucket/store' carries a key or password"),
        ("nowhere://bucket/store", "cannot be reached: Protocol not known: nowhere"),
        ("simplecache::s3://bucket/store", "a chain of file systems"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_refused_with_a_sentence(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as told:
        place_of(url)
    assert "secret" not in str(told.value)


def test_a_package_that_is_not_installed_is_named() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from data.errors import UsageError\n"
        "from data.store.place import place_of\n"
        "try: place_of('s3://bucket/store')\n"
        "except UsageError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "'s3://bucket/store' cannot be reached: Install s3fs" in told.stdout
    assert "pip install -c constraints.txt '.[s3]'" in told.stdout


def test_places_have_one_text_each() -> None:
    assert place_of("file:///a/b") == place_of("/a/b") == Path("/a/b")
    for url in ("s3://bucket/a/b", "hdfs://node:8020/a/b", "memory://a"):
        place = place_of(url + "/")
        assert text_of(place) == url
        assert place_of(text_of(place)) == place
        assert pickle.loads(pickle.dumps(place)) == place


def test_a_bucket_that_is_not_there_is_named(s3_server: str, scratch: Path) -> None:
    with pytest.raises(UsageError, match="s3://nobody/store does not exist"):
        Store.open("s3://nobody/store")
    with pytest.raises(StoreError, match="make the bucket or container first"):
        Store.create("s3://nobody/store", dataset="tiny", clip_len_s=2.0)
