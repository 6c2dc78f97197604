"""A file system like a mounted bucket: `bucket.py ROOT MOUNT` shows the folder ROOT at MOUNT.

No hard links, no symbolic links, no rename with flags, no sync of a folder; with `NO_RENAME` in the
environment no rename at all. Needs fusepy, and libfuse 2.
"""

import errno
import os
import sys
import time

from fuse import FUSE, FuseOSError, Operations

ATTRIBUTES = "st_mode st_nlink st_size st_uid st_gid st_atime st_mtime st_ctime".split()


class Bucket(Operations):
    def __init__(self, root):
        self.root = root
        self.closed = {}

    def at(self, path):
        return self.root + path

    def getattr(self, path, fh=None):
        try:
            found = os.lstat(self.at(path))
        except OSError as error:
            raise FuseOSError(error.errno) from None
        return {name: getattr(found, name) for name in ATTRIBUTES}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self.at(path))]

    def mkdir(self, path, mode):
        os.mkdir(self.at(path), mode)

    def rmdir(self, path):
        os.rmdir(self.at(path))

    def unlink(self, path):
        # A close reaches a file system in user space late: a file that was open may seem so still.
        if "NO_RENAME" in os.environ and time.monotonic() < self.closed.get(path, 0) + 0.05:
            raise FuseOSError(errno.EBUSY)
        os.unlink(self.at(path))

    def rename(self, old, new):
        if "NO_RENAME" in os.environ:
            raise FuseOSError(errno.EOPNOTSUPP)
        os.rename(self.at(old), self.at(new))

    def link(self, target, source):
        raise FuseOSError(errno.EOPNOTSUPP)

    def symlink(self, target, source):
        raise FuseOSError(errno.EOPNOTSUPP)

    def create(self, path, mode, fi=None):
        return os.open(self.at(path), os.O_RDWR | os.O_CREAT, mode)

    def open(self, path, flags):
        return os.open(self.at(path), flags)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self.at(path), length)

    def chmod(self, path, mode):
        os.chmod(self.at(path), mode)

    def release(self, path, fh):
        os.close(fh)
        self.closed[path] = time.monotonic()

    def fsync(self, path, datasync, fh):
        os.fsync(fh)

    def fsyncdir(self, path, datasync, fh):
        raise FuseOSError(errno.EINVAL)


FUSE(Bucket(os.path.abspath(sys.argv[1])), sys.argv[2], foreground=True)
