"""Files at a URL are copied once, and it is told why where they cannot be had."""

import json
import socket
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import fsspec
import pytest

from flan_jax.data.mirror import copies
from flan_jax.data.sources import open_source
from flan_jax.errors import ConfigError, NetworkError, SourceError


class Handler(SimpleHTTPRequestHandler):
  """Serves a folder, and keeps what was asked for to itself."""

  def log_message(self, *args):
    pass


@pytest.fixture
def served(tmp_path):
  """A folder, and the URL at which it is served."""
  folder = tmp_path / "served"
  folder.mkdir()
  with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_file_at_a_url_is_copied_once_and_read_from_the_copy(served, tmp_path):
  folder, url = served
  (folder / "pairs.tsv").write_text("two\tdeux\nthree\ttrois\n")
  settings = {"files": {"train": f"{url}/pairs.tsv"}, "columns": ["english", "french"]}
  first = list(open_source(settings, cache_dir=tmp_path / "cache").records("train"))
  assert first == [{"english": "two", "french": "deux"}, {"english": "three", "french": "trois"}]
  (folder / "pairs.tsv").unlink()
  assert list(open_source(settings, cache_dir=tmp_path / "cache").records("train")) == first


def test_a_url_without_a_file_is_a_source_that_is_gone_and_is_asked_again(served, tmp_path):
  folder, url = served
  with pytest.raises(SourceError, match=rf"there is no file at {url}/late\.tsv"):
    copies(f"{url}/late.tsv", tmp_path / "cache")
  (folder / "late.tsv").write_text("here\n")
  (path,) = copies(f"{url}/late.tsv", tmp_path / "cache")
  assert path.read_text() == "here\n"


def test_a_host_that_does_not_answer_is_a_network_error(tmp_path):
  with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/rows.tsv"
    with pytest.raises(NetworkError, match=rf"{url} cannot be read"):
      copies(url, tmp_path / "cache")


@pytest.fixture(params=["memory", "file"])
def shards(request, tmp_path):
  """The URL of a folder with two shards and something else in it."""
  url = f"{request.param}://{tmp_path}/shards"
  files, root = fsspec.core.url_to_fs(url)
  files.makedirs(root)
  for name, text in (("rows-1.jsonl", "b"), ("rows-0.jsonl", "a"), ("readme.txt", "no rows")):
    files.pipe_file(f"{root}/{name}", json.dumps({"text": text}).encode())
  yield url
  files.rm(root, recursive=True)


def test_a_pattern_copies_what_matches_and_reads_it_in_the_order_of_names(shards, tmp_path):
  source = open_source({"files": f"{shards}/rows-*.jsonl"}, cache_dir=tmp_path / "cache")
  assert [record["text"] for record in source.records("all")] == ["a", "b"]


def test_a_pattern_that_matches_nothing_is_a_source_that_is_gone(shards, tmp_path):
  with pytest.raises(SourceError, match=r"there is no file at .*/columns-\*\.jsonl"):
    copies(f"{shards}/columns-*.jsonl", tmp_path / "cache")


def test_an_unknown_protocol_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="carrier-pigeon://loft/rows.tsv cannot be read"):
    copies("carrier-pigeon://loft/rows.tsv", tmp_path / "cache")
