#!/usr/bin/env bash
# From the speech that make_speech.py makes to a model like models/small: two runs of less than two hours each on two
# cores, with bf16. The model is OUT/2/model.
#
#     bash recipes/small/train.sh [SPEECH] [OUT] [KEY=VALUE ...]
#
# Stopped or killed, the same command goes on where it stood. training.bf16=true is for processors with avx512_bf16 or
# amx_bf16 (see lscpu).
set -euo pipefail
speech=${1:-speech} out=${2:-outputs/small} asked=("${@:3}")
real=$speech/real
# Two thirds of what is heard are people; the corpus has strings of digits.
train=$speech/train,$speech/words/train,$real/queen/train*2,$real/sky/train*2,$real/prompts/train*8,$real/stamps/train,corpus:train*0.15

run() { # FOLDER KEY=VALUE ...
  local folder=$1 resume=false
  shift
  [ -e "$folder/model/config.json" ] && return
  [ -n "$(ls -A "$folder/checkpoints" 2>/dev/null)" ] && resume=true
  tiny-audio train +experiments=small "data.train=[$train]" data.eval="$real/queen/test" data.test="$real/prompts/test" \
    data.max_seconds=25 \
    augmentation.noise_probability=0.3 augmentation.reverb_probability=0.2 augmentation.band_limit_probability=0.3 \
    augmentation.equalizer_probability=0.2 "augmentation.gain_db=[-15,5]" augmentation.non_speech_probability=0.02 \
    training.warmup_steps=30 training.batch_seconds=45 training.num_workers=0 training.eval_samples=100 \
    training.save_steps=50 training.tracker=none output_dir="$folder" training.resume=$resume "$@" ${asked[@]+"${asked[@]}"}
}

# In the first steps of both the decoder rests, and the two CTC losses teach encoder and projector to listen.
run "$out/1" training.max_steps=2200 ctc.alone_share=0.55 encoder_lora.lora_alpha=64 \
  training.learning_rate=2e-3 training.decoder_learning_rate=1.5e-3 \
  augmentation.speed_probability=0.4 augmentation.frequency_warp_probability=0.3

# Of what the encoder's adapters learned, half is about the voices that they heard: for others they are better at half
# their strength (docs/LOG.md). From there, over more changed voices and at lower rates.
if [ ! -e "$out/half" ]; then
  rm -rf "$out/half.part"
  cp -R "$out/1/model" "$out/half.part"
  python3 - "$out/half.part/config.json" <<'PYTHON'
import json, sys
with open(sys.argv[1], "r+", encoding="utf-8") as file:
    config = json.load(file)
    config["encoder_lora"]["lora_alpha"] /= 2
    file.seek(0)
    json.dump(config, file)
    file.truncate()
PYTHON
  mv "$out/half.part" "$out/half"
fi
run "$out/2" init_from="$out/half" seed=1 training.max_steps=2350 ctc.alone_share=0.42 \
  training.learning_rate=5e-4 training.encoder_learning_rate=2e-4 training.decoder_learning_rate=1e-3 \
  training.min_learning_rate_ratio=0.02 \
  "augmentation.speed=[0.85,1.15]" augmentation.speed_probability=0.5 \
  "augmentation.frequency_warp=[0.88,1.12]" augmentation.frequency_warp_probability=0.5
