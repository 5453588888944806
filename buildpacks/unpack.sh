#!/usr/bin/env bash
# Unpacks the root of an image, /out/rootfs.tar, into /app, where it becomes a slug. Runs inside the sandbox.
set -euo pipefail
export LC_ALL=C
umask 022
root=/app/.landfall/root
mkdir -p "$root"
# What a running system fills by itself is not kept, and there are no devices in a slug.
tar --extract --file /out/rootfs.tar --directory "$root" --no-same-owner --no-same-permissions --delay-directory-restore \
  --exclude='./dev/*' --exclude='dev/*' --exclude='./proc/*' --exclude='proc/*' --exclude='./sys/*' --exclude='sys/*'
rm -f /out/rootfs.tar
chmod -R u+rwX,go+rX "$root"

# A link from the root on leads to the same place when it starts where it lies; in a slug, only that is possible.
find "$root" -type l -lname '/*' -printf '%P\0%l\0' | while IFS= read -r -d '' path && IFS= read -r -d '' target; do
  up=${path//[!\/]/}
  target=$(realpath --canonicalize-missing --no-symlinks -- "$target")
  ln -sfn -- "${up//\//../}.$target" "$root/$path"
done

# Places that every process finds something of its own at are no links.
for place in dev proc sys tmp etc .landfall; do
  [ ! -L "$root/$place" ] || rm -f "$root/$place"
  mkdir -p "$root/$place"
done
for file in hosts resolv.conf; do
  rm -rf "$root/etc/$file"
  : >"$root/etc/$file"
done
