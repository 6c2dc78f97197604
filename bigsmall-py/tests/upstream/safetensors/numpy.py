from bigsmall_rs.numpy import load, load_file, save, save_file  # noqa: F401
