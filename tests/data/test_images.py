"""Reading images: every accepted form, and one sentence for every fault."""

import gzip

import numpy as np
import pytest
from PIL import Image

from data.images import content_fractions, image_set, load_images
from launch.errors import UserError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_embedded_digits_split_by_content():
    whole, train, test = (load_images(f"embedded:digits{part}") for part in ("", "::train", "::eval"))
    assert whole.images.shape == (1797, 1, 8, 8) and whole.images.dtype == np.uint8 and whole.images.max() == 255
    assert (len(train), len(test)) == (872, 925)
    pixels = [{i.tobytes() for i in part.images} for part in (train, test)]
    assert not pixels[0] & pixels[1]
    assert train.source == "embedded:digits::train" and train.sha256 == test.sha256 == whole.sha256
    assert np.array_equal(train.labels, whole.labels[np.isin([i.tobytes() for i in whole.images], list(pixels[0]))])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("embedded:digits/train", "behind two colons; write embedded:digits::train$"),
        ("embedded:digits/test", "behind two colons; write embedded:digits::eval$"),
        ("embedded:digits::test", "no such split; valid names: eval, train"),
        ("embedded:digits::train/a", "no such split; did you mean 'train'"),
        ("embedded:faces", "no such embedded images; there are embedded:digits"),
    ],
)
def test_names_of_embedded_images_that_are_not_there(source, sentence):
    with pytest.raises(UserError, match=sentence):
        load_images(source)


def test_every_source_has_the_same_splits(tmp_path):
    images = load_images("embedded:digits").images[::-1]  # in another order, and from a file
    np.savez(tmp_path / "digits.npz", images=images)
    for part in ("::train", "::eval"):
        found, embedded = load_images(f"{tmp_path / 'digits.npz'}{part}"), load_images(f"embedded:digits{part}")
        assert np.array_equal(found.images[::-1], embedded.images)
    np.savez(tmp_path / "one.npz", images=load_images("embedded:digits::eval").images[:1])
    with pytest.raises(UserError, match="none of 1 images is in the split 'train'"):
        load_images(f"{tmp_path / 'one.npz'}::train")


def test_content_fractions_depend_on_the_image_alone():
    images = noise(200, 1, 8, 8)
    fractions = content_fractions(images, "p")
    assert np.array_equal(content_fractions(images[::-1], "p")[::-1], fractions)
    assert 0.3 < (fractions < 0.5).mean() < 0.7 and ((fractions >= 0) & (fractions < 1)).all()
    assert not np.array_equal(content_fractions(images, "q"), fractions)


@pytest.mark.parametrize("stored", ["(N, H, W)", "(N, C, H, W)", "(N, H, W, C)"])
def test_npz_layouts(tmp_path, stored):
    images = noise(5, 3, 6, 7) if "C" in stored else noise(5, 1, 6, 7)
    layout = {"(N, H, W)": images[:, 0], "(N, C, H, W)": images, "(N, H, W, C)": images.transpose(0, 2, 3, 1)}
    np.savez(tmp_path / "samples.npz", images=layout[stored], labels=np.arange(5))
    for source in (tmp_path, tmp_path / "samples.npz"):
        found = load_images(str(source))
        assert np.array_equal(found.images, images) and np.array_equal(found.labels, np.arange(5))


def test_folder_of_pictures(tmp_path):
    images = noise(3, 1, 5, 4)
    for index, image in enumerate(images):
        Image.fromarray(image[0]).save(tmp_path / f"{index}.png")
    found = load_images(str(tmp_path))
    assert np.array_equal(found.images, images) and found.compression == "none" and found.labels is None
    lossy = tmp_path / "lossy"
    lossy.mkdir()
    Image.fromarray(noise(8, 8, 3)).save(lossy / "a.jpg")
    assert load_images(str(lossy)).images.shape == (1, 3, 8, 8) and load_images(str(lossy)).compression == "lossy"
    with pytest.raises(UserError, match=r"mixes lossy files \(a.jpg\)"):
        load_images(str(tmp_path))


def test_hash_and_sampling():
    found = image_set(noise(50, 1, 4, 4), np.arange(50), "x")
    assert found.sha256 == image_set(found.images.copy(), None, "y").sha256
    assert (
        found.sha256 != image_set(found.images[::-1], None, "x").sha256
        and found.sha256 == found.take(np.arange(3)).sha256
    )
    assert found.sha256 != image_set(found.images.reshape(50, 1, 2, 8), None, "x").sha256
    part = found.sample(10, seed=1)
    assert len(set(part.labels)) == 10 and np.array_equal(part.images, found.images[part.labels])
    assert found.sample(50, seed=1) is found


def test_faults_are_named(tmp_path):
    def save(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    cases = {
        str(tmp_path / "absent"): "holds no images",
        save("a.npz", pictures=noise(2, 8, 8)): "no array 'images' .there are pictures",
        save("b.npz", images=noise(2, 8, 8) / 255.0): "float64, not uint8",
        save("c.npz", images=noise(2, 2, 8, 8)): r"shape \(2, 2, 8, 8\)",
        save("d.npz", images=noise(0, 1, 8, 8)): r"shape \(0, 1, 8, 8\)",
        save("e.npz", images=noise(2, 8, 8), labels=np.arange(3)): "labels have shape",
        save("f.npz", images=np.array([None, "x"], dtype=object)): "not a whole npz file",
    }
    cut = tmp_path / "cut.npz"
    cut.write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    cases[str(cut)] = "not a whole npz file"
    for source, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_images(source)


def test_faulty_pictures_are_named(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(UserError, match="no pictures"):
        load_images(str(folder))
    Image.fromarray(noise(8, 8)).save(folder / "a.png")
    Image.fromarray(noise(8, 9)).save(folder / "b.png")
    with pytest.raises(UserError, match=r"b\.png: 9x8 grey, but a\.png is 8x8 grey"):
        load_images(str(folder))
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.png: cannot be read"):
        load_images(str(folder))
    Image.fromarray(noise(8, 8, 4)).save(folder / "b.png")
    with pytest.raises(UserError, match="transparency"):
        load_images(str(folder))


def test_folders_by_class_are_labels(tmp_path):
    images = noise(4, 1, 5, 4)
    for index, (image, label) in enumerate(zip(images, ("dog", "cat", "dog", "cat"), strict=True)):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(tmp_path / label / f"{index}.png")
    found = load_images(str(tmp_path))
    assert found.labels.tolist() == [0, 0, 1, 1] and np.array_equal(found.images, images[[1, 3, 0, 2]])
    Image.fromarray(images[0][0]).save(tmp_path / "loose.png")
    assert load_images(str(tmp_path)).labels is None  # one picture has no class


def test_reference_batches_of_guided_diffusion(tmp_path):
    images = noise(5, 6, 7, 3)
    np.savez(tmp_path / "batch.npz", images, np.arange(5))  # arr_0, arr_1
    found = load_images(str(tmp_path / "batch.npz"))
    assert np.array_equal(found.images, images.transpose(0, 3, 1, 2)) and found.labels.tolist() == [0, 1, 2, 3, 4]


def idx(path, values):
    kind = bytes([0, 0, 8, values.ndim])
    content = kind + b"".join(size.to_bytes(4, "big") for size in values.shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_images_have_the_labels_beside_them(tmp_path, suffix):
    images = noise(6, 5, 4)
    idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    assert load_images(str(tmp_path)).labels is None
    idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(6))
    found = load_images(str(tmp_path))
    assert np.array_equal(found.images[:, 0], images) and found.labels.tolist() == list(range(6))
    idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(5))
    with pytest.raises(UserError, match="no idx file of 6 labels"):
        load_images(str(tmp_path))


def test_data_sets_of_datasets(tmp_path):
    import datasets

    images = noise(6, 8, 8)
    columns = {"image": [Image.fromarray(i) for i in images], "label": [2, 1, 0, 2, 1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(3)})
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "parts")
    table.to_parquet(tmp_path / "table.parquet")
    for source in ("saved", "parts/test", "table.parquet"):
        found = load_images(str(tmp_path / source))
        assert np.array_equal(found.images[:, 0], images) and found.labels.tolist() == columns["label"]
        assert found.compression == "none"
    with pytest.raises(UserError, match=r"parts: holds 2 data sets \(test, train\); name one, as in .*parts/test"):
        load_images(str(tmp_path / "parts"))


def test_data_sets_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    import datasets

    def saved(name, rows, **features):
        table = datasets.Dataset.from_list(rows)
        for column in features:
            table = table.cast_column(column, features[column])
        table.save_to_disk(tmp_path / name)
        return str(tmp_path / name)

    small, large = (Image.fromarray(noise(size, size)) for size in (4, 5))
    with pytest.raises(UserError, match=r"text: has no column of pictures \(text: str\)"):
        load_images(saved("text", [{"text": "a"}]))
    with pytest.raises(UserError, match="sizes: row 2: 5x5 grey, but the first is 4x4 grey"):
        load_images(saved("sizes", [{"image": small}, {"image": large}]))
    with pytest.raises(UserError, match="two: has several columns of pictures"):
        load_images(saved("two", [{"a": small, "b": small}]))
    with pytest.raises(UserError, match="hub:someone/pictures: could not be loaded"):
        load_images("hub:someone/pictures")  # HF_HUB_OFFLINE
    (tmp_path / "bad.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(UserError, match=r"bad.parquet: could not be read as a data set"):
        load_images(str(tmp_path / "bad.parquet"))
