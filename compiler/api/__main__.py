"""`python -m webgpu_compile` is `webgpu-compile`."""

from .compiler.cli import main

if __name__ == "__main__":
    main(prog_name="python -m webgpu_compile")
