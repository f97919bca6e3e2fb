"""What others do, for bench_stream.py: each peer as a function that returns patches per second."""

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from casebook import Cohort, open_case

PEERS = ("monai", "openslide", "cucim", "tifffile", "torchio", "blosc2", "s3fs")


def absent() -> list[str]:
    return [name for name in PEERS if importlib.util.find_spec(name) is None]


def has(*names: str) -> bool:
    return not set(names) & set(absent())


class ZarrPatches(Dataset[torch.Tensor]):
    """Random unaligned patches, zarr-python, opened in the worker that uses it."""

    def __init__(self, url: str, number: int) -> None:
        self.url, self.number = url, number
        self.array: Any = None

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> torch.Tensor:
        import zarr

        if self.array is None:
            self.array = zarr.open_array(self.url, mode="r")
        rng = np.random.default_rng(index)
        y, x = (int(rng.integers(n - 256)) for n in self.array.shape[1:])
        return torch.from_numpy(np.asarray(self.array[:, y : y + 256, x : x + 256]))


def slide_peers(slide: Cohort, folder: Path, most: int) -> dict[str, Callable[[], float]]:
    url = slide.cases[0].url.removeprefix("file://") + "/0"
    peers = {"slide: torch DataLoader + zarr-python with 2 workers": lambda: _loader(ZarrPatches(url, most))}
    if has("monai", "openslide", "tifffile"):
        tiff = _tiled_tiff(slide, folder)
        peers["slide: MONAI PatchWSIDataset, openslide"] = lambda: _monai(tiff, "openslide", most // 2)
        if has("cucim"):
            peers["slide: MONAI PatchWSIDataset, cucim"] = lambda: _monai(tiff, "cucim", most // 2)
    return peers


def _loader(dataset: Dataset[torch.Tensor]) -> float:
    """Timed from the second batch on: what starting two processes costs is not counted."""
    loader = DataLoader(dataset, batch_size=32, num_workers=2, multiprocessing_context="spawn", prefetch_factor=2)
    return _steady(loader)


def _steady(batches: Any) -> float:
    start, patches = 0.0, 0
    for number, batch in enumerate(batches):
        if number == 0:
            start = time.perf_counter()
        else:
            patches += len(batch)
    return patches / (time.perf_counter() - start)


def _tiled_tiff(slide: Cohort, folder: Path) -> str:
    """The slide's first 16,384 px as JPEG tiles of 256 px, as scanners write them; lossy, so less to read than ours."""
    import tifffile

    side = min(16_384, *slide.cases[0].shape)
    path = folder / f"slide{side}.tiff"
    if not path.exists():
        case = open_case(slide.cases[0].url)

        def tiles() -> Iterator[np.ndarray]:
            for y in range(0, side, 256):
                row = case.read_image(0, (y, 0), (256, side))
                for x in range(0, side, 256):
                    yield np.ascontiguousarray(row[:, :, x : x + 256].transpose(1, 2, 0))

        with tifffile.TiffWriter(path, bigtiff=True) as writer:
            writer.write(
                tiles(), shape=(side, side, 3), dtype="uint8", tile=(256, 256), photometric="rgb", compression="jpeg",
                compressionargs={"level": 85}, resolution=(20_000, 20_000), resolutionunit=3,
            )  # fmt: skip
    return str(path)


def _monai(path: str, reader: str, number: int) -> float:
    from monai.data import PatchWSIDataset

    rng = np.random.default_rng(0)
    side = 4096
    data = [
        {"image": path, "location": [int(v) for v in rng.integers(128, side - 128, 2)], "label": 0}
        for _ in range(number)
    ]
    patches = PatchWSIDataset(data=data, patch_size=256, patch_level=0, reader=reader)
    patches[0]
    start = time.perf_counter()
    for i in range(number):
        torch.as_tensor(np.asarray(patches[i]["image"]))
    return number / (time.perf_counter() - start)


def volume_peers(cube: Cohort, folder: Path, most: int) -> dict[str, Callable[[], float]]:
    case = open_case(cube.cases[0].url)
    volume = case.read_image(0, (0, 0, 0), case.shapes[0])
    url = case.url.removeprefix("file://") + "/0"
    peers: dict[str, Callable[[], float]] = {"volume: zarr-python": lambda: zarr_cubes(url, most)}
    if has("blosc2"):
        peers["volume: nnU-Net's blosc2 way"] = lambda: _blosc2(volume, folder, most)
    if has("torchio"):
        nifti = _nifti(volume, folder)
        peers["volume: TorchIO Queue"] = lambda: _torchio(nifti, min(most, 128))
    return peers


def _blosc2(volume: np.ndarray, folder: Path, number: int) -> float:
    """As nnU-Net v2 stores and reads its cases: b2nd, zstd 8, chunks near the cache, memory-mapped, opened for every patch."""
    import blosc2

    path = folder / f"volume{volume.shape[-1]}.b2nd"
    if not path.exists():
        blosc2.asarray(
            np.ascontiguousarray(volume), urlpath=str(path), mode="w", chunks=(1, 64, 64, 64), blocks=(1, 32, 32, 32),
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8},
        )  # fmt: skip
    blosc2.set_nthreads(1)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(number):
        z, y, x = (int(v) for v in rng.integers(0, volume.shape[-1] - 64, 3))
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
        torch.from_numpy(array[:, z : z + 64, y : y + 64, x : x + 64])
    return number / (time.perf_counter() - start)


def _nifti(volume: np.ndarray, folder: Path) -> str:
    """Uncompressed: the kindest to TorchIO, which reads a volume whole."""
    import SimpleITK

    path = folder / f"volume{volume.shape[-1]}.nii"
    if not path.exists():
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume[0]), str(path))
    return str(path)


def _torchio(path: str, number: int) -> float:
    import torchio

    subject = torchio.Subject(image=torchio.ScalarImage(path))
    subjects = torchio.SubjectsDataset([subject] * max(1, number // 16))
    sampler = torchio.UniformSampler(64)
    queue = torchio.Queue(subjects, max_length=32, samples_per_volume=16, sampler=sampler, num_workers=0)
    loader = torchio.SubjectsLoader(queue, batch_size=16, num_workers=0)
    start, patches = time.perf_counter(), 0
    for batch in loader:
        patches += len(batch["image"]["data"])
    return patches / (time.perf_counter() - start)


def zarr_cubes(url: str, number: int) -> float:
    import zarr

    array = zarr.open_array(url, mode="r")
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(number):
        z, y, x = (int(v) for v in rng.integers(0, array.shape[-1] - 64, 3))
        torch.from_numpy(np.asarray(array[:, z : z + 64, y : y + 64, x : x + 64]))
    return number / (time.perf_counter() - start)


def zarr_patches(url: str, number: int) -> float:
    """Random unaligned patches with zarr-python over s3fs, in this process."""
    import zarr

    array = zarr.open_array(zarr.storage.FsspecStore.from_url(url + "/0"), mode="r")
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(number):
        y, x = (int(rng.integers(n - 256)) for n in array.shape[1:])
        torch.from_numpy(np.asarray(array[:, y : y + 256, x : x + 256]))
    return number / (time.perf_counter() - start)


def copy_to(store: str, case_url: str) -> str:
    """The case in the object store; copied there if it is not yet."""
    import fsspec

    source = Path(case_url.removeprefix("file://"))
    target = f"{store.rstrip('/')}/{source.parent.name}/{source.name}"
    fs, root = fsspec.core.url_to_fs(target)
    if not fs.exists(root + "/zarr.json"):
        fs.makedirs(root.split("/")[0], exist_ok=True)
        fs.put(str(source) + "/", root + "/", recursive=True)
    return target
