"""Check what a job in the platform's layout left: check_output.py INPUT_DIR OUTPUT_DIR.

The readers are others than the product's own: tifffile, SimpleITK, and the platform's importer.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import panimg
import SimpleITK
import tifffile

NOISY = Path("images/stacked-neuron-images-with-noise")
DENOISED = Path("images/stacked-neuron-images-with-reduced-noise")


def complaints(input_dir: Path, output_dir: Path) -> Iterator[str]:
    """Yield what is wrong with a job of one TIFF stack, in words; nothing when all is well."""
    [noisy_path] = (input_dir / NOISY).iterdir()
    written = [path for path in (output_dir / "images").rglob("*") if path.is_file()]
    denoised_path = output_dir / DENOISED / noisy_path.name
    if written != [denoised_path]:
        yield f"expected {denoised_path} alone below images, found {written}"
        return

    noisy = tifffile.imread(noisy_path)  # [T,H,W]
    denoised = tifffile.imread(denoised_path)  # [T,H,W]
    if (denoised.shape, denoised.dtype) != (noisy.shape, noisy.dtype):
        yield f"{denoised.shape} {denoised.dtype} out for {noisy.shape} {noisy.dtype} in"
    elif np.array_equal(denoised, noisy):
        yield "the output is the input"

    seen_by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(denoised_path)))
    if not np.array_equal(seen_by_itk, denoised):
        yield f"SimpleITK reads other values, {seen_by_itk.shape} {seen_by_itk.dtype}"

    with TemporaryDirectory() as scratch:
        imported = panimg.convert(
            input_directory=denoised_path.parent,
            output_directory=Path(scratch),
            post_processors=(),  # previews for a viewer, which need a system library
        )
    if len(imported.new_images) != 1:
        yield f"the platform's importer rejects the image: {dict(imported.file_errors)}"

    records = list(output_dir.rglob("denoising.json"))
    if len(records) != 1:
        yield f"expected one denoising.json, found {records}"
    elif not json.loads(records[0].read_text(encoding="utf-8")):
        yield f"{records[0]} is empty"


if __name__ == "__main__":
    found = list(complaints(Path(sys.argv[1]), Path(sys.argv[2])))
    for complaint in found:
        print(f"check_output: {complaint}", file=sys.stderr)
    if not found:
        print("check_output: one image, accepted by tifffile, SimpleITK and panimg")
    sys.exit(bool(found))
