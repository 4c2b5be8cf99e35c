#!/usr/bin/env bash
# From the speech that make_speech.py makes to the model in models/small: six hours on one to two cores, in nine stages.
#
#     bash recipes/small/train.sh [SPEECH] [OUT] [MORE_SPEECH] [KEY=VALUE ...]
#
# Stopped or killed, the same command goes on where it stood. KEY=VALUE go to all stages; training.bf16=true is for
# processors with avx512_bf16 or amx_bf16 (see lscpu).
set -euo pipefail
speech=${1:-speech} out=${2:-outputs/small} more=${3:-speech-more}
prompts=$speech/real/prompts/train
common=(+experiments=small data.eval="$speech/dev" data.test="$speech/real/prompts/test" data.max_seconds=25
  training.batch_seconds=45 training.num_workers=0 training.save_steps=50 training.tracker=none "${@:4}")
clean=("data.train=[$speech/train,$prompts]" data.features_cache="$out/clean")
# Telephone lines, noise, rooms and other microphones over the same speech; people three times as often.
varied=("data.train=[$speech/train,$speech/real/stamps/train,$prompts,$prompts,$prompts]"
  data.features_cache="$out/varied" data.features_cache_variants=1
  augmentation.speed_probability=0.4 augmentation.noise_probability=0.3 augmentation.reverb_probability=0.2
  augmentation.band_limit_probability=0.3 augmentation.equalizer_probability=0.2 "augmentation.gain_db=[-15,5]"
  augmentation.non_speech_probability=0.02)

stage() { # NAME OVERRIDES...: trains unless it is done, and goes on with what was begun
  local folder=$out/$1 resume=false
  shift
  [ -d "$folder/model" ] && return
  [ -n "$(ls -A "$folder/checkpoints" 2>/dev/null)" ] && resume=true
  tiny-audio train "${common[@]}" "$@" output_dir="$folder" training.resume=$resume
}

tiny-audio cache-features "${common[@]}" "${clean[@]}"
# 1. Projector and alignment head, the decoder resting: 17 minutes.
stage 1-align "${clean[@]}" peft.r=0 ctc.alone_share=1 training.max_steps=1600 training.learning_rate=2e-3 training.warmup_steps=30
# 2. The decoder's adapters join in: an hour on one core.
stage 2-read "${clean[@]}" init_from="$out/1-align/model" ctc.alone_share=0 training.max_steps=520 \
  training.learning_rate=5e-4 training.decoder_learning_rate=1e-3 training.warmup_steps=20 training.eval_steps=100
# 3. The same, heard through lines and rooms.
tiny-audio cache-features "${common[@]}" "${varied[@]}"
stage 3-vary "${varied[@]}" init_from="$out/2-read/model" ctc.alone_share=0 training.max_steps=300 \
  training.learning_rate=3e-4 training.decoder_learning_rate=6e-4 training.warmup_steps=20 training.eval_steps=100
# 4. and 5. Both once more, over all of it: words that were heard once are not yet known.
stage 4-align-more "${varied[@]}" init_from="$out/3-vary/model" ctc.alone_share=1 training.max_steps=2800 training.learning_rate=1.5e-3 \
  training.warmup_steps=30
stage 5-read-more "${varied[@]}" init_from="$out/4-align-more/model" ctc.alone_share=0 training.max_steps=640 \
  training.learning_rate=5e-4 training.decoder_learning_rate=8e-4 training.warmup_steps=20 training.eval_steps=150
# 6. A little of it, with people in every second clip.
stage 6-people "${varied[@]}" "data.train=[$speech/train*0.16,$speech/real/stamps/train,$prompts*10]" init_from="$out/5-read-more/model" \
  ctc.alone_share=0 training.max_steps=130 training.learning_rate=2e-4 training.decoder_learning_rate=4e-4 training.warmup_steps=10
# 7. The same with single words and short commands, which people say more often than books do.
words=("data.train=[$speech/train*0.1,$speech/words/train,$speech/real/stamps/train,$prompts*6]")
tiny-audio cache-features "${common[@]}" "${varied[@]}" "${words[@]}"
stage 7-words "${varied[@]}" "${words[@]}" init_from="$out/6-people/model" ctc.alone_share=0 training.max_steps=160 \
  training.learning_rate=2e-4 training.decoder_learning_rate=4e-4 training.warmup_steps=10
# 8. The longest reading, over sentences and words that none of these stages has heard, at rates as high as in the fifth.
more_data=("data.train=[$more/train,$more/words/train*0.5,$speech/real/stamps/train,$prompts*5]" data.features_cache="$out/more")
tiny-audio cache-features "${common[@]}" "${varied[@]}" "${more_data[@]}"
stage 8-read-new "${varied[@]}" "${more_data[@]}" init_from="$out/7-words/model" ctc.alone_share=0 training.max_steps=800 \
  training.learning_rate=4e-4 training.decoder_learning_rate=8e-4 training.warmup_steps=20 training.eval_steps=250
# 9. A little more of it at a quarter of the rates: what the eighth stage has just learned settles.
stage 9-settle "${varied[@]}" "${more_data[@]}" init_from="$out/8-read-new/model" ctc.alone_share=0 training.max_steps=160 \
  training.learning_rate=1e-4 training.decoder_learning_rate=2e-4 training.warmup_steps=10 training.eval_steps=1000
echo "the model: $out/9-settle/model"
