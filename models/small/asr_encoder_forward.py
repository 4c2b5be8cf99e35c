"""How each family of audio encoders runs on a padded batch so that no clip feels its batch mates.

Legend: B batch, S samples, n_mels mel bins, L feature length (mel frames, or samples for encoders that hear
the waveform), F encoder frames, C channels of the convolutional front end, D_e encoder width.

The stock forwards break this each in their own way: Whisper wants 30 s and masks nothing, group norm averages
over padding. So the stock layers are driven from here. Each function takes (tower, input_features, padding,
F), the features zero beyond a clip's end and `padding` None when every clip fills the batch (no mask then,
and attention keeps its fastest kernels), and returns frames (B, F, D_e) of which those at padded positions
may hold anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.masking_utils import create_bidirectional_mask


@dataclass(frozen=True)
class Padding:
    """Where the clips of a padded batch end."""

    feature_lengths: Tensor  # (B,)
    feature_mask: Tensor  # bool (B, L), True where valid
    frame_mask: Tensor  # bool (B, F), True where valid


def run_whisper(tower: Any, mel: Tensor, padding: Padding | None, num_frames: int) -> Tensor:
    """Whisper (arXiv:2212.04356) on mel (B, n_mels, L), as long as the batch is and not 30 s."""
    hidden = F.gelu(tower.conv1(mel))  # (B, D_e, L)
    if padding is not None:
        # conv1's bias makes padding non-zero; conv2 would mix that into a clip's last frame
        hidden = hidden.masked_fill(~padding.feature_mask[:, None, :], 0.0)
    hidden = F.gelu(tower.conv2(hidden)).transpose(1, 2)  # (B, F, D_e)
    hidden = hidden + tower.embed_positions.weight[:num_frames]
    hidden = F.dropout(hidden, p=tower.dropout, training=tower.training)
    attention_mask = None
    if padding is not None:
        # the skip would wait for the device to see whether the mask holds any padding: it does
        attention_mask = create_bidirectional_mask(
            config=tower.config,
            inputs_embeds=hidden,
            attention_mask=padding.frame_mask,
            allow_is_bidirectional_skip=False,
        )
    for layer in tower.layers:
        hidden = layer(hidden, attention_mask)
    return tower.layer_norm(hidden)


def _convolve(extractor: Any, waveform: Tensor) -> Tensor:
    """(B, S) to (B, F, C).

    The stock forward asks for gradients at the waveform in train mode, which would keep every activation of a
    frozen front end for the backward pass.
    """
    hidden = waveform[:, None, :]  # (B, 1, S)
    for layer in extractor.conv_layers:
        hidden = layer(hidden)
    return hidden.transpose(1, 2)


def _front_end_per_clip(extractor: Any, waveform: Tensor, padding: Padding | None, num_frames: int) -> Tensor:
    """Group norm takes mean and variance over a clip's whole length, so there must be no padding in it."""
    if padding is None:
        return _convolve(extractor, waveform)
    lengths = padding.feature_lengths.tolist()
    clips = [
        _convolve(extractor, row[None, :length])[0] for row, length in zip(waveform, lengths, strict=True)
    ]
    frames = pad_sequence(clips, batch_first=True)  # (B, frames of the longest clip, C)
    return F.pad(frames, (0, 0, 0, num_frames - frames.shape[1]))  # (B, F, C)


def _front_end_batched(extractor: Any, waveform: Tensor, padding: Padding | None, num_frames: int) -> Tensor:
    """Layer norm looks at one frame at a time, and no valid frame's window reaches into the padding."""
    return _convolve(extractor, waveform)


FRONT_ENDS = {"group": _front_end_per_clip, "layer": _front_end_batched}  # by config.feat_extract_norm


def run_wav2vec2(tower: Any, waveform: Tensor, padding: Padding | None, num_frames: int) -> Tensor:
    """wav2vec 2.0 (arXiv:2006.11477), HuBERT (arXiv:2106.07447), WavLM (arXiv:2110.13900): waveform (B, S).

    The stock transformer zeroes padded frames before its positional convolution and masks them in attention.
    `tower.forward` is not used: it masks features at random, which is pretraining's.
    """
    front_end = FRONT_ENDS[tower.config.feat_extract_norm]
    projected = tower.feature_projection(front_end(tower.feature_extractor, waveform, padding, num_frames))
    hidden = projected[0] if isinstance(projected, tuple) else projected  # HuBERT returns the frames alone
    frame_mask = None if padding is None else padding.frame_mask
    return tower.encoder(hidden, attention_mask=frame_mask).last_hidden_state


def run_parakeet(tower: Any, mel: Tensor, padding: Padding | None, num_frames: int) -> Tensor:
    """Parakeet's FastConformer (arXiv:2305.05084) on mel (B, n_mels, L).

    The stock forward, which wants (B, L, n_mels), masks after every strided convolution and in attention.
    """
    feature_mask = None if padding is None else padding.feature_mask
    return tower(mel.transpose(1, 2), attention_mask=feature_mask).last_hidden_state


class FrozenStatisticsBatchNorm(nn.BatchNorm1d):
    """Batch norm that stays in eval: batch statistics would tie a clip to its mates and to padding."""

    def train(self, mode: bool = True) -> FrozenStatisticsBatchNorm:
        super().train(False)
        return self


def freeze_batch_statistics(tower: nn.Module) -> None:
    """Turns stock batch norms in `tower` into `FrozenStatisticsBatchNorm`, in place; twice is harmless."""
    for module in tower.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = FrozenStatisticsBatchNorm
            module.eval()


class SharedPositions(nn.Linear):
    """Projects relative positions once: stock Parakeet does it for each clip, though they are the same for all."""

    def forward(self, positions: Tensor) -> Tensor:
        """(B, 2 F - 1, D_e), equal along B, to the same."""
        return super().forward(positions[:1]).expand(len(positions), -1, -1)


def share_positions(tower: nn.Module) -> None:
    """Turns the projections of Parakeet's relative positions into `SharedPositions`, in place; twice is harmless."""
    for module in tower.modules():
        projection = getattr(module, "relative_k_proj", None)
        if type(projection) is nn.Linear:
            projection.__class__ = SharedPositions
