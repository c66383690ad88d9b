"""Has a network for factors denoise them, in the precision and on the device that it is on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.config import Precision
from model.device import Device, in_precision, is_out_of_memory, release_memory
from model.inference import InferenceError
from model.local_axes import with_local_axes

# Of a block's images:
THE_MEAN, BESIDE_THE_MEAN = slice(0, 1), slice(1, None)

# cuDNN prepares itself anew in every thread, and does not always give back what that takes.
_gpu_thread = ThreadPoolExecutor(1)


@dataclass(frozen=True, kw_only=True)
class FactorDenoiser:
    """What `LowRank` has courses and images denoised by; any thread may ask.

    All raise InferenceError where an answer is not finite.
    """

    net: nn.Module  # on the device
    device: Device
    # The same on the CPU, which does it where the device's memory is full: it is small.
    spare: nn.Module | None = None
    precision: Precision = "fp32"

    def courses(self, courses: np.ndarray, guess: np.ndarray, known: np.ndarray) -> np.ndarray:
        """What becomes of one block's courses [T,K], as `DenoiseCourses` has it: float32."""
        if not courses.size:
            return courses
        seen = np.stack([courses.T, guess.T, known.T]).astype(np.float32)  # [3,K,T]
        return self._denoised(seen[None, :, :, None])[0, :, 0].T

    def images(self, images: np.ndarray) -> np.ndarray:
        """What becomes of blocks' images [B,K,h,w], in two looks: float32."""
        found = self._denoised(images[:, None])

        def again(turned: np.ndarray) -> np.ndarray:
            return self._denoised(turned[:, None], BESIDE_THE_MEAN)

        return with_local_axes(images, found, again)

    def means(self, images: np.ndarray) -> np.ndarray:
        """What becomes of the first of blocks' images [B,K,h,w], in a part of the time: [B,h,w]."""
        return self._denoised(images[:, None], THE_MEAN)[:, 0]

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Go on with other weights."""
        for net in filter(None, (self.net, self.spare)):
            net.load_state_dict(weights)

    def _denoised(self, noisy: np.ndarray, wanted: slice | None = None) -> np.ndarray:
        """What the network makes of [B,C,K,h,w]: [B,K,h,w], float32."""
        if not self.device.is_cuda:
            return self._through_network(noisy, wanted)
        return _gpu_thread.submit(self._through_network, noisy, wanted).result()

    @torch.inference_mode()
    def _through_network(self, noisy: np.ndarray, wanted: slice | None) -> np.ndarray:
        factors = torch.from_numpy(noisy)
        try:
            with in_precision(self.device, self.precision):
                denoised: Tensor = self.net(factors.to(self.device.torch_device), wanted)
        except RuntimeError as error:
            if not self.spare or not is_out_of_memory(error):
                raise
            release_memory(self.device)
            denoised = self.spare(factors, wanted)
        if not bool(torch.isfinite(denoised).all()):
            raise InferenceError(
                "the network gave values that are not finite; choose --method lowrank, which has "
                "no network, and report the stack"
            )
        return denoised[:, 0].float().cpu().numpy()
