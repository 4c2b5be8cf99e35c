#!/usr/bin/env bash
# From the speech that make_speech.py makes to a model like models/small: two and a half hours on two cores, in two stages.
#
#     bash recipes/small/train.sh [SPEECH] [OUT] [KEY=VALUE ...]
#
# Stopped or killed, the same command goes on where it stood. KEY=VALUE go to all stages; training.bf16=true is for
# processors with avx512_bf16 or amx_bf16 (see lscpu).
set -euo pipefail
speech=${1:-speech} out=${2:-outputs/small}
real=$speech/real
# Half of what is heard are people; the corpus has strings of digits.
train=$speech/train,$speech/words/train,$real/queen/train*2,$real/sky/train*2,$real/prompts/train*4,$real/stamps/train,corpus:train*0.15
# Telephone lines, noise, rooms and other microphones are put over it once, before the encoder, which rests, hears it.
common=(+experiments=small "data.train=[$train]" data.eval="$real/queen/test" data.test="$real/prompts/test"
  data.max_seconds=25 data.features_cache="$out/features" data.features_cache_variants=1
  augmentation.speed_probability=0.4 augmentation.noise_probability=0.3 augmentation.reverb_probability=0.2
  augmentation.band_limit_probability=0.3 augmentation.equalizer_probability=0.2 "augmentation.gain_db=[-15,5]"
  augmentation.non_speech_probability=0.02
  training.batch_seconds=45 training.num_workers=0 training.save_steps=50 training.tracker=none "${@:3}")

stage() { # NAME OVERRIDES...: trains unless it is done, and goes on with what was begun
  local folder=$out/$1 resume=false
  shift
  [ -d "$folder/model" ] && return
  [ -n "$(ls -A "$folder/checkpoints" 2>/dev/null)" ] && resume=true
  tiny-audio train "${common[@]}" "$@" output_dir="$folder" training.resume=$resume
}

tiny-audio cache-features "${common[@]}"
# 1. Projector and alignment head, by the two CTC losses; the decoder rests.
stage 1-align peft.r=0 ctc.alone_share=1 training.max_steps=2000 training.learning_rate=2e-3 training.warmup_steps=30
# 2. The decoder's adapters join in.
stage 2-read init_from="$out/1-align/model" ctc.alone_share=0 training.max_steps=2000 \
  training.learning_rate=5e-4 training.decoder_learning_rate=1e-3 training.warmup_steps=20 training.eval_samples=100
echo "the model: $out/2-read/model"
