import numpy as np
import pytest
import torch

from diffmatch.errors import InputError
from diffmatch.meshing.volumes import Volume, read_volume


def test_volumes(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    plain = read_volume(tmp_path / "a.npy")
    assert (plain.spacing, plain.origin) == ((1, 1, 1), (0, 0, 0))
    assert plain.values.dtype == torch.float32
    assert np.array_equal(plain.values.numpy(), values)
    for key in ("sdf", "values", "anything"):
        arrays = {key: values, "spacing": np.array([0.1, 0.2, 0.3]), "origin": [1, 2, 3], "more": np.zeros(4)}
        np.savez(tmp_path / "a.npz", **arrays)
        volume = read_volume(tmp_path / "a.npz")
        assert (volume.spacing, volume.origin) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
        assert np.array_equal(volume.values.numpy(), values)
    np.savez(tmp_path / "a.npz", sdf=values, values=values + 1, spacing=0.5)
    assert read_volume(tmp_path / "a.npz").spacing == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(np.int16, torch.float64), (np.float16, torch.float32), (">f4", torch.float32), (np.uint64, torch.float64)],
)
def test_dtypes_of_volumes(tmp_path, given, wanted):
    values = np.arange(8).reshape(2, 2, 2).astype(given)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    read = read_volume(tmp_path / "a.npy").values
    assert read.dtype == wanted
    assert read.flatten().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 3)), r"an array of shape \(nx, ny, nz\), got shape \(3, 3\)"),
        (np.zeros((1, 3, 3)), "at least 2 nodes along each axis"),
        (np.zeros((2, 2, 2), dtype=complex), "an array of real numbers, got dtype complex128"),
        (np.zeros((2, 2, 2), dtype=bool), "an array of real numbers, got dtype bool"),
        (np.full((2, 2, 2), "a"), "an array of real numbers"),
        (np.array([[[1.0, np.nan], [np.inf, 2]]] * 2), "finite values, got 4 of 8 NaN or infinite"),
    ],
)
def test_bad_volumes_are_named(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path / "a.npy")


def test_bad_volume_files(tmp_path):
    cube = np.zeros((2, 2, 2))
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no")
        with pytest.raises(InputError, match=r"a readable \.np. file of numbers"):
            read_volume(tmp_path / name)
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"a readable \.np. file of numbers"):
        read_volume(tmp_path / "o.npy")
    (tmp_path / "a.vti").touch()
    with pytest.raises(InputError, match=r"a volume file \(\.npy, \.npz, \.nii, \.nii\.gz\), got 'a\.vti'"):
        read_volume(tmp_path / "a.vti")
    np.savez(tmp_path / "two.npz", a=cube, b=cube)
    with pytest.raises(InputError, match=r"a single 3-D array, got a \(2, 2, 2\), b \(2, 2, 2\)"):
        read_volume(tmp_path / "two.npz")
    for extra, message in [
        ({"spacing": [1, 2]}, "spacing: want one number or three"),
        ({"spacing": 0.0}, "spacing: want three positive numbers"),
        ({"origin": np.nan}, "origin: want three finite numbers"),
        ({"origin": "here"}, "origin: want one number or three"),
        ({"axes": np.ones(3)}, "axes: want numbers of shape"),
        ({"axes": np.ones((3, 3))}, "axes: want three unit vectors, perpendicular to each other"),
    ]:
        np.savez(tmp_path / "bad.npz", sdf=cube, **extra)
        with pytest.raises(InputError, match=message):
            read_volume(tmp_path / "bad.npz")


@pytest.mark.untyped
def test_volume_checks_its_shape_and_dtype():
    with pytest.raises(InputError, match=r"values: want shape \(nx, ny, nz\)"):
        Volume(torch.zeros(3, 3))
    with pytest.raises(InputError, match="values: want a real floating-point dtype"):
        Volume(torch.zeros(3, 3, 3).int())


def nifti(path, values, affine):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def turned_affine():
    """A grid that is turned, mirrored and of unequal steps, as scanners leave them."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, -1.5, 2.0])
    affine[:3, 3] = [-30.0, 12.0, 7.0]
    return affine


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_scans_lie_where_their_header_says(tmp_path, name):
    affine = turned_affine()
    values = np.random.default_rng(0).integers(0, 1000, size=(3, 4, 5)).astype(np.int16)
    volume = read_volume(nifti(tmp_path / name, values, affine))
    assert np.array_equal(volume.values.numpy(), values)
    assert volume.values.dtype == torch.float64
    assert volume.spacing == pytest.approx((0.5, 1.5, 2.0))
    index = np.array([2, 3, 1])
    placed = np.array(volume.origin) + (index * volume.spacing) @ np.array(volume.axes)
    assert placed == pytest.approx((affine @ [*index, 1])[:3], abs=1e-4)


def test_a_level_makes_what_is_brighter_the_inside(tmp_path):
    values = np.linspace(0, 1, 8).reshape(2, 2, 2)
    np.save(tmp_path / "a.npy", values)
    assert np.array_equal(read_volume(tmp_path / "a.npy", level=0.4).values.numpy(), 0.4 - values)
    with pytest.raises(InputError, match="level: want a finite number"):
        read_volume(tmp_path / "a.npy", level=float("nan"))


def test_scans_that_cannot_be_used(tmp_path):
    pytest.importorskip("nibabel")
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    with pytest.raises(InputError, match="a readable NIfTI file"):
        read_volume(tmp_path / "bad.nii")
    affine = np.eye(4)
    affine[0, 1] = 0.5
    with pytest.raises(InputError, match="perpendicular to each other"):
        read_volume(nifti(tmp_path / "skew.nii", np.zeros((2, 2, 2), np.float32), affine))
    with pytest.raises(InputError, match=r"an array of shape \(nx, ny, nz\), got shape \(2, 2, 2, 3\)"):
        read_volume(nifti(tmp_path / "series.nii", np.zeros((2, 2, 2, 3), np.float32), np.eye(4)))
    assert (
        read_volume(nifti(tmp_path / "one.nii", np.ones((2, 2, 2, 1), np.float32), np.eye(4))).values.shape == (2,) * 3
    )
