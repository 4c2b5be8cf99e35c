"""When each word was said and how sure that is, for a text that is known: forced alignment on the alignment head.

Legend: B batch, F encoder frames, V classes of the alignment head (blank = 0), C characters of a target, S = 2C + 1
states of a CTC path: state 2i is the blank before character i, state 2i + 1 character i itself.

The text is the language model's; the alignment head says where it lies. A frame t covers the time from
t * frame_seconds to (t + 1) * frame_seconds. Posteriors of CTC mark where a character was recognised, not how long it
lasted, and the last sound of a word lies mostly behind its last spike; so the edges of a word are put by a rule:
with the waveform, at the point where the sound begins and falls silent near its spikes; without it, at its first spike
and a fixed time behind its last one. A word never passes the spikes of its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .asr_audio import SAMPLING_RATE
from .asr_losses import CTC_BLANK, CTC_PADDING, encode_ctc_text

# All of these were chosen on corpus:dev; benchmarks/word_times.py judges them elsewhere.
# Without a waveform a word ends where the next one starts, or this long behind its last spike, whichever is first.
TAIL_SECONDS = 0.2
# With a waveform: where silence is looked for before the first spike (and a little past it), and behind the last.
SEARCH_BEFORE_SECONDS = 0.2
SEARCH_INSIDE_SECONDS = 0.05
SEARCH_AFTER_SECONDS = 0.4
# Silence is below this share of the way from the clip's quietest level to the word's loudest, in decibels; the share
# falls with their distance, because noise buries the quiet ends of words. A stop consonant's closure is shorter.
SILENCE_LEVEL = 0.3
SILENCE_SECONDS = 0.05
DYNAMIC_RANGE_DECIBELS = 50.0
QUIETEST_SHARE = 0.05
LEVEL_HOP_SECONDS = 0.01


@dataclass(frozen=True)
class TimedWord:
    """A word as written, its time in seconds from the beginning of the audio passed in, and a confidence in 0..1.

    `log_probability` is the decoder's own, the sum over the word's tokens; None where it could not be followed (beams).
    """

    text: str
    start: float
    end: float
    confidence: float
    log_probability: float | None = None


def forced_alignment(
    log_probabilities: Tensor, frame_lengths: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The likeliest CTC path that writes each target (Viterbi; Graves et al., 2006, section 4.1, max for sum).

    Args:
        log_probabilities: (B, F, V), any device; frame_lengths: (B,) valid frames.
        targets: (B, C) classes without blanks, padded with -1.

    Returns:
        (B, F) states in 0..2C, -1 beyond a clip's frames; and (B,) log-probabilities of the paths, -inf where no
        path exists (more characters, counting the blanks between equal neighbours, than frames): the states
        of such a clip mean nothing.
    """
    device = log_probabilities.device
    num_clips, num_frames, _ = log_probabilities.shape
    targets, frame_lengths = targets.to(device), frame_lengths.to(device)
    final = 2 * (targets != CTC_PADDING).sum(dim=1)  # (B,) the blank behind the last character
    states = targets.new_full((num_clips, 2 * targets.shape[1] + 1), CTC_BLANK)  # (B, S)
    states[:, 1::2] = targets.clamp(min=CTC_BLANK)
    emissions = log_probabilities.float().gather(2, states[:, None].expand(-1, num_frames, -1))  # (B, F, S)
    # From one character to the next without a blank between, unless they are equal.
    may_skip = torch.zeros_like(states, dtype=torch.bool)
    may_skip[:, 2:] = (states[:, 2:] != CTC_BLANK) & (states[:, 2:] != states[:, :-2])

    # Before the first frame all paths stand in the first blank, from which states 0 and 1 are reached.
    scores = torch.full_like(states, float("-inf"), dtype=torch.float)
    scores[:, 0] = 0.0
    steps = torch.zeros(num_frames, *states.shape, dtype=torch.uint8, device=device)
    for frame in range(num_frames):
        shifted = F.pad(scores, (2, 0), value=float("-inf"))  # (B, S + 2)
        two = shifted[:, :-2].masked_fill(~may_skip, float("-inf"))
        best, step = torch.stack([scores, shifted[:, 1:-1], two]).max(dim=0)
        inside = (frame < frame_lengths)[:, None]
        scores = torch.where(inside, best + emissions[:, frame], scores)
        steps[frame] = step.masked_fill(~inside, 0)

    last_two = torch.stack([final, (final - 1).clamp(min=0)], dim=1)  # (B, 2)
    best_score, which = scores.gather(1, last_two).max(dim=1)
    state = last_two.gather(1, which[:, None])[:, 0].cpu()  # (B,)
    steps = steps.cpu()  # the walk back is F tiny steps, for which a GPU would be launched F times
    path = torch.empty(num_frames, num_clips, dtype=torch.long)
    for frame in range(num_frames - 1, -1, -1):
        path[frame] = state
        state = (state - steps[frame].gather(1, state[:, None])[:, 0].long()).clamp(min=0)
    beyond = torch.arange(num_frames)[:, None] >= frame_lengths.cpu()
    return path.masked_fill(beyond, -1).T.to(device), best_score


def speech_evidence(log_probabilities: Tensor, frame_lengths: Tensor) -> Tensor:
    """(B,) how many characters the alignment head expects in each clip: near 0 without speech, any text aside.

    The exact expectation of the length of the collapsed output (characters and spaces) under CTC's own model,
    where frames are independent: a run of class c begins at frame t with probability p_t(c) (1 - p_t-1(c)).

    Args:
        log_probabilities: (B, F, V); frame_lengths: (B,) valid frames.
    """
    device, num_frames = log_probabilities.device, log_probabilities.shape[1]
    beyond = torch.arange(num_frames, device=device) >= frame_lengths.to(device)[:, None]  # (B, F)
    present = log_probabilities[..., CTC_BLANK + 1 :].float().exp().masked_fill(beyond[..., None], 0.0)
    before = F.pad(present, (0, 0, 1, 0))[:, :num_frames]  # (B, F, V - 1)
    return (present * (1 - before)).sum(dim=(1, 2))


def align_words(
    log_probabilities: Tensor,
    frame_lengths: Tensor,
    texts: Sequence[str],
    vocabulary: str,
    frame_seconds: float,
    waveforms: Sequence[np.ndarray] | None = None,
    word_log_probabilities: Sequence[Sequence[float]] | None = None,
) -> list[list[TimedWord]]:
    """Times and confidences of the words of each text.

    Words are those of `text.split()`, as written. Starts never decrease, and 0 <= start <= end <= the next word's
    start <= the duration of the clip's frames. A word without a character of the vocabulary gets the time that its
    neighbours leave free, or, if nothing in it is spoken (a dash), a point. A text longer than the frames allow
    is spread evenly, with confidence 0.

    Confidence is the geometric mean of the posterior that each character reaches at its place in the alignment
    (the highest, which does not depend on frame rate or on how peaky the head is); 0 for a word without such
    characters. With `word_log_probabilities`, it is averaged with the language model's own probability of the
    word (a linear opinion pool, Stone, 1961), which is right more often than either.

    Args:
        log_probabilities: (B, F, V) of the alignment head; frame_lengths: (B,) valid frames.
        texts: B transcripts; vocabulary: the characters of classes 1, 2, ...
        frame_seconds: time from one frame to the next.
        waveforms: B arrays (samples,) at 16 kHz, the audio that the frames were made of: finer edges.
        word_log_probabilities: for each text one log-probability a word.

    Raises:
        ValueError: numbers of clips, texts, waveforms or words that do not fit each other.
    """
    words = [text.split() for text in texts]
    _check(len(log_probabilities), words, waveforms, word_log_probabilities)
    if not words:
        return []
    spellings = [[encode_ctc_text(word, vocabulary) for word in row] for row in words]
    separator = [vocabulary.index(" ") + 1] if " " in vocabulary else []
    targets, owners = zip(*(_join(row, separator) for row in spellings), strict=True)
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(target, dtype=torch.long) for target in targets], True, CTC_PADDING
    ).to(log_probabilities.device)  # (B, C)
    path, scores = forced_alignment(log_probabilities, frame_lengths, padded)
    spikes = _spikes(log_probabilities, path, padded)  # three arrays (B, C)
    feasible, num_frames = torch.isfinite(scores).tolist(), frame_lengths.tolist()

    results = []
    for clip, row in enumerate(words):
        duration = num_frames[clip] * frame_seconds
        confidences = np.zeros(len(row))
        if feasible[clip]:
            owner = np.array(owners[clip], dtype=np.int64)  # (C,)
            first, last, peak = (array[clip, : len(owner)] for array in spikes)
            spans = {}
            for index in np.unique(owner[owner >= 0]).tolist():
                own = owner == index
                spans[index] = (first[own].min() * frame_seconds, (last[own].max() + 1) * frame_seconds)
                confidences[index] = np.exp(peak[own].mean())
            edges = _edges(spans, duration, None if waveforms is None else _level(waveforms[clip]))
            times = _fill_in(row, edges, duration)
            if word_log_probabilities is not None:
                written = np.exp(np.array(word_log_probabilities[clip], dtype=np.float64))
                aligned = np.isin(np.arange(len(row)), list(spans))
                confidences = np.where(aligned, (confidences + written) / 2, written)
        else:
            shares = np.cumsum([0.0, *(len(spelling) + 1.0 for spelling in spellings[clip])])
            times = list(pairwise((shares / shares[-1] * duration).tolist()))
        timed = zip(row, times, confidences.clip(0, 1).tolist(), strict=True)
        results.append(
            [TimedWord(word, float(start), float(end), sure) for word, (start, end), sure in timed]
        )
    return results


def _check(clips: int, words: list[list[str]], waveforms: Sequence | None, scores: Sequence | None) -> None:
    given = {"texts": words, "waveforms": waveforms, "word_log_probabilities": scores}
    for name, values in given.items():
        if values is not None and len(values) != clips:
            raise ValueError(f"got {clips} clips of log-probabilities but {len(values)} {name}")
    for row, row_scores in zip(words, scores or (), strict=False):
        if len(row) != len(row_scores):
            raise ValueError(f"got {len(row)} words but {len(row_scores)} log-probabilities of words: {row}")


def _join(spellings: list[list[int]], separator: list[int]) -> tuple[list[int], list[int]]:
    """Classes of all words, spaces between, and the word of each class (-1 for the spaces)."""
    pairs: list[tuple[int, int]] = []
    for index, spelling in enumerate(spellings):
        if spelling and pairs:
            pairs += [(character, -1) for character in separator]
        pairs += [(character, index) for character in spelling]
    return [character for character, _ in pairs], [index for _, index in pairs]


def _spikes(log_probabilities: Tensor, path: Tensor, targets: Tensor) -> tuple[np.ndarray, ...]:
    """First frame, last frame and highest log-probability of each character on its path: arrays (B, C)."""
    state = path.clamp(min=0)  # frames beyond the end count as the first blank, and blanks are dropped below
    classes = F.pad(targets.clamp(min=CTC_BLANK), (0, 1), value=CTC_BLANK)  # (B, C + 1)
    emitted = classes.gather(1, state // 2).masked_fill(state % 2 == 0, CTC_BLANK)
    scores = log_probabilities.float().gather(2, emitted[..., None])[..., 0].cpu()  # (B, F)
    state, frames = state.cpu(), torch.arange(path.shape[1]).expand(len(path), -1)
    found = []
    for values, reduction in ((frames, "amin"), (frames, "amax"), (scores, "amax")):
        table = values.new_zeros(len(path), 2 * targets.shape[1] + 1)  # (B, S)
        table = table.scatter_reduce(1, state, values, reduction, include_self=False)
        found.append(table[:, 1::2].numpy())  # (B, C)
    return tuple(found)


def _level(waveform: np.ndarray) -> np.ndarray:
    """(S,) samples to levels in decibels, one every `LEVEL_HOP_SECONDS`, of windows twice as long around it."""
    hop = round(LEVEL_HOP_SECONDS * SAMPLING_RATE)
    waveform = np.asarray(waveform, dtype=np.float64)
    offset = waveform.sum() / max(len(waveform), 1)  # a constant one is no sound
    samples = np.pad(waveform - offset, hop)
    energy = np.concatenate([[0.0], np.cumsum(samples**2)])
    return 10 * np.log10((energy[2 * hop :: hop] - energy[: -2 * hop : hop]) / (2 * hop) + 1e-10)


def _edges(
    spans: dict[int, tuple[float, float]], duration: float, level: np.ndarray | None
) -> dict[int, tuple[float, float]]:
    """From the spikes of each aligned word (seconds) to where it begins and ends."""
    edges: dict[int, tuple[float, float]] = {}
    limits = [*[first for first, _ in spans.values()][1:], duration]
    free_from = 0.0
    for (index, (first, last)), limit in zip(spans.items(), limits, strict=False):
        if level is None:
            start, end = first, min(last + TAIL_SECONDS, limit)
        else:
            start, end = _sound(level, first, last, free_from, limit)
        edges[index] = (start, end)
        free_from = end
    return edges


def _sound(
    level: np.ndarray, first: float, last: float, earliest: float, latest: float
) -> tuple[float, float]:
    """Where the sound of the spikes from `first` to `last` begins and ends, within `earliest` to `latest`."""
    loudest = level[_hops(first) : _hops(last) + 1].max(initial=-100.0)
    quietest = max(float(np.quantile(level, QUIETEST_SHARE)), loudest - DYNAMIC_RANGE_DECIBELS)
    silent = level < quietest + SILENCE_LEVEL * (loudest - quietest) ** 2 / DYNAMIC_RANGE_DECIBELS

    begin = max(earliest, first - SEARCH_BEFORE_SECONDS)
    before = np.flatnonzero(silent[_hops(begin) : _hops(min(first + SEARCH_INSIDE_SECONDS, last))])
    start = (_hops(begin) + before[-1] + 1) * LEVEL_HOP_SECONDS if len(before) else first
    start = min(max(start, begin), latest)

    stop = min(latest, last + SEARCH_AFTER_SECONDS)
    run = _hops(SILENCE_SECONDS)
    after = silent[_hops(last) : _hops(stop) + run]
    lasting = np.convolve(after, np.ones(run))[run - 1 : 1 - run] == run if len(after) else after
    end = (_hops(last) + int(lasting.argmax())) * LEVEL_HOP_SECONDS if lasting.any() else stop
    return start, min(max(end, start), latest)


def _hops(seconds: float) -> int:
    return round(seconds / LEVEL_HOP_SECONDS)


def _fill_in(
    words: list[str], edges: dict[int, tuple[float, float]], duration: float
) -> list[tuple[float, float]]:
    """Times of all words: those between aligned ones share the time left free; unspoken ones get a point in it."""
    times: list[tuple[float, float]] = []
    for index, word in enumerate(words):
        if index in edges:
            times.append(edges[index])
            continue
        left = times[-1][1] if times else 0.0
        following = next((later for later in range(index, len(words)) if later in edges), len(words))
        right = edges[following][0] if following < len(words) else duration
        sharing = sum(_is_spoken(other) for other in words[index:following])
        if _is_spoken(word):
            times.append((left, min(left + (right - left) / sharing, right)))
        else:
            point = right if not times and following < len(words) else left
            times.append((point, point))
    return times


def _is_spoken(word: str) -> bool:
    return any(character.isalnum() for character in word)
