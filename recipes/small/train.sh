#!/usr/bin/env bash
# From the speech that make_speech.py makes to a model like models/small: three runs of less than two hours each on
# two cores, with bf16. The model is OUT/mean.
#
#     bash recipes/small/train.sh [SPEECH] [OUT] [KEY=VALUE ...]
#
# Stopped or killed, the same command goes on where it stood. training.bf16=true is for processors with avx512_bf16 or
# amx_bf16 (see lscpu).
set -euo pipefail
speech=${1:-speech} out=${2:-outputs/small} asked=("${@:3}")
real=$speech/real root=$(CDPATH='' cd "$(dirname "$0")/../.." && pwd)
mean() { PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} python -m recipes.small.mean "$@"; }

# What would fail hours later.
if [ ! -d "$speech/kokoro/train" ]; then
  echo "$speech/kokoro/train, which the third run hears, is not there: see recipes/small/README.md" >&2
  exit 1
fi
mean --help >/dev/null

# Two thirds of what is heard are people; the corpus has strings of digits.
train=$speech/train,$speech/words/train,$real/queen/train*2,$real/sky/train*2,$real/prompts/train*8,$real/stamps/train,corpus:train*0.15

run() { # FOLDER KEY=VALUE ...
  local folder=$1 resume=false
  shift
  [ -e "$folder/metrics.json" ] && return # the last that a run writes
  compgen -G "$folder/checkpoints/step-*" >/dev/null && resume=true
  tiny-audio train +experiments=small "data.train=[$train]" data.eval="$real/queen/test" data.test="$real/prompts/test" \
    data.max_seconds=25 \
    augmentation.noise_probability=0.3 augmentation.reverb_probability=0.2 augmentation.band_limit_probability=0.3 \
    augmentation.equalizer_probability=0.2 "augmentation.gain_db=[-15,5]" augmentation.non_speech_probability=0.02 \
    training.warmup_steps=30 training.batch_seconds=45 training.num_workers=0 training.eval_samples=100 \
    training.save_steps=50 training.tracker=none output_dir="$folder" training.resume=$resume "$@" ${asked[@]+"${asked[@]}"}
}

later=(training.learning_rate=5e-4 training.encoder_learning_rate=2e-4 training.min_learning_rate_ratio=0.02
  "augmentation.speed=[0.85,1.15]" augmentation.speed_probability=0.5
  "augmentation.frequency_warp=[0.88,1.12]" augmentation.frequency_warp_probability=0.5)

# In the first steps of each the decoder rests, and the two CTC losses teach encoder and projector to listen.
run "$out/1" training.max_steps=2200 ctc.alone_share=0.55 encoder_lora.lora_alpha=64 \
  training.learning_rate=2e-3 training.decoder_learning_rate=1.5e-3 \
  augmentation.speed_probability=0.4 augmentation.frequency_warp_probability=0.3

# Of what the encoder's adapters learned, half is about the voices that they heard: for others they are better at half
# their strength (docs/LOG.md). From there, over more changed voices and at lower rates.
[ -e "$out/half" ] || mean "$out/half" "$out/1/model" --encoder-strength 0.5 --encoder-alpha 32
run "$out/2" init_from="$out/half" seed=1 training.max_steps=2350 ctc.alone_share=0.42 \
  training.decoder_learning_rate=1e-3 "${later[@]}"

# More of that, over Kokoro's voices besides. The mean of the weights at its beginning and at its end makes fewer errors
# on what was never heard than either, and fewer still at three quarters of the strength of the encoder's adapters.
train=$train,$speech/kokoro/train*2
run "$out/3" init_from="$out/2/model" seed=2 training.max_steps=1250 ctc.alone_share=0.45 \
  training.decoder_learning_rate=6e-4 "${later[@]}"
[ -e "$out/mean" ] || mean "$out/mean" "$out/2/model" "$out/3/model" --encoder-strength 0.75
