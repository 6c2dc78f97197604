#!/usr/bin/env bash
# Fetches Mesa's Vulkan driver for AMD GPUs from Debian's backports into FOLDER, without installing
# it: `gpu_isa` compiles kernels with it. Needs Debian 12 and its libLLVM. Usage: mesa.sh FOLDER
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
[ -f "$dir/radeon.json" ] && exit
apt=$dir/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
# The mirror that this machine uses.
mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head -n 1)
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] $mirror bookworm-backports main" >"$apt/backports.list"
options=(-qq -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache"
    -o Dir::Etc::SourceParts=- -o "Dir::Etc::SourceList=$apt/backports.list")
apt-get "${options[@]}" update
for package in mesa-vulkan-drivers libdrm-amdgpu1 libdrm2; do
    (cd "$apt" && apt-get "${options[@]}" download "$package/bookworm-backports" 2>/dev/null)
done
for file in "$apt"/*.deb; do dpkg -x "$file" "$dir"; done
rm -r "$apt"
library=$dir/usr/lib/x86_64-linux-gnu/libvulkan_radeon.so
printf '{"ICD": {"api_version": "1.4.305", "library_path": "%s"}, %s}\n' "$library" \
    '"file_format_version": "1.0.0"' >"$dir/radeon.json"
