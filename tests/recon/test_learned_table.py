"""Which learned priors there are, on what terms, and where their weights are looked for."""

import dataclasses
import json
import urllib.error

import pytest
import torch.hub
from huggingface_hub import constants

from recon.priors import learned
from recon.priors.learned import LEARNED_PRIORS, cached, cached_weights, find_weights
from recon.priors.offline import no_downloads
from splat.errors import BackendUnavailable, InputError

REPO = "depth-anything/Depth-Anything-V2-Small-hf"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache, repo, revision=REVISION, branch=True):
    folder = cache / ("models--" + repo.replace("/", "--")) / "snapshots" / revision
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    if branch:
        refs = folder.parents[1] / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(revision)
    return folder


@pytest.mark.parametrize("name", LEARNED_PRIORS)
def test_every_prior_names_its_terms(name):
    family = LEARNED_PRIORS[name]
    if name == "pointmap":  # our own, with no published weights
        assert family.otherwise and not family.checkpoints
        return
    assert family.checkpoints and all("/" in c.repo and c.licence for c in family.checkpoints) and family.otherwise
    free = ["-NC" not in c.licence for c in family.checkpoints]
    assert free == sorted(free, reverse=True)  # what may be used freely is found first
    weights = learned.PriorWeights(name, None, family.checkpoints[-1].repo, family.checkpoints[-1].licence)
    assert weights.licence in weights.notice and ("commercially" in weights.notice) == ("-NC" in weights.licence)


def test_nothing_in_the_cache_is_a_sentence_that_says_how_to_get_it(cache):
    with pytest.raises(InputError, match=f"(?s)No weights of Depth Anything V2.*nothing is downloaded.*hf download {REPO}"):
        find_weights("depth-anything")
    with pytest.raises(InputError, match="neither a folder nor in the Hugging Face cache"):
        find_weights("depth-anything", "someone/else")
    assert cached_weights("depth-anything") == []


def test_the_cache_is_searched_for_the_freest_published_weights_first(cache):
    put(cache, "depth-anything/Depth-Anything-V2-Large-hf")
    assert find_weights("depth-anything").licence == "CC-BY-NC-4.0"
    small = put(cache, REPO)
    found = find_weights("depth-anything")
    assert (found.folder, found.source, found.licence) == (small, REPO, "Apache-2.0")
    assert [w.licence for w in cached_weights("depth-anything")] == ["Apache-2.0", "CC-BY-NC-4.0"]
    assert find_weights("depth-anything", "depth-anything/Depth-Anything-V2-Large-hf").licence == "CC-BY-NC-4.0"


def test_a_snapshot_that_holds_no_weights_is_passed_over_but_said_when_it_is_asked_for(cache):
    (put(cache, REPO) / "model.safetensors").rename(cache / "elsewhere")
    put(cache, "depth-anything/Depth-Anything-V2-Base-hf")
    assert find_weights("depth-anything").licence == "CC-BY-NC-4.0"
    assert find_weights("depth-anything", REPO).source == REPO  # loading it tells what is missing


def test_a_snapshot_without_a_branch_and_a_damaged_reference(cache):
    folder = put(cache, REPO, branch=False)
    assert cached(REPO) == folder
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("../../../../etc")
    assert cached(REPO) is None


@pytest.mark.parametrize("name", ["../x", "a/../../b", "a/b/c", "", "a", "/etc/passwd", "a/b\n"])
def test_names_that_are_no_repository_are_not_looked_up(cache, name):
    assert cached(name) is None


@pytest.mark.parametrize("name", [5000 * "x", 5000 * "x" + "/y", "x\0y"])
def test_what_is_no_name_on_any_system_is_a_short_sentence(cache, name):
    with pytest.raises(InputError, match="neither a folder") as told:
        find_weights("depth-anything", name)
    assert len(str(told.value)) < 800
    with pytest.raises(InputError, match="is no folder"):
        find_weights("pointmap", name)


@pytest.mark.parametrize(
    ("card", "width", "licence"),
    [
        ("---\nlicense: mit\n---\n", 384, "mit"),
        ("---\nlicense: other\nlicense_name: strange-1.0\n---\n", 384, "strange-1.0"),
        (None, 384, "Apache-2.0, as published for networks of this size"),
        (None, 1024, "CC-BY-NC-4.0, as published for networks of this size"),
        ("# no front matter", 100, LEARNED_PRIORS["depth-anything"].otherwise),
    ],
)
def test_a_folders_licence_is_that_of_its_card_or_of_its_size(tmp_path, card, width, licence):
    (tmp_path / "config.json").write_text(json.dumps({"backbone_config": {"hidden_size": width}}))
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    found = find_weights("depth-anything", str(tmp_path))
    assert (found.folder, found.licence) == (tmp_path, licence)


def test_a_folder_that_is_a_snapshot_in_some_cache_has_the_licence_of_its_repository(cache, tmp_path):
    folder = put(tmp_path / "elsewhere", "depth-anything/Depth-Anything-V2-Base-hf")
    assert find_weights("depth-anything", str(folder)).licence == "CC-BY-NC-4.0"


def test_an_unknown_name_and_a_missing_package(cache, monkeypatch):
    with pytest.raises(InputError, match="no learned prior named magic; choose one of depth-anything, "):
        find_weights("magic")
    family = dataclasses.replace(LEARNED_PRIORS["vggt"], package="no_such_package_at_all")
    monkeypatch.setitem(LEARNED_PRIORS, "vggt", family)
    with pytest.raises(BackendUnavailable, match=r"VGGT needs the package no_such_package_at_all.*facebookresearch/vggt"):
        find_weights("vggt")


def test_other_peoples_code_cannot_download_and_everything_is_as_before_after(monkeypatch):
    def touched(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(torch.hub, "urlopen", touched)
    monkeypatch.setattr(torch.hub, "download_url_to_file", touched)
    before = constants.HF_HUB_OFFLINE
    with no_downloads():
        with pytest.raises(urllib.error.URLError, match="downloads are off"):
            torch.hub.load_state_dict_from_url("https://example.org/x.pth", model_dir="/nonexistent-folder/x")
        assert constants.HF_HUB_OFFLINE
    assert torch.hub.urlopen is touched and constants.HF_HUB_OFFLINE == before
