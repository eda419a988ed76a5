"""Controls that see no pixel, and the refusal of files that differ before a pixel is looked at."""

import pytest
from PIL import Image, PngImagePlugin

from evaluation.deepfake.files import check_encodings, encoding_control, metadata_control, picture_files, read_traits
from evaluation.schema import load
from evaluation.statistics import roc_auc
from evaluation.suites.deepfake import STAGE, DeepfakeConfig
from launch.errors import UserError
from tests.evaluation.deepfake.made import job, save, textures, upsampled


def write(folder, images, ending=".jpg", **options):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{index:03}{ending}", **options)
    return str(folder)


def traits(source):
    return [read_traits(path) for path in picture_files(source)]


def contents(*sources):
    return [path.read_bytes() for source in sources for path in picture_files(source)]


def test_traits_tell_format_size_mode_and_quality(tmp_path):
    images = textures(1, 16)
    names = {
        "fine": write(tmp_path / "fine", images, quality=95),
        "coarse": write(tmp_path / "coarse", images, quality=40),
        "progressive": write(tmp_path / "progressive", images, quality=95, progressive=True),
        "png": write(tmp_path / "png", images, ".png"),
        "large": write(tmp_path / "large", textures(1, 32), quality=95),
    }
    encodings = {name: traits(source)[0].encoding for name, source in names.items()}
    assert len(set(encodings.values())) == 5
    assert encodings["fine"].startswith("JPEG, L, 16x16") and encodings["png"].startswith("PNG, L, 16x16")
    assert (
        read_traits(picture_files(write(tmp_path / "again", textures(1, 16, 5), quality=95))[0]).encoding
        == encodings["fine"]
    )


def test_sources_without_files_have_none(tmp_path):
    assert picture_files(save(tmp_path / "arrays", textures(4))) == []
    assert picture_files("embedded:digits::eval") == [] and picture_files(str(tmp_path / "nothing.npz")) == []
    folder = tmp_path / "pictures"
    write(folder / "a", textures(2))
    (folder / ".hidden.jpg").write_bytes(b"no picture")
    assert len(picture_files(str(folder))) == 2
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg: cannot be read"):
        traits(str(folder))


def test_equal_files_give_chance_and_their_detectors_nothing(tmp_path):
    real, fake = write(tmp_path / "real", textures(60)), write(tmp_path / "fake", upsampled(50, 1, 1))
    for control in (encoding_control, metadata_control):
        test = control(traits(fake), traits(real), contents(real, fake))
        assert roc_auc(test.labels, test.scores) == 0.5 and 40 < len(test.labels) < 70
    check_encodings("x", traits(fake), traits(real))


def test_metadata_alone_tells_them_apart(tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_text("Software", "a generator")
    real = write(tmp_path / "real", textures(60), ".png")
    fake = write(tmp_path / "fake", textures(50, seed=1), ".png", pnginfo=note)
    test = metadata_control(traits(fake), traits(real), contents(real, fake))
    assert roc_auc(test.labels, test.scores) == 1.0
    test = encoding_control(traits(fake), traits(real), contents(real, fake))
    assert roc_auc(test.labels, test.scores) == 0.5
    config = DeepfakeConfig(output_dir=str(tmp_path / "out"), real=write(tmp_path / "r", textures(120), ".png"),
                            generators={"x": write(tmp_path / "f", upsampled(100, 1, 1), ".png", pnginfo=note)},
                            resamples=10, robustness=[])  # fmt: skip
    STAGE.run(config, job(tmp_path / "out"))
    result = load(tmp_path / "out" / "x")
    assert result.metric("auc_metadata_only").value == 1.0 and result.metric("auc_format_only").value == 0.5
    assert any("without a pixel" in text for text in result.notes)


def test_files_that_differ_are_refused_before_anything_is_trained(tmp_path):
    real = write(tmp_path / "real", textures(100), quality=95)
    for name, options, said in (
        ("coarse", {"quality": 50}, "100% of the generated files are JPEG, L, 16x16, tables"),
        ("progressive", {"quality": 95, "progressive": True}, "progressive"),
    ):
        fake = write(tmp_path / name, textures(100, seed=1), **options)
        config = DeepfakeConfig(output_dir=str(tmp_path / "out"), real=real, generators={"x": fake})
        with pytest.raises(UserError, match=f"generators.x: .*{said}"):
            STAGE.run(config, job(tmp_path / "out"))


def test_mixtures_in_unlike_shares_are_refused(tmp_path):
    """No encoding is in one set alone, but how often it occurs tells much."""

    def mixed(name, fine, seed):
        images, folder = textures(120, seed=seed), tmp_path / name
        write(folder / "fine", images[:fine], quality=95)
        write(folder / "coarse", images[fine:], quality=80)
        return str(folder)

    config = DeepfakeConfig(
        output_dir=str(tmp_path / "out"), real=mixed("real", 75, 0), generators={"x": mixed("fake", 42, 1)}
    )
    with pytest.raises(UserError, match="how files are encoded tells generated from real ones"):
        STAGE.run(config, job(tmp_path / "out"))
