"""Compresses the shards of a model folder as Ray tasks: python at_scale_ray.py MODEL OUT

Needs `pip install ray`, `bigsmall` in the PATH of every node, and folders that all nodes see.
"""

import os
import subprocess
import sys

import ray


@ray.remote(num_cpus=2, max_retries=3)
def compress(source, target):
    # A file that exists is complete: a task that is run again costs nothing.
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        subprocess.run(["bigsmall", "compress", source, "-o", target, "--threads", "2"], check=True)
    return target


def main(model, out):
    os.makedirs(out, exist_ok=True)
    ray.init()
    tasks = []
    for folder, _, names in os.walk(model):
        for name in sorted(names):
            if name.endswith(".safetensors"):
                source = os.path.join(folder, name)
                target = os.path.join(out, os.path.relpath(source, model))
                target = target[: -len("safetensors")] + "bs"
                tasks.append(compress.remote(source, target))
    for target in ray.get(tasks):
        print(target)
    subprocess.run(["bigsmall", "index", out, "--original", model], check=True)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]))
