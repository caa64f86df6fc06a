"""Reading checkpoints without trusting them, and writing safetensors shards.

A weight file comes from a stranger. Nothing here unpickles, imports, maps or
executes any of it: headers are parsed by hand into
:class:`~quantkit.types.TensorRecord`, and bytes are read by position.

    folder.py              which weight files a folder holds -> CheckpointIndex
    reading.py             bytes of one tensor -> torch.Tensor
    safetensors_header.py  header of one .safetensors -> records
    torch_pickle.py        one torch .bin -> records
    pickle_machine.py        its pickle, interpreted against an allow-list
    torch_globals.py         what the few allowed globals mean
    torch_zip.py             its zip, as positions of stored members
    layout.py              arithmetic of shapes and strides
    strict_json.py         JSON whose duplicate keys are errors
    stream.py              one read of a file for the digests and the conversion
    known.py               digests that an earlier run took of the same bytes
    fingerprint.py         digests of the tensors, whatever files they lie in
    shards.py              safetensors files laid out beforehand, written by position
    names.py               what may be a tensor's name, and how it is quoted
"""

from quantkit.checkpoint.folder import CheckpointIndex, Container, open_checkpoint
from quantkit.checkpoint.reading import read_tensor

__all__ = ["CheckpointIndex", "Container", "open_checkpoint", "read_tensor"]
