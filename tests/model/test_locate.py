"""Where a checkpoint is: a repository of the hub is a world or a Wan pipeline by the files that it holds."""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

from mosaic_gym.model import locate
from mosaic_gym.model.checkpoints import WorldModel
from mosaic_gym.model.locate import is_wan, resolve
from tests.tiny import tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(folder)
    (folder / "notes.bin").write_bytes(b"what a world does not need")
    return folder


def cached(root: Path, repository: str) -> Path:
    """An empty snapshot in a cache of the hub's."""
    place = root / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_world_by_hub_id_loads_from_the_cache_like_a_folder(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(saved, cached(tmp_path, "me/my-world"), dirs_exist_ok=True)
    assert not is_wan("me/my-world")
    loaded = WorldModel.from_pretrained("me/my-world")
    assert loaded.fingerprint == WorldModel.from_pretrained(saved).fingerprint
    with pytest.raises(ValueError, match=r"was trained at resolution \[32, 48\]; got \[64, 64\]"):
        WorldModel.from_pretrained("me/my-world", (64, 64))


def test_a_pipeline_by_hub_id_is_known_by_its_index(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (cached(tmp_path, "they/wan") / "model_index.json").write_text("{}")
    assert is_wan("they/wan")


class Hub:
    """The hub's two calls over a folder: notes what is fetched."""

    def __init__(self, source: Path, place: Path):
        self.source, self.place, self.fetched = source, place, []

    def fetch(self, name: str) -> Path:
        self.fetched.append(name)
        (self.place / name).parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(self.source / name, self.place / name))

    def hf_hub_download(self, repository: str, name: str) -> str:
        if not (self.source / name).is_file():
            raise of_the_hub(RemoteEntryNotFoundError, "404 Client Error")
        return str(self.fetch(name))

    def snapshot_download(self, repository: str, allow_patterns: list[str]) -> str:
        for path in self.source.rglob("*"):
            name = str(path.relative_to(self.source))
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                self.fetch(name)
        return str(self.place)


def of_the_hub(kind: type, message: str) -> Exception:
    """An answer of the hub, which takes a response to be made."""
    error = kind.__new__(kind)
    error.args = (message,)
    return error


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    hub = Hub(saved, tmp_path / "snapshot")
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(locate, name, getattr(hub, name))
    return hub


def test_only_what_a_world_needs_is_downloaded(hub, saved):
    assert WorldModel.from_pretrained("me/my-world").fingerprint == WorldModel.from_pretrained(saved).fingerprint
    assert "world.json" in hub.fetched and "outcome/diffusion_pytorch_model.safetensors" in hub.fetched
    assert "notes.bin" not in hub.fetched


def test_nothing_else_is_downloaded_of_a_world_of_another_version(hub, tmp_path):
    hub.source = tmp_path / "other"
    hub.source.mkdir()
    (hub.source / "world.json").write_text('{"format": "mosaic-world-1"}')
    with pytest.raises(ValueError, match="world.json is not of format mosaic-world-5"):
        WorldModel.from_pretrained("me/my-world")
    assert set(hub.fetched) == {"world.json"}


def test_a_repository_of_neither_kind_is_named(hub, tmp_path):
    hub.source = tmp_path / "empty"
    hub.source.mkdir()
    with pytest.raises(ValueError, match="'me/photos' has neither a world.json .* nor a model_index.json.*doom-tiny"):
        WorldModel.from_pretrained("me/photos")


@pytest.mark.parametrize(
    "error",
    [
        of_the_hub(RepositoryNotFoundError, "401 Client Error.\nRepository Not Found"),
        LocalEntryNotFoundError("cannot find the requested files in the disk cache and outgoing traffic is disabled"),
    ],
)
def test_a_repository_that_cannot_be_reached_is_named_in_one_line(error, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(locate, "hf_hub_download", fail)
    for name in ("me/my-world", "nobody/nothing"):
        said = f"{name!r} is neither a folder with a world.json or model_index.json nor a hub repository that can be"
        with pytest.raises(ValueError, match=re.escape(said)) as raised:
            WorldModel.from_pretrained(name)
        assert "\n" not in str(raised.value) and "doom-tiny" in str(raised.value)


def test_a_download_that_breaks_off_is_named(hub, monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("the network went away")

    monkeypatch.setattr(locate, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"'me/my-world' cannot be downloaded \(the network went away\)"):
        resolve("me/my-world")


def test_a_name_is_a_path_where_its_owner_is_a_folder(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    with pytest.raises(ValueError, match="unknown checkpoint 'me/my-world' .there is no such folder"):
        WorldModel.from_pretrained("me/my-world")
    assert not hub.fetched
