"""Colours, words and captions: what is said of an object stays true when the object changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tiny_objects import box, joined

from diffusion.data.augment import AugmentConfig, augmented, choose_recolouring, mirrored, stretched, turned_hues, with_colours
from diffusion.data.captions import CaptionConfig, caption, captions, plain_caption, with_article
from diffusion.data.colours import COLOUR_WORDS, TARGETS, Palette, named, oklab, palette, srgb
from diffusion.data.object_set import ObjectFacts, open_objects
from diffusion.data.words import Words, describe, plain_name
from splat.mesh import Mesh

NEVER = AugmentConfig(recolour=0, turn_hues=0, mirror=0, stretch=0, shrink=0)
MILL = ObjectFacts("k", "windmill with blue roof", "windmill", "train", "low poly")


def mill() -> Mesh:
    """Mostly grey walls, a quarter of it a blue roof."""
    walls, roof = box((140, 140, 140), (0.4, 0.6, 0.4)), box((20, 50, 180), (0.5, 0.1, 0.5), (0, 0.4, 0))
    return joined(walls, roof)


class TestColours:
    def test_oklab_of_known_colours_and_back(self):
        """White and the published value of pure red."""
        torch.testing.assert_close(oklab(torch.ones(3)), torch.tensor([1.0, 0, 0]), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            oklab(torch.tensor([1.0, 0, 0])), torch.tensor([0.62796, 0.22486, 0.12585]), atol=1e-4, rtol=0
        )
        rgb = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(srgb(oklab(rgb)), rgb, atol=2e-4, rtol=0)

    @pytest.mark.parametrize(
        ("rgb", "word"),
        [((255, 0, 0), "red"), ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "grey"),
         ((0, 0, 255), "blue"), ((40, 40, 40), "black"),
         ((139, 69, 19), "brown"), ((245, 245, 220), "beige"), ((255, 192, 203), "pink"), ((0, 255, 0), "green"),
         ((255, 165, 0), "orange"), ((75, 0, 130), "purple"), ((255, 255, 0), "yellow"), ((25, 25, 112), "blue"),
         ((128, 0, 0), "red"), ((135, 206, 235), "blue"), ((210, 180, 140), "beige"), ((107, 142, 35), "green")],
    )  # fmt: skip
    def test_words_people_use(self, rgb, word):
        """CSS colours, among them midnight blue, maroon, sky blue, tan, olive drab."""
        assert COLOUR_WORDS[int(named(torch.tensor([rgb]) / 255)[0])] == word

    def test_every_target_is_called_what_it_is_for(self):
        assert tuple(TARGETS) and set(TARGETS) == set(COLOUR_WORDS)
        for word, rgb in TARGETS.items():
            assert palette(torch.tensor([rgb]) / 255).words == (word,)

    def test_shares_are_of_the_area(self):
        found = describe(MILL, mill()).palette
        walls, roof = 2 * (0.16 + 0.24 + 0.24), 2 * (0.25 + 0.05 + 0.05)
        assert found.words == ("grey", "blue")
        assert found.shares == pytest.approx((walls / (walls + roof), roof / (walls + roof)), abs=0.01)
        assert found.dominant(least=0.5) == ("grey",) and found.dominant(least=0.2) == ("grey", "blue")


class TestWords:
    @pytest.mark.parametrize(
        ("name", "noun", "plain", "material"),
        [("red patterned banner", "banner", "patterned banner", ""), ("small carrot plant", "carrot", "carrot plant", ""),
         ("windmill with blue roof", "windmill", "windmill with blue roof", ""), ("orange", "orange", "orange", ""),
         ("large wooden table", "table", "wooden table", "wooden"), ("stone", "stone", "stone", ""),
         ("street light", "street light", "street light", ""), ("crate of green apples", "crate", "crate of green apples", "")],
    )  # fmt: skip
    def test_names_lose_sizes_and_the_colours_of_the_whole(self, name, noun, plain, material):
        assert plain_name(name, noun) == (plain, material)

    def test_a_colour_in_the_name_follows_its_part(self):
        words = describe(MILL, mill())
        green = Palette(("grey", "green"), words.palette.shares)
        assert words.recoloured(green, {"blue": "green"}).name == "windmill with green roof"
        assert (
            words.recoloured(Palette(("red", "blue"), words.palette.shares), {"grey": "red"}).name == "windmill with blue roof"
        )
        assert words.recoloured(Palette(("red", "pink"), words.palette.shares), {}).name == "windmill"

    def test_words_that_imply_a_colour_go_when_it_changes(self):
        gold = Words("golden key", "key", Palette(("yellow",), (1.0,)), material="golden")
        changed = gold.recoloured(Palette(("blue",), (1.0,)), {"yellow": "blue"})
        assert (changed.name, changed.material) == ("key", "")
        assert gold.recoloured(gold.palette, {}) == gold


class TestCaptions:
    WORDS = Words("wooden armchair", "armchair", Palette(("red", "white", "black"), (0.6, 0.3, 0.1)), "low poly", "wooden")

    def test_the_same_seed_gives_the_same_sentences(self):
        first = captions(self.WORDS, 50, 3, "a")
        assert first == captions(self.WORDS, 50, 3, "a") != captions(self.WORDS, 50, 4, "a")
        assert first != captions(self.WORDS, 50, 3, "b") and len(set(first)) > 25
        assert first[:2] == ("armchair", "armchair") or all(isinstance(s, str) and s == s.lower() for s in first)

    def test_every_sentence_names_the_noun_and_only_its_own_colours(self):
        said = captions(self.WORDS, 400, 0, "a")
        assert all("armchair" in s for s in said)
        for colour in set(COLOUR_WORDS) - {"red", "white"}:
            assert not any(colour in s.replace("white background", "").split() for s in said), colour
        assert (
            0.6 < sum("red" in s for s in said) / 400 < 0.9
            and 0.2 < sum("white" in s.replace("white b", "") for s in said) / 400
        )
        assert 0.2 < sum("poly" in s or "stylised" in s for s in said) / 400 < 0.6
        assert not any("  " in s or "{" in s for s in said)

    def test_nothing_is_dropped_where_nothing_may_be(self):
        said = [caption(self.WORDS, random.Random(i), CaptionConfig(0, 0, 0, 0, 0)) for i in range(100)]
        assert all("red" in s and "white" in s and "wooden" in s for s in said)
        assert plain_caption(self.WORDS) == "a red and white wooden armchair"

    def test_people_wear_their_colours(self):
        woman = Words("woman", "woman", Palette(("brown", "black"), (0.6, 0.4)), "realistic")
        assert plain_caption(woman) == "a woman in brown and black"
        assert not any("brown woman" in s or "black woman" in s for s in captions(woman, 200, 0, "w"))
        bearded = Words("man in costume", "man", woman.palette)
        assert plain_caption(bearded) == "a man in costume"

    @pytest.mark.parametrize(
        ("phrase", "whole"),
        [("red chair", "a red chair"), ("orange chair", "an orange chair"), ("cherries", "cherries"), ("glass", "a glass"),
         ("blue jar of cherries", "a blue jar of cherries"), ("french fries in white", "french fries in white"),
         ("cactus", "a cactus"), ("one-way sign", "a one-way sign"), ("", "")],
    )  # fmt: skip
    def test_articles(self, phrase, whole):
        assert with_article(phrase) == whole


class TestAugmentation:
    def test_a_recoloured_part_is_called_by_its_new_colour(self):
        for seed in range(30):
            mesh, words = augmented(mill(), describe(MILL, mill()), replace(NEVER, recolour=1), random.Random(seed))
            assert words.palette == palette_of(mesh)
            assert words.palette.words != ("grey", "blue")
            for colour in set(COLOUR_WORDS) & set(words.name.split()):
                assert colour in words.palette.words

    def test_the_part_reaches_its_target_and_the_rest_stays(self):
        rgb = mill().colors
        for seed in range(20):
            change = choose_recolouring(rgb, random.Random(seed))
            after = change(rgb)
            part = torch.tensor([COLOUR_WORDS[i] == change.old for i in named(rgb).tolist()])
            assert set(named(after[part]).tolist()) == {COLOUR_WORDS.index(change.new)}
            torch.testing.assert_close(after[~part], rgb[~part], atol=1e-3, rtol=0)

    def test_shading_survives_a_recolouring(self):
        shaded = torch.tensor([[170, 25, 25], [200, 32, 32], [230, 45, 45]]) / 255
        lab = oklab(choose_recolouring(shaded, random.Random(1))(shaded))
        assert lab[0, 0] < lab[1, 0] < lab[2, 0]

    def test_hues_turn_and_lightness_stays(self):
        rgb = torch.tensor([[0.6, 0.4, 0.4], [0.5, 0.5, 0.5]])
        turned = turned_hues(rgb, torch.pi)
        torch.testing.assert_close(oklab(turned)[:, 0], oklab(rgb)[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(oklab(turned)[:, 1:], -oklab(rgb)[:, 1:], atol=1e-3, rtol=0)

    def test_textures_are_recoloured_too(self):
        mesh = replace(box(), texture=torch.full((4, 5, 3), 0.5), uvs=torch.zeros(12, 3, 2))
        assert (with_colours(mesh, lambda rgb: rgb * 0).texture == 0).all()

    def test_a_mirrored_mesh_still_faces_outwards_and_front_stays_front(self):
        mesh = box(center=(0.1, 0.2, 0.3))
        turned = mirrored(mesh)
        torch.testing.assert_close(volume(turned), volume(mesh))
        torch.testing.assert_close(turned.vertices[:, 1:], mesh.vertices[:, 1:])
        assert Words("left hand", "hand", Palette((), ())).mirrored().name == "right hand"

    @pytest.mark.parametrize(
        ("axis", "factor", "word"), [("y", 1.5, "tall"), ("y", 0.6, "low"), ("x", 2, "wide"), ("x", 0.5, "narrow")]
    )
    def test_a_stretch_is_said(self, axis, factor, word):
        before = box(size=(1, 1, 1))
        mesh, said = stretched(before, axis, factor)
        size = mesh.vertices.amax(0) - mesh.vertices.amin(0)
        assert said == word and float(size.max()) == pytest.approx(1)
        assert float(size["xy".index(axis)] / size[2]) == pytest.approx(factor)

    def test_a_small_one_is_small(self):
        mesh, words = augmented(box(), describe(MILL, box()), replace(NEVER, shrink=1), random.Random(0))
        assert words.shape == "small" and float(mesh.vertices.amax()) < 0.36
        assert any(w in caption(words, random.Random(0)).split() for w in ("small", "tiny", "little"))

    def test_the_same_state_gives_the_same_object(self):
        a, b = (augmented(mill(), describe(MILL, mill()), AugmentConfig(), random.Random("7/k")) for _ in range(2))
        assert a[1] == b[1] and torch.equal(a[0].vertices, b[0].vertices) and torch.equal(a[0].colors, b[0].colors)
        same = augmented(mill(), describe(MILL, mill()), NEVER, random.Random(0))
        assert torch.equal(same[0].vertices, mill().vertices) and same[1] == describe(MILL, mill())

    def test_known_objects_keep_agreement(self, shared_data):
        if not (shared_data / "objects").is_dir():
            pytest.skip("no objects beside the photos")
        objects = open_objects(shared_data / "objects")
        aimed = 0
        for row in range(0, 900, 30):
            mesh, words = objects[row], describe(objects.facts[row], objects[row])
            assert plain_caption(words).split()[-1].strip()
            changed, after = augmented(mesh, words, replace(NEVER, recolour=1), random.Random(row))
            assert after.palette == palette_of(changed)
            aimed += after.palette.words[0] != words.palette.words[0]
            for colour in set(COLOUR_WORDS) & set(after.name.split()) - set(after.noun.split()):
                assert colour in after.palette.words
        assert aimed >= 15  # the largest colour is the likeliest to be replaced


def palette_of(mesh: Mesh) -> Palette:
    return describe(MILL, mesh).palette


def volume(mesh: Mesh) -> torch.Tensor:
    """Signed; positive for outward triangles."""
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return (a * torch.linalg.cross(b, c)).sum() / 6
