#!/usr/bin/env bash
# From the speech that make_speech.py makes to a model like models/small: two hours on two cores, with bf16.
#
#     bash recipes/small/train.sh [SPEECH] [OUT] [KEY=VALUE ...]
#
# Stopped or killed, the same command goes on where it stood. training.bf16=true is for processors with avx512_bf16 or
# amx_bf16 (see lscpu).
set -euo pipefail
speech=${1:-speech} out=${2:-outputs/small}
real=$speech/real
# Two thirds of what is heard are people; the corpus has strings of digits.
train=$speech/train,$speech/words/train,$real/queen/train*2,$real/sky/train*2,$real/prompts/train*8,$real/stamps/train,corpus:train*0.15
resume=false
[ -n "$(ls -A "$out/checkpoints" 2>/dev/null)" ] && resume=true
# In the first 55% of the steps the decoder rests, and the two CTC losses teach encoder and projector to listen.
exec tiny-audio train +experiments=small "data.train=[$train]" data.eval="$real/queen/test" data.test="$real/prompts/test" \
  data.max_seconds=25 ctc.alone_share=0.55 \
  augmentation.speed_probability=0.4 augmentation.frequency_warp_probability=0.3 augmentation.noise_probability=0.3 \
  augmentation.reverb_probability=0.2 augmentation.band_limit_probability=0.3 augmentation.equalizer_probability=0.2 \
  "augmentation.gain_db=[-15,5]" augmentation.non_speech_probability=0.02 \
  training.max_steps=2200 training.learning_rate=2e-3 training.decoder_learning_rate=1.5e-3 \
  training.warmup_steps=30 training.batch_seconds=45 training.num_workers=0 training.eval_samples=100 \
  training.save_steps=50 training.tracker=none output_dir="$out" training.resume=$resume "${@:3}"
