"""The embedded world: its files, their meaning, and the promise that they are a function of the seed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnitrunk.engine.world import export as export_module
from omnitrunk.engine.world import write as write_module
from omnitrunk.engine.world import write_world
from omnitrunk.engine.world.body import Body, Placed, place
from omnitrunk.engine.world.camera import look_at, project, rays
from omnitrunk.engine.world.export import DEPTH_STEPS, EXTENSIONS, FIRST_SOLID, FLOOR, WALL, export
from omnitrunk.engine.world.mesh import sample
from omnitrunk.engine.world.motion import MOTIONS, Pose, rotation
from omnitrunk.engine.world.render import render
from omnitrunk.engine.world.room import Light, Room, background
from omnitrunk.engine.world.scene import FRAMES, STILL, class_of, draw, split_of
from omnitrunk.engine.world.solids import CLASSES, PART_OFFSETS, SOLIDS
from omnitrunk.engine.world.sound import TIMBRES, Voice, synthesize
from omnitrunk.engine.world.texture import Texture

av = pytest.importorskip("av", reason="clips and sounds need PyAV: pip install 'omnitrunk[world]'")

SCENES = 24
SIZE = 48


@pytest.fixture(scope="module")
def world_seed() -> int:
    value = int(os.environ.get("OMNITRUNK_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"OMNITRUNK_TEST_SEED={value}")
    return value


@pytest.fixture(scope="module")
def world(tmp_path_factory, world_seed) -> Path:
    root = tmp_path_factory.mktemp("empty") / "world"
    root.mkdir()  # an empty folder is as good as none
    summary = write_world(root, SCENES, world_seed, workers=1, size=SIZE)
    assert summary.written
    assert summary.files == dict.fromkeys(EXTENSIONS, SCENES)
    assert summary.scenes == {"train": SCENES // 2, "val": SCENES // 2}
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def files_of(root: Path, modality: str) -> list[Path]:
    files = sorted(root.glob(f"*/{modality}/*/*"))
    assert len(files) == SCENES
    return files


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_layout_shares_stems_between_modalities(world):
    for split in ("train", "val"):
        stems = {
            modality: {(file.parent.name, file.stem) for file in (world / split / modality).glob(f"*/*.{extension}")}
            for modality, extension in EXTENSIONS.items()
        }
        assert all(found == stems["rgb"] for found in stems.values())
        assert {name for name, _ in stems["rgb"]} == set(CLASSES)
    assert {file.name for file in world.iterdir()} == {"train", "val", "dataset.json"}
    assert [entry.name for entry in world.parent.iterdir()] == ["world"]


def test_description_agrees_with_files(world, world_seed):
    description = json.loads((world / "dataset.json").read_text())
    assert description["classes"] == sorted(SOLIDS)
    assert description["semseg_classes"] == len(description["semseg_names"]) == FIRST_SOLID + len(SOLIDS)
    assert description["seed"] == world_seed
    assert description["image_size"] == [SIZE, SIZE]
    labels = [label for parts in description["parts"].values() for label in parts.values()]
    assert labels == list(range(len(labels)))


def test_pictures_and_maps_have_one_size(world):
    for rgb, depth, semseg in zip(*(files_of(world, name) for name in ("rgb", "depth", "semseg")), strict=True):
        assert pixels(rgb).shape == (SIZE, SIZE, 3)
        assert pixels(rgb).std() > 5
        assert pixels(depth).shape == pixels(semseg).shape == (SIZE, SIZE)
        assert pixels(depth).dtype == np.uint16
        assert pixels(semseg).dtype == np.uint8


def test_semantic_map_shows_the_class(world):
    for file in files_of(world, "semseg"):
        semantic = pixels(file)
        solid = FIRST_SOLID + CLASSES.index(file.parent.name)
        assert set(np.unique(semantic)) <= {WALL, FLOOR, solid}
        assert 0.05 < (semantic == solid).mean() < 0.7
        assert (semantic == FLOOR).any()


def test_depth_is_metric(world):
    """The inverse depth of a plane is affine in the pixel's coordinates; the solid stands before what it hides."""
    row, column = np.mgrid[:SIZE, :SIZE]
    affine = np.stack([row, column, np.ones_like(row)], axis=-1).astype(float)
    for depth_file, semantic_file in zip(files_of(world, "depth"), files_of(world, "semseg"), strict=True):
        depth, semantic = pixels(depth_file) / DEPTH_STEPS, pixels(semantic_file)
        assert depth.min() > 0.5
        assert depth.max() < 7.9
        floor, solid = semantic == FLOOR, semantic >= FIRST_SOLID
        plane = np.linalg.lstsq(affine[floor], 1 / depth[floor], rcond=None)[0]
        assert np.abs(affine[floor] @ plane - 1 / depth[floor]).max() < 1e-3
        behind = affine[solid] @ plane  # the floor, continued under the solid
        assert (1 / depth[solid] > behind - 0.01).all()


def test_clip_moves(world):
    for file in files_of(world, "video"):
        with av.open(str(file)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)
            assert container.streams.video[0].codec_context.name.endswith("vp9")
        assert frames.shape == (FRAMES, 64, 64, 3)
        assert np.ptp(frames, axis=0).max() > 25


def test_sound_decodes(world):
    for file in files_of(world, "audio"):
        with av.open(str(file)) as container:
            samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            assert container.streams.audio[0].rate == 16_000
        assert samples.shape == (16_000,)
        assert samples.dtype == np.int16
        assert 0.05 * 2**15 < np.abs(samples.astype(int)).max() < 2**15


def test_points_and_captions(world):
    for file in files_of(world, "points"):
        points, name = np.load(file), file.parent.name
        assert points.shape == (1024, 4)
        assert points.dtype == np.float32
        assert set(points[:, 3] - PART_OFFSETS[name]) == set(range(len(SOLIDS[name].parts)))
        assert np.abs(points[:, :3].min(axis=0) + points[:, :3].max(axis=0)).max() < 1e-5
    for file in files_of(world, "caption"):
        caption = file.read_text()
        assert file.parent.name in caption
        assert MOTIONS[SOLIDS[file.parent.name].motion].verb in caption


def test_workers_and_number_of_scenes_change_no_byte(world, world_seed, tmp_path):
    larger = tmp_path / "larger"
    write_world(larger, SCENES + 12, world_seed, workers=2, size=SIZE)
    expected, found = contents(world), contents(larger)
    assert len(found) == len(EXTENSIONS) * (SCENES + 12) + 1
    del expected["dataset.json"]
    assert all(found[name] == content for name, content in expected.items())


def test_another_seed_is_another_world(world_seed):
    (_, first), (_, second) = export(world_seed, 0, SIZE), export(world_seed + 1, 0, SIZE)
    assert all(first[modality] != second[modality] for modality in EXTENSIONS)


def test_classes_are_balanced_and_shuffled(seed):
    indices = range(20 * len(CLASSES))
    for split in ("train", "val"):
        names = [class_of(seed, index) for index in indices if split_of(index) == split]
        assert {names.count(name) for name in CLASSES} == {{"train": 16, "val": 4}[split]}
    assert [class_of(seed, index) for index in indices] != list(CLASSES) * 20


def test_same_world_is_left_alone(world, world_seed):
    before = {file: file.stat().st_mtime_ns for file in world.rglob("*")}
    summary = write_world(world, SCENES, world_seed, size=SIZE)
    assert not summary.written
    assert summary.bytes["points"] == sum(file.stat().st_size for file in files_of(world, "points"))
    assert before == {file: file.stat().st_mtime_ns for file in world.rglob("*")}


def test_another_world_is_refused(world, world_seed):
    with pytest.raises(ValueError, match="another seed; choose another folder"):
        write_world(world, SCENES, world_seed + 1, size=SIZE)
    with pytest.raises(ValueError, match="another number of scenes, image_size"):
        write_world(world, SCENES + 1, world_seed, size=SIZE + 2)


def test_folder_of_others_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for root in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="is not a world; choose a folder"):
            write_world(root, SCENES, size=SIZE)
    (tmp_path / "dataset.json").write_text('{"classes": []}')
    with pytest.raises(ValueError, match="is not a world"):
        write_world(tmp_path, SCENES, size=SIZE)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_bad_arguments_are_refused(tmp_path):
    for arguments, message in (
        ({"scenes": 23}, "at least 24"),
        ({"size": 8}, "at least 32 pixels"),
        ({"workers": 0}, "workers = 0: use at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_world(tmp_path / "world", **arguments)
    assert not list(tmp_path.iterdir())


def stand_in(seed: int, index: int, size: int) -> tuple[str, dict[str, bytes]]:
    return class_of(seed, index), dict.fromkeys(EXTENSIONS, b"file")


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def stopping(seed, index, size):
        if index == 5:
            assert [entry.name.startswith("world.partial-") for entry in tmp_path.iterdir()] == [True]
            raise KeyboardInterrupt
        return stand_in(seed, index, size)

    monkeypatch.setattr(write_module, "export", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", SCENES, workers=1)
    assert not list(tmp_path.iterdir())


def test_world_that_lost_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "export", stand_in)
    write_world(tmp_path / "world", SCENES, workers=1)
    next((tmp_path / "world" / "train" / "depth").glob("*/*")).unlink()
    with pytest.raises(ValueError, match="lost files; delete the folder"):
        write_world(tmp_path / "world", SCENES, workers=1)


def test_folder_filled_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    def competing(seed, index, size):
        (tmp_path / "world").mkdir(exist_ok=True)
        (tmp_path / "world" / "note.txt").write_text("precious")
        return stand_in(seed, index, size)

    monkeypatch.setattr(write_module, "export", competing)
    with pytest.raises(ValueError, match="filled by someone else"):
        write_world(tmp_path / "world", SCENES, workers=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["world"]
    assert (tmp_path / "world" / "note.txt").read_text() == "precious"


@pytest.mark.parametrize("name", CLASSES)
def test_solids_are_closed_and_face_outwards(name, seed):
    """Outward normals agree with the order of the corners, and enclose the volume of the divergence theorem."""
    mesh = SOLIDS[name].build(np.random.default_rng(seed).uniform())
    first, second, third = (mesh.corners[:, corner] for corner in range(3))
    area = np.cross(second - first, third - first) / 2
    assert set(mesh.parts) == set(range(len(SOLIDS[name].parts)))
    assert (np.einsum("nk,nck->nc", area, mesh.normals) >= -1e-12).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=2), 1, atol=1e-9)
    volume = np.einsum("nk,nk->", first + second + third, area) / 9
    assert volume > 0.1
    if name != "jack":  # its arms end, open, in a hidden cube
        np.testing.assert_allclose(area.sum(axis=0), 0, atol=1e-9)


def test_samples_spread_by_area():
    surface = sample(SOLIDS["cube"].build(0.5), 6000)
    assert np.bincount(surface.parts).tolist() == [1000, 1000, 4000]
    cells, _, _ = np.histogram2d(*surface.points[:2, surface.parts == 1], bins=5)
    assert cells.min() >= 34
    assert cells.max() <= 46


def test_splatted_sphere_agrees_with_ray_casting(seed):
    chance = np.random.default_rng(seed)
    size, radius, center = 64, chance.uniform(0.5, 0.8), chance.uniform(-0.2, 0.2, 2)
    plain = Texture("plain", np.full(3, 0.5), np.full(3, 0.5), 1.0, (0.0, 0.0))
    room, light = Room(2.5, 2.5, plain, plain), Light(np.array([0.0, 0.0, 1.0]), np.ones(3), 0.4)
    camera = look_at(np.array([0.3, -2.6, 1.4]), np.array([0.0, 0.0, 0.6]), chance.uniform(-0.2, 0.2), 1.2)
    path = Pose(np.zeros((1, 3)), np.eye(3)[None], np.ones(1))
    surface = sample(SOLIDS["sphere"].build(0.0), 6 * size**2)
    body = Body(surface, np.full_like(surface.points, 0.5), radius, center, path)
    picture = render(place(body, 0), camera, background(camera, room, light, size), light, size)

    directions = rays(camera, size).astype(float)
    away = np.array([*center, radius]) - camera.position
    along, length = away @ directions, (directions**2).sum(axis=0)
    inside = along**2 - length * (away @ away - radius**2)
    hit = (inside > 0).reshape(size, size)
    depth = ((along - np.sqrt(np.maximum(inside, 0))) / length).reshape(size, size)
    assert (hit & picture.is_solid).sum() / (hit | picture.is_solid).sum() > 0.95
    well_inside = (inside > 0.15 * inside.max()).reshape(size, size)
    assert np.abs(picture.depth - depth)[well_inside].max() < 0.06
    assert picture.is_solid[well_inside].all()


def test_nearer_surface_hides_the_farther(seed):
    chance = np.random.default_rng(seed)
    camera = look_at(np.array([0.0, -3.0, 1.0]), np.array([0.0, 0.0, 1.0]), 0.0, 1.2)
    plain = Texture("plain", np.full(3, 0.5), np.full(3, 0.5), 1.0, (0.0, 0.0))
    light = Light(np.array([0.0, -0.6, 0.8]), np.ones(3), 0.4)
    side = np.linspace(-0.5, 0.5, 120)
    x, z = (part.ravel() for part in np.meshgrid(side, 1 + side))
    sheets = np.concatenate([np.stack([x, np.full_like(x, y), z]) for y in (0.4, -0.4)], axis=1).astype(np.float32)
    colors = np.repeat(np.eye(3)[:, :2], x.size, axis=1).astype(np.float32)  # red behind, green in front
    order = chance.permutation(sheets.shape[1])
    facing = np.tile(np.float32([[0], [-1], [0]]), sheets.shape[1])
    solid = Placed(sheets[:, order], facing, colors[:, order])
    seen = background(camera, Room(2.5, 2.5, plain, plain), light, 48)
    picture = render(solid, camera, seen, light, 48)
    red, green, _ = picture.rgb[24, 24]
    assert green > red + 50
    assert abs(picture.depth[24, 24] - 2.6) < 1e-5


def test_camera_projects_what_its_rays_see(seed):
    chance = np.random.default_rng(seed)
    camera = look_at(chance.uniform(-1, 1, 3) - [0, 3, -2], chance.uniform(-0.2, 0.2, 3), chance.uniform(-1, 1), 1.2)
    reach = chance.uniform(1, 4, 16 * 16)
    points = camera.position[:, None] + rays(camera, 16) * reach
    across, down, depth = project(camera, points.astype(np.float32))
    np.testing.assert_allclose(depth, reach, rtol=1e-5)
    np.testing.assert_allclose(across * 16, np.tile(np.arange(16) + 0.5, 16), atol=1e-3)
    np.testing.assert_allclose(down * 16, np.repeat(np.arange(16) + 0.5, 16), atol=1e-3)


def test_every_solid_stays_on_or_above_the_floor(seed):
    for index in range(len(CLASSES)):
        scene = draw(seed, index, SIZE)
        lowest = [place(scene.clip, moment).points[2].min() for moment in range(FRAMES)]
        assert min(lowest) > -1e-5
        assert np.ptp(scene.clip.path.rotation, axis=0).max() + np.ptp(scene.clip.path.offset, axis=0).max() > 0.05
        still, clip = place(scene.still, STILL), place(scene.clip, STILL)
        np.testing.assert_allclose(still.points.max(axis=1), clip.points.max(axis=1), atol=0.06)


def test_rotation_is_right_handed():
    turned = rotation(np.array([0.0, 0.0, 1.0]), np.array([np.pi / 2, np.pi])) @ np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(turned, [[0, 1, 0], [-1, 0, 0]], atol=1e-12)


def test_sound_starts_at_its_onset_and_has_its_pitch(seed):
    chance = np.random.default_rng(seed)
    voice = Voice(pitch=chance.uniform(200, 600), pace=1.5, loudness=0.5, onset=0.25, hiss=0.0)
    for timbre in TIMBRES.values():
        sound = synthesize(timbre, voice, chance)
        assert not sound[:4000].any()
        assert np.abs(sound.astype(int)).max() == 2**14
    spectrum = np.abs(np.fft.rfft(synthesize(TIMBRES["flute"], voice, chance)))
    assert abs(np.log2(spectrum.argmax() / voice.pitch)) < 0.06


def test_files_are_what_an_ordinary_reader_expects(world_seed):
    _, files = export(world_seed, 3, 64)
    with Image.open(io.BytesIO(files["rgb"])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
    with Image.open(io.BytesIO(files["depth"])) as image:
        assert (image.format, image.mode) == ("PNG", "I;16")
    with Image.open(io.BytesIO(files["semseg"])) as image:
        assert (image.format, image.mode) == ("PNG", "L")
    assert set(files) == set(export_module.EXTENSIONS)
