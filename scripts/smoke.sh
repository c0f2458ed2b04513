#!/usr/bin/env bash
# The whole path once, on the phantom, with budgets that prove wiring and nothing else. Argument: an empty folder.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
bin=.venv/bin here="$1"
# Nobody could paint with an autoencoder of twenty steps, so its health is not looked at.
health=(health.max_border_error=99 health.max_gradient_error=99 health.min_latent_std=0 health.max_latent_std=99)
tiny=(autoencoder.loop.steps=20 denoiser.loop.steps=20 denoiser.n_views=2 sampler.n_steps=4 size=32 "${health[@]}")

"$bin/python" scripts/phantom.py --out "$here/phantom" --n 40 --size 48
"$bin/segtrain" fit configs/tiny/segment.yaml data.labelled="$here/phantom" size=32 loop.steps=20 out="$here/judge"
"$bin/synth" fit configs/tiny/inpaint.yaml data.labelled="$here/phantom" out="$here/painter" "${tiny[@]}"
# --multi_gpu makes accelerate start two processes, without a GPU too; --cpu starts one, whatever number it is given.
ACCELERATE_USE_CPU=true "$bin/accelerate" launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
  --dynamo_backend no --main_process_port 0 -m synth.cli draw configs/draw.yaml generator="$here/painter" data.labelled="$here/phantom" n=12 shard_size=4 batch_size=4 out="$here/made"
"$bin/synth" audit "$here/made"
"$bin/synth" show "$here/made" --out "$here/made.png"
"$bin/segtrain" fit configs/tiny/segment.yaml data.labelled="$here/phantom" data.synthetic="$here/made" size=32 \
  loop.steps=20 out="$here/model"
"$bin/segtrain" predict "$here/model" images="$here/phantom" out="$here/masks"
"$bin/segtrain" compare configs/tiny/compare.yaml data.root="$here/phantom" out="$here/compare" size=32 n_labelled=8 \
  draws=1 synthetic.n=8 segment.loop.steps=10 inpaint.autoencoder.loop.steps=10 inpaint.denoiser.loop.steps=10 \
  inpaint.sampler.n_steps=4 "${health[@]/#/inpaint.}"

echo "[smoke] the other engines"
"$bin/synth" fit configs/shape.yaml data.labelled="$here/phantom" size=32 loop.steps=10 out="$here/shape"
"$bin/synth" fit configs/spectral.yaml data.labelled="$here/phantom" size=32 out="$here/spectral"
"$bin/synth" fit configs/tiny/translate.yaml data.labelled="$here/phantom" size=32 loop.steps=10 out="$here/translate"
"$bin/synth" fit configs/tiny/appearance.yaml data.labelled="$here/phantom" size=32 loop.steps=10 health.min_moved=-9 \
  out="$here/appearance"
"$bin/synth" fit configs/tiny/unpaired.yaml data.unlabelled="$here/phantom/images" data.masks="$here/phantom/masks" \
  size=32 loop.steps=10 out="$here/unpaired"
for engine in spectral translate appearance; do
  free=(); if [ "$engine" = translate ]; then free=(layout.grow_px=2); fi
  "$bin/synth" draw configs/draw.yaml generator="$here/$engine" shape="$here/shape" data.labelled="$here/phantom" n=4 \
    shard_size=4 batch_size=4 gates.plausibility=0 out="$here/made-$engine" "${free[@]}"
  "$bin/synth" audit "$here/made-$engine"
done
"$bin/synth" translate "$here/appearance" data.unlabelled="$here/phantom/images" out="$here/more"
"$bin/synth" label "$here/unpaired" data.unlabelled="$here/phantom/images" out="$here/labels"
"$bin/segtrain" fit configs/tiny/segment.yaml method=annotation_efficient data.unlabelled="$here/phantom/images" \
  data.stored="$here/labels" size=32 loop.steps=10 out="$here/zero"
"$bin/segtrain" predict "$here/zero" --align "$here/phantom/images" images="$here/phantom/images" out="$here/aligned"
test -s "$here/compare/report.html" && test -s "$here/compare/report.json"
echo "[smoke] passed"
