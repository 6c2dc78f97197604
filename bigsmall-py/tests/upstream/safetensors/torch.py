from bigsmall_rs.torch import (  # noqa: F401
    _sharing,
    load,
    load_file,
    load_model,
    save,
    save_file,
    save_model,
)


def storage_ptr(tensor):
    return tensor.untyped_storage().data_ptr()


def storage_size(tensor):
    return tensor.untyped_storage().nbytes()


def _end_ptr(tensor):
    return tensor.data_ptr() + tensor.nbytes


_find_shared_tensors = _remove_duplicate_names = _is_complete = _sharing
