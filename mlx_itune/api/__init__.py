"""What the commands do, as functions: `import mlx_itune as mi` names them, the command line calls
them. Names and paths are texts or paths, settings keywords that are called as the flags are; what
comes back is a record with the keys of `--json`. Nothing is printed, no process ended.
"""
